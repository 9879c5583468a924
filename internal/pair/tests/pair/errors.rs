//! Failures: those that an export reports, and those that the server's machine finds when the client's does not look.

use nbd_pair::pair::Pair;
use nbd_proto::client::SubmitError;
use nbd_proto::wire::{ErrorCode, TransmissionFlags};
use nbd_proto::{BlockSize, Command, Error, server};

use crate::scenario::{for_each_split, modes};

fn read(offset: u64, length: u64) -> Command {
    Command::read(offset, length)
}

fn write(offset: u64, length: u64) -> Command {
    Command::write(offset, length)
}

/// Runs a scenario under each kind of header.
fn in_modes(scenario: impl Fn(&str, &mut Pair)) -> [Vec<String>; 3] {
    modes().map(|(name, client)| {
        for_each_split(&client, &server::Config::default(), |pair| {
            pair.run();
            scenario(name, pair);
            pair.leave();
        })
    })
}

/// Runs a scenario with a client that does not look at what it sends.
fn careless(server: &server::Config, scenario: impl Fn(&str, &mut Pair)) {
    for (name, mut client) in modes() {
        client.strict = false;
        for_each_split(&client, server, |pair| scenario(name, pair));
    }
}

/// The id of the only request that waits at the server.
fn only(pair: &mut Pair) -> nbd_proto::RequestId {
    pair.run();
    let request = pair.server.embedder.waiting.pop_front().unwrap();
    assert!(pair.server.embedder.waiting.is_empty());
    request.id
}

#[test]
fn an_error_is_reported_with_its_text_where_the_reply_has_one() {
    in_modes(|mode, pair| {
        for command in [read(512, 512), write(512, 512), Command::Flush] {
            pair.submit(command);
            let id = only(pair);
            pair.server.connection.reply(id).unwrap().error(ErrorCode::EIO, "bad sector");
            pair.run();
            let error = pair.done().result.unwrap_err();
            let text = if mode == "simple" { "" } else { "bad sector" };
            assert_eq!((error.code, &*error.message, error.offset), (ErrorCode::EIO, text, None));
        }
        assert_eq!(pair.perform(read(512, 512)).result, Ok(()));
    });
}

#[test]
fn a_read_that_fails_in_part_reports_the_offsets() {
    let [simple, structured, extended] = in_modes(|_, pair| {
        pair.submit(read(1024, 4096));
        let id = only(pair);
        let mut reply = pair.server.connection.reply(id).unwrap();
        reply.data(1024, 512).unwrap();
        reply.error_at(ErrorCode::EIO, 1200, "first").unwrap();
        reply.error_at(ErrorCode::ENOMEM, 2048, "second").unwrap();
        reply.hole(2560, 512).unwrap();
        reply.finish().unwrap();
        pair.run();
        let done = pair.done();
        assert_eq!(done.result.unwrap_err().code, ErrorCode::EIO);
    });
    assert_eq!(simple[1..2], ["0 completed: NBD_EIO"]);
    let told = [
        "0 error at 1200: NBD_EIO: first",
        "0 error at 2048: NBD_ENOMEM: second",
        "0 hole 1536+512",
        "0 completed: NBD_EIO: first",
    ];
    assert_eq!(structured[1..5], told);
    assert_eq!(extended[1..5], told);
}

#[test]
fn a_write_that_fails_in_part_reports_the_offsets_and_is_never_a_success() {
    let commands = [
        write(0, 1024),
        Command::trim(0, 1024),
        Command::cache(0, 1024),
        Command::write_zeroes(0, 1024).with_no_hole(),
    ];
    for command in commands {
        let logs = in_modes(|_, pair| {
            pair.submit(command);
            let id = only(pair);
            let mut reply = pair.server.connection.reply(id).unwrap();
            reply.error_at(ErrorCode::EIO, 512, "there").unwrap();
            reply.finish().unwrap();
            pair.run();
            let error = pair.done().result.unwrap_err();
            assert_eq!(error.code, ErrorCode::EIO);
        });
        assert_eq!(logs[0][1], "0 completed: NBD_EIO");
        for log in &logs[1..] {
            let told = ["0 error at 512: NBD_EIO: there", "0 completed: NBD_EIO: there"];
            assert_eq!(log[1..3], told);
        }
    }
}

#[test]
fn a_server_that_shuts_down_answers_what_is_in_flight_and_gets_no_more() {
    in_modes(|_, pair| {
        pair.submit(read(0, 512));
        let id = only(pair);
        pair.server.connection.shut_down();
        pair.submit_with(write(0, 512), 1).unwrap();
        pair.run();
        assert_eq!(pair.done().result.unwrap_err().code, ErrorCode::ESHUTDOWN);
        assert!(pair.client.server_is_shutting_down());
        assert_eq!(pair.submit_with(Command::Flush, 0), Err(SubmitError::ServerShuttingDown));
        let mut reply = pair.server.connection.reply(id).unwrap();
        reply.data(0, 512).unwrap();
        reply.finish().unwrap();
        pair.run();
        assert_eq!(pair.done().result, Ok(()));
    });
}

