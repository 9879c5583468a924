//! Every command, with every flag, under every kind of header.

use nbd_pair::client::with;
use nbd_pair::disk::{BLOCK, FILL, Shape, full_export};
use nbd_pair::pair::Pair;
use nbd_proto::client::SubmitError;
use nbd_proto::wire::{CommandType, ErrorCode, TransmissionFlags};
use nbd_proto::{Command, InvalidRequest, server};

use crate::scenario::{for_each_split, modes};

const ONE: u64 = BLOCK as u64;

fn read(offset: u64, length: u64) -> Command {
    Command::read(offset, length)
}

fn write(offset: u64, length: u64) -> Command {
    Command::write(offset, length)
}

fn status(offset: u64, length: u64, one: bool) -> Command {
    with(Command::block_status(offset, length), Command::with_one, one)
}

/// Runs a scenario under each kind of header that `mode` names, with two metadata contexts where there can be some.
fn in_modes(mode: &str, scenario: impl Fn(&mut Pair)) -> Vec<Vec<String>> {
    let wanted = modes().into_iter().filter(|(name, _)| mode.contains(name));
    wanted
        .map(|(_, mut client)| {
            client.contexts = vec!["base:allocation".into(), "x-test:first-byte".into()];
            for_each_split(&client, &server::Config::default(), |pair| {
                pair.run();
                scenario(pair);
                pair.leave();
            })
        })
        .collect()
}

#[test]
fn every_command_with_every_flag_does_what_it_says() {
    in_modes("simple structured extended", |pair| {
        let mut model = pair.server.embedder.bytes.clone();
        for fua in [false, true] {
            let offset = if fua { 5000 } else { 7000 };
            let tag = pair
                .submit_with(with(Command::write(offset, 1500), Command::with_fua, fua), 0xa5)
                .unwrap();
            pair.answer_all(|_| 0);
            assert_eq!(
                (pair.client.actor.done[0].tag, &pair.client.actor.done[0].result),
                (tag, &Ok(()))
            );
            pair.client.actor.done.clear();
            model[offset as usize..][..1500].fill(0xa5);
            for no_hole in [false, true] {
                let (offset, length) = (5100 + u64::from(no_hole) * 2000, 300);
                let zeroes = with(
                    with(Command::write_zeroes(offset, length), Command::with_fua, fua),
                    Command::with_no_hole,
                    no_hole,
                );
                assert_eq!(pair.perform(zeroes).result, Ok(()));
                model[offset as usize..][..300].fill(0);
            }
            assert_eq!(
                pair.perform(with(Command::trim(0, 512), Command::with_fua, fua)).result,
                Ok(())
            );
        }
        let fast = Command::write_zeroes(0, 512).with_fua().with_no_hole().with_fast();
        assert_eq!(pair.perform(fast).result.unwrap_err().code, ErrorCode::ENOTSUP);
        assert_eq!(pair.perform(Command::cache(1, 9999)).result, Ok(()));
        assert_eq!(pair.perform(Command::Flush).result, Ok(()));
        assert_eq!(pair.server.embedder.bytes, model);
        let whole = pair.perform(read(0, model.len() as u64));
        assert_eq!((whole.result, whole.bytes), (Ok(()), model));
    });
}

#[test]
fn a_read_without_fragments_needs_structured_replies() {
    in_modes("structured extended", |pair| {
        for shape in [Shape::DATA, Shape::BLOCKS, Shape::BACKWARDS] {
            pair.server.embedder.shape = shape;
            let whole = Command::read(100, 5000).with_dont_fragment();
            let done = pair.perform(whole);
            assert_eq!(
                (done.result, &done.bytes[..]),
                (Ok(()), &pair.server.embedder.bytes[100..5100])
            );
        }
        assert!(!pair.client.log.iter().any(|line| line.contains("hole")), "{:?}", pair.client.log);
        // A hole and nothing else may be reported as such.
        let hole = Command::read(0, 512).with_dont_fragment();
        assert!(pair.perform(hole).bytes.iter().all(|byte| *byte == 0));
        assert!(
            pair.client.log.iter().any(|line| line.contains("hole 0+512")),
            "{:?}",
            pair.client.log
        );
    });
    in_modes("simple", |pair| {
        let refused = pair.submit_with(Command::read(0, 512).with_dont_fragment(), 0);
        assert_eq!(refused, Err(InvalidRequest::NotOffered(CommandType::READ).into()));
    });
}

#[test]
fn holes_and_chunks_in_any_order_are_put_together() {
    for shape in [Shape::BLOCKS, Shape::BACKWARDS] {
        let logs = in_modes("simple structured extended", |pair| {
            pair.server.embedder.shape = shape;
            for (offset, length) in [(0, 32768), (511, 2), (512, 512), (1, 3000)] {
                let done = pair.perform(read(offset, length));
                let expected = &pair.server.embedder.bytes[offset as usize..][..length as usize];
                assert_eq!((done.result, &done.bytes[..]), (Ok(()), expected));
            }
        });
        let holes = |log: &Vec<String>| log.iter().filter(|line| line.contains("hole")).count();
        assert_eq!(logs.iter().map(holes).collect::<Vec<_>>(), [0, 36, 36]);
        assert!(logs[2].iter().any(|line| line == "3 hole 1023+512"), "{:?}", logs[2]);
    }
}

