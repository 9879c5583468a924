//! The table in the master boot record, with logical partitions.

use core::ops::Range;

use super::{Disk, Partition, PartitionError, PartitionKind, Stop, in_bytes, u32_at};

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
    status: u8,
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
            let status = record.get(offset).copied().unwrap_or(0);
            let (first, count) = (u32_at(record, offset + 8), u32_at(record, offset + 12));
            Entry { status, kind, first, count }
        });
        Some(Self { entries })
    }

    /// Whether the disk has a GUID partition table, which this one protects from programs that don't know those.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == 0xee)
    }

    /// Whether it looks like a table rather than like a boot program that ends with the same two bytes.
    pub(super) fn is_plausible(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.status, 0 | 0x80))
            && self.entries.iter().any(|entry| entry.is_used())
    }

    /// The range of a partition in bytes.
    pub(super) fn find(&self, disk: &Disk, number: u32) -> Result<Range<u64>, Stop> {
        let sector = sector(disk);
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
        let mut chain = self.chain(sector)?.ok_or(PartitionError::NoSuchPartition(number))?;
        while let Some(logical) = chain.next(disk)? {
            if logical.number == number {
                return Ok(logical.range?);
            }
        }
        Err(PartitionError::NoSuchPartition(number).into())
    }

    /// All partitions that have data, as far as the chain of the logical ones is sound.
    pub(super) fn all(&self, disk: &Disk) -> Result<Vec<Partition>, Stop> {
        let sector = sector(disk);
        let partition = |number, range, kind| Partition {
            number,
            range,
            kind: PartitionKind::Byte(kind),
            name: String::new(),
        };
        let primary = (1..).zip(&self.entries);
        let primary = primary.filter(|(_, entry)| entry.is_used() && !entry.is_extended());
        let mut all: Vec<Partition> = primary
            .filter_map(|(number, entry)| {
                let range = in_bytes(entry.first.into(), entry.count.into(), sector).ok()?;
                Some(partition(number, range, entry.kind))
            })
            .collect();
        let Ok(Some(mut chain)) = self.chain(sector) else { return Ok(all) };
        loop {
            match chain.next(disk) {
                Ok(Some(Logical { number, range: Ok(range), kind })) => {
                    all.push(partition(number, range, kind));
                }
                Ok(Some(_)) => {}
                Err(need @ Stop::Need { .. }) => return Err(need),
                Ok(None) | Err(Stop::Fail(_)) => return Ok(all),
            }
        }
    }

    /// The logical partitions, if there is an extended one.
    fn chain(&self, sector: u64) -> Result<Option<Chain>, PartitionError> {
        let Some(extended) = self.entries.iter().find(|entry| entry.is_extended()) else {
            return Ok(None);
        };
        let base = u64::from(extended.first);
        let within = in_bytes(base, extended.count.into(), sector)?;
        let next = Some(base);
        Ok(Some(Chain { base, within, sector, next, number: FIRST_LOGICAL, left: MAX_LOGICAL }))
    }
}

/// Sectors are of the size that the disk can be read in; tables don't say it.
fn sector(disk: &Disk) -> u64 {
    u64::from(disk.block_size.minimum()).max(SECTOR as u64)
}

/// Logical partitions: each has a boot record of its own, which has the offset of the next.
struct Chain {
    /// The first sector of the extended partition.
    base: u64,
    /// The extended partition in bytes.
    within: Range<u64>,
    sector: u64,
    /// The sector of the next record, unless the chain is over.
    next: Option<u64>,
    /// The number of the next partition.
    number: u32,
    /// How many records more are looked at.
    left: usize,
}

struct Logical {
    number: u32,
    range: Result<Range<u64>, PartitionError>,
    kind: u8,
}

impl Chain {
    /// The next partition; `None` after the last one.
    fn next(&mut self, disk: &Disk) -> Result<Option<Logical>, Stop> {
        while let Some(record) = self.next {
            self.left = self.left.checked_sub(1).ok_or(PartitionError::Damaged)?;
            let offset = record.checked_mul(self.sector);
            let offset = offset.filter(|offset| self.within.contains(offset));
            let bytes = offset.map_or(Ok(None), |offset| disk.bytes(offset, SECTOR))?;
            let table = bytes.and_then(Table::parse).ok_or(PartitionError::Damaged)?;
            let [data, next, ..] = table.entries;
            self.next = next.is_extended().then(|| self.base + u64::from(next.first));
            if data.is_used() && !data.is_extended() {
                let number = self.number;
                self.number += 1;
                let first = record + u64::from(data.first);
                let range = in_bytes(first, data.count.into(), self.sector).and_then(|range| {
                    let inside = self.within.start <= range.start && range.end <= self.within.end;
                    if inside { Ok(range) } else { Err(PartitionError::Damaged) }
                });
                return Ok(Some(Logical { number, range, kind: data.kind }));
            }
        }
        Ok(None)
    }
}
