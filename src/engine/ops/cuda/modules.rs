//! Loads the kernels that `build.rs` has compiled: for each source file machine code for several architectures and PTX, of
//! which the driver takes what fits the device.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Deref;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaModule, CudaStream, LaunchArgs};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr};
use candle_core::{Result, bail};

/// The kernels of a source file.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    name: &'static str,
    image: &'static [u8],
}

impl Kernels {
    /// `image`: what nvcc has made of `kernels/NAME.cu`. Empty where the program is for no architecture that runs them.
    pub(super) const fn new(name: &'static str, image: &'static [u8]) -> Self {
        Self { name, image }
    }

    /// Whether the program has them.
    pub(super) fn are_built(&self) -> bool {
        !self.image.is_empty()
    }

    /// A kernel, by the name of its entry, on the device's stream.
    ///
    /// # Errors
    /// When the driver does not load it.
    pub(super) fn get(&self, device: &CudaDevice, entry: &str) -> Result<Function> {
        let module = MODULES.with_borrow_mut(|modules| match modules.entry((device.id(), self.name)) {
            Entry::Occupied(known) => Ok(known.get().clone()),
            Entry::Vacant(place) => self.load(device).map(|module| place.insert(module).clone()),
        })?;
        Ok(Function { function: module.load_function(entry).w()?, stream: device.cuda_stream() })
    }

    fn load(&self, device: &CudaDevice) -> Result<Arc<CudaModule>> {
        if !self.are_built() {
            bail!("this program was built without the kernels of {}.cu", self.name);
        }
        // candle's own loader takes text only, and this is binary.
        device.cuda_stream().context().load_module(Ptx::from_binary(self.image.to_vec())).w()
    }
}

/// A loaded kernel.
pub(super) struct Function {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Function {
    pub(super) fn builder(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }
}

impl Deref for Function {
    type Target = CudaFunction;

    fn deref(&self) -> &CudaFunction {
        &self.function
    }
}

thread_local! {
    /// Of this thread's devices. Each keeps its context alive.
    static MODULES: RefCell<HashMap<(DeviceId, &'static str), Arc<CudaModule>>> = RefCell::default();
}

/// Unloads what this thread has loaded onto a device.
pub(super) fn close(device: &CudaDevice) {
    MODULES.with_borrow_mut(|modules| modules.retain(|(id, _), _| *id != device.id()));
}
