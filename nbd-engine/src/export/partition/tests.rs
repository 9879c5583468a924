//! Tables of every kind, sound ones, damaged ones and hostile ones.

use nbd_testkit::{Random, cases};

use super::*;
use crate::export::crc32::crc32;
use crate::export::layer::later::{Later, now};
use crate::export::{Memory, WithBlockSize};

fn put(disk: &mut [u8], offset: usize, bytes: &[u8]) {
    disk[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// An entry of a boot record.
fn put_entry(disk: &mut [u8], record: usize, index: usize, kind: u8, first: u32, count: u32) {
    let offset = record + 446 + 16 * index;
    put(disk, offset + 4, &[kind]);
    put(disk, offset + 8, &first.to_le_bytes());
    put(disk, offset + 12, &count.to_le_bytes());
    put(disk, record + 510, &[0x55, 0xaa]);
}

/// Makes the checksums of a GPT header and its entries right.
fn seal(disk: &mut [u8], sector: usize, header: usize) {
    let start = header * sector;
    let entries = u64_at(disk, start + 72) as usize * sector;
    let length = u32_at(disk, start + 80) as usize * u32_at(disk, start + 84) as usize;
    let crc = crc32(&disk[entries..entries + length]);
    put(disk, start + 88, &crc.to_le_bytes());
    put(disk, start + 16, &[0; 4]);
    let crc = crc32(&disk[start..start + 92]);
    put(disk, start + 16, &crc.to_le_bytes());
}

/// A disk with a GUID partition table and its backup; partitions by number, as first and last sector.
fn gpt(sectors: u64, sector: usize, partitions: &[(u32, u64, u64)]) -> Vec<u8> {
    let mut disk = vec![0; sectors as usize * sector];
    put_entry(&mut disk, 0, 0, 0xee, 1, u32::MAX);
    let table = 16384 / sector as u64;
    for (own, other, entries) in [(1, sectors - 1, 2), (sectors - 1, 1, sectors - 1 - table)] {
        let start = own as usize * sector;
        put(&mut disk, start, b"EFI PART");
        put(&mut disk, start + 8, &0x10000_u32.to_le_bytes());
        put(&mut disk, start + 12, &92_u32.to_le_bytes());
        for (offset, value) in
            [(24, own), (32, other), (40, 2 + table), (48, sectors - 2 - table), (72, entries)]
        {
            put(&mut disk, start + offset, &value.to_le_bytes());
        }
        put(&mut disk, start + 80, &128_u32.to_le_bytes());
        put(&mut disk, start + 84, &128_u32.to_le_bytes());
        for (number, first, last) in partitions {
            let entry = entries as usize * sector + 128 * (*number as usize - 1);
            put(&mut disk, entry, &[0xaf; 32]);
            put(&mut disk, entry + 32, &first.to_le_bytes());
            put(&mut disk, entry + 40, &last.to_le_bytes());
        }
        seal(&mut disk, sector, own as usize);
    }
    disk
}

/// An MBR disk: partition 1, and logical ones in partition 2, as first sector and count.
fn mbr(sectors: u32, first: (u32, u32), logical: &[(u32, u32)]) -> Vec<u8> {
    let mut disk = vec![0; sectors as usize * 512];
    put_entry(&mut disk, 0, 0, 0x83, first.0, first.1);
    let base = first.0 + first.1;
    put_entry(&mut disk, 0, 1, 0x0f, base, sectors - base);
    for (index, (start, count)) in logical.iter().enumerate() {
        // The record stands in front of its partition.
        let own = if index == 0 { base } else { start - 1 };
        let record = own as usize * 512;
        put_entry(&mut disk, record, 0, 0x83, start - own, *count);
        if let Some((next, count)) = logical.get(index + 1) {
            put_entry(&mut disk, record, 1, 0x05, next - 1 - base, count + 1);
        }
    }
    disk
}

fn memory(disk: &[u8]) -> Memory {
    let memory = Memory::new(disk.len() as u64).unwrap();
    memory.can_write().unwrap().write(disk, 0, false).unwrap();
    memory
}

/// The range of a partition, as exports of either kind find it.
fn find(disk: &[u8], number: u32) -> Result<Range<u64>, PartitionError> {
    let slice = Slice::partition(memory(disk), number);
    let later = now(Slice::partition_async(Later(memory(disk)), number));
    let range = |layer: &ByteRange| {
        use crate::export::Layer;
        layer.start()..layer.start() + layer.size(disk.len() as u64)
    };
    let found = slice.map(|slice| range(slice.layer()));
    assert_eq!(found, later.map(|slice| range(slice.layer())));
    if let Ok(range) = &found {
        assert!(range.start < range.end && range.end <= disk.len() as u64, "{range:?}");
    }
    found
}

/// The whole table; what it lists is what is found by number.
#[track_caller]
fn table(disk: &[u8], sizes: BlockSize) -> Result<PartitionTable, PartitionError> {
    let mut bytes = 0;
    let table = PartitionTable::read(disk.len() as u64, sizes, |buffer, offset| {
        bytes += buffer.len();
        buffer.copy_from_slice(&disk[offset as usize..][..buffer.len()]);
        Ok(())
    });
    assert!(bytes <= 5 << 20, "{bytes}");
    for Partition { number, range, .. } in table.iter().flat_map(|table| &table.partitions) {
        if sizes == BlockSize::DEFAULT {
            assert_eq!(find(disk, *number), Ok(range.clone()), "{number}");
        }
    }
    table
}

/// The same without an export.
fn search(disk: &[u8], number: u32) -> Result<ByteRange, PartitionError> {
    let mut search = Search::new(disk.len() as u64, BlockSize::DEFAULT, number);
    loop {
        match search.step() {
            Ok(range) => return search.checked(range),
            Err(Stop::Fail(error)) => return Err(error),
            Err(Stop::Need { offset, length }) => {
                search.learn(offset, disk[offset as usize..][..length].to_vec());
            }
        }
    }
}

#[test]
fn partitions_of_a_gpt_are_found_by_number_with_sectors_of_either_size() {
    for sector in [512, 4096] {
        let disk = gpt(200, sector, &[(1, 40, 99), (7, 100, 100)]);
        let sector = sector as u64;
        assert_eq!(find(&disk, 1), Ok(40 * sector..100 * sector));
        assert_eq!(find(&disk, 7), Ok(100 * sector..101 * sector));
        for number in [0, 2, 128, 129, u32::MAX] {
            assert_eq!(find(&disk, number), Err(PartitionError::NoSuchPartition(number)));
        }
    }
}

#[test]
fn partitions_of_a_boot_record_are_found_and_logical_ones_begin_with_five() {
    let disk = mbr(1000, (10, 90), &[(101, 50), (200, 100), (400, 1)]);
    assert_eq!(find(&disk, 1), Ok(10 * 512..100 * 512));
    assert_eq!(find(&disk, 2), Err(PartitionError::Extended(2)));
    assert_eq!(find(&disk, 5), Ok(101 * 512..151 * 512));
    assert_eq!(find(&disk, 6), Ok(200 * 512..300 * 512));
    assert_eq!(find(&disk, 7), Ok(400 * 512..401 * 512));
    for number in [0, 3, 4, 8, 1000] {
        assert_eq!(find(&disk, number), Err(PartitionError::NoSuchPartition(number)));
    }
}

#[test]
fn a_damaged_primary_table_is_replaced_by_its_backup_and_two_damaged_ones_by_nothing() {
    let sound = gpt(200, 512, &[(1, 40, 99)]);
    for offset in [512, 512 + 20, 512 + 48, 512 + 88, 1024, 1024 + 16383] {
        let mut disk = sound.clone();
        disk[offset] ^= 1;
        assert_eq!(find(&disk, 1), Ok(40 * 512..100 * 512), "{offset}");
        disk[199 * 512] ^= 1;
        assert_eq!(find(&disk, 1), Err(PartitionError::Damaged), "{offset}");
    }
    // The first MiB was overwritten, the boot record with it.
    let mut disk = sound;
    disk[..20 * 512].fill(0);
    assert_eq!(find(&disk, 1), Ok(40 * 512..100 * 512));
}

#[test]
fn a_table_is_listed_with_what_its_entries_say() {
    let mut disk = gpt(200, 512, &[(1, 40, 99), (2, 150, 10_000), (7, 100, 100)]);
    for start in [2 * 512, 167 * 512] {
        put(
            &mut disk,
            start + 56,
            &"Größe".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(),
        );
        put(&mut disk, start + 66, &[0, 0, 0x41, 0]);
    }
    seal(&mut disk, 512, 1);
    let found = table(&disk, BlockSize::DEFAULT).unwrap();
    assert_eq!(found.kind, PartitionTableKind::Gpt);
    let partition = |number, range, name: &str| Partition {
        number,
        range,
        kind: PartitionKind::Guid([0xaf; 16]),
        name: name.to_owned(),
    };
    let expected =
        [partition(1, 40 * 512..100 * 512, "Größe"), partition(7, 100 * 512..101 * 512, "")];
    // The one that points outside of the disk is left out.
    assert_eq!(found.partitions, expected);

    let mut disk = mbr(1000, (10, 90), &[(101, 50), (200, 100), (400, 1)]);
    put_entry(&mut disk, 0, 3, 0x07, 900, 200);
    let found = table(&disk, BlockSize::DEFAULT).unwrap();
    assert_eq!(found.kind, PartitionTableKind::Mbr);
    let listed: Vec<_> =
        found.partitions.iter().map(|one| (one.number, one.range.start / 512, one.kind)).collect();
    let linux = PartitionKind::Byte(0x83);
    assert_eq!(listed, [(1, 10, linux), (5, 101, linux), (6, 200, linux), (7, 400, linux)]);
    // A boot program that ends with the same bytes as a table.
    disk[446] = 0x33;
    assert_eq!(table(&disk, BlockSize::DEFAULT), Err(PartitionError::NoTable));
    assert_eq!(table(&[0; 4096], BlockSize::DEFAULT), Err(PartitionError::NoTable));
}

#[test]
fn a_table_is_read_in_whole_blocks() {
    let disk = gpt(256, 512, &[(1, 40, 103)]);
    let sizes = BlockSize::new(65536, 65536, 1 << 20).unwrap();
    let read = |buffer: &mut [u8], offset: u64| {
        assert!(
            buffer.len().is_multiple_of(65536) && offset.is_multiple_of(65536),
            "{} {offset}",
            buffer.len()
        );
        buffer.copy_from_slice(&disk[offset as usize..][..buffer.len()]);
        Ok(())
    };
    let found = PartitionTable::read(disk.len() as u64, sizes, read).unwrap();
    assert_eq!(found.partitions[0].range, 40 * 512..104 * 512);
}

#[test]
fn a_disk_without_a_table_has_no_partitions() {
    for size in [0, 1, 511, 512, 513, 4096, 65536] {
        assert_eq!(find(&vec![0; size], 1), Err(PartitionError::NoTable), "{size}");
    }
}

#[test]
fn what_points_outside_of_the_disk_is_refused() {
    for (first, last) in [(40, 10_000), (40, u64::MAX), (u64::MAX, u64::MAX), (99, 40), (0, 99)] {
        assert_eq!(find(&gpt(200, 512, &[(1, first, last)]), 1), Err(PartitionError::Damaged));
    }
    let outside = |range| matches!(range, Err(PartitionError::Range(SliceError::Outside { .. })));
    let mut disk = mbr(1000, (10, 90), &[]);
    put_entry(&mut disk, 0, 0, 0x83, 10, u32::MAX);
    assert!(outside(find(&disk, 1)));
    put_entry(&mut disk, 0, 0, 0x83, u32::MAX, u32::MAX);
    assert!(outside(find(&disk, 1)));
    // A logical partition that reaches out of the extended one, and one whose record is outside.
    let mut disk = mbr(1000, (10, 90), &[(101, 900)]);
    assert_eq!(find(&disk, 5), Err(PartitionError::Damaged));
    put_entry(&mut disk, 100 * 512, 1, 0x05, 900, 10);
    put_entry(&mut disk, 100 * 512, 0, 0x83, 1, 1);
    assert_eq!(find(&disk, 6), Err(PartitionError::Damaged));
}

#[test]
fn an_endless_chain_of_logical_partitions_ends() {
    let mut disk = mbr(1000, (10, 90), &[(101, 50)]);
    // It goes on with itself.
    put_entry(&mut disk, 100 * 512, 1, 0x05, 0, 10);
    assert_eq!(find(&disk, 60), Ok(101 * 512..151 * 512));
    assert_eq!(find(&disk, 1000), Err(PartitionError::Damaged));
}

#[test]
fn tables_are_read_in_whole_blocks_and_partitions_that_are_none_are_refused() {
    let sizes = BlockSize::new(4096, 4096, 1 << 20).unwrap();
    let disk = memory(&gpt(256, 512, &[(1, 40, 103), (2, 41, 104)]));
    let disk = std::sync::Arc::new(WithBlockSize::new(disk, sizes));
    let slice = Slice::partition(std::sync::Arc::clone(&disk), 1).unwrap();
    assert_eq!((slice.size(), Export::block_size(&slice)), (64 * 512, sizes));
    let refused = Slice::partition(disk, 2).unwrap_err();
    assert!(matches!(refused, PartitionError::Range(SliceError::Unaligned { .. })), "{refused}");
}

/// Bytes anywhere, but mostly where tables have theirs.
fn damage(random: &mut Random, disk: &mut [u8]) {
    let records: Vec<usize> = (0..disk.len() / 512)
        .filter(|record| disk[record * 512 + 510..][..2] == [0x55, 0xaa])
        .collect();
    for _ in 0..=random.below(12) {
        let value = random.of(&[0, 1, 5, 0x0f, 0x7f, 0x80, 0xee, 0xff, 40]);
        let record = random.of(&records) * 512;
        let last = disk.len() - 512;
        let offset = match random.below(5) {
            0 => random.below(disk.len() as u64) as usize,
            1 => record + 446 + random.below(66) as usize,
            2 => 512 + random.below(96) as usize,
            3 => last + random.below(96) as usize,
            _ => 1024 + random.below(600) as usize,
        };
        disk[offset] = value;
    }
}

#[test]
fn no_table_whatever_is_in_it_panics_or_points_outside() {
    cases(150, |random| {
        let mut disk = match random.below(2) {
            0 => gpt(100, 512, &[(1, 34, 40), (2, 41, 64)]),
            _ => mbr(200, (10, 40), &[(51, 20), (80, 30), (130, 10)]),
        };
        damage(random, &mut disk);
        if random.one_in(2) && disk.starts_with(&[0; 446]) && &disk[512..520] == b"EFI PART" {
            // The checksums of a table that somebody made on purpose are right.
            let entries = u64_at(&disk, 512 + 72);
            let length = u64::from(u32_at(&disk, 512 + 80)) * u64::from(u32_at(&disk, 512 + 84));
            if entries < 100 && entries * 512 + length <= disk.len() as u64 {
                seal(&mut disk, 512, 1);
            }
        }
        let _any = table(&disk, BlockSize::DEFAULT);
        for number in (0..8).chain([128, 132, u32::MAX]) {
            use crate::export::Layer;
            if let Ok(range) = search(&disk, number) {
                let size = disk.len() as u64;
                assert!(range.size(size) > 0 && range.start() + range.size(u64::MAX) <= size);
            }
        }
    });
}
