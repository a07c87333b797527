//! The element types of what is worked out when a network is read: floating-point numbers, and whole numbers and truths as far as
//! indices and masks are made of them.

use safetensors::Dtype as Known;

use crate::tensor::{Dtype, Float};

/// Whole numbers beyond this are not all numbers that f64 has.
const MOST_WHOLE: f64 = (1u64 << 53) as f64;

/// Whole numbers up to this are in single precision what they are.
const MOST_EXACT: f64 = (1 << 24) as f64;

/// Whether a number is a whole one that every type of so many digits has.
pub(super) fn is_exact(number: f64) -> bool {
    number.fract() == 0.0 && number.abs() <= MOST_EXACT
}

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Float(Float),
    I64,
    I32,
    U8,
    /// One for what is true, zero for what is not.
    Bool,
}

impl From<Float> for Kind {
    fn from(float: Float) -> Kind {
        Kind::Float(float)
    }
}

impl Kind {
    pub fn of(dtype: &Dtype) -> Option<Kind> {
        match dtype {
            Dtype::Known(Known::I64) => Some(Kind::I64),
            Dtype::Known(Known::I32) => Some(Kind::I32),
            Dtype::Known(Known::U8) => Some(Kind::U8),
            Dtype::Known(Known::BOOL) => Some(Kind::Bool),
            other => other.float().map(Kind::Float),
        }
    }

    pub fn dtype(self) -> Dtype {
        match self {
            Kind::Float(float) => Dtype::from(float),
            Kind::I64 => Dtype::Known(Known::I64),
            Kind::I32 => Dtype::Known(Known::I32),
            Kind::U8 => Dtype::Known(Known::U8),
            Kind::Bool => Dtype::Known(Known::BOOL),
        }
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Kind::Float(float) => float.size(),
            Kind::I64 => 8,
            Kind::I32 => 4,
            Kind::U8 | Kind::Bool => 1,
        }
    }

    /// Whether its numbers point at elements of an axis. (Bytes say where something holds, as truths do.)
    pub fn is_whole(self) -> bool {
        matches!(self, Kind::I64 | Kind::I32)
    }

    /// A number as this type has it: the nearest one of floating-point numbers; of the others none that they do not have.
    pub fn rounded(self, x: f64) -> Option<f64> {
        let (least, most) = match self {
            Kind::Float(float) => return Some(float.round(x)),
            Kind::I64 => (-MOST_WHOLE, MOST_WHOLE),
            Kind::I32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
            Kind::U8 => (0.0, 255.0),
            Kind::Bool => (0.0, 1.0),
        };
        (x.fract() == 0.0 && least <= x && x <= most).then_some(x)
    }

    /// A number of another type cast to this one.
    pub fn cast(self, x: f64) -> Option<f64> {
        match self {
            Kind::Float(_) => self.rounded(x),
            Kind::I64 | Kind::I32 | Kind::U8 => self.rounded(x.trunc()),
            Kind::Bool => Some(f64::from(x != 0.0)),
        }
    }

    /// The numbers of an array in memory.
    pub fn decode(self, bytes: &[u8]) -> Option<Vec<f64>> {
        let mut numbers = vec![0.0; bytes.len() / self.size()];
        if let Kind::Float(float) = self {
            float.decode(bytes, &mut numbers);
            return Some(numbers);
        }
        let whole = |b: &[u8]| match *b {
            [byte] => Some(f64::from(byte)),
            [a, b, c, d] => Some(f64::from(i32::from_le_bytes([a, b, c, d]))),
            _ => b.first_chunk().map(|b| i64::from_le_bytes(*b) as f64),
        };
        for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(self.size())) {
            *number = self.rounded(whole(bytes)?)?;
        }
        Some(numbers)
    }

    /// What lies in memory for such numbers.
    pub fn encode(self, numbers: &[f64]) -> Vec<u8> {
        match self {
            Kind::Float(float) => {
                let mut bytes = vec![0; numbers.len() * float.size()];
                float.encode(numbers, &mut bytes);
                bytes
            }
            Kind::I64 => (numbers.iter())
                .flat_map(|x| (*x as i64).to_le_bytes())
                .collect(),
            Kind::I32 => (numbers.iter())
                .flat_map(|x| (*x as i32).to_le_bytes())
                .collect(),
            Kind::U8 | Kind::Bool => numbers.iter().map(|x| *x as u8).collect(),
        }
    }

    /// The type in which numbers of two types meet, as PyTorch has it: that of a larger kind of numbers. None where both are of one kind.
    pub fn with(self, other: Kind) -> Option<Kind> {
        let rank = |kind: Kind| match kind {
            Kind::Bool => 0,
            Kind::U8 | Kind::I32 | Kind::I64 => 1,
            Kind::Float(_) => 2,
        };
        match rank(self).cmp(&rank(other)) {
            _ if self == other => Some(self),
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Less => Some(other),
            std::cmp::Ordering::Greater => Some(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;
    use crate::tensor::Float;

    #[test]
    fn numbers_are_read_as_they_are_written() {
        for (kind, numbers) in [
            (Kind::I64, [-1.0, 9e15]),
            (Kind::I32, [-2147483648.0, 7.0]),
            (Kind::U8, [255.0, 0.0]),
            (Kind::Bool, [1.0, 0.0]),
            (Kind::Float(Float::F16), [0.5, -2.0]),
        ] {
            assert_eq!(Kind::of(&kind.dtype()), Some(kind));
            let bytes = kind.encode(&numbers);
            assert_eq!(bytes.len(), 2 * kind.size());
            assert_eq!(kind.decode(&bytes), Some(numbers.to_vec()));
        }
        // Larger than every number up to which f64 has all, and neither true nor false.
        assert_eq!(Kind::I64.decode(&i64::MAX.to_le_bytes()), None);
        assert_eq!(Kind::Bool.decode(&[2]), None);
    }

    #[test]
    fn whole_numbers_are_none_that_are_not_whole() {
        assert_eq!(Kind::I64.rounded(0.5), None);
        assert_eq!(Kind::I32.rounded(3e9), None);
        assert_eq!(Kind::I64.rounded(f64::NAN), None);
        assert_eq!(Kind::U8.rounded(-1.0), None);
        assert_eq!(Kind::I64.cast(-1.5), Some(-1.0));
        assert_eq!(Kind::I32.cast(f64::INFINITY), None);
        assert_eq!(Kind::Bool.cast(-0.25), Some(1.0));
    }

    #[test]
    fn types_meet_in_the_larger_kind() {
        let (half, single) = (Kind::Float(Float::F16), Kind::Float(Float::F32));
        assert_eq!(Kind::Bool.with(half), Some(half));
        assert_eq!(Kind::I64.with(Kind::Bool), Some(Kind::I64));
        assert_eq!(half.with(single), None);
        assert_eq!(Kind::I64.with(Kind::I32), None);
    }
}
