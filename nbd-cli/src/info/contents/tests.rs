//! Disks that the formats' own programs make, and others that are put together by hand.

use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_engine::export::BlockSize;
use nbd_testkit::{cases, peers, process};
use serde_json::json;

use super::*;

/// A disk in memory, which counts the bytes that are read of it and can't be read from some offset on.
struct Image {
    bytes: Vec<u8>,
    minimum: u32,
    read: Cell<usize>,
}

impl Image {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, minimum: 1, read: Cell::new(0) }
    }

    /// Of that many bytes, with these at offsets.
    fn with(size: usize, parts: &[(usize, &[u8])]) -> Self {
        let mut bytes = vec![0; size];
        for (offset, part) in parts {
            bytes[*offset..*offset + part.len()].copy_from_slice(part);
        }
        Self::new(bytes)
    }
}

impl Disk for Image {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn block_size(&self) -> BlockSize {
        BlockSize::new(self.minimum, self.minimum.max(4096), 1 << 25).unwrap()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let minimum = u64::from(self.minimum);
        assert!(offset.is_multiple_of(minimum) && buffer.len().is_multiple_of(minimum as usize));
        self.read.set(self.read.get() + buffer.len());
        let offset = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.bytes[offset..offset + buffer.len()]);
        Ok(())
    }
}

/// The lines for people, joined.
fn shown(image: &Image) -> String {
    look(image).unwrap().map_or_else(String::new, |contents| lines(&contents).join("\n"))
}

const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";
const UUID_BYTES: [u8; 16] =
    [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];

/// A file of that size that a program was run on.
fn made_by(program: &Path, arguments: &[&str], size: u64) -> Image {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    if size > 0 {
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    }
    let mut command = Command::new(program);
    let path_text = path.to_str().unwrap();
    command.args(arguments.iter().map(|word| if *word == "DISK" { path_text } else { word }));
    process::run(&mut command, Duration::from_secs(60)).success();
    Image::new(std::fs::read(path).unwrap())
}

#[test]
fn file_systems_of_mke2fs_are_known_with_their_labels() {
    let Some(peer) = peers::require("mke2fs") else { return };
    for version in ["ext2", "ext3", "ext4"] {
        let arguments = ["-q", "-t", version, "-L", "a \"root\"", "-U", UUID, "DISK"];
        let image = made_by(&peer.path, &arguments, 8 << 20);
        let expected = format!("{version} file system, label \"a \\\"root\\\"\", UUID {UUID}");
        assert_eq!(shown(&image), expected);
    }
}

#[test]
fn swap_space_of_mkswap_is_known_with_pages_of_any_size() {
    let Some(peer) = peers::require("mkswap") else { return };
    for page in ["4096", "65536"] {
        let arguments = ["-q", "-L", "swap", "-U", UUID, "-p", page, "DISK"];
        let image = made_by(&peer.path, &arguments, 4 << 20);
        assert_eq!(shown(&image), format!("Linux swap space, label \"swap\", UUID {UUID}"));
    }
}

#[test]
fn images_of_qemu_img_are_known_to_be_files() {
    let Some(peer) = peers::require("qemu-img") else { return };
    for (format, words) in [("qcow2", "qcow2"), ("vmdk", "VMDK"), ("vdi", "VDI"), ("vhdx", "VHDX")]
    {
        let image = made_by(&peer.path, &["create", "-q", "-f", format, "DISK", "64M"], 0);
        let expected = format!("{words} image, served as the file that it is");
        assert!(shown(&image).starts_with(&expected), "{}", shown(&image));
    }
}

