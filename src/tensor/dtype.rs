//! Element types: their sizes, and the four floating-point formats that arithmetic is done on.
//!
//! Everything is computed in f64 and rounded once, to nearest even, when it is stored.

use std::fmt;

use fearless_simd::{Level, dispatch};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::Deserialize;
use serde::de::IntoDeserializer;

/// The element type of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// One that the safetensors format defines.
    Known(safetensors::Dtype),
    /// Any other name. Such a tensor can be copied, and nothing else.
    Unknown(String),
}

/// A floating-point format that weights can be folded from and stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Float {
    /// bfloat16: 8 bits of precision.
    Bf16,
    /// IEEE half precision: 11 bits of precision.
    F16,
    /// IEEE single precision: 24 bits of precision.
    F32,
    /// IEEE double precision: 53 bits of precision.
    F64,
}

impl Dtype {
    /// The type a header names.
    pub fn from_name(name: &str) -> Dtype {
        let parsed: Result<_, serde::de::value::Error> =
            safetensors::Dtype::deserialize(name.into_deserializer());
        parsed.map_or_else(|_| Dtype::Unknown(name.to_owned()), Dtype::Known)
    }

    /// Bits per element, where known.
    pub fn bits(&self) -> Option<usize> {
        match self {
            Dtype::Known(dtype) => Some(dtype.bitsize()),
            Dtype::Unknown(_) => None,
        }
    }

    /// Whether it is a type of integers.
    pub fn is_integer(&self) -> bool {
        use safetensors::Dtype::{I8, I16, I32, I64, U8, U16, U32, U64};
        matches!(
            self,
            Dtype::Known(I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
        )
    }

    /// The floating-point format, if arithmetic is defined for this type.
    pub fn float(&self) -> Option<Float> {
        match self {
            Dtype::Known(safetensors::Dtype::F64) => Some(Float::F64),
            Dtype::Known(safetensors::Dtype::F32) => Some(Float::F32),
            Dtype::Known(safetensors::Dtype::F16) => Some(Float::F16),
            Dtype::Known(safetensors::Dtype::BF16) => Some(Float::Bf16),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dtype::Known(dtype) => write!(f, "{dtype}"),
            Dtype::Unknown(name) => f.write_str(&super::error::plain(name)),
        }
    }
}

impl From<Float> for Dtype {
    fn from(float: Float) -> Dtype {
        Dtype::Known(match float {
            Float::F64 => safetensors::Dtype::F64,
            Float::F32 => safetensors::Dtype::F32,
            Float::F16 => safetensors::Dtype::F16,
            Float::Bf16 => safetensors::Dtype::BF16,
        })
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Float::F64 => "f64",
            Float::F32 => "f32",
            Float::F16 => "f16",
            Float::Bf16 => "bf16",
        })
    }
}

