//! The table in the master boot record, with logical partitions.

use core::ops::Range;

use super::{Disk, PartitionError, Stop, in_bytes, u32_at};

/// Bytes of the record, whatever a sector has.
pub(super) const SECTOR: usize = 512;

/// Logical partitions that are looked at: a chain of more is taken for an endless one.
const MAX_LOGICAL: usize = 128;

/// Where the entries are.
const ENTRIES: usize = 446;

/// The number of the first logical partition.
const FIRST_LOGICAL: u32 = 5;

/// A boot record.
pub(super) struct Table {
    entries: [Entry; 4],
}

#[derive(Clone, Copy)]
struct Entry {
    kind: u8,
    first: u32,
    count: u32,
}

impl Entry {
    const fn is_used(self) -> bool {
        self.kind != 0 && self.count > 0
    }

    const fn is_extended(self) -> bool {
        self.is_used() && matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

impl Table {
    /// The entries of a record; `None` if it is none.
    pub(super) fn parse(record: &[u8]) -> Option<Self> {
        if record.get(510..512) != Some(&[0x55, 0xaa]) {
            return None;
        }
        let entries = core::array::from_fn(|index| {
            let offset = ENTRIES + 16 * index;
            let kind = record.get(offset + 4).copied().unwrap_or(0);
            Entry { kind, first: u32_at(record, offset + 8), count: u32_at(record, offset + 12) }
        });
        Some(Self { entries })
    }

    /// Whether the disk has a GUID partition table, which this one protects from programs that don't know those.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == 0xee)
    }

    /// The range of a partition in bytes.
    pub(super) fn find(&self, disk: &Disk, number: u32) -> Result<Range<u64>, Stop> {
        // Sectors are of the size that the disk can be read in; tables don't say it.
        let sector = u64::from(disk.block_size.minimum()).max(SECTOR as u64);
        let index = number.checked_sub(1).ok_or(PartitionError::NoSuchPartition(number))?;
        if let Some(entry) = self.entries.get(index as usize) {
            if entry.is_extended() {
                return Err(PartitionError::Extended(number).into());
            }
            if !entry.is_used() {
                return Err(PartitionError::NoSuchPartition(number).into());
            }
            return Ok(in_bytes(entry.first.into(), entry.count.into(), sector)?);
        }
        let extended = self.entries.iter().find(|entry| entry.is_extended());
        let extended = extended.ok_or(PartitionError::NoSuchPartition(number))?;
        logical(disk, *extended, sector, number)
    }
}

/// A logical partition: each has a boot record of its own, which has the offset of the next.
fn logical(disk: &Disk, extended: Entry, sector: u64, number: u32) -> Result<Range<u64>, Stop> {
    let base = u64::from(extended.first);
    let within = in_bytes(base, extended.count.into(), sector)?;
    let mut record = base;
    let mut next_number = FIRST_LOGICAL;
    for _ in 0..MAX_LOGICAL {
        let offset = record.checked_mul(sector).filter(|offset| within.contains(offset));
        let bytes = offset.map_or(Ok(None), |offset| disk.bytes(offset, SECTOR))?;
        let table = bytes.and_then(Table::parse).ok_or(PartitionError::Damaged)?;
        let [data, next, ..] = table.entries;
        if data.is_used() && !data.is_extended() {
            if next_number == number {
                let range = in_bytes(record + u64::from(data.first), data.count.into(), sector)?;
                let inside = within.start <= range.start && range.end <= within.end;
                return if inside { Ok(range) } else { Err(PartitionError::Damaged.into()) };
            }
            next_number += 1;
        }
        if !next.is_extended() {
            return Err(PartitionError::NoSuchPartition(number).into());
        }
        record = base + u64::from(next.first);
    }
    Err(PartitionError::Damaged.into())
}
