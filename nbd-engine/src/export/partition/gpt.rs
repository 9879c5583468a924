//! The GUID partition table.

use core::ops::Range;

use super::{Disk, Partition, PartitionError, PartitionKind, Stop, in_bytes, u32_at, u64_at};
use crate::export::crc32::crc32;

const SIGNATURE: &[u8; 8] = b"EFI PART";

/// Bytes of a header's fields.
const HEADER: usize = 92;

/// Bytes of all entries: tables have 16 KiB, unless somebody wants to use up memory.
const MAX_ENTRIES: u64 = 1 << 20;

/// The entries of a table whose checksums are right.
pub(super) struct Table<'a> {
    entries: &'a [u8],
    entry_size: usize,
    /// Sectors that partitions may use.
    usable: Range<u64>,
    sector: u64,
}

impl<'a> Table<'a> {
    /// The primary table, or the backup; `None` if there is none, or neither is sound.
    pub(super) fn find(disk: &'a Disk, sector: u64) -> Result<Option<Self>, Stop> {
        let Some(last) = (disk.size / sector).checked_sub(1) else { return Ok(None) };
        for header in [1, last] {
            if let Some(table) = Self::with_header(disk, sector, header)? {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    /// The table whose header is in that sector.
    fn with_header(disk: &'a Disk, sector: u64, own: u64) -> Result<Option<Self>, Stop> {
        let Some(offset) = own.checked_mul(sector) else { return Ok(None) };
        let Some(header) = disk.bytes(offset, sector as usize)? else { return Ok(None) };
        let length = u32_at(header, 12) as usize;
        let is_header = header.starts_with(SIGNATURE)
            && (HEADER..=header.len()).contains(&length)
            && header_checksum(&header[..length]) == u32_at(header, 16)
            && u64_at(header, 24) == own;
        let (count, entry_size) = (u64::from(u32_at(header, 80)), u64::from(u32_at(header, 84)));
        let sizes = entry_size >= 128 && entry_size.is_power_of_two() && count > 0;
        let length = count.checked_mul(entry_size).filter(|length| *length <= MAX_ENTRIES);
        let (Some(length), true) = (length, is_header && sizes) else { return Ok(None) };

        let Some(offset) = u64_at(header, 72).checked_mul(sector) else { return Ok(None) };
        let whole = length.next_multiple_of(sector) as usize;
        let Some(entries) = disk.bytes(offset, whole)? else { return Ok(None) };
        let entries = &entries[..length as usize];
        if crc32(entries) != u32_at(header, 88) {
            return Ok(None);
        }
        let end = u64_at(header, 48).saturating_add(1).min(disk.size / sector);
        let usable = u64_at(header, 40)..end;
        Ok(Some(Self { entries, entry_size: entry_size as usize, usable, sector }))
    }

    /// The range of a partition in bytes.
    pub(super) fn partition(&self, number: u32) -> Result<Range<u64>, PartitionError> {
        let missing = PartitionError::NoSuchPartition(number);
        let index = number.checked_sub(1).ok_or_else(|| missing.clone())? as usize;
        let entry = self.entries.chunks_exact(self.entry_size).nth(index);
        self.range(entry.filter(|entry| is_used(entry)).ok_or(missing)?)
    }

    /// The partitions whose entries make sense.
    pub(super) fn all(&self) -> Vec<Partition> {
        let entries = (1..).zip(self.entries.chunks_exact(self.entry_size));
        let used = entries.filter(|(_, entry)| is_used(entry));
        let partitions = used.filter_map(|(number, entry)| {
            let range = self.range(entry).ok()?;
            let kind = PartitionKind::Guid(entry.get(..16)?.try_into().ok()?);
            let units = entry.get(56..128)?.chunks_exact(2);
            let units = units.map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
            let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
            Some(Partition { number, range, kind, name: String::from_utf16_lossy(&units) })
        });
        partitions.collect()
    }

    /// The range of an entry in bytes.
    fn range(&self, entry: &[u8]) -> Result<Range<u64>, PartitionError> {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let inside = first <= last && self.usable.contains(&first) && self.usable.contains(&last);
        if !inside {
            return Err(PartitionError::Damaged);
        }
        in_bytes(first, last - first + 1, self.sector)
    }
}

/// The type of an entry that is not used is zero.
fn is_used(entry: &[u8]) -> bool {
    entry.iter().take(16).any(|byte| *byte != 0)
}

/// The checksum is computed with its own field as zero.
fn header_checksum(header: &[u8]) -> u32 {
    let mut copy = header.to_vec();
    copy[16..20].fill(0);
    crc32(&copy)
}
