//! Labels that are kept among a file system's files, or far behind its first sectors: those of FAT, exFAT, NTFS and UDF.

use core::ops::Range;

use super::bytes::{at, u16_le, u32_le, u64_le, utf16_le};
use super::udf;

/// How much is read for a label, at most.
const MAX: u64 = 64 << 10;

/// Where a label is, and how it is found there.
pub(super) struct Place {
    /// Bytes of the file system.
    pub(super) range: Range<u64>,
    pub(super) find: Find,
}

/// What is made of the bytes of a place.
pub(super) type Find = fn(&[u8]) -> Option<Next>;

/// What stands there.
pub(super) enum Next {
    /// The label, the identifier, or both.
    Names { label: Option<String>, uuid: Option<String> },
    /// Where to look further.
    Place(Place),
}

/// Where to look for the label of a file system of that kind with these first bytes; `None` if it is not kept so.
pub(super) fn place(kind: &str, first: &[u8]) -> Option<Place> {
    match kind {
        "vfat" => fat(first),
        "exfat" => exfat(first),
        "ntfs" => ntfs(first),
        "udf" => udf::place(),
        _ => None,
    }
}

pub(super) fn place_at(start: u64, length: u64, find: Find) -> Option<Place> {
    let range = start..start.checked_add(length.min(MAX))?;
    Some(Place { range, find })
}

/// The root directory follows the tables, or is a file as any other in FAT32: the first of its clusters is read.
fn fat(first: &[u8]) -> Option<Place> {
    const ENTRY: u64 = 32;
    let sector = u64::from(u16_le(first, 11)?);
    let cluster = sector * u64::from(*first.get(13)?);
    let (reserved, tables) = (u64::from(u16_le(first, 14)?), u64::from(*first.get(16)?));
    let entries = u64::from(u16_le(first, 17)?);
    let small = u64::from(u16_le(first, 22)?);
    let table = if small > 0 { small } else { u64::from(u32_le(first, 36)?) };
    let start = (reserved + tables * table) * sector;
    if entries > 0 {
        return place_at(start, entries * ENTRY, of_fat_directory);
    }
    let root = u64::from(u32_le(first, 44)?).checked_sub(2)?;
    place_at(start.checked_add(root.checked_mul(cluster)?)?, cluster, of_fat_directory)
}

fn of_fat_directory(bytes: &[u8]) -> Option<Next> {
    const DELETED: u8 = 0xe5;
    const LABEL: u8 = 0x08;
    const LONG_NAME: u8 = 0x0f;
    let mut entries = bytes.chunks_exact(32).take_while(|entry| entry[0] != 0);
    let entry = entries.find(|entry| {
        entry[0] != DELETED && entry[11] & LONG_NAME != LONG_NAME && entry[11] & LABEL != 0
    })?;
    let label = String::from_utf8_lossy(&entry[..11]);
    let label = label.trim_matches(['\0', ' ']);
    (!label.is_empty()).then(|| named(label.to_owned()))
}

/// The first cluster of the root directory.
fn exfat(first: &[u8]) -> Option<Place> {
    let shift = u32::from(*first.get(108)?);
    let cluster_shift = shift.checked_add(u32::from(*first.get(109)?)).filter(|sum| *sum <= 25)?;
    let heap = u64::from(u32_le(first, 88)?) << shift;
    let root = u64::from(u32_le(first, 96)?).checked_sub(2)? << cluster_shift;
    place_at(heap.checked_add(root)?, 1 << cluster_shift, of_exfat_directory)
}

fn of_exfat_directory(bytes: &[u8]) -> Option<Next> {
    const LABEL: u8 = 0x83;
    let mut entries = bytes.chunks_exact(32).take_while(|entry| entry[0] != 0);
    let entry = entries.find(|entry| entry[0] == LABEL)?;
    let length = usize::from(entry[1].min(11));
    utf16_le(entry.get(2..2 + 2 * length)?).map(named)
}

/// The file record of index 3 in the master file table is that of the volume.
fn ntfs(first: &[u8]) -> Option<Place> {
    const VOLUME: u64 = 3;
    let sector = u64::from(u16_le(first, 11)?);
    // Large numbers are negative powers of two, in the numbers of sectors and of clusters.
    let units = |byte: u8, unit: u64| match byte {
        0..=0x80 => Some(u64::from(byte) * unit),
        _ => 1_u64.checked_shl(u32::from(byte.wrapping_neg())),
    };
    let sectors = *first.get(13)?;
    let cluster = match sectors {
        0..=0x80 => u64::from(sectors) * sector,
        _ => sector.checked_shl(u32::from(sectors.wrapping_neg()))?,
    };
    let record = units(*first.get(64)?, cluster).filter(|size| (512..=MAX).contains(size))?;
    let table = u64_le(first, 48)?.checked_mul(cluster)?;
    place_at(table.checked_add(VOLUME * record)?, record, of_ntfs_record)
}

fn of_ntfs_record(bytes: &[u8]) -> Option<Next> {
    const VOLUME_NAME: u32 = 0x60;
    const END: u32 = 0xffff_ffff;
    let mut bytes = bytes.strip_prefix(b"FILE").map(|_| bytes.to_vec())?;
    // The last two bytes of each sector stand apart, with a number in their place.
    let (fixes, count) = (usize::from(u16_le(&bytes, 4)?), usize::from(u16_le(&bytes, 6)?));
    for index in 1..count {
        let fix = at(&bytes, fixes + 2 * index, 2)?.to_vec();
        bytes.get_mut(512 * index - 2..512 * index)?.copy_from_slice(&fix);
    }
    let mut offset = usize::from(u16_le(&bytes, 20)?);
    loop {
        let kind = u32_le(&bytes, offset).filter(|kind| *kind != END)?;
        if kind == VOLUME_NAME {
            let length = usize::try_from(u32_le(&bytes, offset + 16)?).ok()?;
            let start = usize::from(u16_le(&bytes, offset + 20)?);
            return utf16_le(at(&bytes, offset.checked_add(start)?, length)?).map(named);
        }
        let length = usize::try_from(u32_le(&bytes, offset + 4)?).ok()?;
        offset = offset.checked_add(length).filter(|_| length > 0)?;
    }
}

const fn named(label: String) -> Next {
    Next::Names { label: Some(label), uuid: None }
}
