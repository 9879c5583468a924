//! The magic numbers of file systems, of what volumes are made of, and of files that hold disks.
//!
//! Offsets are those of the formats' own documentation; libblkid and file(1) look at the same bytes.

use super::bytes::{at, guid, has, text, u16_le, u32_be, u32_le, u64_le, utf16_le, uuid};
use super::{FIRST, Found};

/// Looks for one format.
type Finder = fn(&[u8]) -> Option<Found>;

/// All formats, those first whose signatures are longest: a boot sector may have a part of another format's.
const FINDERS: &[Finder] = &[
    luks, lvm, raid, zfs, btrfs, xfs, ext, f2fs, swap, squashfs, exfat, ntfs, fat, udf, iso, image,
    compressed,
];

/// What begins with these bytes; the first 68 KiB are enough.
pub(super) fn find(bytes: &[u8]) -> Option<Found> {
    FINDERS.iter().find_map(|finder| finder(bytes))
}

fn found(kind: &'static str, words: &'static str) -> Found {
    Found { kind, words, label: None, uuid: None }
}

/// The superblock begins at 1024.
fn ext(bytes: &[u8]) -> Option<Found> {
    const SUPERBLOCK: usize = 1024;
    if u16_le(bytes, SUPERBLOCK + 0x38)? != 0xef53 {
        return None;
    }
    let features = |offset| u32_le(bytes, SUPERBLOCK + offset);
    let (compatible, incompatible, read_only) = (features(0x5c)?, features(0x60)?, features(0x64)?);
    const HAS_JOURNAL: u32 = 0x4;
    const IS_JOURNAL: u32 = 0x8;
    // What ext3 knows: filetype, recover, meta_bg; sparse_super, large_file, btree_dir.
    let is_ext4 = incompatible & !0x16 != 0 || read_only & !0x7 != 0;
    let (kind, words) = match (incompatible & IS_JOURNAL, is_ext4, compatible & HAS_JOURNAL) {
        (1.., ..) => ("jbd", "journal of an ext3 or ext4 file system"),
        (_, true, _) => ("ext4", "ext4 file system"),
        (_, _, 1..) => ("ext3", "ext3 file system"),
        _ => ("ext2", "ext2 file system"),
    };
    let (label, uuid) = (text(bytes, SUPERBLOCK + 0x78, 16), uuid(bytes, SUPERBLOCK + 0x68));
    Some(Found { kind, words, label, uuid })
}

/// The superblock begins at 1024.
fn f2fs(bytes: &[u8]) -> Option<Found> {
    const SUPERBLOCK: usize = 1024;
    if u32_le(bytes, SUPERBLOCK)? != 0xf2f5_2010 {
        return None;
    }
    let label = at(bytes, SUPERBLOCK + 0x7c, 1024).and_then(utf16_le);
    let uuid = uuid(bytes, SUPERBLOCK + 0x6c);
    Some(Found { label, uuid, ..found("f2fs", "F2FS file system") })
}

fn xfs(bytes: &[u8]) -> Option<Found> {
    let found = found("xfs", "XFS file system");
    let (label, uuid) = (text(bytes, 108, 12), uuid(bytes, 32));
    bytes.starts_with(b"XFSB").then_some(Found { label, uuid, ..found })
}

/// The superblock begins at 64 KiB.
fn btrfs(bytes: &[u8]) -> Option<Found> {
    const SUPERBLOCK: usize = 65536;
    let found = found("btrfs", "Btrfs file system");
    let (label, uuid) = (text(bytes, SUPERBLOCK + 0x12b, 256), uuid(bytes, SUPERBLOCK + 0x20));
    has(bytes, SUPERBLOCK + 0x40, b"_BHRfS_M").then_some(Found { label, uuid, ..found })
}

