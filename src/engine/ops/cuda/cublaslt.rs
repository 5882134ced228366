//! cublasLt by its C interface: GEMMs with an epilogue, whose result may be part of a wider matrix. Knows addresses and
//! shapes, but no tensors.
//!
//! Determinism: the algorithm of a GEMM is the first that the library proposes for its [`Key`]. It proposes the same for the
//! same key, in this process and the next, on the same model of device with the same version of the library. An algorithm
//! computes the same bits each time: its workspace belongs to one stream, and where the inner dimension is split, the partial
//! sums are held in f32 and added in order. GEMMs are not batch-invariant: other numbers of rows have other keys. So
//! `--deterministic` runs each image by itself.

#![expect(unsafe_code, reason = "the library is called through its C interface")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::cuda_backend::cudarc::driver::sys::CUdeviceptr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, SyncOnDrop};
use candle_core::{Error, Result, bail};
use half::bf16;
use sys::cublasLtMatmulDescAttributes_t as Attribute;
use sys::cublasLtMatmulPreferenceAttributes_t as Preference;

/// Workspace of an algorithm, as NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Maximum algorithms that are cached for one stream; a full cache is cleared. A step has about a dozen for each number of rows.
const PLANS_MAX: usize = 1024;

/// The largest alignment of an address, in bytes, that the library distinguishes.
const ALIGNMENT_MAX: u32 = 256;

/// The numbers of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Numbers {
    Bf16,
    F32,
    E4m3,
}

impl Numbers {
    fn in_cuda(self) -> sys::cudaDataType {
        match self {
            Self::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Self::F32 => sys::cudaDataType::CUDA_R_32F,
            Self::E4m3 => sys::cudaDataType::CUDA_R_8F_E4M3,
        }
    }
}

/// Types of numbers that GEMMs take.
pub(super) trait Number {
    const KIND: Numbers;
}

impl Number for bf16 {
    const KIND: Numbers = Numbers::Bf16;
}

impl Number for f32 {
    const KIND: Numbers = Numbers::F32;
}

/// Codes of e4m3.
impl Number for u8 {
    const KIND: Numbers = Numbers::E4m3;
}

/// The rows of a matrix, with width and stride in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Extent {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

impl Extent {
    /// Whether the rows do not overlap, and fit in so many numbers.
    fn fits(&self, numbers: usize) -> bool {
        self.rows == 0 || (self.width <= self.stride && (self.rows - 1) * self.stride + self.width <= numbers)
    }
}

/// A matrix in the device's memory, borrowed for a call.
pub(super) struct Operand<'a> {
    address: CUdeviceptr,
    numbers: Numbers,
    extent: Extent,
    _use: SyncOnDrop<'a>,
}

impl<'a> Operand<'a> {
    /// A matrix that is read.
    pub(super) fn read<T: Number>(values: CudaView<'a, T>, extent: Extent, stream: &'a CudaStream) -> Result<Self> {
        if !extent.fits(values.len()) {
            bail!("matrix product: {extent:?} is larger than its memory, or its rows overlap");
        }
        let (address, guard) = values.view_ptr(stream);
        Ok(Self { address, numbers: T::KIND, extent, _use: guard })
    }

    /// A matrix that is written.
    pub(super) fn written<T: Number>(
        values: CudaViewMut<'a, T>,
        extent: Extent,
        stream: &'a CudaStream,
    ) -> Result<Self> {
        if !extent.fits(values.len()) {
            bail!("matrix product: {extent:?} is larger than its memory, or its rows overlap");
        }
        let (address, guard) = values.view_ptr_mut(stream);
        Ok(Self { address, numbers: T::KIND, extent, _use: guard })
    }

    /// The alignment of its address, in bytes.
    fn alignment(&self) -> u32 {
        1 << self.address.trailing_zeros().min(ALIGNMENT_MAX.trailing_zeros())
    }

    /// The library's view, column-major, in which a row is a column.
    fn layout(&self) -> Result<Owned<sys::cublasLtMatrixLayout_t>> {
        let Extent { rows, width, stride } = self.extent;
        let handle = result::create_matrix_layout(self.numbers.in_cuda(), width as u64, rows as u64, stride as i64);
        Ok(Owned { handle: handle.map_err(library_error)?, destroy: result::destroy_matrix_layout })
    }
}

/// `out = activation(x weightᵀ + bias)`, computed in f32 and rounded once.
pub(super) struct Multiplication<'a> {
    /// `[rows, inner]`
    pub(super) x: Operand<'a>,
    /// `[columns, inner]`
    pub(super) weight: Operand<'a>,
    /// Of the rows of `x`, `[1, rows]`, and of `weight`, `[1, columns]`, f32; for e4m3 on Hopper only.
    pub(super) scales: Option<[Operand<'a>; 2]>,
    /// `[1, columns]`, in the precision of `out`.
    pub(super) bias: Option<Operand<'a>>,
    /// GELU's tanh approximation, which the library calls GELU (pytorch/pytorch#104061; within 6e-6 of torch's in f32 by
    /// sgl-project/sglang#28166).
    pub(super) is_activated: bool,
    /// `[rows, columns]`
    pub(super) out: Operand<'a>,
}

