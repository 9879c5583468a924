//! The layout of netlink messages, generic netlink's header, and attributes (`linux/netlink.h`, `linux/genetlink.h`).
//! All numbers are in the machine's byte order.

/// Bytes of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// Bytes of `struct genlmsghdr`.
pub(super) const GENERIC_HEADER: usize = 4;

/// Bytes of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;

/// `NLMSG_ALIGNTO` and `NLA_ALIGNTO`.
const ALIGNMENT: usize = 4;

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
const ACK: u16 = 4;
/// `NLM_F_CAPPED`: an error does not repeat the payload of the request.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: attributes follow an error.
const ACK_TLVS: u16 = 0x200;

/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a reply of several messages.
const DONE: u16 = 3;
/// `NLMSG_MIN_TYPE`: types below are netlink's own.
const MIN_TYPE: u16 = 16;

/// `NLMSGERR_ATTR_MSG`: a text for people.
const ERROR_TEXT: u16 = 1;

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;

/// Rounds up to the alignment of messages and attributes.
const fn aligned(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

/// A request that is being written.
#[derive(Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// A request that is answered by an acknowledgement, after its replies if there are any.
    pub(super) fn new(family: u16, command: u8, version: u8) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&family.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | ACK).to_ne_bytes());
        // The last two bytes are reserved.
        bytes.extend([command, version, 0, 0]);
        Self(bytes)
    }

    /// Adds an attribute.
    ///
    /// # Panics
    /// In debug builds, if it is longer than the length field can say.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin(kind);
        self.0.extend(value);
        self.end(start);
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub(super) fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Adds a text, which the kernel wants to end with NUL.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    /// Adds an attribute that consists of those that `fill` adds.
    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.begin(kind | NESTED);
        fill(self);
        self.end(start);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend([0, 0]);
        self.0.extend(kind.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        let length = u16::try_from(self.0.len() - start);
        debug_assert!(length.is_ok(), "attributes are short");
        self.0[start..start + 2].copy_from_slice(&length.unwrap_or(u16::MAX).to_ne_bytes());
        self.0.resize(aligned(self.0.len()), 0);
    }

    /// The request as it is sent.
    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// What a received message is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received<'a> {
    /// The payload of a reply: generic netlink's header and attributes.
    Reply(&'a [u8]),
    /// The end of a dialogue, which may be an error: a positive error number, and the kernel's text.
    End { errno: Option<i32>, text: Option<String> },
    /// Something of netlink's own that does not matter here.
    Other,
}

/// The messages of a datagram, with their sequence numbers. What is malformed ends it.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u32, Received<'_>)> {
    let mut rest = datagram;
    core::iter::from_fn(move || {
        let length = usize::try_from(read_u32(rest, 0)?).ok()?;
        let message = rest.get(..length).filter(|_| length >= HEADER)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        let (kind, flags) = (read_u16(message, 4)?, read_u16(message, 6)?);
        let (sequence, payload) = (read_u32(message, 8)?, message.get(HEADER..)?);
        Some((sequence, received(kind, flags, payload)))
    })
}

fn received(kind: u16, flags: u16, payload: &[u8]) -> Received<'_> {
    match kind {
        ERROR => end(flags, payload, |payload| {
            // The request follows the number: its header alone, or as long as that header says.
            let request = payload.get(4..)?;
            let repeated = match flags & CAPPED {
                0 => usize::try_from(read_u32(request, 0)?).ok()?,
                _ => HEADER,
            };
            request.get(aligned(repeated)..)
        }),
        DONE => end(flags, payload, |payload| payload.get(4..)),
        MIN_TYPE.. => Received::Reply(payload),
        _ => Received::Other,
    }
}

fn end<'a>(
    flags: u16,
    payload: &'a [u8],
    tail: impl FnOnce(&'a [u8]) -> Option<&'a [u8]>,
) -> Received<'a> {
    let code = read_u32(payload, 0).map_or(0, u32::cast_signed);
    let errno = (code != 0).then_some(code.saturating_abs());
    let tail = (flags & ACK_TLVS != 0).then(|| tail(payload)).flatten().unwrap_or_default();
    let text = attributes(tail).find(|(kind, _)| *kind == ERROR_TEXT);
    let text = text.map(|(_, text)| read_text(text)).filter(|text| !text.is_empty());
    Received::End { errno, text }
}

/// The attributes of a message or of a nested attribute: types and values. What is malformed ends them.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    core::iter::from_fn(move || {
        let length = usize::from(read_u16(rest, 0)?);
        let kind = read_u16(rest, 2)?;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    })
}

pub(super) fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    let end = offset.checked_add(2)?;
    Some(u16::from_ne_bytes(bytes.get(offset..end)?.try_into().ok()?))
}

pub(super) fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let end = offset.checked_add(4)?;
    Some(u32::from_ne_bytes(bytes.get(offset..end)?.try_into().ok()?))
}

/// A text up to its NUL, or to its end.
pub(super) fn read_text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