/// FAT12, FAT16 and FAT32, whose fields stand at different offsets behind the BIOS parameter block.
fn fat(bytes: &[u8]) -> Option<Found> {
    let jumps = matches!(bytes.first()?, 0xeb | 0xe9);
    let sector = u16_le(bytes, 11)?;
    if !jumps || !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
        return None;
    }
    let (words, fields) = match (at(bytes, 54, 8)?, at(bytes, 82, 8)?) {
        (b"FAT12   ", _) => ("FAT12 file system", 36),
        (b"FAT16   ", _) => ("FAT16 file system", 36),
        (b"FAT     ", _) => ("FAT file system", 36),
        (_, b"FAT32   ") => ("FAT32 file system", 64),
        _ => return None,
    };
    let label = text(bytes, fields + 7, 11).filter(|label| label != "NO NAME");
    let serial = u32_le(bytes, fields + 3)?;
    let uuid = Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff));
    Some(Found { label, uuid, ..found("vfat", words) })
}

fn exfat(bytes: &[u8]) -> Option<Found> {
    let serial = u32_le(bytes, 100)?;
    let uuid = Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff));
    let found = Found { uuid, ..found("exfat", "exFAT file system") };
    has(bytes, 3, b"EXFAT   ").then_some(found)
}

fn ntfs(bytes: &[u8]) -> Option<Found> {
    let uuid = u64_le(bytes, 72).map(|serial| format!("{serial:016X}"));
    let found = Found { uuid, ..found("ntfs", "NTFS file system") };
    has(bytes, 3, b"NTFS    ").then_some(found)
}

/// One of the descriptors from 32 KiB on, behind those of ISO 9660 if there are any, says so.
fn udf(bytes: &[u8]) -> Option<Found> {
    let mut descriptors = (32 << 10..FIRST as usize).step_by(2048);
    descriptors
        .any(|offset| has(bytes, offset + 1, b"NSR02") || has(bytes, offset + 1, b"NSR03"))
        .then(|| found("udf", "UDF file system"))
}

/// The primary volume descriptor stands in the sector of 2048 bytes of index 16.
fn iso(bytes: &[u8]) -> Option<Found> {
    const DESCRIPTOR: usize = 16 * 2048;
    let found = found("iso9660", "ISO 9660 file system");
    let label = text(bytes, DESCRIPTOR + 40, 32);
    // There is no identifier but the time of the last change, or else that of its making.
    let uuid = [830, 813].into_iter().find_map(|offset| time(at(bytes, DESCRIPTOR + offset, 16)?));
    has(bytes, DESCRIPTOR, b"\x01CD001").then_some(Found { label, uuid, ..found })
}

/// Sixteen digits, from the year to hundredths of a second, with signs between them as libblkid puts them; none if all
/// are zero.
fn time(digits: &[u8]) -> Option<String> {
    let text = core::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?;
    let fields = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16].map(|range| &text[range]);
    text.bytes().any(|digit| digit != b'0').then(|| fields.join("-"))
}

fn squashfs(bytes: &[u8]) -> Option<Found> {
    bytes.starts_with(b"hsqs").then(|| found("squashfs", "SquashFS file system"))
}

/// The signature ends with the first page, which has 4 KiB to 64 KiB.
fn swap(bytes: &[u8]) -> Option<Found> {
    let pages = [4096, 8192, 16384, 32768, 65536];
    pages.iter().find(|page| has(bytes, **page - 10, b"SWAPSPACE2"))?;
    let (label, uuid) = (text(bytes, 1052, 16), uuid(bytes, 1036));
    Some(Found { label, uuid, ..found("swap", "Linux swap space") })
}

fn luks(bytes: &[u8]) -> Option<Found> {
    if !bytes.starts_with(b"LUKS\xba\xbe") {
        return None;
    }
    let second = has(bytes, 6, &[0, 2]);
    let label = if second { text(bytes, 24, 48) } else { None };
    let words = if second { "LUKS2 encrypted volume" } else { "LUKS1 encrypted volume" };
    Some(Found { label, uuid: text(bytes, 168, 40), ..found("luks", words) })
}