/// All that the choice of an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// Of `x`, `weight` and `out`, as the next two.
    extents: [Extent; 3],
    numbers: [Numbers; 3],
    alignments: [u32; 3],
    epilogue: sys::cublasLtEpilogue_t,
    has_scales: bool,
}

impl Multiplication<'_> {
    fn key(&self) -> Result<Key> {
        let operands = [&self.x, &self.weight, &self.out];
        let [x, weight, out] = operands.map(|operand| operand.extent);
        let is_whole = x.width == weight.width && out.rows == x.rows && out.width == weight.rows;
        let is_row = |row: &Operand, width| row.extent.rows == 1 && row.extent.width == width;
        let fit_scales = match (&self.scales, self.x.numbers) {
            (Some([rows, columns]), Numbers::E4m3) => is_row(rows, out.rows) && is_row(columns, out.width),
            (None, _) => true,
            _ => false,
        };
        if !is_whole || !fit_scales || !self.bias.as_ref().is_none_or(|bias| is_row(bias, out.width)) {
            bail!(
                "matrix product: {x:?} by {weight:?} with {:?} is not {out:?}",
                self.bias.as_ref().map(|bias| bias.extent)
            );
        }
        let [x_alignment, weight_alignment, out_alignment] = operands.map(Operand::alignment);
        // The library has no attribute for the bias's alignment, and an epilogue may read it as wide as it writes.
        let out_alignment = self.bias.as_ref().map_or(out_alignment, |bias| bias.alignment().min(out_alignment));
        Ok(Key {
            extents: [x, weight, out],
            numbers: operands.map(|operand| operand.numbers),
            alignments: [x_alignment, weight_alignment, out_alignment],
            epilogue: match (&self.bias, self.is_activated) {
                (None, false) => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
                (Some(_), false) => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
                (None, true) => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU,
                (Some(_), true) => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_BIAS,
            },
            has_scales: self.scales.is_some(),
        })
    }
}

impl Multiplication<'_> {
    /// Sets the addresses of bias and scales. In column-major order `weight` is on the left.
    fn point(&self, operation: &Owned<sys::cublasLtMatmulDesc_t>) -> Result<()> {
        if let Some(bias) = &self.bias {
            set_operation(operation, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.address)?;
        }
        if let Some([rows, columns]) = &self.scales {
            set_operation(operation, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &columns.address)?;
            set_operation(operation, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &rows.address)?;
        }
        Ok(())
    }
}

/// A handle of the library, destroyed on drop.
struct Owned<Handle: Copy> {
    handle: Handle,
    destroy: unsafe fn(Handle) -> std::result::Result<(), result::CublasError>,
}

impl<Handle: Copy> Drop for Owned<Handle> {
    fn drop(&mut self) {
        // SAFETY: the function belongs to the handle, which nothing else destroys. An error here has no remedy.
        let _ = unsafe { (self.destroy)(self.handle) };
    }
}

/// The descriptions of a GEMM, created once, and its algorithm.
struct Plan {
    operation: Owned<sys::cublasLtMatmulDesc_t>,
    x: Owned<sys::cublasLtMatrixLayout_t>,
    weight: Owned<sys::cublasLtMatrixLayout_t>,
    out: Owned<sys::cublasLtMatrixLayout_t>,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    /// Asks the library. `None`: it has no algorithm.
    fn new(library: sys::cublasLtHandle_t, product: &Multiplication, key: &Key) -> Result<Option<Self>> {
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let operation = Owned {
            handle: result::create_matmul_desc(compute, scale).map_err(library_error)?,
            destroy: result::destroy_matmul_desc,
        };
        // In column-major order all is transposed: outᵀ = weight xᵀ, with the weight stored as its transpose.
        set_operation(&operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &cublasOperation_t::CUBLAS_OP_T)?;
        set_operation(&operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &cublasOperation_t::CUBLAS_OP_N)?;
        set_operation(&operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &key.epilogue)?;
        if product.scales.is_some() {
            let by_rows = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
            set_operation(&operation, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &by_rows)?;
            set_operation(&operation, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &by_rows)?;
            // Sums stay in the tensor cores' accumulators, of fewer bits than f32, as torch does for such scales.
            set_operation(&operation, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &1_i8)?;
        }
        // Without the bias's address the library may reject the epilogue.
        product.point(&operation)?;
        let (x, weight, out) = (product.x.layout()?, product.weight.layout()?, product.out.layout()?);
        let preferences = Owned {
            handle: result::create_matmul_pref().map_err(library_error)?,
            destroy: result::destroy_matmul_pref,
        };
        let [x_alignment, weight_alignment, out_alignment] = &key.alignments;
        set_preference(&preferences, Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE_BYTES as u64))?;
        set_preference(&preferences, Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight_alignment)?;
        set_preference(&preferences, Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x_alignment)?;
        set_preference(&preferences, Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_alignment)?;
        set_preference(&preferences, Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_alignment)?;
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        set_preference(&preferences, Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &(reduction as u32))?;
        // SAFETY: all of these have just been made.
        let proposal = unsafe {
            result::get_matmul_algo_heuristic(
                library,
                operation.handle,
                weight.handle,
                x.handle,
                out.handle,
                out.handle,
                preferences.handle,
            )
        };
        match proposal {
            Ok(proposal) => Ok(Some(Self { operation, x, weight, out, algorithm: proposal.algo })),
            Err(result::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => {
                tracing::warn!(product = ?key, "cublasLt has no algorithm for a matrix product, which is composed of other operations instead");
                Ok(None)
            }
            Err(error) => Err(library_error(error)),
        }
    }
}

