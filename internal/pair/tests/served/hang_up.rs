//! A server that hangs up: what had come by then is answered, and nothing else is touched.

use nbd_proto::server::{Config, Event};
use nbd_proto::wire::{CommandType as Cmd, ErrorCode, ExtendedRequest, OptionReplyType};
use nbd_proto::{OrderlyEnd, RequestId, Wants};
use proptest::prelude::*;

use crate::peer::*;

/// Answers what was raised, in any order; gives the ids.
fn answer(served: &mut Served, last_first: bool) -> Vec<RequestId> {
    let mut raised: Vec<_> = served
        .embedder
        .seen
        .drain(..)
        .filter_map(|event| if let Event::Request { id, .. } = event { Some(id) } else { None })
        .collect();
    if last_first {
        raised.reverse();
    }
    for id in &raised {
        served.connection.reply(*id).unwrap().error(ErrorCode::EIO, "");
    }
    raised
}

proptest! {
    /// At whatever byte of the stream it is told so, and however many may be in flight: requests whose header had come
    /// in whole and for which there was room are answered, the last of them when its payload is there.
    #[test]
    fn what_had_come_is_answered_and_the_rest_left_alone(
        mode in prop::sample::select(MODES.to_vec()),
        lengths in prop::collection::vec(0..3u64, 1..9),
        at in 0..4000usize,
        room in 1..9u32,
        last_first: bool,
    ) {
        let limits = config(|config: &mut Config| config.limits.max_in_flight = room);
        let mut served = transmitting_with(mode, limits, export());
        let (mut bytes, mut headers, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for (cookie, length) in (0..).zip(&lengths) {
            let command = if *length == 0 { Cmd::FLUSH } else { Cmd::WRITE };
            let length = length * 512;
            let request = ExtendedRequest { cookie, ..plain(command, 0, length) };
            let flags = match mode {
                Mode::Extended if length > 0 => nbd_proto::wire::CommandFlags::PAYLOAD_LEN,
                _ => request.flags,
            };
            bytes.extend(served.encode(&ExtendedRequest { flags, ..request }));
            headers.push(bytes.len());
            bytes.resize(bytes.len() + length as usize, 1);
            ends.push(bytes.len());
        }
        let at = at.min(bytes.len());
        // What there is room for is taken in before.
        served.hear(&bytes[..at]).unwrap();
        let begun = headers.iter().filter(|end| **end <= at).count().min(room as usize);
        served.connection.hang_up();
        // The rest of a payload is still received, unless the requests before it fill the room.
        let rest = if begun == 0 { at } else { ends[begun - 1].max(at) };
        served.hear(&bytes[at..rest]).unwrap();
        prop_assert!(served.leaves_alone(&bytes[rest..]));
        prop_assert_eq!(served.connection.requests_in_flight(), begun);
        let raised = answer(&mut served, last_first);
        prop_assert_eq!(raised.len(), begun);
        served.said();
        prop_assert_eq!(served.close(), Ok(OrderlyEnd::HungUp));
        prop_assert_eq!(served.embedder.finished.len(), begun);
    }
}

/// Before there is a session, there is time to say so.
#[test]
fn options_are_refused() {
    let mut served = negotiating(Config::default());
    served.connection.hang_up();
    served.connection.shut_down();
    let kinds = served.kinds(nbd_proto::wire::OptionCode::GO, &go("disk", &[]));
    assert_eq!(kinds, [OptionReplyType::ERR_SHUTDOWN]);
    assert_eq!(served.option(nbd_proto::wire::OptionCode::ABORT, &[]).len(), 1);
    assert_eq!(served.close(), Ok(OrderlyEnd::Aborted));
}

/// It is no way back to answers.
#[test]
fn a_shutdown_does_not_undo_it() {
    let mut served = transmitting(Mode::Simple);
    served.connection.hang_up();
    served.connection.shut_down();
    served.hear(&[]).unwrap();
    assert_eq!(served.close(), Ok(OrderlyEnd::HungUp));
    assert_eq!(served.connection.wants(), Wants::Closed);
}
