//! Mistakes of an embedder: each is reported, none panics, and the connection goes on as if nothing had happened.

use nbd_pair::disk::full_export;
use nbd_pair::pair::Pair;
use nbd_pair::split::Split;
use nbd_proto::client::{Config, Goal, OptionError, SubmitError};
use nbd_proto::server::{Listing, LookupRefusal};
use nbd_proto::wire::ErrorCode;
use nbd_proto::{Command, Extent, Misuse, RequestId, Wants, server};

use crate::scenario::modes;

const READ: Command = Command::read(512, 1024);
const WRITE: Command = Command::write(512, 1024);
const STATUS: Command = Command::block_status(0, 1024);

/// A session in transmission for each kind of header.
fn sessions() -> [Pair; 3] {
    modes().map(|(_, mut client)| {
        client.contexts = vec!["base:allocation".into(), "x-test:first-byte".into()];
        let mut pair = Pair::new(client, server::Config::default(), &Split::Whole);
        pair.run();
        pair
    })
}

/// Submits a request and gives its name at the server.
fn request(pair: &mut Pair, command: Command) -> RequestId {
    pair.submit(command);
    pair.run();
    pair.server.embedder.waiting.pop_front().unwrap().id
}

/// The connection is unharmed: the rest of the session goes as it should.
fn unharmed(mut pair: Pair) {
    assert_eq!(pair.perform(READ).result, Ok(()));
    assert_eq!(pair.perform(WRITE).result, Ok(()));
    pair.leave();
}

#[test]
fn content_that_would_be_a_lie_is_refused() {
    for mut pair in sessions() {
        let id = request(&mut pair, READ);
        let mut reply = pair.server.connection.reply(id).unwrap();
        for (offset, length) in
            [(0, 512), (511, 1), (512, 1025), (1536, 1), (u64::MAX, 2), (512, 0)]
        {
            assert_eq!(reply.data(offset, length), Err(Misuse::BadContent), "{offset}+{length}");
            assert_eq!(reply.hole(offset, length), Err(Misuse::BadContent), "{offset}+{length}");
        }
        reply.data(512, 512).unwrap();
        assert_eq!(reply.hole(1000, 100), Err(Misuse::BadContent));
        assert_eq!(reply.finish(), Err(Misuse::Incomplete));
        let mut reply = pair.server.connection.reply(id).unwrap();
        reply.hole(1024, 512).unwrap();
        reply.finish().unwrap();
        pair.run();
        assert_eq!(pair.done().result, Ok(()));
        unharmed(pair);
    }
}

#[test]
fn errors_outside_of_the_request_or_reported_twice_are_refused() {
    for mut pair in sessions() {
        let id = request(&mut pair, READ);
        let mut reply = pair.server.connection.reply(id).unwrap();
        for offset in [0, 511, 1536, u64::MAX] {
            assert_eq!(reply.error_at(ErrorCode::EIO, offset, ""), Err(Misuse::BadContent));
        }
        reply.error_at(ErrorCode::EIO, 600, "").unwrap();
        assert_eq!(reply.error_at(ErrorCode::EIO, 600, ""), Err(Misuse::BadContent));
        assert_eq!(reply.data(512, 512), Err(Misuse::BadContent), "over a reported error");
        reply.finish().unwrap();
        pair.run();
        assert!(pair.done().result.is_err());
        unharmed(pair);
    }
}

#[test]
fn answers_that_do_not_fit_the_command_are_refused() {
    for mut pair in sessions() {
        let id = request(&mut pair, READ);
        assert_eq!(pair.server.connection.reply(id).unwrap().finish(), Err(Misuse::Incomplete));
        let mut reply = pair.server.connection.reply(id).unwrap();
        assert_eq!(reply.extents(1, []), Err(Misuse::WrongAnswer));
        reply.error(ErrorCode::EIO, "");
        for command in [WRITE, Command::Flush] {
            let id = request(&mut pair, command);
            let mut reply = pair.server.connection.reply(id).unwrap();
            assert_eq!(reply.data(512, 1), Err(Misuse::WrongAnswer));
            assert_eq!(reply.hole(512, 1), Err(Misuse::WrongAnswer));
            assert_eq!(reply.extents(1, []), Err(Misuse::WrongAnswer));
            reply.finish().unwrap();
        }
        let id = request(&mut pair, Command::Flush);
        let mut reply = pair.server.connection.reply(id).unwrap();
        assert_eq!(reply.error_at(ErrorCode::EIO, 0, ""), Err(Misuse::WrongAnswer));
        reply.finish().unwrap();
        // A write of which a part failed is no success, whatever its embedder says.
        let id = request(&mut pair, WRITE);
        let mut reply = pair.server.connection.reply(id).unwrap();
        reply.error_at(ErrorCode::EIO, 512, "").unwrap();
        reply.finish().unwrap();
        pair.run();
        assert!(pair.done().result.is_err());
        unharmed(pair);
    }
}