#[test]
fn the_server_refuses_what_a_careless_client_sends_and_stays_in_sync() {
    careless(&server::Config::default(), |mode, pair| {
        pair.server.embedder.bytes.resize(1 << 17, 1);
        let info = &mut pair.server.embedder.exports[1].1;
        info.size = 1 << 17;
        info.block_size = BlockSize::new(512, 4096, 1 << 16).unwrap();
        info.flags = TransmissionFlags::SEND_TRIM;
        pair.run();
        let (end, long) = (pair.server.embedder.bytes.len() as u64, (1 << 16) + 512);
        let zeroes = Command::write_zeroes(0, 512).with_no_hole().with_fast();
        for (command, code) in [
            (read(end, 512), ErrorCode::EINVAL),
            (write(end, 512), ErrorCode::ENOSPC),
            (write(end - 512, 1024), ErrorCode::ENOSPC),
            (read(u64::MAX - 511, 512), ErrorCode::EINVAL),
            (Command::trim(end - 512, 1024), ErrorCode::EINVAL),
            (read(1, 512), ErrorCode::EINVAL),
            (write(512, 1), ErrorCode::EINVAL),
            (read(0, long), ErrorCode::EOVERFLOW),
            (write(0, long), ErrorCode::EINVAL),
            (Command::write(0, 512).with_fua(), ErrorCode::EINVAL),
            (Command::trim(0, 512).with_fua(), ErrorCode::EINVAL),
            (Command::Flush, ErrorCode::EINVAL),
            (Command::cache(0, 512), ErrorCode::EINVAL),
            (Command::resize(512), ErrorCode::EINVAL),
            (zeroes, ErrorCode::EINVAL),
            (Command::block_status(0, 512), ErrorCode::EINVAL),
        ] {
            let before = pair.server.embedder.bytes.clone();
            let error = pair.perform(command).result.unwrap_err();
            assert_eq!(error.code, code, "{command:?}: {error}");
            assert_eq!(error.message.is_empty(), mode == "simple");
            assert_eq!(pair.server.embedder.bytes, before);
            assert_eq!(pair.perform(read(512, 512)).result, Ok(()), "out of sync: {command:?}");
        }
        pair.leave();
    });
}

#[test]
fn the_server_refuses_writes_to_a_read_only_export() {
    careless(&server::Config::default(), |_, pair| {
        pair.server.embedder.exports[1].1.flags |= TransmissionFlags::READ_ONLY;
        pair.run();
        for command in [write(0, 512), Command::trim(0, 512)] {
            assert_eq!(pair.perform(command).result.unwrap_err().code, ErrorCode::EPERM);
        }
        pair.leave();
    });
}

#[test]
fn requests_about_no_bytes_succeed() {
    careless(&server::Config::default(), |_, pair| {
        pair.run();
        for command in [read(0, 0), write(0, 0), Command::trim(5, 0), Command::cache(5, 0)] {
            assert_eq!(pair.perform(command).result, Ok(()), "{command:?}");
        }
        pair.leave();
    });
}

#[test]
fn lists_of_contexts_that_are_wrong_are_refused_and_the_stream_stays_in_sync() {
    let (_, mut client) = modes()[2].clone();
    client.strict = false;
    client.contexts = vec!["base:allocation".into(), "x-test:first-byte".into()];
    for_each_split(&client, &server::Config::default(), |pair| {
        pair.run();
        for contexts in [&[][..], &[9], &[1, 1], &[1, 2, 3], &[1, 9]] {
            pair.submit_status((0, 512, false), contexts);
            pair.run();
            let error = pair.done().result.unwrap_err();
            assert_eq!(error.code, ErrorCode::EINVAL, "{contexts:?}");
        }
        for range in [(1 << 20, 512, false), (0, 0, false)] {
            pair.submit_status(range, &[1]);
            pair.run();
            let error = pair.done().result.unwrap_err();
            assert_eq!(error.code, ErrorCode::EINVAL, "{range:?}");
        }
        pair.submit_status((0, 512, false), &[2]);
        pair.answer_all(|_| 0);
        assert_eq!(pair.done().result, Ok(()));
        pair.leave();
    });
}

#[test]
fn what_was_in_flight_when_the_server_went_comes_back() {
    let (_, client) = modes()[2].clone();
    for_each_split(&client, &server::Config::default(), |pair| {
        pair.run();
        pair.submit(read(0, 512));
        pair.submit_with(write(0, 512), 3).unwrap();
        pair.run();
        let unsent = pair.submit(read(512, 512));
        pair.client.close();
        assert_eq!(pair.client.error(), Some(Error::UnexpectedEnd("requests in flight")));
        assert_eq!(pair.abandoned(), [(0, true), (1, true), (unsent, false)]);
        assert_eq!(pair.submit_with(Command::Flush, 0), Err(SubmitError::NotTransmitting));
    });
}
