//! Taking both streams of a session apart into messages, with the codec and nothing of the machines.

use std::collections::HashMap;

use nbd_proto::wire::{
    ClientFlags, CommandFlags, CommandType, CompactRequest, DecodeError, EXPORT_NAME_PADDING,
    ErrorCode, ExportNameReply, ExtendedReplyHeader, ExtendedRequest, Greeting, HandshakeFlags,
    OldstyleGreeting, OptionCode, OptionHeader, OptionReplyHeader, OptionReplyType,
    SimpleReplyHeader, StructuredReplyHeader, magic,
};

use crate::transcript::{Side, Transcript};

/// A message of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The newstyle greeting.
    Greeting(HandshakeFlags),
    /// The oldstyle greeting, which is the whole handshake.
    Oldstyle(OldstyleGreeting),
    /// The client's answer to the greeting.
    ClientFlags(ClientFlags),
    /// An option with its data.
    Option(OptionCode, Vec<u8>),
    /// A reply to an option, with its data.
    OptionReply(OptionReplyHeader, Vec<u8>),
    /// The answer to `NBD_OPT_EXPORT_NAME`.
    ExportName(ExportNameReply),
    /// A request, widened to its extended form, and its payload.
    Request(ExtendedRequest, Vec<u8>),
    /// A simple reply, with the data of a read.
    Simple(SimpleReplyHeader, Vec<u8>),
    /// A structured or extended chunk, widened to its extended form, and its payload.
    Chunk(ExtendedReplyHeader, Vec<u8>),
}

/// A message, who sent it, and as what bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Who.
    pub side: Side,
    /// What.
    pub message: Message,
    /// Its bytes.
    pub raw: Vec<u8>,
}

/// Where the conversation has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    /// Options; the one that awaits its reply.
    Haggling(Option<OptionCode>),
    Transmission,
}

/// Takes both streams apart, as they are fed to it in order of time.
#[derive(Debug)]
pub struct Decoder {
    up: Vec<u8>,
    down: Vec<u8>,
    phase: Phase,
    flags_seen: bool,
    no_zeroes: (bool, bool),
    structured: bool,
    extended: bool,
    /// What reads in flight will be answered with, by cookie.
    reads: HashMap<u64, u64>,
}

/// Why a stream can't be taken apart; [`None`] inside stands for bytes that are still missing.
type Step = Result<(Message, usize), Option<String>>;

impl Default for Decoder {
    fn default() -> Self {
        Self {
            up: Vec::new(),
            down: Vec::new(),
            phase: Phase::Greeting,
            flags_seen: false,
            no_zeroes: (false, false),
            structured: false,
            extended: false,
            reads: HashMap::new(),
        }
    }
}

impl Decoder {
    /// All messages of a transcript, each where its last byte was sent.
    pub fn decode(transcript: &Transcript) -> Result<Vec<Sent>, String> {
        let mut decoder = Self::default();
        let mut messages = Vec::new();
        for (side, bytes) in &transcript.bursts {
            decoder.push(*side, bytes, &mut messages)?;
        }
        match (decoder.up.len(), decoder.down.len()) {
            (0, 0) => Ok(messages),
            (up, down) => Err(format!("{up} and {down} bytes are left over")),
        }
    }

    /// Adds what one side sent, and gives what is complete by that.
    pub fn push(
        &mut self,
        side: Side,
        bytes: &[u8],
        messages: &mut Vec<Sent>,
    ) -> Result<(), String> {
        match side {
            Side::Client => self.up.extend_from_slice(bytes),
            Side::Server => self.down.extend_from_slice(bytes),
        }
        loop {
            let step = if side == Side::Client { self.client() } else { self.server() };
            match step {
                Ok((message, length)) => {
                    let stream = if side == Side::Client { &mut self.up } else { &mut self.down };
                    let raw = stream.drain(..length).collect();
                    self.note(&message);
                    messages.push(Sent { side, message, raw });
                }
                Err(None) => return Ok(()),
                Err(Some(text)) => return Err(text),
            }
        }
    }

    /// Whether bytes of a message wait for its rest.
    #[must_use]
    pub fn is_inside(&self, side: Side) -> bool {
        !(if side == Side::Client { &self.up } else { &self.down }).is_empty()
    }

    fn client(&self) -> Step {
        let bytes = &self.up[..];
        match self.phase {
            Phase::Greeting => Err(None),
            Phase::Haggling(_) if !self.flags_seen => {
                let flags = ClientFlags::from_bits_retain(u32::from_be_bytes(*head(bytes)?));
                Ok((Message::ClientFlags(flags), 4))
            }
            Phase::Haggling(_) => {
                let header = OptionHeader::decode(head(bytes)?).map_err(wrong)?;
                let (data, end) = body(bytes, OptionHeader::SIZE, u64::from(header.length))?;
                Ok((Message::Option(header.code, data), end))
            }
            Phase::Transmission => {
                let (request, size) = if self.extended {
                    (ExtendedRequest::decode(head(bytes)?).map_err(wrong)?, ExtendedRequest::SIZE)
                } else {
                    let request = CompactRequest::decode(head(bytes)?).map_err(wrong)?;
                    (request.into(), CompactRequest::SIZE)
                };
                // Some clients send the payload of an extended write without its flag.
                let flagged = self.extended && request.flags.contains(CommandFlags::PAYLOAD_LEN);
                let payload = flagged || request.command == CommandType::WRITE;
                let (data, end) = body(bytes, size, if payload { request.length } else { 0 })?;
                Ok((Message::Request(request, data), end))
            }
        }
    }

