//! Disks that share what memory there is, and threads that share a disk.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use nbd_proto::wire::ErrorCode;
use proptest::prelude::*;

use super::*;
use crate::export::model::{self, content};

const P: u64 = Memory::PAGE_SIZE;

/// Disks that may hold `pages` together.
fn disks(count: usize, pages: u64) -> (Arc<Account>, Vec<Memory>) {
    let account = Account::fixed(pages * P);
    let disk = || Memory::with_account(1 << 40, Arc::clone(&account)).unwrap();
    let disks = (0..count).map(|_| disk()).collect();
    (account, disks)
}

/// CanWrite pages one after the other until that fails.
fn fill(disk: &Memory, page: impl Fn(u64) -> u64) -> (u64, ExportError) {
    for count in 0.. {
        if let Err(error) = disk.write(&[1], page(count) * P, false) {
            return (count, error);
        }
    }
    unreachable!("no memory is endless")
}

#[test]
fn disks_hold_no_more_together_than_one_may_alone() {
    let (account, disks) = disks(3, 300);
    let mut held = 0;
    for disk in &disks {
        let (pages, error) = fill(disk, |page| 1000 * page);
        assert_eq!(error.code(), ErrorCode::ENOSPC, "{error}");
        held += pages;
    }
    assert_eq!(held, 300);
    assert_eq!(account.held(), 300 * P);
    // Reading and rewriting go on, and what one frees another one can have.
    disks[0].write(&vec![2; 5 * PAGE], 0, false).unwrap_err();
    disks[0].write(&vec![2; PAGE], 0, false).unwrap();
    assert_eq!(model::read(&disks[0], 0, 2), [2; 2]);
    disks[0].trim(0, 1 << 40, false).unwrap();
    let (pages, _) = fill(&disks[2], |page| 1000 * page + 7);
    // But for the frames that the first one keeps.
    assert!((300 - 16..=300).contains(&pages), "{pages}");
    drop(disks);
    assert_eq!(account.held(), 0);
}

#[test]
fn the_memory_of_all_disks_is_in_the_way_of_zeroing_with_no_hole() {
    let (_, disks) = disks(2, 100);
    let no_hole = ZeroMode { no_hole: true, ..ZeroMode::default() };
    disks[0].write_zeroes(0, 60 * P, no_hole).unwrap();
    let error = disks[1].write_zeroes(0, 60 * P, no_hole).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ENOSPC);
    assert_eq!(disks[1].allocated_bytes(), 0, "nothing was begun");
    disks[1].write_zeroes(0, 30 * P, no_hole).unwrap();
}

#[test]
fn pages_of_other_origin_are_copied_into_the_disks_own_memory() {
    let (account, disks) = disks(2, 64);
    assert!(disks[0].write_page(vec![3; PAGE].into(), 0).unwrap().is_none());
    assert!(disks[0].write_page(disks[1].new_page().unwrap(), P).unwrap().is_none());
    assert_eq!(model::read(&disks[0], 0, P), vec![3; PAGE]);
    assert_eq!(disks[0].allocated_bytes(), 2 * P);
    let elsewhere = account.held();
    assert!(disks[0].write_page(vec![4; PAGE].into(), 0).unwrap().is_none());
    assert_eq!(account.held(), elsewhere);
}

#[test]
fn pages_for_receiving_count_as_memory_that_is_held() {
    let (account, disks) = disks(1, 40);
    let pages: Vec<Page> = core::iter::from_fn(|| disks[0].new_page()).collect();
    assert_eq!(pages.len(), 40);
    assert_eq!(disks[0].write(&[1], 0, false).unwrap_err().code(), ErrorCode::ENOSPC);
    drop(pages);
    disks[0].write(&[1], 0, false).unwrap();
    assert!(account.held() <= 17 * P);
}

