//! Our server in the place of the recorded one.

use std::collections::{HashMap, VecDeque};

use nbd_pair::server::{Embedder, ServerEnd, server_end};
use nbd_pair::split::Split;
use nbd_proto::server::{Config, Connection, Event, Listing, LookupRefusal, Purpose};
use nbd_proto::wire::{
    BlockSizeInfo, ClientFlags, CommandType, HandshakeFlags, InfoReply, InfoRequest,
    MetaContextReply, MetaContextRequest, OptionCode, OptionReplyType, ServerReply,
    TransmissionFlags,
};
use nbd_proto::{BlockSize, Command, ContextInfo, ExportInfo, RequestId};

use crate::digest::{Digest, Haggled, Part, Served};
use crate::session::{Decoder, Message, Sent};
use crate::transcript::{Side, Transcript};

/// Feeds what the recorded client sent to our server, which answers with what the recorded one did, as far as it is the
/// embedder who decides that. Gives both sessions as exchanges, and what happened on our side.
pub fn as_server(
    transcript: &Transcript,
    split: &Split,
) -> Result<(Digest, Digest, Vec<String>), String> {
    let decoded = Decoder::decode(transcript)?;
    let recorded = Digest::of(&decoded)?;
    let mut config = Config::default();
    config.no_zeroes = recorded.offered.contains(HandshakeFlags::NO_ZEROES)
        || recorded.flags.contains(ClientFlags::NO_ZEROES);
    config.structured_replies = !refused(&recorded, OptionCode::STRUCTURED_REPLY);
    config.extended_headers = !refused(&recorded, OptionCode::EXTENDED_HEADERS);
    let replayer = Replayer::new(&recorded);
    let connection = match &recorded.oldstyle {
        Some(greeting) => {
            let mut info = ExportInfo::new(greeting.size);
            info.flags = greeting.flags;
            Connection::oldstyle(config, &info).map_err(|error| error.to_string())?
        }
        None => Connection::new(config),
    };
    let mut server = server_end(connection, replayer, split.clone());
    let mut split = split.clone();
    let mut decoder = Decoder::default();
    let mut messages: Vec<Sent> = Vec::new();
    server.receive(&[]);
    let mut told = 0;
    let mut tell = |server: &ServerEnd<Replayer>, decoder: &mut Decoder, messages: &mut Vec<_>| {
        let new = &server.output[told..];
        told = server.output.len();
        decoder.push(Side::Server, new, messages)
    };
    tell(&server, &mut decoder, &mut messages)?;
    for burst in client_bursts(&decoded, &server.embedder) {
        let mut rest = &burst[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(split.next(rest.len()));
            rest = after;
            decoder.push(Side::Client, piece, &mut messages)?;
            server.receive(piece);
            if let Some(error) = server.error() {
                return Err(format!("our server gives up: {error}"));
            }
            tell(&server, &mut decoder, &mut messages)?;
        }
    }
    if server.left_over() > 0 || decoder.is_inside(Side::Server) {
        return Err("our server is out of step".into());
    }
    server.close();
    if !server.ended() {
        return Err("our server is not through".into());
    }
    Ok((recorded, Digest::of(&messages)?, server.log))
}

/// What the client sent at once. Numbers of metadata contexts become those that our server gives them.
fn client_bursts(messages: &[Sent], replayer: &Replayer) -> Vec<Vec<u8>> {
    let mut bursts: Vec<Vec<u8>> = Vec::new();
    let mut goes_on = false;
    for Sent { side, message, raw } in messages {
        if *side == Side::Server {
            goes_on = false;
            continue;
        }
        let mut raw = raw.clone();
        if let Message::Request(request, payload) = message
            && request.command == CommandType::BLOCK_STATUS
            && !payload.is_empty()
        {
            let ids = raw.len() - payload.len() + 8;
            for id in raw[ids..].as_chunks_mut().0 {
                *id = replayer.our_id(u32::from_be_bytes(*id)).to_be_bytes();
            }
        }
        match bursts.last_mut() {
            Some(burst) if goes_on => burst.append(&mut raw),
            _ => bursts.push(raw),
        }
        goes_on = true;
    }
    bursts
}

