//! The whole table of a disk.

use core::ops::Range;

use super::{Disk, Found, PartitionError, Stop};
use crate::export::{BlockSize, ExportError};

/// The partition table of a disk, as far as it makes sense: entries that point outside of the disk are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionTable {
    /// The kind of table.
    pub kind: PartitionTableKind,
    /// The partitions that can be served, by ascending number.
    pub partitions: Vec<Partition>,
}

/// Which kind of table a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PartitionTableKind {
    /// A GUID partition table.
    Gpt,
    /// A table in the master boot record.
    Mbr,
}

/// An entry of a partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Partition {
    /// The number, from 1 on, as the kernel counts.
    pub number: u32,
    /// Where it lies on the disk, in bytes.
    pub range: Range<u64>,
    /// What the table says that it is for.
    pub kind: PartitionKind,
    /// The name, which a GPT has for each partition and which may be empty; any text that the disk's owner chose.
    pub name: String,
}

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PartitionKind {
    /// The type GUID of a GPT, as its 16 bytes stand on the disk: the first three fields are little-endian.
    Guid([u8; 16]),
    /// The type byte of a master boot record.
    Byte(u8),
}

impl PartitionTable {
    /// Reads the table of a disk of `size` bytes, of which whole blocks of `block_size` are read: the buffer that
    /// `read` is given is to be filled from an offset on, in bytes. That are a few KiB, and at most 5 MiB whatever the
    /// table says.
    ///
    /// # Errors
    /// [`PartitionError::NoTable`] if there is none, [`PartitionError::Damaged`] if there is one whose checksums are not
    /// right, and [`PartitionError::Unreadable`] if `read` fails.
    ///
    /// ```
    /// use nbd_engine::export::{BlockSize, PartitionError, PartitionTable};
    ///
    /// let disk = vec![0_u8; 1 << 20];
    /// let table = PartitionTable::read(1 << 20, BlockSize::DEFAULT, |buffer, offset| {
    ///     let offset = offset as usize;
    ///     buffer.copy_from_slice(&disk[offset..offset + buffer.len()]);
    ///     Ok(())
    /// });
    /// assert_eq!(table, Err(PartitionError::NoTable));
    /// ```
    pub fn read(
        size: u64,
        block_size: BlockSize,
        mut read: impl FnMut(&mut [u8], u64) -> Result<(), ExportError>,
    ) -> Result<Self, PartitionError> {
        let mut disk = Disk::new(size, block_size);
        loop {
            match Self::step(&disk) {
                Ok(table) => return Ok(table),
                Err(Stop::Fail(error)) => return Err(error),
                Err(Stop::Need { offset, length }) => {
                    let mut bytes = vec![0; length];
                    read(&mut bytes, offset).map_err(PartitionError::Unreadable)?;
                    disk.learn(offset, bytes);
                }
            }
        }
    }

    /// The table, as far as it shows from what is known.
    fn step(disk: &Disk) -> Result<Self, Stop> {
        let (kind, mut partitions) = match disk.table()? {
            Found::Mbr(table) if !table.is_plausible() => {
                return Err(PartitionError::NoTable.into());
            }
            Found::Mbr(table) => (PartitionTableKind::Mbr, table.all(disk)?),
            Found::Gpt(table) => (PartitionTableKind::Gpt, table.all()),
        };
        partitions.retain(|partition| {
            partition.range.start < partition.range.end && partition.range.end <= disk.size
        });
        Ok(Self { kind, partitions })
    }
}
