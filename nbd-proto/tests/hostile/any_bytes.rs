//! Whatever a server sends, the client neither panics, nor hangs, nor holds more than its limits allow.

use nbd_proto::Command;
use nbd_proto::client::{Config, Goal};
use nbd_proto::wire::{OptionCode, OptionReplyType, ReplyType};
use proptest::prelude::*;

use crate::peer::*;

/// Feeds bytes in two pieces, then ends the stream and takes everything back.
fn survive(mut client: Client, bytes: &[u8], cut: usize) -> Result<(), TestCaseError> {
    let in_flight = client.requests_in_flight();
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let mut completed = 0;
    for piece in [first, second] {
        if let Ok(seen) = feed(&mut client, piece) {
            completed += seen.iter().filter(|e| format!("{e:?}").starts_with("Completed")).count();
        }
        let _ = sent(&mut client);
    }
    let _ = client.end_of_stream();
    let mut input = &b""[..];
    while let Ok(Some(event)) = client.next_event(&mut input) {
        completed += usize::from(format!("{event:?}").starts_with("Completed"));
    }
    prop_assert!(client.is_finished());
    prop_assert!(client.segments().next().is_none());
    while client.next_abandoned().is_some() {
        completed += 1;
    }
    // Events before an error in the same piece are lost to `feed`, never twice there.
    prop_assert!(completed <= in_flight);
    prop_assert_eq!(client.requests_in_flight(), 0);
    Ok(())
}

/// A client with a request of each kind in flight.
fn busy(mode: Mode) -> (Client, Vec<u64>) {
    let mut client = transmitting(mode);
    let mut cookies = Vec::new();
    for command in [
        Command::Read { offset: 512, length: 4096, dont_fragment: false },
        Command::Write { offset: 512, length: 64, fua: true },
        Command::Flush,
        Command::Trim { offset: 512, length: 4096, fua: false },
    ] {
        cookies.push(request(&mut client, command).1);
    }
    if mode != Mode::Simple {
        let command = Command::Read { offset: 512, length: 4096, dont_fragment: true };
        cookies.push(request(&mut client, command).1);
        for one in [false, true] {
            let command = Command::BlockStatus { offset: 512, length: 4096, one };
            cookies.push(request(&mut client, command).1);
        }
    }
    (client, cookies)
}

/// A chunk that is right in some ways.
fn chunk() -> impl Strategy<Value = (usize, u16, u16, Option<u64>, Vec<u8>)> {
    let reply = prop_oneof![
        4 => prop::sample::select(vec![0_u16, 1, 2, 5, 6, 0x8001, 0x8002]),
        1 => any::<u16>(),
    ];
    let length = prop_oneof![
        6 => Just(None),
        1 => (0u64..100).prop_map(Some),
        1 => any::<u64>().prop_map(Some),
    ];
    let field = prop_oneof![
        4 => prop::sample::select(vec![
            &[0, 0, 0, 0, 0, 0, 2, 0][..], &[0, 0, 0, 0, 0, 0, 4, 0], &[0, 0, 0, 5], &[0, 0, 0, 9],
            &[0, 0, 0, 1], &[0, 0, 2, 0], &[0, 0, 0, 0], &[0, 0], &[0, 1], &[7; 64],
        ]).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    let payload = prop::collection::vec(field, 0..5).prop_map(|fields| fields.concat());
    (any::<usize>(), reply, 0u16..3, length, payload)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_in_any_phase(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        phase in 0usize..7,
        cut in 0usize..200,
    ) {
        let client = match phase {
            0 => Client::new(Config::default()).unwrap(),
            1 | 2 => {
                let mut config = Config::default();
                config.goal = if phase == 1 { Goal::Enter } else { Goal::Manual };
                let mut client = Client::new(config).unwrap();
                feed(&mut client, &greeting(3)).unwrap();
                let _ = client.list();
                client
            }
            3 => {
                let mut client = Client::new(Config::default()).unwrap();
                feed(&mut client, &greeting(0)).unwrap();
                client
            }
            4 => busy(Mode::Simple).0,
            5 => busy(Mode::Structured).0,
            _ => busy(Mode::Extended).0,
        };
        survive(client, &bytes, cut)?;
    }

    #[test]
    fn any_option_replies(
        replies in prop::collection::vec(
            (
                prop::sample::select(vec![
                    OptionReplyType::ACK, OptionReplyType::INFO, OptionReplyType::META_CONTEXT,
                    OptionReplyType::SERVER, OptionReplyType::ERR_UNSUP, OptionReplyType::ERR_UNKNOWN,
                    OptionReplyType::ERR_SHUTDOWN, OptionReplyType(99),
                ]),
                prop_oneof![
                    Just(vec![]),
                    Just(vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
                    Just(vec![0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]),
                    prop::collection::vec(any::<u8>(), 0..20),
                ],
            ),
            0..12,
        ),
        mode in prop::sample::select(vec![Mode::Simple, Mode::Structured, Mode::Extended]),
    ) {
        let mut client = Client::new(config(mode)).unwrap();
        feed(&mut client, &greeting(3)).unwrap();
        let mut code = OptionCode::GO;
        for (reply, data) in replies {
            // Always the option that was sent last.
            let bytes = sent(&mut client);
            let start = bytes.windows(8).rposition(|window| window == b"IHAVEOPT");
            if let Some(at) = start {
                let word = bytes[at + 8..at + 12].try_into().unwrap();
                code = OptionCode(u32::from_be_bytes(word));
            }
            if client.is_transmitting() || feed(&mut client, &option_reply(code, reply, &data)).is_err() {
                break;
            }
        }
        survive(client, b"", 0)?;
    }

    #[test]
    fn any_chunks(
        chunks in prop::collection::vec(chunk(), 0..30),
        mode in prop::sample::select(vec![Mode::Structured, Mode::Extended]),
        cut in any::<usize>(),
    ) {
        let (client, cookies) = busy(mode);
        let mut bytes = Vec::new();
        for (which, reply, flags, length, payload) in chunks {
            let which = which % cookies.len();
            let offset = if which == 2 { 0 } else { 512 };
            let chunks = Chunks { mode, cookie: cookies[which], offset };
            let length = length.unwrap_or(payload.len() as u64);
            bytes.extend(chunks.header(ReplyType(reply), flags, length));
            bytes.extend(payload);
        }
        let cut = cut % (bytes.len() + 1);
        survive(client, &bytes, cut)?;
    }
}