#[test]
fn replies_come_in_any_order() {
    let orders: [fn(usize) -> usize; 3] =
        [|count| count - 1, |count| count / 2, |count| (count * 7) % count.max(1)];
    for order in orders {
        in_modes("simple structured extended", |pair| {
            for block in 0..12 {
                match block % 3 {
                    0 => pair.submit(read(block * ONE, 512)),
                    1 => pair.submit_with(write(block * ONE, 700), block as u8).unwrap(),
                    _ => pair.submit(Command::Flush),
                };
            }
            pair.answer_all(order);
            let mut tags: Vec<usize> = pair.client.actor.done.iter().map(|done| done.tag).collect();
            tags.sort_unstable();
            assert_eq!(tags, Vec::from_iter(0..12));
            assert!(pair.client.actor.done.iter().all(|done| done.result.is_ok()));
            assert_eq!(pair.client.requests_in_flight(), 0);
        });
    }
}

#[test]
fn chunks_of_different_replies_interleave() {
    in_modes("structured extended", |pair| {
        pair.submit(read(0, 1024));
        pair.submit(read(512, 1024));
        pair.run();
        let ids: Vec<_> =
            pair.server.embedder.waiting.drain(..).map(|request| request.id).collect();
        let connection = &mut pair.server.connection;
        let mut chunk = |which: usize, data: bool, offset| {
            let mut reply = connection.reply(ids[which]).unwrap();
            if data { reply.data(offset, 512) } else { reply.hole(offset, 512) }.unwrap();
        };
        chunk(0, true, 512);
        chunk(1, false, 1024);
        chunk(0, false, 0);
        chunk(1, true, 512);
        for id in [ids[1], ids[0]] {
            connection.reply(id).unwrap().finish().unwrap();
        }
        pair.run();
        let told: Vec<_> = pair.client.log[1..].to_vec();
        assert_eq!(told, ["1 hole 512+512", "0 hole 0+512", "1 completed: ok", "0 completed: ok"]);
        let bytes: Vec<_> = pair.client.actor.done.iter().map(|done| &done.bytes[..]).collect();
        let (data, hole) = ([FILL; 512], [0; 512]);
        assert_eq!(bytes, [[data, hole].concat(), [hole, data].concat()]);
    });
}

#[test]
fn block_status_reports_the_extents_of_each_context() {
    let logs = in_modes("structured extended", |pair| {
        assert_eq!(pair.perform(status(0, 4 * ONE, false)).result, Ok(()));
        assert_eq!(pair.perform(status(256, 2 * ONE, false)).result, Ok(()));
        assert_eq!(pair.perform(status(0, 100, true)).result, Ok(()));
        assert_eq!(pair.perform(status(600, 64, true)).result, Ok(()));
    });
    let first = pair_disk_byte(512);
    for log in logs {
        let told: Vec<_> = log.iter().filter(|line| line.contains("context 1:")).collect();
        assert_eq!(
            told,
            [
                "0 context 1: [(512, 3), (512, 0), (512, 3), (512, 0)]",
                "1 context 1: [(256, 3), (512, 0), (512, 3)]",
                "2 context 1: [(100, 3)]",
                "3 context 1: [(64, 0)]",
            ]
        );
        let other = format!("0 context 2: [(512, 0), (512, {first})");
        assert!(log.iter().any(|line| line.starts_with(&other)), "{log:?}");
        assert_eq!(log.iter().filter(|line| line.contains("context")).count(), 8);
    }
}

fn pair_disk_byte(at: usize) -> u8 {
    nbd_pair::pair::disk()[at]
}

#[test]
fn block_status_without_a_selection_is_refused_locally() {
    let refused = in_modes("simple", |pair| {
        let refused = pair.submit_with(status(0, 512, false), 0);
        assert_eq!(refused, Err(InvalidRequest::NoContexts.into()));
    });
    assert_eq!(refused.len(), 1);
}

#[test]
fn long_lists_of_extents_come_in_batches() {
    for mode in [1, 2] {
        let (_, mut client) = modes()[mode].clone();
        client.contexts = vec!["base:allocation".into()];
        let log = for_each_split(&client, &server::Config::default(), |pair| {
            pair.server.embedder.bytes =
                (0..1200 * BLOCK).map(|at| (at / BLOCK % 2) as u8).collect();
            pair.server.embedder.exports[1].1 = full_export(1200 * ONE);
            pair.run();
            let range = status(0, 1200 * ONE, false);
            assert_eq!(pair.perform(range).result, Ok(()));
            pair.leave();
        });
        let sizes: Vec<_> = log.iter().map(|line| line.matches("(512, ").count()).collect();
        assert_eq!(sizes, [0, 512, 512, 176, 0, 0]);
    }
}

