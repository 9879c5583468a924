use proptest::prelude::*;

use super::*;
use crate::client::Flags;

const SIZE: u64 = 64;

/// A change of an export of [`SIZE`] bytes: which kind, where, what it writes, and whether a cache that is lost had written
/// it back before.
#[derive(Clone, Debug)]
struct Made {
    kind: u8,
    offset: u64,
    length: u64,
    fill: u8,
    written_back: bool,
}

fn made() -> impl Strategy<Value = Made> {
    (0..5u8, 0..SIZE, 1..SIZE, 1..=255u8, any::<bool>()).prop_map(
        |(kind, offset, length, fill, written_back)| {
            let length = length.min(SIZE - offset);
            Made { kind, offset, length, fill, written_back }
        },
    )
}

impl Made {
    fn command(&self) -> Command {
        match self.kind {
            0 | 1 => Command::write(self.offset, self.length),
            2 => Command::write(self.offset, self.length).with_fua(),
            3 => Command::write_zeroes(self.offset, self.length).with_no_hole(),
            _ => Command::trim(self.offset, self.length),
        }
    }

    fn data(&self) -> Bytes {
        vec![self.fill; self.length as usize].into()
    }

    fn is_durable(&self) -> bool {
        self.written_back || self.kind == 2
    }
}

fn carry_out(image: &mut [u8], command: &Command, data: &[u8]) {
    let range = command.offset() as usize..(command.offset() + command.length()) as usize;
    match command {
        Command::Write { .. } => image[range].copy_from_slice(data),
        _ => image[range].fill(0),
    }
}

proptest! {
    /// Whatever the cache had written back, and wherever flushes were: what is written again makes the image what it was.
    #[test]
    fn what_is_written_again_makes_up_for_the_cache(
        changes in prop::collection::vec(made(), 0..24),
        flushed in 0..24usize,
        covers in 0..24usize,
    ) {
        let kept = Kept::new(u64::MAX, 1);
        let (mut visible, mut durable) = (vec![0; SIZE as usize], vec![0; SIZE as usize]);
        let covers = covers.min(flushed);
        let mut mark = Tally::default();
        for (index, change) in changes.iter().enumerate() {
            if index == covers {
                mark = kept.mark();
            }
            if index == flushed {
                kept.flushed(mark);
            }
            let (command, data) = (change.command(), change.data());
            kept.acknowledge(&command, || data.clone());
            carry_out(&mut visible, &command, &data);
            if change.is_durable() || flushed < changes.len() && index < covers {
                carry_out(&mut durable, &command, &data);
            }
        }
        kept.ended(0);
        kept.connected(0);
        if let Next::Replay(pieces) = kept.next(0, true, SIZE) {
            let mut written = vec![false; SIZE as usize];
            for (command, data) in &pieces {
                let offset = command.offset() as usize;
                let range = offset..offset + command.length() as usize;
                prop_assert!(written[range.clone()].iter().all(|written| !written), "only once");
                written[range].fill(true);
                if command.length() > 0 && matches!(command, Command::WriteZeroes { .. }) {
                    prop_assert!(command.flags().contains(Flags::NO_HOLE));
                }
                carry_out(&mut durable, command, data);
            }
            prop_assert!(matches!(kept.next(0, true, SIZE), Next::Hold));
            prop_assert_eq!(kept.recovered(true), Tally::default());
        }
        prop_assert_eq!(durable, visible);
        prop_assert!(matches!(kept.next(0, true, SIZE), Next::Submit));
        prop_assert_eq!(kept.state().bytes, 0);
    }

    /// The log holds no more than the bound and one change, whatever is reserved, acknowledged, given up, and flushed. Then
    /// all room is there again.
    #[test]
    fn kept_changes_stay_within_their_bound(
        max_bytes in 0..4000u64,
        steps in prop::collection::vec((0..5u8, made()), 0..200),
    ) {
        let kept = Arc::new(Kept::new(max_bytes, 1));
        let mut admitted: VecDeque<(Made, Reservation)> = VecDeque::new();
        let mut flush = None;
        for (step, change) in steps {
            match step {
                0 | 1 => match kept.reserve(0, &change.command()) {
                    Room::Reserved(room) => admitted.push_back((change, room)),
                    Room::Wait => prop_assert!(flush.is_some() || kept.state().bytes == 0),
                    Room::Flush => {
                        prop_assert!(flush.is_none(), "one at a time");
                        flush = Some(kept.mark());
                    }
                },
                2 => if let Some((change, room)) = admitted.pop_front() {
                    kept.acknowledge(&change.command(), || change.data());
                    drop(room);
                },
                3 => drop(admitted.pop_front()),
                _ => if let Some(mark) = flush.take() {
                    kept.flush_ended(mark, true);
                },
            }
            let state = kept.state();
            let held = |change: &Change| match &change.what {
                What::Data(data) => OVERHEAD + data.len() as u64,
                _ => OVERHEAD,
            };
            prop_assert_eq!(state.bytes, state.log.iter().map(held).sum::<u64>());
            let one = OVERHEAD + SIZE;
            prop_assert!(state.bytes + state.reserved <= max_bytes.max(one), "{state:?}");
        }
        drop(admitted);
        prop_assert_eq!(kept.state().reserved, 0);
    }
}