fn set_operation<T>(operation: &Owned<sys::cublasLtMatmulDesc_t>, name: Attribute, value: &T) -> Result<()> {
    // SAFETY: the description lives, and the library reads as many bytes as the value has.
    unsafe { result::set_matmul_desc_attribute(operation.handle, name, (&raw const *value).cast(), size_of::<T>()) }
        .map_err(library_error)
}

fn set_preference<T>(preferences: &Owned<sys::cublasLtMatmulPreference_t>, name: Preference, value: &T) -> Result<()> {
    // SAFETY: the preferences live, and the library reads as many bytes as the value has.
    unsafe { result::set_matmul_pref_attribute(preferences.handle, name, (&raw const *value).cast(), size_of::<T>()) }
        .map_err(library_error)
}

/// The library on one stream.
struct Library {
    handle: Owned<sys::cublasLtHandle_t>,
    workspace: CudaSlice<u8>,
    /// `None`: the library has no algorithm.
    plans: HashMap<Key, Option<Plan>>,
    stream: Arc<CudaStream>,
}

impl Library {
    fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        stream.context().bind_to_thread().w()?;
        let handle = result::create_handle().map_err(library_error)?;
        Ok(Self {
            handle: Owned { handle, destroy: result::destroy_handle },
            // SAFETY: an algorithm reads only what it has written there.
            workspace: unsafe { stream.alloc(WORKSPACE_BYTES) }.w()?,
            plans: HashMap::new(),
            stream: stream.clone(),
        })
    }

    fn multiply(&mut self, product: &Multiplication) -> Result<bool> {
        let key = product.key()?;
        if key.extents.iter().any(|extent| extent.rows == 0 || extent.width == 0) {
            bail!("matrix product: an operand of {:?} is empty", key.extents);
        }
        self.stream.context().bind_to_thread().w()?;
        if self.plans.len() >= PLANS_MAX && !self.plans.contains_key(&key) {
            self.plans.clear();
        }
        let plan = match self.plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::new(self.handle.handle, product, &key)?),
        };
        let Some(plan) = plan else { return Ok(false) };
        product.point(&plan.operation)?;
        let (workspace, _use) = self.workspace.device_ptr(&self.stream);
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: the descriptions are those of the operands, which are inside their memory and borrowed until this is
        // enqueued; the stream orders all other work before or after it.
        unsafe {
            result::matmul(
                self.handle.handle,
                plan.operation.handle,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                product.weight.address as *const c_void,
                plan.weight.handle,
                product.x.address as *const c_void,
                plan.x.handle,
                product.out.address as *const c_void,
                plan.out.handle,
                product.out.address as *mut c_void,
                plan.out.handle,
                &raw const plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(library_error)?;
        Ok(true)
    }
}

thread_local! {
    /// By device and stream: as many as this thread has devices.
    static LIBRARIES: RefCell<HashMap<(usize, usize), Library>> = RefCell::default();
}

/// Closes what this thread holds on a device.
pub(super) fn close(stream: &Arc<CudaStream>) {
    LIBRARIES.with_borrow_mut(|libraries| libraries.remove(&(stream.context().ordinal(), stream.cu_stream() as usize)));
}

/// Enqueues a GEMM. `false`: the library has no algorithm, and nothing was enqueued. That is the case for no GEMM of FLUX; should
/// another version of the library lack one, candle's own matrix product, which is slower, still gives an image.
///
/// # Errors
/// When shapes do not fit or are empty, or the library fails.
pub(super) fn multiply(stream: &Arc<CudaStream>, product: &Multiplication) -> Result<bool> {
    LIBRARIES.with_borrow_mut(|libraries| {
        match libraries.entry((stream.context().ordinal(), stream.cu_stream() as usize)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Library::new(stream)?),
        }
        .multiply(product)
    })
}

/// Keeps the status in the message, by which "out of memory" is recognized.
fn library_error(error: result::CublasError) -> Error {
    Error::msg(format!("cublasLt: {error}"))
}
