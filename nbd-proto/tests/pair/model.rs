//! Random requests, answered in random order, in random pieces, against a plain array of bytes.

use nbd_proto::{Command, server};
use proptest::prelude::*;

use crate::pair::{Pair, disk, modes, with};
use crate::server_end::Shape;
use crate::split::Split;

/// A request about a part of the disk that no other request of its batch is about.
#[derive(Clone, Debug)]
enum Wish {
    Read { dont_fragment: bool },
    Write(u8),
    Zeroes,
    Status { one: bool },
    Flush,
}

fn wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        4 => any::<bool>().prop_map(|dont_fragment| Wish::Read { dont_fragment }),
        3 => any::<u8>().prop_map(Wish::Write),
        1 => Just(Wish::Zeroes),
        1 => any::<bool>().prop_map(|one| Wish::Status { one }),
        1 => Just(Wish::Flush),
    ]
}

/// A batch: a wish for each of some parts of the disk, cut at random places.
fn batch() -> impl Strategy<Value = Vec<(u64, u64, Wish)>> {
    prop::collection::vec((1u64..4000, wish()), 1..12).prop_map(|wishes| {
        let mut start = 0;
        let place = |(length, wish)| {
            let offset = start;
            start += length;
            (offset, length, wish)
        };
        let placed = wishes.into_iter().map(place);
        placed.filter(|(offset, length, _)| offset + *length <= 32768).collect()
    })
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![Just(Shape::Data), Just(Shape::Blocks), Just(Shape::Backwards)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 96 } else { 512 }))]

    #[test]
    fn a_session_of_any_requests_agrees_with_an_array(
        batches in prop::collection::vec((batch(), shape(), any::<usize>()), 1..5),
        mode in 0usize..3,
        places in 1u32..16,
        seed in 1u64..,
    ) {
        let (name, mut client) = modes()[mode].clone();
        client.contexts = vec!["base:allocation".into()];
        let mut server = server::Config::default();
        server.limits.max_in_flight = places;
        let mut pair = Pair::new(client, server, &Split::Random(seed));
        pair.run();
        let mut model = disk();
        for (wishes, shape, order) in batches {
            pair.server.shape = shape;
            let mut expected = Vec::new();
            for (offset, length, wish) in wishes {
                let range = offset as usize..offset as usize + length as usize;
                let before = model[range.clone()].to_vec();
                let command = match wish {
                    Wish::Read { dont_fragment } => {
                        let dont_fragment = dont_fragment && name != "simple";
                        with(Command::read(offset, length), Command::with_dont_fragment, dont_fragment)
                    }
                    Wish::Write(byte) => {
                        model[range].fill(byte);
                        let command = with(Command::write(offset, length), Command::with_fua, byte % 2 == 0);
                        let tag = pair.submit_with(command, byte).unwrap();
                        expected.push((tag, vec![byte; length as usize]));
                        continue;
                    }
                    Wish::Zeroes => {
                        model[range].fill(0);
                        Command::write_zeroes(offset, length)
                    }
                    Wish::Status { .. } if name == "simple" => continue,
                    Wish::Status { one } => {
                        with(Command::block_status(offset, length), Command::with_one, one)
                    }
                    Wish::Flush => Command::Flush,
                };
                let tag = pair.submit(command);
                let read = matches!(command, Command::Read { .. });
                expected.push((tag, if read { before } else { Vec::new() }));
            }
            pair.answer_all(|count| order % count);
            prop_assert_eq!(pair.client.requests_in_flight(), 0);
            let mut done: Vec<_> = pair.done.drain(..).collect();
            done.sort_unstable_by_key(|done| done.tag);
            prop_assert_eq!(done.len(), expected.len());
            for (done, (tag, bytes)) in done.iter().zip(expected) {
                prop_assert_eq!((done.tag, &done.result), (tag, &Ok(())));
                prop_assert_eq!(&done.bytes, &bytes);
            }
        }
        prop_assert_eq!(&pair.server.disk, &model);
        pair.leave();
    }
}