#[test]
fn what_a_shrunk_export_lost_does_not_come_back() {
    let kept = Kept::new(u64::MAX, 1);
    let data = || Bytes::from(vec![1; 32]);
    kept.acknowledge(&Command::write(16, 32), data);
    kept.acknowledge(&Command::resize(32), Bytes::new);
    kept.acknowledge(&Command::resize(64), Bytes::new);
    kept.ended(0);
    kept.connected(0);
    let Next::Replay(pieces) = kept.next(0, true, 64) else { panic!("there is something") };
    assert_eq!(pieces, [(Command::write(16, 16), Bytes::from(vec![1; 16]))]);
}

#[test]
fn all_connections_are_drained_before_anything_is_written_again() {
    let kept = Kept::new(u64::MAX, 3);
    kept.acknowledge(&Command::trim(0, 1), Bytes::new);
    kept.ended(0);
    assert!(matches!(kept.next(1, false, 64), Next::Submit), "there is no new server yet");
    kept.connected(0);
    assert!(matches!(kept.next(0, true, 64), Next::Hold));
    assert!(matches!(kept.next(1, false, 64), Next::Hold));
    kept.ended(2);
    assert!(matches!(kept.next(0, true, 64), Next::Hold));
    let replays = |index| matches!(kept.next(index, true, 64), Next::Replay(_));
    assert!(replays(1));
    assert!(!replays(0), "another one does it");
    kept.ended(1);
    assert!(replays(0), "that one was lost, too");
    let lost = kept.recovered(false);
    assert_eq!((lost.requests, lost.bytes), (1, 1), "the flush failed");
    assert!(matches!(kept.next(0, false, 64), Next::Submit));
}

/// Its server may have lost what another connection was told, whose own end is not yet known.
#[test]
fn every_new_connection_has_everything_written_again() {
    let kept = Kept::new(u64::MAX, 2);
    (0..2).for_each(|index| kept.ended(index));
    kept.connected(0);
    assert!(matches!(kept.next(0, true, 64), Next::Submit), "there is nothing to be written");
    kept.acknowledge(&Command::trim(0, 1), Bytes::new);
    kept.connected(1);
    assert!(matches!(kept.next(1, true, 64), Next::Hold));
    // What was acknowledged meanwhile is written again, too.
    kept.acknowledge(&Command::trim(1, 1), Bytes::new);
    let Next::Replay(pieces) = kept.next(0, true, 64) else { panic!("it is drained") };
    assert_eq!(pieces.len(), 2);
}
