//! Seeds for the fuzzer, cut from the golden transcripts.

use std::collections::BTreeMap;

use nbd_proto::wire::{CommandFlags, CommandType, OptionCode, OptionReplyType};

use crate::session::{Decoder, Message, Sent};
use crate::transcript::{Side, Transcript};

/// A fuzz target's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The target.
    pub target: &'static str,
    /// The file.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// The longest seed: more slows the fuzzer down and shows it nothing new.
const LONGEST: usize = 6 << 10;

/// All seeds: those of transcripts, given by name, and some made by hand.
pub fn seeds(transcripts: &BTreeMap<String, Transcript>) -> Result<Vec<Seed>, String> {
    let mut seeds = Vec::new();
    let mut kinds = BTreeMap::new();
    for (name, transcript) in transcripts {
        let messages = Decoder::decode(transcript)?;
        let mut add = |target, bytes: Vec<u8>| {
            if bytes.len() <= LONGEST {
                seeds.push(Seed { target, name: name.clone(), bytes });
            }
        };
        let client = transcript.stream(Side::Client);
        if let Some(Sent { message: Message::Oldstyle(_), .. }) = messages.first() {
            add("server", [&[0x10, 0, 7, 2, 13, 28, 3, 0, 0][..], &client].concat());
        } else {
            let options: Vec<u8> = option_phase(&messages);
            add("options", [&setup(0, &messages)[..], &options].concat());
            add("server", [&setup(2, &messages)[..], &client].concat());
        }
        add("client", client_seed(&messages));
        for Sent { message, raw, .. } in messages {
            if raw.len() <= 256 {
                kinds.entry(kind(&message)).or_insert(raw);
            }
        }
    }
    for (name, bytes) in kinds {
        seeds.push(Seed { target: "wire", name, bytes });
    }
    for (number, uri) in URIS.iter().enumerate() {
        let name = format!("uri-{number:02}");
        seeds.push(Seed { target: "uri", name, bytes: uri.as_bytes().to_vec() });
    }
    seeds.extend(pairs());
    seeds.extend(upgrades());
    Ok(seeds)
}

const URIS: [&str; 16] = [
    "nbd://localhost",
    "nbd://example.com:10810/disk",
    "nbd://example.com//two/slashes",
    "nbds://alice@example.com/my%20disk?tls-type=psk",
    "nbds://example.com/?tls-certificates=/etc/pki&tls-verify-peer=0&tls-hostname=other",
    "nbd://[::1]:4711/",
    "nbd://[fe80::1%25eth0]/disk",
    "nbd://127.0.0.1/%E2%82%AC",
    "nbd+unix:///disk?socket=/run/nbd.sock",
    "nbds+unix:///?socket=/tmp/s&tls-psk-file=/tmp/keys",
    "nbd+unix:///?socket=%00abstract",
    "nbd+vsock://2:10809/disk",
    "nbd+vsock:///",
    "nbd:///disk",
    "nbd://host/%00",
    "http://host/disk#fragment",
];

/// Setup bytes of the server's oracle that fit a session: nothing switched off that was agreed.
fn setup(patience: u8, messages: &[Sent]) -> [u8; 9] {
    let refused = |code| {
        messages.iter().any(|sent| match &sent.message {
            Message::OptionReply(header, _) => header.code == code && header.reply.is_error(),
            _ => false,
        })
    };
    let mut first = 0;
    first |= u8::from(refused(OptionCode::STRUCTURED_REPLY));
    first |= u8::from(refused(OptionCode::EXTENDED_HEADERS)) << 1;
    [first, 0b0011_0000, 7, patience, 13, 28, 3, 0, 0]
}

/// What the client sent before transmission.
fn option_phase(messages: &[Sent]) -> Vec<u8> {
    let is_option =
        |sent: &&Sent| matches!(sent.message, Message::ClientFlags(_) | Message::Option(..));
    messages.iter().filter(is_option).flat_map(|sent| sent.raw.iter().copied()).collect()
}

/// A name for each kind of message.
fn kind(message: &Message) -> String {
    let name = match message {
        Message::Greeting(flags) => format!("greeting-{}", flags.bits()),
        Message::Oldstyle(_) => "oldstyle".into(),
        Message::ClientFlags(_) => "client-flags".into(),
        Message::Option(code, _) => code.to_string(),
        Message::OptionReply(header, data) => match header.reply {
            OptionReplyType::INFO => format!("{}-{}", header.reply, data[1]),
            reply => reply.to_string(),
        },
        Message::ExportName(_) => "export-name-reply".into(),
        Message::Request(request, _) => request.command.to_string(),
        Message::Simple(header, _) => format!("simple-{}", header.error),
        Message::Chunk(header, _) => header.reply.to_string(),
    };
    name.trim_start_matches("NBD_").to_lowercase().replace(['_', ' '], "-")
}

