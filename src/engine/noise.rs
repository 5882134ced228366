//! A seed's noise, with the bits of torch: `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`.
//!
//! torch fills the tensor with uniform numbers from MT19937 and transforms them, sixteen at a time, to normal ones by
//! Box–Muller (ATen `normal_fill`). On processors with AVX2 its logarithm, sine and cosine are the single precision
//! approximations of the Cephes library. They are repeated here, operation by operation, because another logarithm would
//! differ in the last bit.

use rand_mt::Mt;

/// Numbers transformed together; the first half become cosines, the second half sines.
const BLOCK: usize = 16;

/// `count` normal numbers from `seed`, after skipping the first `skip`. Both must be multiples of sixteen: every FLUX
/// latent is, and torch handles other lengths differently.
///
/// Like torch's CPU generator, uses the low 32 bits of the seed.
pub(crate) fn standard_normal(seed: u64, skip: usize, count: usize) -> Vec<f32> {
    assert!(skip.is_multiple_of(BLOCK) && count.is_multiple_of(BLOCK), "noise comes in blocks of {BLOCK}");
    let mut generator = Mt::new((seed & 0xffff_ffff) as u32);
    for _ in 0..skip {
        generator.next_u32();
    }
    let mut values: Vec<f32> = (0..count).map(|_| uniform(generator.next_u32())).collect();
    for block in values.chunks_exact_mut(BLOCK) {
        box_muller(block);
    }
    values
}

/// A number in [0, 1) from the low 24 bits, the precision of an f32.
fn uniform(bits: u32) -> f32 {
    (bits & 0x00ff_ffff) as f32 / 16_777_216.0
}

fn box_muller(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * natural_logarithm(1.0 - *a)).sqrt();
        let (sine, cosine) = sine_and_cosine(std::f32::consts::TAU * *b);
        *a = radius * cosine;
        *b = radius * sine;
    }
}

/// Cephes `logf` for positive normal numbers: x = 2^e m with m in [sqrt(1/2), sqrt(2)), a polynomial in m - 1.
fn natural_logarithm(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as f32 - 126.0;
    let mut mantissa = f32::from_bits((bits & 0x007f_ffff) | 0.5_f32.to_bits());
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        mantissa += mantissa;
    }
    let m = mantissa - 1.0;
    let square = m * m;
    let mut y = COEFFICIENTS[0];
    for coefficient in &COEFFICIENTS[1..] {
        y = fused(y, m, *coefficient);
    }
    y = fused(y * m, square, exponent * -2.121_944_4e-4);
    y = fused(square, -0.5, y);
    fused(exponent, 0.693_359_4, m + y)
}

/// Cephes `sinf` and `cosf` for non-negative numbers: reduced by multiples of a quarter turn of pi / 2.
fn sine_and_cosine(x: f32) -> (f32, f32) {
    let octant = ((x * (4.0 / std::f32::consts::PI)) as i32 + 1) & !1;
    let turns = octant as f32;
    let mut r = fused(turns, -0.785_156_25, x);
    r = fused(turns, -2.418_756_5e-4, r);
    r = fused(turns, -3.774_895e-8, r);
    let square = r * r;
    let mut cosine = fused(2.443_315_7e-5, square, -1.388_731_6e-3);
    cosine = fused(cosine, square, 4.166_664_6e-2);
    cosine = fused(cosine * square, square, -0.5 * square) + 1.0;
    let mut sine = fused(-1.951_529_6e-4, square, 8.332_161e-3);
    sine = fused(sine, square, -1.666_665_5e-1);
    sine = fused(sine * square, r, r);
    let (sine, cosine) = if octant & 2 == 0 { (sine, cosine) } else { (cosine, sine) };
    let sine = if octant & 4 == 0 { sine } else { -sine };
    let cosine = if (octant - 2) & 4 == 0 { -cosine } else { cosine };
    (sine, cosine)
}

/// `a × b + c`, rounded once: torch's own build fuses them.
fn fused(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}
