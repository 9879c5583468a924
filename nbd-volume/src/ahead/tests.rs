use nbd_testkit::cases;

use super::*;

const BLOCK: u64 = 4096;

fn bytes(version: u64) -> Bytes {
    Bytes::copy_from_slice(&version.to_le_bytes())
}

/// Fetches that begin, end and fail in any order, with changes in between: nothing that was changed since is given
/// out, no block is fetched by two at the same time, and what is kept stays below its bound.
#[test]
fn what_is_given_out_is_never_older_than_the_latest_change() {
    cases(200, |random| {
        const BLOCKS: u64 = 64;
        let max = 16 * BLOCK;
        let ahead = Arc::new(Ahead::new(4096, max));
        let mut disk: Vec<u64> = vec![0; BLOCKS as usize];
        // With what their scans see, once they have begun.
        let mut fetches: Vec<(Fetch, Option<Vec<Bytes>>)> = Vec::new();
        // What clients do not take.
        let mut replies: Vec<Bytes> = Vec::new();
        for version in 1..200 {
            let start = random.below(BLOCKS);
            let range = start..(start + 1 + random.below(12)).min(BLOCKS);
            match random.below(10) {
                0 => fetches.extend(ahead.fetch(&range).into_iter().map(|one| (one, None))),
                1 | 2 => {
                    let begun = ahead.fetch_ahead(&range);
                    fetches.extend(begun.into_iter().map(|one| (one, None)));
                }
                3 if !fetches.is_empty() => {
                    let one = random.below(fetches.len() as u64) as usize;
                    let (fetch, seen) = &mut fetches[one];
                    let blocks = fetch.blocks();
                    let now = blocks.map(|index| bytes(disk[index as usize])).collect();
                    seen.get_or_insert(now);
                }
                4 | 5 if !fetches.is_empty() => {
                    let one = random.below(fetches.len() as u64) as usize;
                    if let (fetch, Some(seen)) = fetches.remove(one) {
                        fetch.finish(seen);
                    }
                }
                6 => replies.extend(range.clone().filter_map(|index| ahead.get(index))),
                7 => {
                    let kept = random.below(replies.len() as u64 + 1) as usize;
                    replies.truncate(kept);
                }
                8 => ahead.read(&(range.start * BLOCK + 1..range.end * BLOCK)),
                _ => {
                    range.clone().for_each(|index| disk[index as usize] = version);
                    ahead.forget(range);
                }
            }
            for (index, version) in disk.iter().enumerate() {
                let got = ahead.get(index as u64);
                assert!(got.is_none_or(|block| block == bytes(*version)), "block {index}");
            }
            let segments = ahead.segments();
            let mut end = 0;
            let mut kept = 0;
            for segment in segments.by_start.values() {
                assert!(end <= segment.blocks.start, "segments overlap");
                end = segment.blocks.end;
                kept += if segment.kept { end - segment.blocks.start } else { 0 };
            }
            assert_eq!(segments.kept, kept * BLOCK);
            assert!(segments.kept <= max);
            let held = ahead.held.load(Ordering::Acquire);
            assert!(held <= max + max / 2, "{held} bytes are held");
        }
        drop((fetches, replies));
        assert!(ahead.segments().by_start.values().all(|segment| segment.kept));
        // Less where all blocks of one were changed.
        assert!(ahead.held.load(Ordering::Acquire) <= ahead.segments().kept);
        ahead.clear();
        assert_eq!(ahead.held.load(Ordering::Acquire), 0);
    });
}

#[test]
fn a_segment_is_dropped_when_it_was_read() {
    let ahead = Arc::new(Ahead::new(4096, 1 << 20));
    for fetch in ahead.fetch_ahead(&(0..4)) {
        fetch.finish(vec![bytes(1); 4]);
    }
    ahead.read(&(0..3 * BLOCK));
    assert!(ahead.get(3).is_some());
    ahead.read(&(3 * BLOCK..4 * BLOCK));
    assert!(ahead.get(3).is_none());
    assert_eq!(ahead.segments().kept, 0);
}

#[test]
fn those_who_wait_are_woken_however_a_fetch_ends() {
    use core::future::Future;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};

    let ahead = Arc::new(Ahead::new(4096, 1 << 20));
    for finished in [true, false] {
        let mut fetches = ahead.fetch(&(0..4));
        let segment = ahead.covering(&(2..3)).remove(0);
        let mut waiting = pin!(segment.ended());
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let fetch = fetches.remove(0);
        match finished {
            true => fetch.finish(vec![bytes(1); 4]),
            false => drop(fetch),
        }
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(()));
        assert_eq!(segment.get(2).is_some(), finished);
        assert!(ahead.covering(&(0..4)).is_empty());
    }
}

/// Fetches that wait, of which some are given up, some begun by their own, and some with those before them: each is begun
/// once or given up, and nobody waits for one that is neither.
#[test]
fn what_waits_is_begun_once_or_given_up() {
    cases(200, |random| {
        const BLOCKS: u64 = 64;
        let ahead = Arc::new(Ahead::new(4096, 16 * BLOCK));
        let mut turns = Vec::new();
        let mut begun: Vec<Fetch> = Vec::new();
        for _ in 0..100 {
            let start = random.below(BLOCKS);
            let range = start..(start + 1 + random.below(12)).min(BLOCKS);
            match random.below(5) {
                0 => turns.extend(ahead.fetch(&range).into_iter().map(|one| ahead.wait(one))),
                1 => turns.extend(ahead.fetch_ahead(&range).into_iter().map(|one| ahead.wait(one))),
                2 if !turns.is_empty() => {
                    let turn = turns.swap_remove(random.below(turns.len() as u64) as usize);
                    begun.extend(turn.begin());
                    let mut end = turn.blocks().end;
                    while random.below(4) > 0
                        && let Some(next) = ahead.waiting(end)
                    {
                        assert_eq!(next.start, end);
                        end = next.end;
                        begun.extend(ahead.begin(&next));
                    }
                }
                3 if !turns.is_empty() => {
                    turns.swap_remove(random.below(turns.len() as u64) as usize);
                }
                4 if random.below(20) == 0 => ahead.clear(),
                _ => {
                    let finished = random.below(begun.len() as u64 + 1) as usize;
                    for fetch in begun.drain(..finished) {
                        let blocks = fetch.blocks();
                        fetch.finish(blocks.map(bytes).collect());
                    }
                }
            }
            let waiting: Vec<_> = ahead.waiting_fetches().values().map(Fetch::blocks).collect();
            for blocks in &waiting {
                assert!(turns.iter().any(|turn| turn.blocks() == blocks), "{blocks:?} has no turn");
            }
        }
        drop((turns, begun));
        assert!(ahead.waiting_fetches().is_empty());
        assert!(ahead.segments().by_start.values().all(|segment| segment.kept));
    });
}