/// The label stands in one of the first four sectors of 512 bytes.
fn lvm(bytes: &[u8]) -> Option<Found> {
    let label = (0..4).map(|sector| sector * 512);
    let label = label
        .into_iter()
        .find(|offset| has(bytes, *offset, b"LABELONE") && has(bytes, offset + 24, b"LVM2 001"))?;
    let uuid = text(bytes, label + 32, 32).filter(|uuid| uuid.is_ascii() && uuid.len() == 32);
    let uuid = uuid.map(|uuid| {
        let groups = [0..6, 6..10, 10..14, 14..18, 18..22, 22..26, 26..32];
        groups.map(|group| uuid[group].to_owned()).join("-")
    });
    Some(Found { uuid, ..found("lvm2", "LVM physical volume") })
}

/// A superblock of version 1: at the beginning, or at 4 KiB.
fn raid(bytes: &[u8]) -> Option<Found> {
    let superblock =
        [0, 4096].into_iter().find(|offset| u32_le(bytes, *offset) == Some(0xa92b_4efc))?;
    let (label, uuid) = (text(bytes, superblock + 32, 32), uuid(bytes, superblock + 16));
    Some(Found { label, uuid, ..found("mdraid", "Linux RAID member") })
}

/// The first label has a list of names and values at 16 KiB, in XDR.
fn zfs(bytes: &[u8]) -> Option<Found> {
    const LIST: usize = 16 << 10;
    const STRING: u32 = 9;
    const NUMBER: u32 = 8;
    // How long the pair is in XDR and in memory, how long its name is, and the name of the first one.
    let first = at(bytes, LIST + 12, 24)?;
    if !has(bytes, LIST, &[1]) || u32_be(first, 8) != Some(7) || !has(first, 12, b"version") {
        return None;
    }
    let (mut label, mut uuid) = (None, None);
    let mut pair = LIST + 12;
    while let (Some(length @ 16..), Some(name_length)) =
        (u32_be(bytes, pair), u32_be(bytes, pair + 8).filter(|length| *length < 256))
    {
        let name_length = name_length as usize;
        let value = pair + 12 + name_length.next_multiple_of(4);
        let name = at(bytes, pair + 12, name_length);
        match (name, u32_be(bytes, value)) {
            (Some(b"name"), Some(STRING)) => {
                let length = u32_be(bytes, value + 8).unwrap_or(0).min(256);
                label = text(bytes, value + 12, length as usize);
            }
            (Some(b"pool_guid"), Some(NUMBER)) => {
                let halves = (u32_be(bytes, value + 8), u32_be(bytes, value + 12));
                uuid = halves
                    .0
                    .zip(halves.1)
                    .map(|(high, low)| (u64::from(high) << 32 | u64::from(low)).to_string());
            }
            _ => {}
        }
        let Some(next) = pair.checked_add(length as usize) else { break };
        pair = next;
    }
    Some(Found { label, uuid, ..found("zfs", "ZFS member") })
}

/// Files that hold a disk: what is served is the file, and not the disk that is in it.
fn image(bytes: &[u8]) -> Option<Found> {
    let (kind, words) = match bytes {
        [b'Q', b'F', b'I', 0xfb, ..] => ("qcow2", "qcow2 image, served as the file that it is"),
        [b'K', b'D', b'M', b'V', ..] | [b'C', b'O', b'W', b'D', ..] => {
            ("vmdk", "VMDK image, served as the file that it is")
        }
        _ if bytes.starts_with(b"vhdxfile") => {
            ("vhdx", "VHDX image, served as the file that it is")
        }
        _ if u32_le(bytes, 0x40)? == 0xbeda_107f => {
            ("vdi", "VDI image, served as the file that it is")
        }
        _ => return None,
    };
    let uuid = (kind == "vdi").then(|| at(bytes, 0x188, 16)?.try_into().ok()).flatten();
    Some(Found { uuid: uuid.map(guid), ..found(kind, words) })
}

fn compressed(bytes: &[u8]) -> Option<Found> {
    let (kind, words) = match bytes {
        [0x1f, 0x8b, 8, ..] => ("gzip", "gzip-compressed data"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => ("xz", "XZ-compressed data"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", "Zstandard-compressed data"),
        _ => return None,
    };
    Some(found(kind, words))
}