impl Float {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Float::F64 => 8,
            Float::F32 => 4,
            Float::F16 | Float::Bf16 => 2,
        }
    }

    /// The unit roundoff `u`: rounding a normal number `x` moves it by at most `u·|x|`.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Float::F64 => 2f64.powi(-53),
            Float::F32 => 2f64.powi(-24),
            Float::F16 => 2f64.powi(-11),
            Float::Bf16 => 2f64.powi(-8),
        }
    }

    /// The largest finite value.
    pub fn largest(self) -> f64 {
        match self {
            Float::F64 => f64::MAX,
            Float::F32 => f64::from(f32::MAX),
            Float::F16 => f16::MAX.to_f64(),
            Float::Bf16 => bf16::MAX.to_f64(),
        }
    }

    /// Half the distance between subnormal numbers: rounding a subnormal moves it by at most this.
    pub fn half_subnormal(self) -> f64 {
        match self {
            Float::F64 => f64::from_bits(1),
            Float::F32 => 2f64.powi(-150),
            Float::F16 => 2f64.powi(-25),
            Float::Bf16 => 2f64.powi(-134),
        }
    }

    /// The narrowest format that holds every value of both.
    pub fn wider(self, other: Float) -> Float {
        match (self, other) {
            (a, b) if a == b => a,
            (Float::F16, Float::Bf16) | (Float::Bf16, Float::F16) => Float::F32,
            (a, b) => a.max(b),
        }
    }

    /// Decodes little-endian bytes; `out` decides how many.
    pub fn decode(self, bytes: &[u8], out: &mut [f64]) {
        match self {
            Float::F64 => decode(bytes, out, f64::from_le_bytes),
            Float::F32 => dispatch!(Level::new(), _simd => {
                decode(bytes, out, |b| f64::from(f32::from_le_bytes(b)));
            }),
            Float::F16 => decode_f16(bytes, out),
            Float::Bf16 => decode(bytes, out, |b| {
                f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
            }),
        }
    }

    /// Rounds once, to nearest even, and writes little-endian bytes to `out`, which has room for exactly that many.
    /// Returns whether every stored value is finite.
    pub fn encode(self, values: &[f64], out: &mut [u8]) -> bool {
        match self {
            Float::F64 => encode(values, out, |x| (x.to_le_bytes(), x.is_finite())),
            Float::F32 => dispatch!(Level::new(), _simd => encode_f32(values, out)),
            Float::F16 => encode_half(values, out, f16::INFINITY),
            Float::Bf16 => encode_half(values, out, bf16::INFINITY),
        }
    }

    /// Decodes little-endian bytes, each number times `scale`; `out` decides how many. A product of −0 becomes +0, as where it is added to zeros.
    pub fn decode_scaled(self, bytes: &[u8], scale: f64, out: &mut [f64]) {
        match self {
            // In one pass: folding a file of plain convs does little else.
            Float::F32 => dispatch!(Level::new(), _simd => {
                decode(bytes, out, |b| 0.0 + scale * f64::from(f32::from_le_bytes(b)));
            }),
            _ => {
                self.decode(bytes, out);
                dispatch!(Level::new(), _simd => out.iter_mut().for_each(|x| *x = 0.0 + scale * *x));
            }
        }
    }

    /// Stores numbers as [`encode`](Self::encode) does. Returns how many are not zero and become zero, or none where one is not finite.
    pub fn encode_counting(self, values: &[f64], out: &mut [u8]) -> Option<usize> {
        if self == Float::F32 && dispatch!(Level::new(), _simd => encode_ordinary(values, out)) {
            return Some(0);
        }
        self.encode(values, out).then(|| self.vanishing(values))
    }

    /// How many numbers are not zero and become zero when they are stored.
    pub fn vanishing(self, values: &[f64]) -> usize {
        if self == Float::F64 {
            return 0;
        }
        // Half of the smallest number is a tie, which rounds to the even zero.
        let most = self.half_subnormal();
        dispatch!(Level::new(), _simd => count_below(most, values))
    }

    /// The value that [`encode`](Self::encode) would store.
    pub fn round(self, x: f64) -> f64 {
        match self {
            Float::F64 => x,
            Float::F32 => f64::from(x as f32),
            Float::F16 => f16::from_f32(round_to_odd(x)).to_f64(),
            Float::Bf16 => bf16::from_f32(round_to_odd(x)).to_f64(),
        }
    }
}

#[inline(always)]
fn decode<const N: usize>(bytes: &[u8], out: &mut [f64], f: impl Fn([u8; N]) -> f64) {
    let (chunks, _) = bytes.as_chunks::<N>();
    out.iter_mut().zip(chunks).for_each(|(x, b)| *x = f(*b));
}

fn encode<const N: usize>(
    values: &[f64],
    out: &mut [u8],
    f: impl Fn(f64) -> ([u8; N], bool),
) -> bool {
    debug_assert_eq!(out.len(), values.len() * N);
    let (chunks, _) = out.as_chunks_mut::<N>();
    let mut finite = true;
    for (x, b) in values.iter().zip(chunks) {
        let (bytes, fine) = f(*x);
        *b = bytes;
        finite &= fine;
    }
    finite
}

/// The same for f32, without a branch: in the widest vectors that the CPU has.
#[inline(always)]
fn encode_f32(values: &[f64], out: &mut [u8]) -> bool {
    debug_assert_eq!(out.len(), values.len() * 4);
    // What is not finite has every bit of the exponent set.
    const EXPONENT: u32 = f32::INFINITY.to_bits();
    let (chunks, _) = out.as_chunks_mut::<4>();
    let mut beyond = 0;
    for (x, b) in values.iter().zip(chunks) {
        let bits = (*x as f32).to_bits();
        *b = bits.to_le_bytes();
        beyond |= u32::from(bits & EXPONENT == EXPONENT);
    }
    beyond == 0
}

/// Stores numbers as f32; whether each of them is finite and none is zero, which one look at all bits tells.
#[inline(always)]
fn encode_ordinary(values: &[f64], out: &mut [u8]) -> bool {
    debug_assert_eq!(out.len(), values.len() * 4);
    // Without its sign and less one, a zero has all bits set, and what is not finite is no less than this.
    const LEAST: u32 = (f32::INFINITY.to_bits() << 1) - 1;
    let (chunks, _) = out.as_chunks_mut::<4>();
    let mut largest = 0;
    for (x, b) in values.iter().zip(chunks) {
        let bits = (*x as f32).to_bits();
        *b = bits.to_le_bytes();
        largest = (bits << 1).wrapping_sub(1).max(largest);
    }
    largest < LEAST
}

/// How many half numbers are converted at once: for slices the `half` crate uses the CPU's instructions, and one by one f16
/// takes five times as long.
const AT_ONCE: usize = 64;

