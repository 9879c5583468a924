use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;

use nbd_proto::wire::ErrorCode;
use proptest::prelude::*;

use super::*;
use crate::export::model::{self, content, runs};
use crate::export::{Export, Piece};

const DATA: bool = false;
const HOLE: bool = true;
const P: u64 = Memory::PAGE_SIZE;

fn disk(size: u64) -> Memory {
    Memory::new(size).unwrap().with_allocation_limit(64 << 20)
}

fn body(disk: &Memory, offset: u64, length: usize) -> Body {
    let mut body = Body::default();
    disk.read_body(&mut body, length, offset).unwrap();
    body
}

fn shape(disk: &Memory, offset: u64, length: u64) -> Vec<(u64, bool)> {
    let runs = runs(disk, offset, length);
    assert!(runs.iter().all(|run| run.hole == run.zero));
    runs.into_iter().map(|run| (run.length, run.hole)).collect()
}

fn code<T: fmt::Debug>(result: Result<T>) -> ErrorCode {
    result.unwrap_err().code()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_is_the_same_as_an_array(size in 0u64..6 * P, steps in model::steps()) {
        model::check(&disk(size), steps);
    }

    #[test]
    fn neighbouring_runs_differ(pages in prop::collection::vec(any::<bool>(), 1..100)) {
        let disk = disk(pages.len() as u64 * P);
        for (page, _) in (0..).zip(&pages).filter(|(_, present)| **present) {
            disk.write(&[1], page * P + 7, false).unwrap();
        }
        let expected = pages.chunk_by(|a, b| a == b).map(|run| (run.len() as u64 * P, !run[0]));
        prop_assert_eq!(shape(&disk, 0, disk.size()), expected.collect::<Vec<_>>());
    }
}

#[test]
fn a_disk_of_the_largest_size_works_at_its_end() {
    let disk = disk(Memory::MAX_SIZE);
    disk.write(b"end", Memory::MAX_SIZE - 3, false).unwrap();
    assert_eq!(model::read(&disk, Memory::MAX_SIZE - 5, 5), b"\0\0end");
    assert_eq!(shape(&disk, Memory::MAX_SIZE - 1, 1), [(1, DATA)]);
    assert_eq!(
        shape(&disk, 0, Memory::MAX_SIZE),
        [(Memory::MAX_SIZE + 1 - P, HOLE), (P - 1, DATA)]
    );
    disk.trim(0, Memory::MAX_SIZE, false).unwrap();
    assert_eq!(model::read(&disk, Memory::MAX_SIZE - 5, 5), [0; 5]);
}

#[test]
fn a_larger_size_is_refused() {
    let error = Memory::new(Memory::MAX_SIZE + 1).unwrap_err();
    assert!(error.to_string().contains("9223372036854775808 bytes is too large"), "{error}");
    assert_eq!(code(disk(1).resize(Memory::MAX_SIZE + 1)), ErrorCode::ENOSPC);
}

#[test]
fn what_is_outside_is_refused() {
    let disk = disk(P);
    assert_eq!(code(disk.read(&mut [0; 2], P - 1)), ErrorCode::EINVAL);
    assert_eq!(code(disk.read_body(&mut Body::default(), 1, u64::MAX)), ErrorCode::EINVAL);
    assert_eq!(code(disk.write(&[0; 2], P - 1, false)), ErrorCode::ENOSPC);
    assert_eq!(code(disk.write_zeroes(0, P + 1, ZeroMode::default())), ErrorCode::ENOSPC);
    assert_eq!(code(disk.trim(0, u64::MAX, false)), ErrorCode::EINVAL);
    assert_eq!(disk.allocated_bytes(), 0);
}

#[test]
fn memory_is_taken_by_pages_as_they_are_written() {
    let disk = disk(1 << 40);
    assert_eq!(disk.allocated_bytes(), 0);
    disk.write(&[1], 1 << 39, false).unwrap();
    disk.write(&[2], (1 << 39) + 1, false).unwrap();
    assert_eq!(disk.allocated_bytes(), P);
    disk.write(&[3; 2], 10 * P - 1, false).unwrap();
    assert_eq!(disk.allocated_bytes(), 3 * P);
}

#[test]
fn reading_takes_no_memory() {
    let disk = disk(1 << 40);
    assert_eq!(model::read(&disk, 12345, 4 * P), vec![0; 4 * PAGE]);
    assert_eq!(disk.allocated_bytes(), 0);
}

