//! What a session came to: each option with its replies, each request with its outcome.

use std::collections::HashMap;

use nbd_proto::Extent;
use nbd_proto::wire::{
    BlockStatusDescriptor, ClientFlags, CommandType, ErrorChunk, ErrorCode, ExtendedReplyHeader,
    ExtendedRequest, HandshakeFlags, MetaContextReply, OldstyleGreeting, OptionCode,
    OptionReplyType, ReplyFlags, ReplyType, TransmissionFlags,
};

use crate::session::{Message, Sent};

/// A session, as a list of exchanges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// What the server offered in its greeting.
    pub offered: HandshakeFlags,
    /// The greeting of a server that speaks oldstyle.
    pub oldstyle: Option<OldstyleGreeting>,
    /// What the client answered.
    pub flags: ClientFlags,
    /// Options, in order.
    pub options: Vec<Haggled>,
    /// Metadata contexts that were selected last: numbers and names.
    pub contexts: Vec<(u32, String)>,
    /// Requests, in order.
    pub requests: Vec<Served>,
}

/// An option and its replies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Haggled {
    /// Which option.
    pub code: OptionCode,
    /// Its data.
    pub data: Vec<u8>,
    /// Types and data of the replies.
    pub replies: Vec<(OptionReplyType, Vec<u8>)>,
    /// What answered `NBD_OPT_EXPORT_NAME`.
    pub entered: Option<(u64, TransmissionFlags)>,
}

/// A request and its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The request.
    pub request: ExtendedRequest,
    /// Its payload.
    pub payload: Vec<u8>,
    /// What the reply reported, in order.
    pub parts: Vec<Part>,
    /// Whether the reply is complete.
    pub done: bool,
}

/// Something that a reply reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes at an offset in the export.
    Data(u64, Vec<u8>),
    /// Zeroes at an offset in the export.
    Hole(u64, u32),
    /// Extents of a metadata context.
    Extents(u32, Vec<Extent>),
    /// An error, maybe at an offset in the export.
    Error(ErrorCode, Option<u64>, String),
}

impl Served {
    /// The first error that was reported.
    #[must_use]
    pub fn error(&self) -> Option<ErrorCode> {
        self.parts.iter().find_map(|part| match part {
            Part::Error(code, ..) => Some(*code),
            _ => None,
        })
    }

    /// What was read, holes as zeroes, and `None` for what was not sent.
    #[must_use]
    pub fn content(&self) -> Vec<Option<u8>> {
        if self.request.command != CommandType::READ {
            return Vec::new();
        }
        let mut content = vec![None; self.request.length as usize];
        let start = self.request.offset;
        for part in &self.parts {
            match part {
                Part::Data(offset, bytes) => {
                    for (place, byte) in content[(offset - start) as usize..].iter_mut().zip(bytes)
                    {
                        *place = Some(*byte);
                    }
                }
                Part::Hole(offset, length) => {
                    let from = (offset - start) as usize;
                    content[from..from + *length as usize].fill(Some(0));
                }
                _ => {}
            }
        }
        content
    }

    /// Extents by context, neighbours of the same status joined, cut to what was asked about.
    #[must_use]
    pub fn extents(&self) -> Vec<(u32, Vec<Extent>)> {
        let mut all = Vec::new();
        for part in &self.parts {
            let Part::Extents(context, extents) = part else { continue };
            all.push((*context, joined(extents, self.effect_length())));
        }
        all.sort_unstable_by_key(|(context, _)| *context);
        all
    }

    /// The length of the range that the request is about.
    #[must_use]
    pub fn effect_length(&self) -> u64 {
        match self.payload.first_chunk() {
            Some(length) if self.request.command == CommandType::BLOCK_STATUS => {
                u64::from_be_bytes(*length)
            }
            _ => self.request.length,
        }
    }
}

/// Joins neighbours of the same status and cuts the rest off.
#[must_use]
pub fn joined(extents: &[Extent], mut rest: u64) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::new();
    for extent in extents {
        let length = extent.length.min(rest);
        rest -= length;
        match joined.last_mut() {
            Some(last) if last.status == extent.status => last.length += length,
            _ if length > 0 => joined.push(Extent { length, ..*extent }),
            _ => {}
        }
    }
    joined
}

