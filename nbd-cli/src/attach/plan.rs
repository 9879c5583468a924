//! What the kernel's client can do with an export.

use nbd_blocking::client::{ExportDetails, TransmissionFlags};
use nbd_engine::counted;

/// The smallest block size of the kernel's, in bytes.
const MIN_BLOCK: u32 = 512;

/// How an export becomes a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Bytes: whole blocks.
    pub(super) size: u64,
    /// Bytes at the end of the export that the device does not have, as they are less than a block.
    pub(super) tail: u64,
    /// The logical block size, in bytes: the smallest that the server allows, as file systems and partition tables that
    /// were made with it can't be used with a larger one.
    pub(super) block_size: u32,
    /// Transmission flags.
    pub(super) flags: u16,
    /// Bytes of a request's payload at most.
    pub(super) max_payload: u64,
}

impl Plan {
    /// `page_size` is the largest block that the kernel takes, in bytes.
    ///
    /// # Errors
    /// Why the kernel can't use the export.
    pub(super) fn new(
        export: &ExportDetails,
        read_only: bool,
        page_size: usize,
    ) -> Result<Self, String> {
        let block_size = export.block_size();
        let mut flags = export.flags();
        if read_only {
            flags |= TransmissionFlags::READ_ONLY;
        }
        let (minimum, max_payload) = (block_size.minimum(), block_size.maximum_payload().into());
        Self::of(export.size(), minimum, max_payload, flags.bits(), page_size)
    }

    fn of(
        size: u64,
        minimum: u32,
        max_payload: u64,
        flags: u16,
        page_size: usize,
    ) -> Result<Self, String> {
        let block_size = minimum.max(MIN_BLOCK);
        if block_size as usize > page_size {
            return Err(format!(
                "the server takes no blocks of less than {minimum} bytes, and the kernel none of more than {page_size}"
            ));
        }
        if i64::try_from(size).is_err() {
            return Err(format!("it has {size} bytes, and the kernel takes no more than 2^63 - 1"));
        }
        let tail = size % u64::from(block_size);
        if size == tail {
            return Err(format!(
                "it has {}, and the kernel takes no less than a block of {block_size}",
                counted(size, "byte")
            ));
        }
        Ok(Self { size: size - tail, tail, block_size, flags, max_payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_the_smallest_blocks_that_both_sides_know() {
        for (size, minimum, planned) in [
            (1 << 20, 1, Ok((1 << 20, 0, 512))),
            (1 << 20, 4096, Ok((1 << 20, 0, 4096))),
            (1025, 1, Ok((1024, 1, 512))),
            (5000, 4096, Ok((4096, 904, 4096))),
            (i64::MAX as u64, 1, Ok((i64::MAX as u64 - 511, 511, 512))),
            (1 << 63, 1, Err("2^63 - 1")),
            (u64::MAX, 1, Err("2^63 - 1")),
            (1 << 20, 8192, Err("no blocks of less than 8192 bytes")),
            (511, 1, Err("no less than a block of 512")),
            (0, 1, Err("no less than a block of 512")),
        ] {
            let plan = Plan::of(size, minimum, 1 << 25, 0, 4096);
            match (plan, planned) {
                (Ok(plan), Ok(planned)) => {
                    assert_eq!((plan.size, plan.tail, plan.block_size), planned);
                }
                (Err(text), Err(says)) => assert!(text.contains(says), "{text}"),
                (plan, _) => panic!("{size} bytes in blocks of {minimum}: {plan:?}"),
            }
        }
    }
}