fn decode_f16(bytes: &[u8], out: &mut [f64]) {
    let (chunks, _) = bytes.as_chunks::<2>();
    let (mut halves, mut singles) = ([f16::ZERO; AT_ONCE], [0f32; AT_ONCE]);
    for (out, bytes) in out.chunks_mut(AT_ONCE).zip(chunks.chunks(AT_ONCE)) {
        let (halves, singles) = (&mut halves[..out.len()], &mut singles[..out.len()]);
        for (half, b) in halves.iter_mut().zip(bytes) {
            *half = f16::from_le_bytes(*b);
        }
        halves.convert_to_f32_slice(singles);
        for (x, single) in out.iter_mut().zip(singles) {
            *x = f64::from(*single);
        }
    }
}

/// Rounds in the widest vectors that the CPU has; in those that every CPU of its kind has it takes twice as long.
fn encode_half<H: Copy>(values: &[f64], out: &mut [u8], infinity: H) -> bool
where
    [H]: HalfFloatSliceExt,
{
    debug_assert_eq!(out.len(), values.len() * 2);
    let (chunks, _) = out.as_chunks_mut::<2>();
    let mut halves = [infinity; AT_ONCE];
    // What is not finite has every bit of the exponent set, as infinity has.
    let exponent = halves.reinterpret_cast()[0];
    let level = Level::new();
    let mut finite = true;
    for (values, bytes) in values.chunks(AT_ONCE).zip(chunks.chunks_mut(AT_ONCE)) {
        let halves = &mut halves[..values.len()];
        dispatch!(level, _simd => round_to_half(values, halves));
        for (b, bits) in bytes.iter_mut().zip(halves.reinterpret_cast()) {
            *b = bits.to_le_bytes();
            finite &= bits & exponent != exponent;
        }
    }
    finite
}

#[inline(always)]
fn round_to_half<H>(values: &[f64], halves: &mut [H])
where
    [H]: HalfFloatSliceExt,
{
    let mut singles = [0f32; AT_ONCE];
    for (single, x) in singles.iter_mut().zip(values) {
        *single = round_to_odd(*x);
    }
    halves.convert_from_f32_slice(&singles[..values.len()]);
}

#[inline(always)]
fn count_below(most: f64, values: &[f64]) -> usize {
    let vanishes = |x: &&f64| (x.abs() <= most) & (**x != 0.0);
    values.iter().filter(vanishes).count()
}