/// A plan for the client's oracle, with which it says about what the recorded client said, and what the recorded server
/// answered, one request after the other.
fn client_seed(messages: &[Sent]) -> Vec<u8> {
    let mut options = Vec::new();
    let mut commands = Vec::new();
    let mut cookies = Vec::new();
    let mut option_replies = Vec::new();
    let mut replies: Vec<Vec<u8>> = Vec::new();
    for Sent { message, raw, side } in messages {
        match message {
            Message::Option(code, _) => options.push(match *code {
                OptionCode::STRUCTURED_REPLY => 0,
                OptionCode::EXTENDED_HEADERS => 1,
                OptionCode::LIST => 2,
                OptionCode::INFO => 3,
                OptionCode::GO => 4,
                OptionCode::LIST_META_CONTEXT => 5,
                OptionCode::SET_META_CONTEXT => 6,
                OptionCode::EXPORT_NAME => 7,
                _ => 8,
            }),
            Message::Request(request, _) => {
                let kind = match request.command {
                    CommandType::READ => 0,
                    CommandType::WRITE => 1,
                    CommandType::FLUSH => 2,
                    CommandType::TRIM => 3,
                    CommandType::CACHE => 4,
                    CommandType::WRITE_ZEROES => 5,
                    CommandType::BLOCK_STATUS => 6,
                    _ => continue,
                };
                let flags = CommandFlags::FUA | CommandFlags::DF | CommandFlags::REQ_ONE;
                let kind = kind | u8::from(request.flags.intersects(flags)) << 4;
                let [.., a, b, c, d] = request.offset.to_be_bytes();
                let [.., high, middle, low] = request.length.to_be_bytes();
                commands.push([kind, a, b, c, d, high, middle, low]);
                cookies.push(request.cookie);
                replies.push(Vec::new());
            }
            Message::Simple(..) | Message::Chunk(..) => {
                let mut raw = raw.clone();
                let Some(cookie) = raw.get_mut(8..).and_then(<[u8]>::first_chunk_mut) else {
                    continue;
                };
                let Some(at) = cookies.iter().rposition(|known| known.to_be_bytes() == *cookie)
                else {
                    continue;
                };
                // With one request at a time, a cookie counts them in its upper half.
                *cookie = ((at as u64) << 32).to_be_bytes();
                replies[at].append(&mut raw);
            }
            _ if *side == Side::Server => option_replies.extend_from_slice(raw),
            _ => {}
        }
    }
    options.truncate(15);
    commands.truncate(31);
    replies.truncate(31);
    // Not strict, no goal, contexts, all items; one request at a time.
    let mut seed = vec![0x80, 0b1100, 0, 5, 16, options.len() as u8];
    seed.extend(options);
    seed.push(commands.len() as u8);
    seed.extend(commands.concat());
    seed.extend(option_replies);
    seed.extend(replies.concat());
    seed
}

/// Some of everything, in each mode.
fn pairs() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for mode in 0..3_u8 {
        for sizes in [0, 1, 6] {
            let mut bytes = vec![mode, sizes, 3, 40];
            for step in 0..48_u8 {
                let what = (step.wrapping_mul(29) % 16) | step.wrapping_mul(16);
                bytes.extend([what, step.wrapping_mul(37), step.wrapping_mul(11)]);
                if what & 15 > 13 {
                    bytes.push(step.wrapping_mul(53));
                }
            }
            seeds.push(Seed { target: "pair", name: format!("mode-{mode}-sizes-{sizes}"), bytes });
        }
    }
    seeds
}

/// Upgrades of both sides, in order and with plain text behind them.
fn upgrades() -> Vec<Seed> {
    let option = |code: u32| [&b"IHAVEOPT"[..], &code.to_be_bytes(), &[0; 4]].concat();
    let reply = |code: u32, kind: u32| {
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        [&magic[..], &code.to_be_bytes(), &kind.to_be_bytes(), &[0; 4]].concat()
    };
    let (flags, greeting) = (vec![0, 0, 0, 3], b"NBDMAGICIHAVEOPT\0\x03".to_vec());
    let (starttls, list, abort) = (5, 3, 2);
    let of_client = [flags, option(starttls), option(list), option(abort)].concat();
    let of_server = [greeting, reply(starttls, 1), reply(8, 1), reply(abort, 1)].concat();
    let mut seeds = Vec::new();
    for (side, stream) in [(0, of_client), (2, of_server)] {
        for mode in [side, side | 1] {
            for piece in [0, 1, 20] {
                let name = format!("mode-{mode}-piece-{piece}");
                let bytes = [&[mode, piece, 7][..], &stream].concat();
                seeds.push(Seed { target: "tls_upgrade", name, bytes });
            }
        }
    }
    seeds
}
