//! Partition tables, and what the partitions contain.

use core::ops::Range;

use nbd_engine::export::{
    Partition as Entry, PartitionError, PartitionKind, PartitionTable, PartitionTableKind,
};

use super::bytes::guid;
use super::{Disk, Found, MAX_PARTITIONS, find, of_export};

/// A partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::info) struct Table {
    pub(in crate::info) kind: TableKind,
    pub(in crate::info) partitions: Vec<Partition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::info) enum TableKind {
    Gpt,
    Mbr,
    /// A GUID partition table whose checksums are wrong, and those of its backup.
    Damaged,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::info) struct Partition {
    pub(in crate::info) number: u32,
    pub(in crate::info) range: Range<u64>,
    /// The GUID, or the byte as `0x83`.
    pub(in crate::info) code: String,
    /// What the code means, if that is known.
    pub(in crate::info) purpose: Option<&'static str>,
    /// The name in the table, which may be empty.
    pub(in crate::info) name: String,
    pub(in crate::info) found: Option<Found>,
}

/// Reads the table of a disk, and looks into its partitions. What can't be read is as if it were not there.
pub(super) fn table(disk: &impl Disk) -> Option<Table> {
    let read = |buffer: &mut [u8], offset| disk.read(buffer, offset).map_err(of_export);
    let (kind, entries) = match PartitionTable::read(disk.size(), disk.block_size(), read) {
        Ok(table) if table.kind == PartitionTableKind::Gpt => (TableKind::Gpt, table.partitions),
        Ok(table) => (TableKind::Mbr, table.partitions),
        Err(PartitionError::Damaged) => (TableKind::Damaged, Vec::new()),
        Err(_) => return None,
    };
    let partitions = entries.into_iter().enumerate().map(|(index, entry)| {
        let Entry { number, range, name, kind, .. } = entry;
        let (code, purpose) = match kind {
            PartitionKind::Guid(bytes) => {
                let code = guid(&bytes);
                let purpose = of_guid(&code);
                (code, purpose)
            }
            PartitionKind::Byte(byte) => (format!("0x{byte:02x}"), of_byte(byte)),
            _ => (String::new(), None),
        };
        let size = range.end - range.start;
        let looked = index < MAX_PARTITIONS;
        let found = looked.then(|| find(disk, range.start, size).ok().flatten()).flatten();
        Partition { number, range, code, purpose, name, found }
    });
    Some(Table { kind, partitions: partitions.collect() })
}

/// The types that matter to those who use partitions.
const GUIDS: &[(&str, &str)] = &[
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system"),
    ("21686148-6449-6e6f-744e-656564454649", "BIOS boot"),
    ("0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux file system"),
    ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root (x86-64)"),
    ("b921b045-1df0-41c3-af44-4c6f280d3fae", "Linux root (ARM 64)"),
    ("bc13c2ff-59e6-4262-a352-b275fd6f7172", "Linux extended boot"),
    ("933ac7e1-2eb4-4f13-b844-0e14e2aef915", "Linux home"),
    ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"),
    ("a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID"),
    ("ca7d7ccb-63ed-4c53-861c-1742536059cc", "LUKS"),
    ("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Microsoft basic data"),
    ("e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved"),
    ("de94bba4-06d1-4d40-a16a-bfd50179d6ac", "Windows recovery"),
    ("6a898cc3-1dd2-11b2-99a6-080020736631", "ZFS"),
    ("516e7cba-6ecf-11d6-8ff8-00022d09712b", "FreeBSD ZFS"),
    ("48465300-0000-11aa-aa11-00306543ecac", "Apple HFS+"),
    ("7c3457ef-0000-11aa-aa11-00306543ecac", "Apple APFS"),
];

fn of_guid(code: &str) -> Option<&'static str> {
    GUIDS.iter().find(|(known, _)| *known == code).map(|(_, purpose)| *purpose)
}

const fn of_byte(byte: u8) -> Option<&'static str> {
    Some(match byte {
        0x01 => "FAT12",
        0x04 | 0x06 | 0x0e => "FAT16",
        0x07 => "NTFS or exFAT",
        0x0b | 0x0c => "FAT32",
        0x27 => "Windows recovery",
        0x82 => "Linux swap",
        0x83 => "Linux file system",
        0x8e => "Linux LVM",
        0xa5 => "FreeBSD",
        0xef => "EFI system",
        0xfd => "Linux RAID",
        _ => return None,
    })
}