#[test]
fn with_extended_headers_block_status_can_be_about_some_contexts() {
    let (_, mut client) = modes()[2].clone();
    client.contexts =
        ["base:allocation", "x-test:first-byte", "x-test:wide"].map(String::from).to_vec();
    let log = for_each_split(&client, &server::Config::default(), |pair| {
        pair.run();
        pair.submit_status((512, 1024, false), &[3]);
        pair.submit_status((512, 1024, true), &[1, 3]);
        pair.answer_all(|_| 0);
        assert!(pair.client.actor.done.iter().all(|done| done.result.is_ok()));
        for (contexts, error) in [
            (&[][..], InvalidRequest::NoContexts.into()),
            (&[7], SubmitError::BadContext(7)),
            (&[1, 2, 1], SubmitError::BadContext(1)),
        ] {
            let refused = pair.client.submit_block_status(0, 512, false, contexts);
            assert_eq!(refused, Err(error));
        }
        pair.leave();
    });
    let wide = u64::from(pair_disk_byte(512)) << 40;
    let told: Vec<_> = log.into_iter().filter(|line| line.contains("context")).collect();
    assert_eq!(
        told,
        [
            format!("0 context 3: [(512, {wide}), (512, 0)]"),
            "1 context 1: [(512, 0)]".into(),
            format!("1 context 3: [(512, {wide})]"),
        ]
    );
}

#[test]
fn without_extended_headers_there_is_no_list_of_contexts() {
    in_modes("structured", |pair| {
        let refused = pair.client.submit_block_status(0, 512, false, &[1]);
        assert_eq!(refused, Err(InvalidRequest::NotOffered(CommandType::BLOCK_STATUS).into()));
    });
}

#[test]
fn extended_headers_carry_lengths_of_64_bits() {
    let server = server::Config::default();
    let huge = |offset, length| {
        [
            Command::write_zeroes(offset, length),
            Command::trim(offset, length),
            Command::cache(offset, length),
        ]
    };
    for (name, client) in modes() {
        for_each_split(&client, &server, |pair| {
            pair.server.embedder.exports[1].1.size = 1 << 50;
            pair.run();
            for command in huge(1 << 40, 1 << 45) {
                if name != "extended" {
                    let refused = pair.submit_with(command, 0);
                    assert_eq!(refused, Err(InvalidRequest::TooLong(u32::MAX.into()).into()));
                    continue;
                }
                pair.submit(command);
                pair.run();
                let request = pair.server.embedder.waiting.pop_front().unwrap();
                assert_eq!(request.command, command);
                pair.server.connection.reply(request.id).unwrap().finish().unwrap();
            }
            pair.leave();
        });
    }
}

#[test]
fn a_resize_changes_what_can_be_asked_once_it_is_answered() {
    in_modes("simple structured extended", |pair| {
        let size = pair.server.embedder.bytes.len() as u64;
        let beyond = read(size, 512);
        assert_eq!(pair.submit_with(beyond, 0), Err(InvalidRequest::OutOfRange(size).into()));

        // Larger: the new part is not there before the answer is.
        pair.submit(Command::resize(2 * size));
        assert_eq!(pair.submit_with(beyond, 0), Err(SubmitError::Resizing));
        let another = pair.submit_with(Command::resize(3 * size), 0);
        assert_eq!(another, Err(SubmitError::Resizing));
        pair.answer_all(|_| 0);
        assert_eq!(pair.client.export().unwrap().size, 2 * size);
        assert_eq!(pair.perform(beyond).result, Ok(()));

        // Smaller: the old part is gone as soon as the request is made, and no request may be about it by then.
        pair.submit(beyond);
        let smaller = Command::resize(size);
        assert_eq!(pair.submit_with(smaller, 0), Err(SubmitError::Resizing));
        pair.answer_all(|_| 0);
        pair.submit(read(0, 512));
        pair.submit(smaller);
        assert_eq!(pair.submit_with(beyond, 0), Err(SubmitError::Resizing));
        pair.answer_all(|_| 0);
        assert_eq!(pair.submit_with(beyond, 0), Err(InvalidRequest::OutOfRange(size).into()));

        // A resize that fails changes nothing.
        pair.submit(Command::resize(0));
        assert_eq!(pair.client.export().unwrap().size, 0);
        pair.run();
        let request = pair.server.embedder.waiting.pop_front().unwrap();
        pair.server.connection.reply(request.id).unwrap().error(ErrorCode::EPERM, "");
        pair.run();
        assert_eq!(pair.client.export().unwrap().size, size);
    });
}

#[test]
fn a_read_only_export_takes_no_writes() {
    let (_, client) = modes()[2].clone();
    for_each_split(&client, &server::Config::default(), |pair| {
        pair.server.embedder.exports[1].1.flags |= TransmissionFlags::READ_ONLY;
        pair.run();
        assert_eq!(pair.submit_with(write(0, 512), 0), Err(InvalidRequest::ReadOnly.into()));
        assert_eq!(pair.perform(read(0, 512)).result, Ok(()));
        pair.leave();
    });
}