#[test]
fn a_trim_frees_whole_pages_and_zeroes_parts() {
    let disk = disk(8 * P);
    disk.write(&vec![9; 8 * PAGE], 0, false).unwrap();
    disk.trim(P + 1, 3 * P, false).unwrap();
    assert_eq!(disk.allocated_bytes(), 6 * P);
    assert_eq!(shape(&disk, 0, 8 * P), [(2 * P, DATA), (2 * P, HOLE), (4 * P, DATA)]);
    let content = model::read(&disk, 0, 8 * P);
    assert!(content[..PAGE + 1].iter().all(|&byte| byte == 9));
    assert!(content[PAGE + 1..4 * PAGE + 1].iter().all(|&byte| byte == 0));
    assert!(content[4 * PAGE + 1..].iter().all(|&byte| byte == 9));
}

#[test]
fn a_trim_of_a_huge_range_frees_all_of_it_and_nothing_else() {
    let disk = disk(1 << 62);
    for at in 0..300 {
        disk.write(&[1], at << 50, false).unwrap();
    }
    disk.trim(1 << 50, (1 << 62) - (1 << 50), false).unwrap();
    assert_eq!(disk.allocated_bytes(), P);
    assert_eq!(shape(&disk, 0, 1 << 62), [(P, DATA), ((1 << 62) - P, HOLE)]);
}

#[test]
fn many_regions_of_one_shard_are_freed() {
    let pages = Pages::new(Account::fixed(u64::MAX));
    // Several times as many as are freed at once, far enough apart that the shards are gone through one by one.
    let alike = pages.regions_of_one_shard(100);
    for page in &alike {
        pages.edit(*page, 0..1, Source::AllocatedZeroes).unwrap();
    }
    assert_eq!(pages.allocated(), 100 * P);
    pages.free(alike[1]..alike[99]);
    assert_eq!(pages.allocated(), 2 * P);
    pages.free(0..alike[99] + 1);
    assert_eq!(pages.allocated(), 0);
}

#[test]
fn zeroing_frees_pages_unless_no_hole_is_wanted() {
    let disk = disk(4 * P);
    disk.write(&vec![9; 4 * PAGE], 0, false).unwrap();
    disk.write_zeroes(0, P, ZeroMode { fast: true, ..ZeroMode::default() }).unwrap();
    disk.write_zeroes(P, P, ZeroMode { no_hole: true, ..ZeroMode::default() }).unwrap();
    assert_eq!(disk.allocated_bytes(), 3 * P);
    assert_eq!(shape(&disk, 0, 4 * P), [(P, HOLE), (3 * P, DATA)]);
    assert!(model::read(&disk, 0, 2 * P).iter().all(|&byte| byte == 0));
}

#[test]
fn zeroing_with_no_hole_allocates_what_was_absent() {
    let disk = disk(4 * P);
    disk.write_zeroes(1, 2 * P, ZeroMode { no_hole: true, ..ZeroMode::default() }).unwrap();
    assert_eq!(shape(&disk, 0, 4 * P), [(3 * P, DATA), (P, HOLE)]);
}

#[test]
fn a_fast_zero_without_a_hole_is_refused_and_changes_nothing() {
    let disk = disk(P);
    disk.write(&[7; 100], 0, false).unwrap();
    let mode = ZeroMode { no_hole: true, fast: true, fua: false };
    assert_eq!(code(disk.write_zeroes(0, P, mode)), ErrorCode::ENOTSUP);
    assert_eq!(model::read(&disk, 0, 100), [7; 100]);
}

#[test]
fn zeroing_what_the_limit_has_no_room_for_fails_and_takes_nothing() {
    // The default limit: no machine has this much memory.
    let disk = Memory::new(1 << 62).unwrap();
    let mode = ZeroMode { no_hole: true, ..ZeroMode::default() };
    assert_eq!(code(disk.write_zeroes(0, 1 << 62, mode)), ErrorCode::ENOSPC);
    assert_eq!(disk.allocated_bytes(), 0);
}

#[test]
fn zeroing_counts_pages_that_are_there_already() {
    let disk = Memory::new(1 << 40).unwrap().with_allocation_limit(4 * P);
    disk.write(&vec![1; 2 * PAGE], 0, false).unwrap();
    let mode = ZeroMode { no_hole: true, ..ZeroMode::default() };
    assert_eq!(code(disk.write_zeroes(P, 4 * P, mode)), ErrorCode::ENOSPC);
    assert_eq!(disk.allocated_bytes(), 2 * P);
    disk.write_zeroes(0, 4 * P, mode).unwrap();
    assert_eq!(disk.allocated_bytes(), 4 * P);
}

#[test]
fn a_full_disk_can_be_rewritten_and_trimmed() {
    let disk = Memory::new(8 * P).unwrap().with_allocation_limit(2 * P);
    disk.write(&vec![1; 2 * PAGE], 0, false).unwrap();
    let error = disk.write(&[1], 5 * P, false).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ENOSPC);
    assert!(error.text().contains(&format!("{} bytes", 2 * P)), "{error}");
    disk.write(&[2; 10], P, false).unwrap();
    disk.trim(0, P, false).unwrap();
    disk.write(&[1], 5 * P, false).unwrap();
    assert_eq!(disk.allocated_bytes(), 2 * P);
}