#[test]
fn the_magic_numbers_of_other_formats_are_known() {
    let fat16: &[(usize, &[u8])] = &[
        (0, &[0xeb, 0x3c, 0x90]),
        (11, &[0, 2]),
        (38, &[0x29]),
        (39, &[0x78, 0x56, 0x34, 0x12]),
        (43, b"BOOT       FAT16   "),
        (510, &[0x55, 0xaa]),
    ];
    let fat32: &[(usize, &[u8])] = &[
        (0, &[0xeb, 0x58, 0x90]),
        (11, &[0, 2]),
        (66, &[0x29]),
        (67, &[0x78, 0x56, 0x34, 0x12]),
        (71, b"NO NAME    FAT32   "),
        (510, &[0x55, 0xaa]),
    ];
    let lvm: &[(usize, &[u8])] =
        &[(512, b"LABELONE"), (536, b"LVM2 001"), (544, b"abcdefghijklmnopqrstuvwxyz012345")];
    let with_uuid = format!(", UUID {UUID}");
    for (parts, expected) in [
        (
            &[(0, &b"XFSB"[..]), (32, &UUID_BYTES), (108, b"data")][..],
            format!("XFS file system, label \"data\"{with_uuid}"),
        ),
        (
            &[(65600, &b"_BHRfS_M"[..]), (65568, &UUID_BYTES), (65536 + 0x12b, b"pool")],
            format!("Btrfs file system, label \"pool\"{with_uuid}"),
        ),
        (fat16, "FAT16 file system, label \"BOOT\", UUID 1234-5678".into()),
        (fat32, "FAT32 file system, UUID 1234-5678".into()),
        (
            &[(0, &[0xeb, 0x76, 0x90]), (3, b"EXFAT   "), (100, &[0xef, 0xbe, 0xad, 0xde])],
            "exFAT file system, UUID DEAD-BEEF".into(),
        ),
        (
            &[(0, &[0xeb, 0x52, 0x90]), (3, b"NTFS    "), (72, &[8, 7, 6, 5, 4, 3, 2, 1])],
            "NTFS file system, UUID 0102030405060708".into(),
        ),
        (
            &[(32768, b"\x01CD001\x01"), (32808, b"Debian 12                       ")],
            "ISO 9660 file system, label \"Debian 12\"".into(),
        ),
        (&[(0, b"hsqs")], "SquashFS file system".into()),
        (
            &[(0, b"LUKS\xba\xbe\x00\x01"), (168, UUID.as_bytes())],
            format!("LUKS1 encrypted volume{with_uuid}"),
        ),
        (
            &[(0, b"LUKS\xba\xbe\x00\x02"), (24, b"secret"), (168, UUID.as_bytes())],
            format!("LUKS2 encrypted volume, label \"secret\"{with_uuid}"),
        ),
        (lvm, "LVM physical volume, UUID abcdef-ghij-klmn-opqr-stuv-wxyz-012345".into()),
        (
            &[(4096, &[0xfc, 0x4e, 0x2b, 0xa9]), (4112, &UUID_BYTES), (4128, b"host:0")],
            format!("Linux RAID member, label \"host:0\"{with_uuid}"),
        ),
        (&[(0, &[0x1f, 0x8b, 8])], "gzip-compressed data".into()),
        (&[(0, b"\xfd7zXZ\0")], "XZ-compressed data".into()),
        (&[(0, &[0x28, 0xb5, 0x2f, 0xfd])], "Zstandard-compressed data".into()),
    ] {
        let image = Image::with(1 << 20, parts);
        assert_eq!(shown(&image), expected);
        assert!(image.read.get() as u64 <= 2 * FIRST, "{expected}: {:?}", image.read);
    }
    assert_eq!(shown(&Image::with(1 << 20, &[])), "");
    assert_eq!(shown(&Image::with(0, &[])), "");
}

/// Disks by the formats' own programs, of which a file has the bytes that matter and what blkid says of them.
#[test]
fn disks_of_other_programs_are_known_as_blkid_knows_them() {
    let sections = include_str!("../../../tests/disks.txt").split("\n== ").skip(1);
    let mut count = 0;
    for section in sections {
        let lines: Vec<&str> = section.lines().take_while(|line| !line.is_empty()).collect();
        let [made_by, size, kind, label, uuid, bytes @ ..] = &lines[..] else {
            panic!("{section}")
        };
        let parts: Vec<(usize, Vec<u8>)> = bytes
            .iter()
            .map(|line| {
                let (offset, digits) = line.split_once(' ').unwrap();
                let byte = |index| u8::from_str_radix(&digits[index..index + 2], 16).unwrap();
                (offset.parse().unwrap(), (0..digits.len()).step_by(2).map(byte).collect())
            })
            .collect();
        // What follows is zero, and large.
        let end = parts.iter().map(|(offset, part)| offset + part.len()).max().unwrap();
        let size = size.parse::<usize>().unwrap().min(end + (128 << 10));
        let parts: Vec<_> = parts.iter().map(|(offset, part)| (*offset, &part[..])).collect();
        let found = json(&look(&Image::with(size, &parts)).unwrap().unwrap());
        let text = |value: &str| (value != "-").then(|| value.to_owned());
        let expected = json!({ "type": kind, "label": text(label), "uuid": text(uuid) });
        assert_eq!(found, expected, "{made_by}");
        count += 1;
    }
    assert!(count > 15, "{count}");
}

/// A pair of a name and a value, as ZFS lists them.
fn pair(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut pair = Vec::new();
    for number in [0, 0, name.len() as u32] {
        pair.extend(number.to_be_bytes());
    }
    pair.extend(name.as_bytes());
    pair.resize(pair.len().next_multiple_of(4), 0);
    pair.extend(kind.to_be_bytes());
    pair.extend(1_u32.to_be_bytes());
    pair.extend(value);
    pair.resize(pair.len().next_multiple_of(4), 0);
    let length = pair.len() as u32;
    pair[..4].copy_from_slice(&length.to_be_bytes());
    pair
}