#[test]
fn extents_of_other_contexts_of_none_or_a_second_time_are_refused() {
    for mut pair in sessions().into_iter().skip(1) {
        let id = request(&mut pair, STATUS);
        let one = [Extent { length: 512, status: 0 }];
        let mut reply = pair.server.connection.reply(id).unwrap();
        assert_eq!(reply.extents(77, one), Err(Misuse::NoSuchContext));
        assert_eq!(reply.extents(1, []), Err(Misuse::Incomplete));
        assert_eq!(reply.extents(1, [Extent { length: 0, status: 0 }]), Err(Misuse::Incomplete));
        reply.extents(1, one).unwrap();
        assert_eq!(reply.extents(1, one), Err(Misuse::NoSuchContext));
        assert_eq!(reply.finish(), Err(Misuse::Incomplete));
        let mut reply = pair.server.connection.reply(id).unwrap();
        reply.extents(2, one).unwrap();
        reply.finish().unwrap();
        pair.run();
        assert_eq!(pair.done().result, Ok(()));
        unharmed(pair);
    }
}

#[test]
fn a_request_is_answered_once_and_not_before_its_payload() {
    for mut pair in sessions() {
        let id = request(&mut pair, Command::Flush);
        pair.server.connection.reply(id).unwrap().finish().unwrap();
        assert_eq!(pair.server.connection.reply(id).unwrap_err(), Misuse::NoSuchRequest);
        pair.run();
        assert_eq!(pair.server.connection.reply(id).unwrap_err(), Misuse::NoSuchRequest);

        // The header of a write, without all of its payload.
        let mut pair2 =
            Pair::new(Config::for_export("disk"), server::Config::default(), &Split::Whole);
        pair2.run();
        pair2.client.take_output();
        pair2.submit(WRITE);
        let bytes = pair2.client.take_output();
        pair2.server.hear(&bytes[..bytes.len() - 50]);
        assert!(pair2.server.embedder.waiting.is_empty(), "not before its payload");
        let Wants::Payload { id, .. } = pair2.server.connection.wants() else { panic!() };
        assert_eq!(pair2.server.connection.reply(id).unwrap_err(), Misuse::PayloadPending);
        let connection = &mut pair2.server.connection;
        assert_eq!(connection.payload_received(1025), Err(Misuse::TooManyBytes));
        unharmed(pair);
    }
}

#[test]
fn more_bytes_than_there_are_can_not_be_reported() {
    for mut pair in sessions() {
        let server = &mut pair.server.connection;
        assert_eq!(server.transmitted(1).err(), Some(Misuse::TooManyBytes));
        assert_eq!(server.payload_received(1), Err(Misuse::WrongPhase));
        assert_eq!(server.tls_established(), Err(Misuse::WrongPhase));
        assert_eq!(pair.client.transmitted(1).err(), Some(Misuse::TooManyBytes));
        assert_eq!(pair.client.payload_received(0), Err(Misuse::WrongPhase));
        assert_eq!(pair.client.tls_established(), Err(Misuse::WrongPhase));
        unharmed(pair);
    }
}

#[test]
fn questions_that_were_not_asked_have_no_answer() {
    let mut client = Config::default();
    client.goal = Goal::Manual;
    let mut pair = Pair::new(client, server::Config::default(), &Split::Whole);
    pair.run();
    let connection = &mut pair.server.connection;
    let info = full_export(1024);
    assert_eq!(connection.answer_list([] as [Listing<'_>; 0]), Err(Misuse::NoSuchQuestion));
    assert_eq!(connection.answer_lookup(Ok(&info)), Err(Misuse::NoSuchQuestion));
    let refusal = connection.answer_lookup(Err(LookupRefusal::Unknown));
    assert_eq!(refusal, Err(Misuse::NoSuchQuestion));
    assert_eq!(connection.set_size(1), Err(Misuse::WrongPhase));
    pair.client.go("disk", &[]).unwrap();
    pair.run();
    assert_eq!(pair.server.connection.answer_lookup(Ok(&info)), Err(Misuse::NoSuchQuestion));
    unharmed(pair);
}

#[test]
fn a_client_refuses_what_does_not_fit_its_phase() {
    let mut pair = Pair::new(Config::default(), server::Config::default(), &Split::Whole);
    assert_eq!(pair.client.list(), Err(OptionError::NotYourTurn), "nobody has said hello");
    assert_eq!(pair.submit_with(READ, 0), Err(SubmitError::NotTransmitting));
    pair.run();
    assert_eq!(pair.client.list(), Err(OptionError::NotYourTurn), "the negotiation is over");
    assert_eq!(pair.client.enter(""), Err(OptionError::NotYourTurn));
    let id = {
        pair.submit(READ);
        pair.answer_all(|_| 0);
        // An id that is out of date names nothing.
        pair.submit(Command::Flush);
        *pair.client.buffers.keys().next().unwrap()
    };
    pair.answer_all(|_| 0);
    assert_eq!(pair.client.command(id), None);
    pair.leave();
    assert_eq!(pair.submit_with(READ, 0), Err(SubmitError::NotTransmitting));
    pair.client.disconnect();
    pair.client.disconnect_now();
    assert!(pair.client.segments().next().is_none());
}
