//! Our client in the place of the recorded one.

use std::collections::HashMap;

use nbd_pair::client::{Actor, Buffer, Client, ClientEnd, client_end, with_flags};
use nbd_pair::split::Split;
use nbd_proto::client::{Config, Connection, Event, Goal};
use nbd_proto::wire::{
    ClientFlags, CommandFlags, CommandType, CompactRequest, ExtendedRequest, InfoRequest, InfoType,
    MetaContextRequest, OptionCode,
};
use nbd_proto::{Command, Extent};

use crate::digest::{Digest, Part, Served};
use crate::session::{Decoder, Message, Sent};
use crate::transcript::Transcript;

/// Has our client say what the recorded one said, and feeds it what the recorded server answered, with the cookies that
/// our client chose. Checks that it says the same bytes, and understands the answers as recorded. Gives the events.
///
/// With `strict`, it refuses to send what it takes for wrong.
pub fn as_client(
    transcript: &Transcript,
    split: &Split,
    strict: bool,
) -> Result<Vec<String>, String> {
    let messages = Decoder::decode(transcript)?;
    let recorded = Digest::of(&messages)?;
    let mut config = Config::default();
    config.goal = Goal::Manual;
    config.fixed_newstyle = recorded.flags.contains(ClientFlags::FIXED_NEWSTYLE);
    config.no_zeroes = recorded.flags.contains(ClientFlags::NO_ZEROES);
    config.strict = strict;
    let connection = Connection::new(config).map_err(|error| error.to_string())?;
    let client = client_end(connection, Results::default(), split.clone());
    let mut replay = Replay { client, split: split.clone(), cookies: HashMap::new(), said: 0 };
    for sent in &messages {
        replay.message(sent).map_err(|text| format!("{text} at {:?}", sent.message))?;
    }
    let Replay { mut client, .. } = replay;
    if client.left_over() > 0 {
        return Err("our client has not understood everything".into());
    }
    client.actor.compare(&recorded.requests)?;
    client.close();
    Ok(client.log)
}

struct Replay {
    client: ClientEnd<Results>,
    split: Split,
    /// Recorded cookies of requests in flight, and ours.
    cookies: HashMap<u64, u64>,
    /// Bytes of our client that were looked at.
    said: usize,
}