#[test]
fn one_page_on_a_huge_disk_is_reported_in_three_runs() {
    let disk = disk(1 << 62);
    disk.write(&[1], 1 << 61, false).unwrap();
    assert_eq!(shape(&disk, 0, 1 << 62), [(1 << 61, HOLE), (P, DATA), ((1 << 61) - P, HOLE)]);
}

#[test]
fn extents_begin_in_the_middle_of_a_page() {
    let disk = disk(2 * P);
    disk.write(&[1], 0, false).unwrap();
    assert_eq!(shape(&disk, 100, 1), [(P - 100, DATA)]);
    assert_eq!(shape(&disk, P + 100, 1), [(P - 100, HOLE)]);
}

#[test]
fn extents_stop_when_the_visitor_breaks_off() {
    let disk = disk(10 * P);
    for page in [1, 3, 5, 7] {
        disk.write(&[1], page * P, false).unwrap();
    }
    let mut visited = 0;
    let mut visit = |_| {
        visited += 1;
        if visited == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    CanExtents::extents(&disk, 0, 10 * P, &mut visit).unwrap();
    assert_eq!(visited, 3);
}

#[test]
fn extents_of_a_long_run_of_data_come_in_several_calls() {
    let pages = Pages::new(Account::fixed(u64::MAX));
    for page in 0..40 {
        pages.edit(page, 0..1, Source::AllocatedZeroes).unwrap();
    }
    assert_eq!(pages.run(0, 100, 30), (true, 30));
    assert_eq!(pages.run(30, 100, 30), (true, 40));
    assert_eq!(pages.run(40, 100, 30), (false, 100));
}

#[test]
fn what_was_cut_off_is_zero_when_it_comes_back() {
    let disk = disk(4 * P);
    disk.write(&vec![5; 4 * PAGE], 0, false).unwrap();
    disk.resize(P + 10).unwrap();
    assert_eq!(disk.allocated_bytes(), 2 * P);
    disk.resize(4 * P).unwrap();
    let content = model::read(&disk, 0, 4 * P);
    assert!(content[..PAGE + 10].iter().all(|&byte| byte == 5));
    assert!(content[PAGE + 10..].iter().all(|&byte| byte == 0));
}

#[test]
fn large_reads_share_pages_and_small_ones_do_not() {
    let disk = disk(4 * P);
    disk.write(&vec![5; 3 * PAGE], 0, false).unwrap();
    let shared = |piece: &Piece| matches!(piece, Piece::Shared(_));
    assert!(body(&disk, 0, 2 * PAGE).pieces().iter().all(shared));
    assert!(body(&disk, 0, 4096).pieces().iter().all(shared));
    assert!(!body(&disk, 0, 4095).pieces().iter().any(shared));
    // All but the little that is in the first page.
    let pieces = body(&disk, P - 100, PAGE + 100);
    assert!(matches!(pieces.pieces(), [Piece::Buffer(100), Piece::Shared(_)]));
}

#[test]
fn neighbouring_holes_are_one_piece() {
    let disk = disk(10 * P);
    disk.write(&[5], 4 * P, false).unwrap();
    let body = body(&disk, 10, 8 * PAGE);
    let pieces = body.pieces();
    assert!(matches!(pieces, [Piece::Hole(_), Piece::Shared(_), Piece::Hole(_)]), "{pieces:?}");
    assert_eq!(pieces[0].len(), 4 * PAGE - 10);
}

#[test]
fn shared_pages_stay_as_they_were_read() {
    let disk = disk(4 * P);
    disk.write(&vec![5; 4 * PAGE], 0, false).unwrap();
    let body = body(&disk, 0, 4 * PAGE);
    disk.write(&[6; 100], 50, false).unwrap();
    disk.write(&vec![6; PAGE], P, false).unwrap();
    disk.write_zeroes(2 * P, P, ZeroMode { no_hole: true, ..ZeroMode::default() }).unwrap();
    disk.trim(3 * P, P, false).unwrap();
    assert!(content(&body).iter().all(|&byte| byte == 5));
    let mut now = vec![5; 50];
    now.extend([6; 100]);
    now.resize(PAGE, 5);
    now.resize(2 * PAGE, 6);
    now.resize(4 * PAGE, 0);
    assert!(model::read(&disk, 0, 4 * P) == now);
    assert_eq!(disk.allocated_bytes(), 3 * P);
}

#[test]
fn a_page_is_written_in_place_again_once_it_is_not_shared() {
    let disk = disk(P);
    disk.write(&vec![5; PAGE], 0, false).unwrap();
    let address = || disk.pages.look(0, |page| page.unwrap().as_ptr());
    let before = address();
    let shared = body(&disk, 0, PAGE);
    disk.write(&[6], 0, false).unwrap();
    let copied = address();
    assert_ne!(before, copied);
    drop(shared);
    disk.write(&[7], 0, false).unwrap();
    assert_eq!(address(), copied);
}

#[test]
fn readers_see_nothing_but_what_their_writers_wrote() {
    const WRITERS: u64 = 3;
    const ROUNDS: u8 = 60;
    // No range begins or ends with a page, so that writers meet in pages.
    const EACH: u64 = P + P / 3;
    let disk = Arc::new(disk(WRITERS * EACH));
    let done = Arc::new(AtomicBool::new(false));
    let tag = |writer: u64, round: u8| (writer as u8 + 1) << 6 | round;
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (disk, done) = (disk.clone(), done.clone());
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let body = body(&disk, 0, (WRITERS * EACH) as usize);
                    let bytes = content(&body);
                    for (writer, range) in (0..).zip(bytes.chunks(EACH as usize)) {
                        let own = |byte: &u8| *byte == 0 || *byte >> 6 == writer + 1;
                        assert!(range.iter().all(own));
                    }
                    thread::yield_now();
                    assert!(content(&body) == bytes, "shared bytes changed");
                }
            })
        })
        .collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let disk = disk.clone();
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    match round % 4 {
                        3 => disk.trim(writer * EACH, EACH, false).unwrap(),
                        _ => disk
                            .write(&vec![tag(writer, round); EACH as usize], writer * EACH, false)
                            .unwrap(),
                    }
                }
                disk.write(&vec![tag(writer, ROUNDS); EACH as usize], writer * EACH, false)
                    .unwrap();
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    for writer in 0..WRITERS {
        let last = model::read(&*disk, writer * EACH, EACH);
        assert!(last.iter().all(|&byte| byte == tag(writer, ROUNDS)));
    }
    assert_eq!(disk.allocated_bytes(), (WRITERS * EACH).next_multiple_of(P));
}

