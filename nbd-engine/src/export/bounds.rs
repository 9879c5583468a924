//! Checks of a range against the size. The core has made them already, but the size may have changed since.

use nbd_proto::wire::ErrorCode;

use super::{ExportError, Result};

/// `EINVAL` unless the range lies inside of `size`: for what does not write.
pub(super) fn inside(offset: u64, length: u64, size: u64) -> Result<()> {
    check(offset, length, size, ErrorCode::EINVAL)
}

/// `ENOSPC` unless the range lies inside of `size`: for what writes.
// (S-REQ-09)
pub(super) fn inside_for_writing(offset: u64, length: u64, size: u64) -> Result<()> {
    check(offset, length, size, ErrorCode::ENOSPC)
}

fn check(offset: u64, length: u64, size: u64, code: ErrorCode) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(ExportError::new(code, "the range is not inside of the export")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_inside_up_to_the_last_byte() {
        assert!(inside(0, 10, 10).is_ok());
        assert!(inside(10, 0, 10).is_ok());
        assert_eq!(inside(1, 10, 10).unwrap_err().code(), ErrorCode::EINVAL);
        assert_eq!(inside_for_writing(11, 0, 10).unwrap_err().code(), ErrorCode::ENOSPC);
        assert!(inside(u64::MAX, 2, u64::MAX).is_err());
    }
}