    fn server(&self) -> Step {
        let bytes = &self.down[..];
        match self.phase {
            Phase::Greeting => match Greeting::decode(head(bytes)?).map_err(wrong)? {
                Greeting::Newstyle => {
                    let all: &[u8; 18] = head(bytes)?;
                    let flags = u16::from_be_bytes([all[16], all[17]]);
                    Ok((Message::Greeting(HandshakeFlags::from_bits_retain(flags)), 18))
                }
                Greeting::Oldstyle => {
                    let rest = bytes.get(16..).unwrap_or_default();
                    let oldstyle = Greeting::decode_oldstyle(head(rest)?).map_err(wrong)?;
                    Ok((Message::Oldstyle(oldstyle), OldstyleGreeting::SIZE))
                }
            },
            Phase::Haggling(Some(OptionCode::EXPORT_NAME)) => {
                let padding = if self.no_zeroes == (true, true) { 0 } else { EXPORT_NAME_PADDING };
                let reply = ExportNameReply::decode_export_name(head(bytes)?).map_err(wrong)?;
                let (_, end) = body(bytes, ExportNameReply::EXPORT_NAME_SIZE, padding as u64)?;
                Ok((Message::ExportName(reply), end))
            }
            Phase::Haggling(_) => {
                let header = OptionReplyHeader::decode(head(bytes)?).map_err(wrong)?;
                let (data, end) = body(bytes, OptionReplyHeader::SIZE, u64::from(header.length))?;
                Ok((Message::OptionReply(header, data), end))
            }
            Phase::Transmission => self.reply(bytes),
        }
    }

    fn reply(&self, bytes: &[u8]) -> Step {
        let word: &[u8; 4] = head(bytes)?;
        if self.extended {
            let header = ExtendedReplyHeader::decode(head(bytes)?).map_err(wrong)?;
            let (data, end) = body(bytes, ExtendedReplyHeader::SIZE, header.length)?;
            return Ok((Message::Chunk(header, data), end));
        }
        if self.structured && u32::from_be_bytes(*word) == magic::STRUCTURED_REPLY {
            let header = StructuredReplyHeader::decode(head(bytes)?).map_err(wrong)?;
            let StructuredReplyHeader { flags, reply, cookie, length } = header;
            let length = u64::from(length);
            let (data, end) = body(bytes, StructuredReplyHeader::SIZE, length)?;
            let header = ExtendedReplyHeader { flags, reply, cookie, offset: 0, length };
            return Ok((Message::Chunk(header, data), end));
        }
        let header = SimpleReplyHeader::decode(head(bytes)?).map_err(wrong)?;
        let data = match header.error {
            ErrorCode::OK => self.reads.get(&header.cookie).copied().unwrap_or(0),
            _ => 0,
        };
        let (data, end) = body(bytes, SimpleReplyHeader::SIZE, data)?;
        Ok((Message::Simple(header, data), end))
    }

    fn note(&mut self, message: &Message) {
        match message {
            Message::Greeting(flags) => {
                self.no_zeroes.0 = flags.contains(HandshakeFlags::NO_ZEROES);
                self.phase = Phase::Haggling(None);
            }
            Message::Oldstyle(_) | Message::ExportName(_) => self.phase = Phase::Transmission,
            Message::ClientFlags(flags) => {
                self.no_zeroes.1 = flags.contains(ClientFlags::NO_ZEROES);
                self.flags_seen = true;
            }
            Message::Option(code, _) => self.phase = Phase::Haggling(Some(*code)),
            Message::OptionReply(header, _) if header.reply == OptionReplyType::ACK => {
                match header.code {
                    OptionCode::GO => self.phase = Phase::Transmission,
                    OptionCode::STRUCTURED_REPLY => self.structured = true,
                    OptionCode::EXTENDED_HEADERS => self.extended = true,
                    _ => {}
                }
            }
            Message::Request(request, _) if request.command == CommandType::READ => {
                self.reads.insert(request.cookie, request.length);
            }
            Message::Request(request, _) => {
                self.reads.remove(&request.cookie);
            }
            Message::OptionReply(..) | Message::Simple(..) | Message::Chunk(..) => {}
        }
    }
}

fn wrong(error: DecodeError) -> Option<String> {
    Some(error.to_string())
}

fn head<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], Option<String>> {
    bytes.first_chunk().ok_or(None)
}

/// What follows a header of `size` bytes, and where it ends.
fn body(bytes: &[u8], size: usize, length: u64) -> Result<(Vec<u8>, usize), Option<String>> {
    let length = usize::try_from(length).map_err(|_| Some("too long".to_owned()))?;
    let end = size.checked_add(length).ok_or_else(|| Some("too long".to_owned()))?;
    let data = bytes.get(size..end).ok_or(None)?;
    Ok((data.to_vec(), end))
}
