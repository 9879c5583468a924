//! Requests that the client sends, to the byte.

use nbd_proto::wire::{
    CommandFlags as Flag, CommandType, CompactRequest, ExtendedRequest, OptionCode,
    TransmissionFlags as Flags, magic,
};
use nbd_proto::{Command, InvalidRequest, RequestId};

use crate::peer::*;

/// Every command with every flag that it has, and the flags as they have to be sent.
fn commands() -> Vec<(Command, Flag)> {
    let (offset, length) = (4096, 512);
    let zeroes = |fua, no_hole, fast| {
        with(
            with(
                with(Command::write_zeroes(offset, 512), Command::with_fua, fua),
                Command::with_no_hole,
                no_hole,
            ),
            Command::with_fast,
            fast,
        )
    };
    vec![
        (Command::read(offset, length), Flag::empty()),
        (Command::read(offset, length).with_dont_fragment(), Flag::DF),
        (Command::write(offset, length), Flag::empty()),
        (Command::write(offset, length).with_fua(), Flag::FUA),
        (Command::Flush, Flag::empty()),
        (Command::trim(offset, 512), Flag::empty()),
        (Command::trim(offset, 512).with_fua(), Flag::FUA),
        (Command::cache(offset, 512), Flag::empty()),
        (zeroes(false, false, false), Flag::empty()),
        (zeroes(true, false, false), Flag::FUA),
        (zeroes(false, true, false), Flag::NO_HOLE),
        (zeroes(false, false, true), Flag::FAST_ZERO),
        (Command::block_status(offset, 512), Flag::empty()),
        (Command::block_status(offset, 512).with_one(), Flag::REQ_ONE),
        (Command::resize(8192), Flag::empty()),
    ]
}

/// C-REQ-17, C-REQ-21, C-EH-16: the magic, the flags, and a payload flag where there is a payload, under extended
/// headers alone.
#[test]
fn requests_have_the_flags_of_their_command_and_those_with_a_payload_say_so() {
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        for (command, flags) in commands() {
            let mut client = transmitting(mode);
            let status = command.command_type() == CommandType::BLOCK_STATUS;
            if mode == Mode::Simple && (status || flags == Flag::DF) {
                assert!(client.submit(command).is_err());
                continue;
            }
            let buffer = vec![7; command.buffer_length() as usize];
            client.begin(command, buffer).unwrap();
            let bytes = sent(&mut client);
            let writes = command.command_type() == CommandType::WRITE;
            let body = if writes { vec![7; 512] } else { vec![] };
            let (request, rest) = if mode == Mode::Extended {
                assert_eq!(bytes[..4], magic::EXTENDED_REQUEST.to_be_bytes());
                (ExtendedRequest::decode(bytes.first_chunk().unwrap()).unwrap(), &bytes[32..])
            } else {
                assert_eq!(bytes[..4], magic::REQUEST.to_be_bytes());
                (CompactRequest::decode(bytes.first_chunk().unwrap()).unwrap().into(), &bytes[28..])
            };
            let payload =
                if writes && mode == Mode::Extended { Flag::PAYLOAD_LEN } else { Flag::empty() };
            assert_eq!(request.flags, flags | payload, "{mode:?} {command:?}");
            assert_eq!(rest, body, "{mode:?} {command:?}");
            if let Command::Flush = command {
                assert_eq!((request.offset, request.length), (0, 0));
            }
        }
    }
}

/// C-EH-16, C-REQ-22: farewells under extended headers.
#[test]
fn an_extended_disc_has_nothing_either() {
    let mut client = transmitting(Mode::Extended);
    client.disconnect_now();
    let bytes = sent(&mut client);
    let disc = ExtendedRequest::decode(bytes.first_chunk().unwrap()).unwrap();
    assert_eq!((disc.command, disc.flags), (CommandType::DISC, Flag::empty()));
    assert_eq!((disc.offset, disc.length, bytes.len()), (0, 0, 32));
}

/// C-EH-19: the flag has to be there, and not only the headers.
#[test]
fn a_list_of_contexts_needs_the_servers_permission() {
    for (more, expected) in [
        (Flags::empty(), Err(InvalidRequest::NotOffered(CommandType::BLOCK_STATUS).into())),
        (Flags::BLOCK_STATUS_PAYLOAD, Ok(())),
    ] {
        let mut client = new_client(config(Mode::Extended)).unwrap();
        feed(&mut client, &greeting(3)).unwrap();
        feed(&mut client, &ack(OptionCode::EXTENDED_HEADERS)).unwrap();
        let code = OptionCode::SET_META_CONTEXT;
        feed(&mut client, &context_reply(code, 5, "base:allocation")).unwrap();
        feed(&mut client, &ack(code)).unwrap();
        feed(&mut client, &info(Flags::HAS_FLAGS | more)).unwrap();
        feed(&mut client, &ack(OptionCode::GO)).unwrap();
        let listed = client.submit_block_status(0, 512, false, &[5]);
        assert_eq!(listed.map(|_: RequestId| ()), expected);
        assert!(client.submit_block_status(0, 512, false, &[5, 5]).is_err());
        assert!(client.submit(Command::block_status(0, 512)).is_ok());
    }
}

/// C-EH-16: a compact request has no room for a list, whatever the server offers.
#[test]
fn not_even_a_careless_client_sends_a_list_of_contexts_in_compact_form() {
    let mut config = config(Mode::Structured);
    config.strict = false;
    let mut client = transmitting_with(Mode::Structured, config);
    let error = client.submit_block_status(0, 512, false, &[5]).unwrap_err();
    assert_eq!(error, InvalidRequest::NotOffered(CommandType::BLOCK_STATUS).into());
    assert_eq!(sent(&mut client), []);
}

#[test]
fn only_writes_with_a_payload_are_reported_as_transmitted() {
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut config = config(mode);
        config.strict = false;
        let mut client = transmitting_with(mode, config);
        let ids: Vec<RequestId> = [
            Command::write(0, 0),
            Command::write(0, 5),
            Command::read(0, 5),
            Command::trim(0, 5),
            Command::write(8, 1).with_fua(),
        ]
        .map(|command| client.submit(command).unwrap())
        .to_vec();
        let queued = client.segments().map(|segment| segment.len()).sum::<usize>();
        assert!(client.transmitted(queued - 1).unwrap().eq([ids[1]]));
        assert!(client.transmitted(1).unwrap().eq([ids[4]]));
        assert_eq!(client.requests_in_flight(), 5);
    }
}
