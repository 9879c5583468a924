//! Where the bytes of a file or of a block device lie.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::sysfs::Device;

/// Which file or block device something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    File(u64, u64),
    Device(u64),
}

/// A file or a block device, and what it lies on: the file behind a loop device, the disk of a partition, what a mapped
/// device, such as a logical volume, is made of.
#[derive(Debug)]
pub(crate) struct Store(Vec<Identity>);

impl Store {
    /// `None` for what holds no bytes.
    pub(crate) fn new(metadata: &Metadata) -> Option<Self> {
        let kind = metadata.file_type();
        if kind.is_file() {
            return Some(Self(vec![Identity::File(metadata.dev(), metadata.ino())]));
        }
        if !kind.is_block_device() {
            return None;
        }
        let mut found = Self(Vec::new());
        found.add_device(metadata.rdev());
        Some(found)
    }

    /// A device, and what it lies on.
    fn add_device(&mut self, number: u64) {
        // It may be reached in more than one way.
        if self.0.contains(&Identity::Device(number)) {
            return;
        }
        self.0.push(Identity::Device(number));
        let device = Device::new(number);
        device.whole().into_iter().chain(device.made_of()).for_each(|below| self.add_device(below));
        let behind = device.backing_file().and_then(|file| fs::metadata(file).ok());
        if let Some(metadata) = behind {
            match metadata.file_type().is_block_device() {
                true => self.add_device(metadata.rdev()),
                false => self.0.push(Identity::File(metadata.dev(), metadata.ino())),
            }
        }
    }

    /// Whether one is the other, or lies on it.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.lies_on(other) || other.lies_on(self)
    }

    /// Whether this is the other, or lies on it.
    pub(crate) fn lies_on(&self, other: &Self) -> bool {
        self.0.contains(&other.0[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_store_overlaps_another_if_either_lies_on_the_other() {
        let store =
            |numbers: &[u64]| Store(numbers.iter().map(|id| Identity::Device(*id)).collect());
        let (disk, part, other) = (store(&[1]), store(&[2, 1]), store(&[3, 1]));
        assert!(disk.overlaps(&disk) && part.overlaps(&disk) && disk.overlaps(&part));
        // Two parts of one disk are apart.
        assert!(!part.overlaps(&other) && !disk.overlaps(&store(&[4])));
        assert_ne!(Identity::Device(1), Identity::File(1, 1));
    }
}