#[test]
fn the_account_is_right_after_threads_wrote_and_freed_the_same_pages() {
    let disk = Arc::new(disk(40 * P));
    let threads: Vec<_> = (0..4u64)
        .map(|seed| {
            let disk = disk.clone();
            thread::spawn(move || {
                for step in 0..400u64 {
                    let at = (step * 7 + seed * 13) % 39 * P;
                    match (step + seed) % 4 {
                        0 => disk.trim(at, P, false).unwrap(),
                        1 => drop(body(&disk, at, PAGE)),
                        _ => disk.write(&[1; 512], at, false).unwrap(),
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let data: u64 = shape(&disk, 0, 40 * P).iter().map(|run| if run.1 { 0 } else { run.0 }).sum();
    assert_eq!(disk.allocated_bytes(), data);
    disk.trim(0, 40 * P, false).unwrap();
    assert_eq!(disk.allocated_bytes(), 0);
}

#[test]
fn it_says_what_it_can_do() {
    let disk = disk(1);
    assert!(disk.never_blocks() && disk.multi_conn() && !disk.rotational());
    assert_eq!(disk.fua(), Fua::Native);
    disk.flush().unwrap();
    disk.cache(0, 1).unwrap();
}

#[test]
fn a_page_that_is_handed_over_replaces_the_one_before() {
    let disk = disk(4 * P);
    let page = |byte| {
        let mut page = disk.new_page().unwrap();
        page.get_mut().unwrap().fill(byte);
        page
    };
    assert!(disk.write_page(page(1), P).unwrap().is_none(), "there was none before");
    assert_eq!(disk.allocated_bytes(), P);
    let before = disk.write_page(page(2), P).unwrap().unwrap();
    assert!(before.iter().all(|byte| *byte == 1));
    assert_eq!(disk.allocated_bytes(), P);
    let mut read = vec![0; PAGE + 2];
    disk.read(&mut read, P - 1).unwrap();
    assert_eq!((read[0], read[1], read[PAGE], read[PAGE + 1]), (0, 2, 2, 0));
}

#[test]
fn pages_handed_over_count_against_the_limit_and_stay_inside_the_disk() {
    let disk = Memory::new(4 * P).unwrap().with_allocation_limit(P);
    let page = || disk.new_page().unwrap();
    disk.write_page(page(), 0).unwrap();
    assert_eq!(disk.write_page(page(), P).unwrap_err().code(), ErrorCode::ENOSPC);
    disk.write_page(page(), 0).unwrap();
    assert_eq!(disk.write_page(page(), 4 * P).unwrap_err().code(), ErrorCode::ENOSPC);
}