impl Replay {
    fn message(&mut self, sent: &Sent) -> Result<(), String> {
        match &sent.message {
            Message::ClientFlags(_) => self.expect_said(&sent.raw),
            Message::Option(code, data) => {
                self.option(*code, data)?;
                self.client.receive(&[]);
                self.expect_said(&sent.raw)
            }
            Message::Request(request, payload) => self.request(request, payload, &sent.raw),
            _ => {
                let mut bytes = sent.raw.clone();
                if let Message::Simple(..) | Message::Chunk(..) = &sent.message {
                    // The cookie stands in the same place in all kinds of replies.
                    let cookie: &mut [u8; 8] =
                        bytes.get_mut(8..).and_then(<[u8]>::first_chunk_mut).ok_or("no cookie")?;
                    let ours = self.cookies.get(&u64::from_be_bytes(*cookie));
                    *cookie = ours.ok_or("a reply without a request")?.to_be_bytes();
                }
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(self.split.next(rest.len()));
                    rest = after;
                    self.client.receive(piece);
                }
                self.client.error().map_or(Ok(()), |error| Err(format!("our client: {error}")))
            }
        }
    }

    fn expect_said(&mut self, expected: &[u8]) -> Result<(), String> {
        let said = &self.client.output[self.said..];
        self.said = self.client.output.len();
        if said == expected { Ok(()) } else { Err(format!("our client says {said:02x?}")) }
    }

    fn option(&mut self, code: OptionCode, data: &[u8]) -> Result<(), String> {
        let client = &mut self.client.connection;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|e| e.to_string());
        let wrong = |error| format!("{error}");
        let result = match code {
            OptionCode::ABORT => client.abort(),
            OptionCode::LIST => client.list(),
            OptionCode::STRUCTURED_REPLY => client.structured_reply(),
            OptionCode::EXTENDED_HEADERS => client.extended_headers(),
            OptionCode::EXPORT_NAME => client.export_name(text(data)?),
            OptionCode::INFO | OptionCode::GO => {
                let request = InfoRequest::decode(data).map_err(wrong)?;
                let items: Vec<InfoType> = request.items().collect();
                let name = text(request.name)?;
                if code == OptionCode::GO {
                    client.go(name, &items)
                } else {
                    client.info(name, &items)
                }
            }
            OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT => {
                let request = MetaContextRequest::decode(data).map_err(wrong)?;
                let queries: Result<Vec<_>, _> = request.queries().map(text).collect();
                let (name, queries) = (text(request.name)?, queries?);
                let queries: Vec<&str> = queries.iter().map(AsRef::as_ref).collect();
                if code == OptionCode::SET_META_CONTEXT {
                    client.set_meta_context(name, &queries)
                } else {
                    client.list_meta_context(name, &queries)
                }
            }
            _ => client.option(code, data),
        };
        result.map_err(|error| error.to_string())
    }

    fn request(
        &mut self,
        request: &ExtendedRequest,
        payload: &[u8],
        raw: &[u8],
    ) -> Result<(), String> {
        if request.command == CommandType::DISC {
            self.client.connection.disconnect_now();
        } else {
            self.submit(request, payload)?;
        }
        self.client.receive(&[]);
        let said = self.client.output[self.said..].to_vec();
        self.said = self.client.output.len();
        let extended = self.client.extended;
        let ours = if extended {
            said.first_chunk().and_then(|head| ExtendedRequest::decode(head).ok())
        } else {
            let compact = said.first_chunk().and_then(|head| CompactRequest::decode(head).ok());
            compact.map(ExtendedRequest::from)
        };
        let ours = ours.ok_or("our client says nothing that can be understood")?;
        self.cookies.insert(request.cookie, ours.cookie);
        let size = if extended { ExtendedRequest::SIZE } else { CompactRequest::SIZE };
        // Our writes tell that they have a payload, qemu's don't.
        let writes = request.command == CommandType::WRITE;
        let mut expected = ExtendedRequest { cookie: ours.cookie, ..*request };
        expected.flags.set(CommandFlags::PAYLOAD_LEN, extended && (writes || !payload.is_empty()));
        if ours != expected || said[size..] != raw[size..] {
            return Err(format!("our client says {ours:?}"));
        }
        Ok(())
    }

    fn submit(&mut self, request: &ExtendedRequest, payload: &[u8]) -> Result<(), String> {
        let (offset, length) = (request.offset, request.length);
        let one = request.flags.contains(CommandFlags::REQ_ONE);
        let command = match request.command {
            CommandType::READ => Command::read(offset, length),
            CommandType::WRITE => Command::write(offset, length),
            CommandType::FLUSH => Command::flush(),
            CommandType::TRIM => Command::trim(offset, length),
            CommandType::CACHE => Command::cache(offset, length),
            CommandType::WRITE_ZEROES => Command::write_zeroes(offset, length),
            CommandType::BLOCK_STATUS => Command::block_status(offset, length),
            other => return Err(format!("{other} is not to be replayed")),
        };
        let command = with_flags(command, request.flags);
        let bytes = match command {
            Command::Read { length, .. } => vec![0xee; length as usize],
            _ => payload.to_vec(),
        };
        let client = &mut self.client.connection;
        let result = match payload.split_first_chunk() {
            Some((length, rest)) if request.command == CommandType::BLOCK_STATUS => {
                let ids = rest.as_chunks().0.iter().map(|id| u32::from_be_bytes(*id));
                let ids: Vec<u32> = ids.collect();
                let length = u64::from_be_bytes(*length);
                client.begin_block_status((offset, length, one), &ids)
            }
            _ => client.begin(command, bytes),
        };
        result.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// What came of each request, by its number.
#[derive(Debug, Default)]
struct Results {
    extents: HashMap<usize, Vec<Part>>,
    done: HashMap<usize, (Vec<u8>, Result<(), nbd_proto::client::CommandError>)>,
}

impl Results {
    fn compare(&self, recorded: &[Served]) -> Result<(), String> {
        let requests = recorded.iter().filter(|other| other.request.command != CommandType::DISC);
        for (tag, served) in requests.enumerate() {
            let (bytes, result) = match self.done.get(&tag) {
                Some(done) => done,
                None if !served.done => continue,
                None => return Err(format!("{:?} has not completed", served.request)),
            };
            let failed = result.as_ref().err().map(|error| error.raw);
            if failed != served.error() {
                return Err(format!("{:?} came to {result:?}", served.request));
            }
            for (ours, told) in bytes.iter().zip(served.content()) {
                if failed.is_none() && Some(*ours) != told {
                    return Err(format!("{:?} has read something else", served.request));
                }
            }
            let parts = self.extents.get(&tag).cloned().unwrap_or_default();
            let ours = Served { parts, ..served.clone() };
            if ours.extents() != served.extents() {
                return Err(format!("{:?} got other extents", served.request));
            }
        }
        Ok(())
    }
}

impl Actor for Results {
    fn event(&mut self, client: &mut Client, event: Event, buffer: Option<Buffer>) {
        match event {
            Event::Extents { id, context, extents } => {
                let extents: Vec<Extent> = extents;
                self.extents
                    .entry(client.tag(id))
                    .or_default()
                    .push(Part::Extents(context, extents));
            }
            Event::Completed { result, .. } => {
                let Buffer { tag, bytes } = buffer.expect("it ends with its buffer");
                self.done.insert(tag, (bytes, result));
            }
            _ => {}
        }
    }
}