/// Put together by hand, as members of RAID are above: neither can be made without a kernel that has the driver.
#[test]
fn a_member_of_a_zfs_pool_has_the_name_of_the_pool() {
    let mut list = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    list.extend(pair("version", 8, &5000_u64.to_be_bytes()));
    list.extend(pair("name", 9, b"\0\0\0\x04tank"));
    list.extend(pair("pool_guid", 8, &0x0123_4567_89ab_cdef_u64.to_be_bytes()));
    let image = Image::with(1 << 20, &[(16 << 10, &list)]);
    assert_eq!(shown(&image), "ZFS member, label \"tank\", UUID 81985529216486895");
}

/// A boot record's entry.
fn entry(kind: u8, first: u32, count: u32) -> Vec<u8> {
    let mut entry = vec![0, 0, 0, 0, kind, 0, 0, 0];
    entry.extend(first.to_le_bytes());
    entry.extend(count.to_le_bytes());
    entry
}

#[test]
fn partitions_are_shown_with_what_they_contain() {
    let parts: &[(usize, &[u8])] = &[
        (446, &entry(0x83, 2048, 2048)),
        (462, &entry(0x82, 4096, 2048)),
        (478, &entry(0x99, 6144, 2048)),
        (510, &[0x55, 0xaa]),
        (1 << 20, b"XFSB"),
        ((1 << 20) + 108, b"\x1b[31mred"),
    ];
    let image = Image::with(4 << 20, parts);
    let expected = "MBR partition table, 3 partitions
\t1: 1.0 MiB at offset 1048576, Linux file system: XFS file system, label \"\u{1b}[31mred\"
\t2: 1.0 MiB at offset 2097152, Linux swap
\t3: 1.0 MiB at offset 3145728, 0x99";
    assert_eq!(shown(&image), expected);
    let contents = look(&image).unwrap().unwrap();
    let json = json(&contents);
    assert_eq!(json["partition-table"], json!({ "type": "mbr", "damaged": false }));
    assert_eq!(json["partitions"][0]["contents"]["type"], "xfs");
    let second = json!({
        "number": 2, "offset": 2 << 20, "size": 1 << 20, "type": "0x82", "purpose": "Linux swap",
        "name": "", "contents": null,
    });
    assert_eq!(json["partitions"][1], second);
}

#[test]
fn guids_are_written_as_other_programs_write_them() {
    let mut bytes = UUID_BYTES;
    assert_eq!(bytes::guid(&bytes), "67452301-ab89-efcd-0123-456789abcdef");
    bytes.fill(0);
    assert_eq!(bytes::guid(&bytes), "00000000-0000-0000-0000-000000000000");
}

/// Bytes of known formats wherever any of them has its own.
fn scrambled(random: &mut nbd_testkit::Random) -> Vec<u8> {
    const MAGIC: &[&[u8]] = &[
        b"XFSB",
        b"_BHRfS_M",
        b"FAT16   ",
        b"FAT32   ",
        b"EXFAT   ",
        b"NTFS    ",
        b"\x01CD001",
        b"LUKS\xba\xbe",
        b"LABELONE",
        b"LVM2 001",
        b"SWAPSPACE2",
        b"\x53\xef",
        b"\x55\xaa",
        b"\x01\x01\0\0\0\0\0\0\0\0\0\x01",
        b"\0\0\0\x07version",
        b"EFI PART",
        b"\x10\x20\xf5\xf2",
        b"\0NSR02",
        b"\0NSR03",
        b"\x02\0\x03\0",
        &[0xfc, 0x4e, 0x2b, 0xa9],
    ];
    const OFFSETS: &[usize] = &[
        0, 3, 54, 82, 446, 510, 512, 536, 1024, 1080, 4086, 4096, 16384, 16396, 32768, 34816,
        65526, 65600, 131072,
    ];
    let size = random.of(&[0, 1, 511, 512, 513, 1100, 4096, 70_000, 200_000]);
    let mut bytes = vec![random.of(&[0, 0x80, 0xff]); size];
    for _ in 0..random.below(40) {
        let offset = random.of(OFFSETS) + random.below(80) as usize * random.below(2) as usize;
        let part = random.of(MAGIC);
        if let Some(place) = bytes.get_mut(offset..offset + part.len()) {
            place.copy_from_slice(part);
        }
    }
    bytes
}

#[test]
fn no_contents_whatever_they_are_panic_or_have_much_read() {
    cases(300, |random| {
        let mut image = Image::new(scrambled(random));
        image.minimum = random.of(&[1, 512, 4096]);
        let size = image.bytes.len();
        if let Some(contents) = look(&image).unwrap() {
            let shown = lines(&contents);
            assert!(!shown.is_empty());
            let _any = json(&contents);
        }
        let allowed = 2 * (2 + MAX_PARTITIONS) * FIRST as usize + 5 * size.min(1 << 20) + (1 << 20);
        assert!(image.read.get() <= allowed, "{} of {size}", image.read.get());
    });
}
