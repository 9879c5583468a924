//! The size that a disk is to get.

use crate::quantity;

/// A size as it is asked for: so many bytes, or so many more or less than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewSize {
    Absolute(u64),
    More(u64),
    Less(u64),
}

impl NewSize {
    /// `SIZE`, `+SIZE` or `-SIZE`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.split_at_checked(1) {
            Some(("+", more)) => quantity::size(more).map(Self::More),
            Some(("-", less)) => quantity::size(less).map(Self::Less),
            _ => quantity::size(text).map(Self::Absolute),
        }
    }

    /// The size that a disk of `now` bytes is to have. None if there is no such size.
    pub(crate) fn of(self, now: u64) -> Option<u64> {
        let size = match self {
            Self::Absolute(size) => Some(size),
            Self::More(more) => now.checked_add(more),
            Self::Less(less) => now.checked_sub(less),
        };
        size.filter(|size| i64::try_from(*size).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_or_relative() {
        for (text, now, size) in [
            ("512", 1024, Some(512)),
            ("4k", 0, Some(4096)),
            ("+1M", 1, Some((1 << 20) + 1)),
            ("-1k", 1024, Some(0)),
            ("-1k", 1023, None),
            ("+1", i64::MAX as u64, None),
            ("9223372036854775807", 5, Some(i64::MAX as u64)),
        ] {
            assert_eq!(NewSize::parse(text).unwrap().of(now), size, "{text} of {now}");
        }
    }

    #[test]
    fn an_invalid_size_is_named() {
        for text in ["", "+", "-", "big", "--1", "+-1", "8E", "é"] {
            assert!(NewSize::parse(text).is_err(), "{text}");
        }
    }
}