/// What a thread does with its part of a disk. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    /// Whole pages, received into the disk's own.
    Receive(u64, u8),
    Trim(u64, u64),
    Zero(u64, u64, bool),
    /// A read whose reply takes its time.
    Share(u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => any::<(u64, u64, u8)>().prop_map(|(at, length, byte)| Step::Write(at, length, byte)),
        2 => any::<(u64, u8)>().prop_map(|(page, byte)| Step::Receive(page, byte)),
        2 => any::<(u64, u64)>().prop_map(|(at, length)| Step::Trim(at, length)),
        1 => any::<(u64, u64, bool)>().prop_map(|(at, length, hole)| Step::Zero(at, length, hole)),
        2 => any::<(u64, u64)>().prop_map(|(at, length)| Step::Share(at, length)),
    ];
    prop::collection::vec(step, 1..60)
}

/// Bytes of a thread's part: it begins and ends in pages that are its neighbours', too.
const PART: u64 = 40 * P + P / 3;

/// Does the steps in a part of the disk and in an array. Shared bodies go to the thread that drops them.
fn play(disk: &Memory, part: u64, steps: &[Step], drop_later: &mpsc::Sender<(Body, Vec<u8>)>) {
    let start = part * PART;
    let mut model = vec![0; PART as usize];
    for step in steps {
        let range = |at: u64, length: u64| {
            let at = at % PART;
            (at, (length % (PART - at)).min(20 * P) + 1)
        };
        let bytes = |at: u64, length: u64| at as usize..(at + length) as usize;
        match *step {
            Step::Write(at, length, byte) => {
                let (at, length) = range(at, length);
                disk.write(&vec![byte; length as usize], start + at, false).unwrap();
                model[bytes(at, length)].fill(byte);
            }
            Step::Receive(page, byte) => {
                let at = (start.div_ceil(P) + page % 39) * P;
                let mut page = disk.new_page().unwrap();
                page.get_mut().unwrap().fill(byte);
                drop(disk.write_page(page, at).unwrap());
                model[bytes(at - start, P)].fill(byte);
            }
            Step::Trim(at, length) => {
                let (at, length) = range(at, length);
                disk.trim(start + at, length, false).unwrap();
                model[bytes(at, length)].fill(0);
            }
            Step::Zero(at, length, no_hole) => {
                let (at, length) = range(at, length);
                let mode = ZeroMode { no_hole, ..ZeroMode::default() };
                disk.write_zeroes(start + at, length, mode).unwrap();
                model[bytes(at, length)].fill(0);
            }
            Step::Share(at, length) => {
                let (at, length) = range(at, length);
                let mut body = Body::default();
                disk.read_body(&mut body, length as usize, start + at).unwrap();
                let expected = model[bytes(at, length)].to_vec();
                assert!(content(&body) == expected);
                drop_later.send((body, expected)).unwrap();
            }
        }
    }
    assert!(model::read(disk, start, PART) == model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn threads_that_reuse_each_others_pages_see_their_own_bytes(
        parts in prop::collection::vec(steps(), 3)
    ) {
        let account = Account::fixed(1 << 30);
        let size = parts.len() as u64 * PART;
        let disk = Memory::with_account(size, Arc::clone(&account)).unwrap();
        thread::scope(|scope| {
            let (sender, bodies) = mpsc::channel::<(Body, Vec<u8>)>();
            scope.spawn(move || {
                // A few are always kept, so that pages are shared when they are written or freed.
                let mut kept = std::collections::VecDeque::new();
                for (body, expected) in bodies {
                    kept.push_back((body, expected));
                    if kept.len() > 8 {
                        let (body, expected) = kept.pop_front().unwrap();
                        assert!(content(&body) == expected, "shared bytes changed");
                    }
                }
            });
            for (part, steps) in (0..).zip(&parts) {
                let (disk, sender) = (&disk, sender.clone());
                scope.spawn(move || play(disk, part, steps, &sender));
            }
        });
        let (warm, _) = disk.pages.frames().idle();
        prop_assert_eq!(account.held(), disk.allocated_bytes() + warm as u64 * P);
        disk.trim(0, size, false).unwrap();
        // The last page is only covered in part, so that it stays.
        prop_assert!(account.held() <= 17 * P);
        prop_assert!(model::read(&disk, 0, size).iter().all(|&byte| byte == 0));
        drop(disk);
        prop_assert_eq!(account.held(), 0);
    }
}