impl Digest {
    /// Puts messages together.
    pub fn of(messages: &[Sent]) -> Result<Self, String> {
        let mut digest = Self::default();
        // Requests that are not answered yet, by cookie, in order.
        let mut open: HashMap<u64, Vec<usize>> = HashMap::new();
        for Sent { message, .. } in messages {
            match message {
                Message::Greeting(flags) => digest.offered = *flags,
                Message::Oldstyle(greeting) => digest.oldstyle = Some(*greeting),
                Message::ClientFlags(flags) => digest.flags = *flags,
                Message::Option(code, data) => {
                    if *code == OptionCode::SET_META_CONTEXT {
                        digest.contexts.clear();
                    }
                    let (code, data) = (*code, data.clone());
                    digest.options.push(Haggled { code, data, replies: Vec::new(), entered: None });
                }
                Message::OptionReply(header, data) => {
                    let option = digest.options.last_mut().ok_or("a reply without an option")?;
                    if option.code != header.code {
                        return Err(format!("{} answers {}", header.code, option.code));
                    }
                    option.replies.push((header.reply, data.clone()));
                    if option.code == OptionCode::SET_META_CONTEXT
                        && header.reply == OptionReplyType::META_CONTEXT
                    {
                        let context = MetaContextReply::decode(data);
                        let context = context.map_err(|error| error.to_string())?;
                        digest.contexts.push((context.id, context.name.to_owned()));
                    }
                }
                Message::ExportName(reply) => {
                    let option = digest.options.last_mut().ok_or("a reply without an option")?;
                    option.entered = Some((reply.size, reply.flags));
                }
                Message::Request(request, payload) => {
                    open.entry(request.cookie).or_default().push(digest.requests.len());
                    digest.requests.push(Served {
                        request: *request,
                        payload: payload.clone(),
                        parts: Vec::new(),
                        done: false,
                    });
                }
                Message::Simple(header, data) => {
                    let served = digest.find(&mut open, header.cookie, true)?;
                    if header.error != ErrorCode::OK {
                        served.parts.push(Part::Error(header.error, None, String::new()));
                    } else if !data.is_empty() {
                        served.parts.push(Part::Data(served.request.offset, data.clone()));
                    }
                }
                Message::Chunk(header, payload) => {
                    let done = header.flags.contains(ReplyFlags::DONE);
                    let served = digest.find(&mut open, header.cookie, done)?;
                    served.parts.extend(part(header, payload)?);
                }
            }
        }
        Ok(digest)
    }

    /// The name of a selected metadata context; empty if there is none.
    #[must_use]
    pub fn context(&self, id: u32) -> &str {
        self.contexts.iter().find(|(known, _)| *known == id).map_or("", |(_, name)| name)
    }

    /// What a block status request reported, by the names of contexts, in their order.
    #[must_use]
    pub fn extents(&self, served: &Served) -> Vec<(String, Vec<Extent>)> {
        let extents = served.extents().into_iter();
        let mut extents: Vec<_> =
            extents.map(|(id, extents)| (self.context(id).to_owned(), extents)).collect();
        extents.sort_by(|(one, _), (other, _)| one.cmp(other));
        extents
    }

    fn find(
        &mut self,
        open: &mut HashMap<u64, Vec<usize>>,
        cookie: u64,
        done: bool,
    ) -> Result<&mut Served, String> {
        let places = open.get_mut(&cookie).filter(|places| !places.is_empty());
        let places = places.ok_or_else(|| format!("a reply to the unknown cookie {cookie:#x}"))?;
        let at = if done { places.remove(0) } else { places[0] };
        let served = self.requests.get_mut(at).ok_or("no such request")?;
        served.done = done;
        Ok(served)
    }
}

fn part(header: &ExtendedReplyHeader, payload: &[u8]) -> Result<Option<Part>, String> {
    let wide = header.reply == ReplyType::BLOCK_STATUS_EXT;
    Ok(match header.reply {
        ReplyType::NONE => None,
        ReplyType::OFFSET_DATA => {
            let (offset, data) = payload.split_first_chunk().ok_or("data without an offset")?;
            Some(Part::Data(u64::from_be_bytes(*offset), data.to_vec()))
        }
        ReplyType::OFFSET_HOLE => {
            let (offset, length) = payload.split_first_chunk().ok_or("a hole without an offset")?;
            let length = length.try_into().map_err(|_| "a hole without a length")?;
            Some(Part::Hole(u64::from_be_bytes(*offset), u32::from_be_bytes(length)))
        }
        ReplyType::BLOCK_STATUS | ReplyType::BLOCK_STATUS_EXT => {
            let (context, rest) = payload.split_first_chunk().ok_or("extents of no context")?;
            let mut extents = Vec::new();
            let fail = |error| format!("{error}");
            if wide {
                let (descriptors, rest) = rest.get(4..).unwrap_or_default().as_chunks();
                if !rest.is_empty() {
                    return Err("a part of an extent".into());
                }
                for descriptor in descriptors {
                    extents.push(BlockStatusDescriptor::decode_extended(descriptor).map_err(fail)?);
                }
            } else {
                let (descriptors, rest) = rest.as_chunks();
                if !rest.is_empty() {
                    return Err("a part of an extent".into());
                }
                for descriptor in descriptors {
                    extents.push(BlockStatusDescriptor::decode_compact(descriptor).map_err(fail)?);
                }
            }
            let extents = extents.iter();
            let extents = extents.map(|e| Extent { length: e.length, status: e.status }).collect();
            Some(Part::Extents(u32::from_be_bytes(*context), extents))
        }
        reply if reply.is_error() => {
            let chunk = ErrorChunk::decode(reply, payload).map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(chunk.message).into_owned();
            Some(Part::Error(chunk.error, chunk.offset, text))
        }
        other => return Err(format!("an unknown chunk, {other}")),
    })
}