fn refused(recorded: &Digest, code: OptionCode) -> bool {
    let options = recorded.options.iter().filter(|option| option.code == code);
    options.flat_map(|option| &option.replies).any(|(reply, _)| reply.is_error())
}

/// Answers as the recorded server did.
#[derive(Debug)]
struct Replayer {
    listings: Vec<(String, String)>,
    exports: HashMap<String, ExportInfo>,
    /// How the recorded server answered each option that names an export, in order.
    lookups: VecDeque<Haggled>,
    requests: VecDeque<Served>,
    /// Numbers and names of the metadata contexts that the recorded server selected.
    contexts: Vec<(u32, String)>,
    /// The payload of the write that is arriving.
    payload: Vec<u8>,
    open: HashMap<RequestId, (Command, Served)>,
}

impl Replayer {
    fn new(recorded: &Digest) -> Self {
        let mut listings = Vec::new();
        let mut exports = HashMap::new();
        let mut known = Vec::new();
        for option in &recorded.options {
            for (reply, data) in &option.replies {
                match *reply {
                    OptionReplyType::SERVER => {
                        if let Ok(ServerReply { name, description }) = ServerReply::decode(data) {
                            listings.push((name.to_owned(), description.to_owned()));
                        }
                    }
                    OptionReplyType::META_CONTEXT => {
                        let name = MetaContextReply::decode(data).ok().map(|reply| reply.name);
                        let context = name.and_then(ContextInfo::new);
                        known.extend(context.filter(|context| !known.contains(context)));
                    }
                    _ => {}
                }
            }
        }
        for option in &recorded.options {
            let Some(name) = name(option) else { continue };
            let info = exports.entry(name).or_insert_with(|| ExportInfo::new(0));
            info.contexts.clone_from(&known);
            describe(option, info);
        }
        let asks = |option: &&Haggled| name(option).is_some();
        let lookups = recorded.options.iter().filter(asks).cloned().collect();
        let requests = recorded.requests.iter().cloned().collect();
        let contexts = recorded.contexts.clone();
        Self {
            listings,
            exports,
            lookups,
            requests,
            contexts,
            payload: Vec::new(),
            open: HashMap::new(),
        }
    }

    /// The number that our server gives a context: it counts those that the export has, from 1.
    fn our_id(&self, theirs: u32) -> u32 {
        let name = self.contexts.iter().find(|(id, _)| *id == theirs).map(|(_, name)| &name[..]);
        let known = self.exports.values().next().map(|info| &info.contexts[..]);
        let place = known.unwrap_or_default().iter().position(|known| Some(known.name()) == name);
        place.map_or(u32::MAX, |place| place as u32 + 1)
    }

    fn answer(&mut self, connection: &mut Connection, id: RequestId) {
        let Some((command, served)) = self.open.get(&id) else { return };
        let contexts = connection.export().map(|view| view.contexts.to_vec()).unwrap_or_default();
        let reply = connection.reply(id);
        let Ok(mut reply) = reply else { return };
        for part in &served.parts {
            let result = match part {
                Part::Error(code, None, text) => return reply.error(*code, text),
                Part::Error(code, Some(offset), text) => reply.error_at(*code, *offset, text),
                Part::Data(offset, bytes) => reply.data(*offset, bytes.len() as u64),
                Part::Hole(offset, length) => reply.hole(*offset, u64::from(*length)),
                Part::Extents(..) => Ok(()),
            };
            result.expect("the recorded server told no lie");
        }
        match command {
            Command::Read { .. } => reply.finish().expect("nothing was left out"),
            Command::BlockStatus { .. } => {
                for part in &served.parts {
                    let Part::Extents(theirs, extents) = part else { continue };
                    let name = self.contexts.iter().find(|(id, _)| id == theirs);
                    let name = name.map(|(_, name)| name);
                    let ours = contexts.iter().find(|ours| Some(&ours.name) == name);
                    let ours = ours.expect("it was selected").id;
                    reply.extents(ours, extents.iter().copied()).expect("it is awaited");
                }
                reply.finish().expect("nothing was left out");
            }
            _ => reply.finish().expect("it has no content"),
        }
    }
}

