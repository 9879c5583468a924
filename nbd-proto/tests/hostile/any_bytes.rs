//! Whatever a server sends, the client neither panics, nor hangs, nor holds more than its limits allow.

use nbd_proto::Command;
use nbd_proto::client::{Config, Goal};
use nbd_proto::wire::{OptionCode, OptionReplyType, ReplyType};
use proptest::prelude::*;

use crate::peer::*;

/// Feeds bytes in two pieces, then ends the stream. `feed` sees to it that every request ends once, and the end is last.
fn survive(mut client: Client, bytes: &[u8], cut: usize) -> Result<(), TestCaseError> {
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    for piece in [first, second] {
        if client.closed.is_none() {
            let _ = feed(&mut client, piece);
        }
        let _ = sent(&mut client);
    }
    if client.closed.is_none() {
        let _ = hang_up(&mut client);
    }
    prop_assert!(client.closed.is_some());
    prop_assert_eq!(client.next_event(&mut &bytes[..]), None);
    prop_assert!(client.segments().next().is_none());
    prop_assert_eq!((client.requests_in_flight(), client.buffers.len()), (0, 0));
    Ok(())
}

/// A client with a request of each kind in flight.
fn busy(mode: Mode) -> (Client, Vec<u64>) {
    let mut client = transmitting(mode);
    let mut cookies = Vec::new();
    for command in [
        Command::read(512, 4096),
        Command::write(512, 64).with_fua(),
        Command::Flush,
        Command::trim(512, 4096),
    ] {
        cookies.push(request(&mut client, command).1);
    }
    if mode != Mode::Simple {
        let command = Command::read(512, 4096).with_dont_fragment();
        cookies.push(request(&mut client, command).1);
        for one in [false, true] {
            let command = with(Command::block_status(512, 4096), Command::with_one, one);
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