/// Rounds to f32 such that a second rounding to a half format gives the same as a single one.
///
/// An inexact result takes the neighbour with an odd last bit, so that it can never look like a tie of
/// the narrower format. (Boldo & Melquiond, "When double rounding is odd", 2005.)
#[inline(always)]
fn round_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    let bits = nearest.to_bits();
    // Towards zero where rounding went away from it; without branches, so that whole vectors are rounded at once.
    let odd = (bits - u32::from(back.abs() > x.abs())) | 1;
    let exact = (back == x) | x.is_nan();
    f32::from_bits(if exact { bits } else { odd })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nearest even by search among all finite values of a 16-bit format.
    fn nearest(x: f64, all: &[(f64, u16)]) -> u16 {
        let at = all.partition_point(|(v, _)| *v < x);
        let candidates = &all[at.saturating_sub(1)..(at + 1).min(all.len())];
        let best = candidates
            .iter()
            .map(|(v, _)| (v - x).abs())
            .fold(f64::INFINITY, f64::min);
        let mut ties = candidates
            .iter()
            .filter(|(v, _)| (v - x).abs() == best)
            .map(|(_, bits)| *bits);
        let first = ties.next().expect("a candidate");
        ties.next()
            .map_or(first, |second| if first & 1 == 0 { first } else { second })
    }

    fn check(float: Float, to_f64: impl Fn(u16) -> f64) {
        let mut all: Vec<_> = (0..=u16::MAX)
            .map(|b| (to_f64(b), b))
            .filter(|(v, b)| v.is_finite() && *b != 0x8000)
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut state = 1u64;
        for i in 0..200_000usize {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let low = all[(state >> 33) as usize % (all.len() - 1)];
            let high = all[all.partition_point(|(v, _)| *v <= low.0).min(all.len() - 1)];
            let tie = low.0 / 2.0 + high.0 / 2.0;
            // A tie, and the doubles next to it: what rounding twice gets wrong.
            let x = f64::from_bits((tie.to_bits() as i64 + (i % 3) as i64 - 1) as u64);
            let mut bytes = [0; 2];
            assert!(float.encode(&[x], &mut bytes));
            let got = u16::from_le_bytes(bytes);
            let want = nearest(x, &all);
            assert!(
                got == want || (got == 0x8000 && want == 0),
                "{float} {x:e}: {got:04x}, nearest is {want:04x}"
            );
        }
    }

    #[test]
    fn half_formats_are_rounded_once() {
        check(Float::F16, |b| f16::from_bits(b).to_f64());
        check(Float::Bf16, |b| bf16::from_bits(b).to_f64());
    }

    #[test]
    fn many_are_rounded_as_one_by_one() {
        let values: Vec<f64> = (-200..200)
            .map(|i| f64::from(i).powi(5) * 1.7e-7 + 1e-9)
            .chain([f64::NAN, f64::NEG_INFINITY, -0.0, 1e300])
            .collect();
        for float in [Float::F16, Float::Bf16, Float::F32, Float::F64] {
            for len in [0, 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, values.len()] {
                let values = &values[values.len() - len..];
                let mut bytes = vec![0; len * float.size()];
                let finite = float.encode(values, &mut bytes);
                assert_eq!(finite, values.iter().all(|x| float.round(*x).is_finite()));
                let mut decoded = vec![7.0; len];
                float.decode(&bytes, &mut decoded);
                for (x, y) in values.iter().zip(decoded) {
                    let alone = float.round(*x);
                    assert!(
                        alone.to_bits() == y.to_bits() || alone.is_nan() && y.is_nan(),
                        "{float} {x:e}: {y:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn decode_inverts_encode_for_every_half() {
        for float in [Float::F16, Float::Bf16] {
            for bits in 0..=u16::MAX {
                let mut value = [0.0];
                float.decode(&bits.to_le_bytes(), &mut value);
                let mut bytes = [0; 2];
                let finite = float.encode(&value, &mut bytes);
                assert_eq!(finite, value[0].is_finite());
                if !value[0].is_nan() {
                    assert_eq!(bytes, bits.to_le_bytes(), "{float} {bits:04x}");
                }
            }
        }
    }

    #[test]
    fn what_vanishes_is_counted() {
        for float in [Float::Bf16, Float::F16, Float::F32, Float::F64] {
            let smallest = float.half_subnormal();
            let above = f64::from_bits(smallest.to_bits() + 1);
            let values = [
                smallest,
                -smallest,
                smallest / 3.0,
                above,
                -above,
                1.0,
                0.0,
                -0.0,
            ];
            let zeros = values
                .iter()
                .filter(|x| **x != 0.0 && float.round(**x) == 0.0);
            assert_eq!(float.vanishing(&values), zeros.count(), "{float}");
        }
        assert_eq!(
            Float::F16.vanishing(&[2f64.powi(-25), 2f64.powi(-24), 0.0]),
            1
        );
    }

    #[test]
    fn encoding_counts_what_vanishes() {
        let ordinary: Vec<f64> = (1..=70).map(|i| f64::from(i - 35) + 0.5).collect();
        let smallest = f64::from(f32::from_bits(1));
        let odd = [0.0, -0.0, smallest / 2.0, -smallest, f64::from(f32::MAX)];
        let beyond = [f64::NAN, f64::NEG_INFINITY, 3.5e38];
        for float in [Float::Bf16, Float::F16, Float::F32, Float::F64] {
            for at in 0..ordinary.len() {
                for x in odd.iter().chain(&beyond).chain(&ordinary[..1]) {
                    let mut values = ordinary.clone();
                    values[at] = *x;
                    let len = values.len() * float.size();
                    let (mut bytes, mut expected) = (vec![0; len], vec![0; len]);
                    let finite = float.encode(&values, &mut expected);
                    let counted = float.encode_counting(&values, &mut bytes);
                    assert_eq!(
                        counted,
                        finite.then(|| float.vanishing(&values)),
                        "{float} {x:e}"
                    );
                    assert_eq!(bytes, expected, "{float} {x:e}");
                }
            }
        }
    }

    #[test]
    fn decoding_scales() {
        let values: Vec<f64> = (-40..40)
            .map(|i| f64::from(i) / 8.0)
            .chain([-0.0])
            .collect();
        for float in [Float::Bf16, Float::F16, Float::F32, Float::F64] {
            let mut bytes = vec![0; values.len() * float.size()];
            assert!(float.encode(&values, &mut bytes));
            for scale in [1.0, -0.3, 0.0] {
                let mut scaled = vec![7.0; values.len()];
                float.decode_scaled(&bytes, scale, &mut scaled);
                for (x, y) in values.iter().zip(scaled) {
                    assert_eq!(
                        (0.0 + scale * x).to_bits(),
                        y.to_bits(),
                        "{float} {x} {scale}"
                    );
                }
            }
        }
    }

    #[test]
    fn overflow_is_reported() {
        assert!(!Float::F16.encode(&[65520.0], &mut [0; 2]));
        assert!(Float::F16.encode(&[65519.99], &mut [0; 2]));
        assert!(!Float::F32.encode(&[3.5e38], &mut [0; 4]));
        assert!(!Float::Bf16.encode(&[1e300], &mut [0; 2]));
    }
}