/// The export that an option names.
fn name(option: &Haggled) -> Option<String> {
    let name = match option.code {
        OptionCode::EXPORT_NAME => &option.data[..],
        OptionCode::INFO | OptionCode::GO => InfoRequest::decode(&option.data).ok()?.name,
        OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT => {
            MetaContextRequest::decode(&option.data).ok()?.name
        }
        _ => return None,
    };
    String::from_utf8(name.to_vec()).ok()
}

/// Takes what an option's replies report of an export.
fn describe(option: &Haggled, info: &mut ExportInfo) {
    // What the core adds by itself, it must find out by itself.
    let own = TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    if let Some((size, flags)) = option.entered {
        (info.size, info.flags) = (size, flags - own);
    }
    for (_, data) in option.replies.iter().filter(|(reply, _)| *reply == OptionReplyType::INFO) {
        match InfoReply::decode(data) {
            Ok(InfoReply::Export(export)) => {
                (info.size, info.flags) = (export.size, export.flags - own);
            }
            Ok(InfoReply::Name(name)) => info.name = Some(name.to_owned()),
            Ok(InfoReply::Description(text)) => info.description = Some(text.to_owned()),
            Ok(InfoReply::BlockSize(sizes)) => {
                let BlockSizeInfo { minimum, preferred, maximum_payload } = sizes;
                if let Ok(sizes) = BlockSize::new(minimum, preferred, maximum_payload) {
                    info.block_size = sizes;
                }
            }
            _ => {}
        }
    }
}

impl Embedder for Replayer {
    fn event(&mut self, connection: &mut Connection, event: &Event) {
        match event {
            Event::List => {
                let listings = self.listings.iter();
                let listings = listings.map(|(name, description)| Listing { name, description });
                connection.answer_list(listings).expect("it was asked");
            }
            Event::Lookup(lookup) => {
                let option = loop {
                    let option = self.lookups.pop_front().expect("the client asked for it");
                    let meta = matches!(
                        option.code,
                        OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT
                    );
                    let fits = (lookup.purpose == Purpose::MetaContext) == meta;
                    if fits && name(&option).as_ref() == Some(&lookup.name) {
                        break option;
                    }
                };
                let unknown = option.replies.last();
                let unknown = unknown.is_some_and(|(reply, _)| reply.is_error());
                let answer = if unknown {
                    Err(LookupRefusal::Unknown)
                } else {
                    Ok(&self.exports[&lookup.name])
                };
                connection.answer_lookup(answer).expect("it was asked");
            }
            &Event::Request { id, command } => {
                // Requests that our machine refuses by itself are not raised.
                let served = loop {
                    let served = self.requests.pop_front().expect("the client asked for it");
                    let header = served.request;
                    if header.command == command.command_type()
                        && (header.command == CommandType::FLUSH
                            || header.offset == command.offset()
                                && served.effect_length() == command.length())
                    {
                        break served;
                    }
                };
                // Lists of contexts are the machine's.
                if let Command::Write { .. } = command {
                    assert!(self.payload == served.payload, "the payload is another one");
                    self.payload.clear();
                }
                self.open.insert(id, (command, served));
                self.answer(connection, id);
            }
            _ => {}
        }
    }

    fn payload(&mut self, _request: RequestId, _command: Command, offset: u64, bytes: &[u8]) {
        assert_eq!(self.payload.len() as u64, offset);
        self.payload.extend_from_slice(bytes);
    }

    fn body(&self, request: RequestId, offset: u64, length: usize, out: &mut Vec<u8>) {
        let (command, served) = &self.open[&request];
        let start = command.offset() + offset;
        let end = start + length as u64;
        let found = served.parts.iter().find_map(|part| match part {
            Part::Data(at, bytes) if *at <= start && end <= at + bytes.len() as u64 => {
                Some(&bytes[(start - at) as usize..][..length])
            }
            _ => None,
        });
        out.extend_from_slice(found.expect("the recorded server had it"));
    }

    fn finished(&mut self, request: RequestId) {
        self.open.remove(&request);
    }
}
