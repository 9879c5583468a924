//! More than there is room for, and the end of a session.

use nbd_proto::client::SubmitError;
use nbd_proto::{Command, Error, InvalidRequest, server};

use crate::pair::{Pair, for_each_split, modes};
use crate::split::Split;

fn read(offset: u64, length: u64) -> Command {
    Command::read(offset, length)
}

fn write(offset: u64, length: u64) -> Command {
    Command::write(offset, length)
}

/// Submits reads and writes of a block each, in turn.
fn submit_many(pair: &mut Pair, count: usize) {
    for at in 0..count {
        let offset = (at * 512) as u64;
        let command = if at % 2 == 0 { read(offset, 512) } else { write(offset, 512) };
        pair.submit_with(command, at as u8).unwrap();
    }
}

#[test]
fn a_server_holds_no_more_requests_than_its_limit_and_loses_none() {
    for (_, client) in modes() {
        let mut server = server::Config::default();
        server.limits.max_in_flight = 4;
        for_each_split(&client, &server, |pair| {
            pair.run();
            submit_many(pair, 20);
            pair.run();
            assert_eq!(pair.server.waiting.len(), 4);
            assert_eq!(pair.server.connection.requests_in_flight(), 4);
            pair.answer_all(|count| count - 1);
            assert_eq!(pair.done.len(), 20);
            assert!(pair.done.iter().all(|done| done.result.is_ok()));
            pair.leave();
        });
    }
}

#[test]
fn a_server_holds_no_more_bytes_than_its_limit_unless_a_request_is_alone() {
    for (_, client) in modes() {
        let mut server = server::Config::default();
        server.limits.max_in_flight_bytes = 1200;
        for_each_split(&client, &server, |pair| {
            pair.run();
            submit_many(pair, 9);
            pair.submit(Command::Flush);
            pair.submit(read(0, 4096));
            pair.run();
            assert_eq!(pair.server.waiting.len(), 2);
            pair.answer_all(|_| 0);
            assert_eq!(pair.done.len(), 11);
            assert!(pair.done.iter().all(|done| done.result.is_ok()));
            pair.leave();
        });
    }
}

#[test]
fn a_client_holds_no_more_requests_than_its_limit() {
    for (_, mut client) in modes() {
        client.limits.max_in_flight = 3;
        for_each_split(&client, &server::Config::default(), |pair| {
            pair.run();
            submit_many(pair, 3);
            let refused = pair.submit_with(Command::Flush, 0);
            assert_eq!(refused, Err(SubmitError::TooManyRequests));
            pair.answer_all(|_| 0);
            submit_many(pair, 3);
            pair.answer_all(|_| 0);
            assert_eq!(pair.done.len(), 6);
            pair.leave();
        });
    }
}

#[test]
fn requests_beyond_the_maximum_payload_are_for_the_caller_to_split() {
    let (_, mut client) = modes()[2].clone();
    for_each_split(&client, &server::Config::default(), |pair| {
        pair.server.exports[1].1.block_size =
            pair.server.exports[1].1.block_size.with_payload_at_most(4096);
        pair.run();
        assert_eq!(pair.submit_with(read(0, 4097), 0), Err(InvalidRequest::TooLong(4096).into()));
        assert_eq!(pair.submit_with(write(0, 4097), 0), Err(InvalidRequest::TooLong(4096).into()));
        assert_eq!(pair.perform(read(0, 4096)).result, Ok(()));
    });
    client.limits.max_payload = 8192;
    for_each_split(&client, &server::Config::default(), |pair| {
        pair.run();
        assert_eq!(pair.submit_with(read(0, 8193), 0), Err(InvalidRequest::TooLong(8192).into()));
    });
}

#[test]
fn a_payload_that_looks_like_an_attack_ends_the_connection() {
    for (_, mut client) in modes() {
        client.strict = false;
        let mut pair = Pair::new(client, server::Config::default(), &Split::Whole);
        pair.run();
        pair.submit(write(0, (32 << 20) + 1));
        pair.run();
        assert!(matches!(pair.server.error, Some(Error::LimitExceeded(_))));
        assert_eq!(pair.error, Some(Error::UnexpectedEnd("requests in flight")));
        assert_eq!(pair.abandoned, [(0, true)]);
    }
}

#[test]
fn a_client_says_goodbye_once_everything_is_answered() {
    for (_, client) in modes() {
        let log = for_each_split(&client, &server::Config::default(), |pair| {
            pair.run();
            submit_many(pair, 4);
            pair.client.disconnect();
            pair.client.disconnect();
            assert_eq!(pair.submit_with(Command::Flush, 0), Err(SubmitError::Disconnecting));
            pair.run();
            assert!(!pair.server.log.contains(&"Disconnected".into()));
            pair.answer_all(|count| count - 1);
            assert_eq!(pair.server.log.last().map(String::as_str), Some("Disconnected"));
            assert!(pair.client_ended && pair.server.ended());
        });
        assert_eq!(log.len(), 6, "{log:?}");
        assert_eq!(log[5], "Disconnected");
    }
}

#[test]
fn a_client_in_a_hurry_says_goodbye_at_once_and_still_gets_its_answers() {
    for (_, client) in modes() {
        let log = for_each_split(&client, &server::Config::default(), |pair| {
            pair.run();
            submit_many(pair, 4);
            pair.client.disconnect_now();
            pair.run();
            assert!(pair.server.connection.is_closing(), "the farewell has arrived");
            pair.answer_all(|_| 0);
            assert_eq!(pair.done.len(), 4);
            assert!(pair.client_ended && pair.server.ended());
            assert_eq!((pair.error, pair.server.error), (None, None));
        });
        assert_eq!(log.last().map(String::as_str), Some("Disconnected"));
    }
}
