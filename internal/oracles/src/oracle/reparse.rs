//! What a machine sends must be what the codec understands.

use nbd_proto::wire::{
    CommandFlags, CommandType, CompactRequest, EXPORT_NAME_PADDING, ErrorChunk, ErrorCode,
    ExportNameReply, ExtendedReplyHeader, ExtendedRequest, Greeting, InfoReply, MAX_STRING,
    MetaContextReply, NewstyleGreeting, OldstyleGreeting, OptionCode, OptionHeader,
    OptionReplyHeader, OptionReplyType, ReplyFlags, ReplyType, ServerReply, SimpleReplyHeader,
    StructuredReplyHeader, is_valid_string, magic,
};

fn head<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.first_chunk().expect("a message is cut off")
}

/// All that a server sent up to transmission. Gives the codes of options that were answered, in order.
pub(super) fn option_phase(output: &[u8], entered: bool) -> Vec<OptionCode> {
    if Greeting::decode(head(output)) == Ok(Greeting::Oldstyle) {
        assert!(entered && output.len() == OldstyleGreeting::SIZE);
        return Vec::new();
    }
    let mut rest = output.strip_prefix(b"NBDMAGICIHAVEOPT").expect("the greeting comes first");
    rest = &rest[NewstyleGreeting::SIZE - 16..];
    let mut answered = Vec::new();
    while rest.starts_with(&magic::OPTION_REPLY.to_be_bytes()) {
        let header = OptionReplyHeader::decode(head(rest)).expect("it has its magic");
        let OptionReplyHeader { code, reply, length } = header;
        let (data, after) = rest[OptionReplyHeader::SIZE..].split_at(length as usize);
        rest = after;
        match reply {
            OptionReplyType::ACK => assert!(data.is_empty()),
            OptionReplyType::SERVER => drop(ServerReply::decode(data).expect("it is well-formed")),
            OptionReplyType::INFO => drop(InfoReply::decode(data).expect("it is well-formed")),
            OptionReplyType::META_CONTEXT => {
                MetaContextReply::decode(data).expect("it is well-formed");
            }
            _ => assert!(reply.is_error() && is_valid_string(data), "{reply} {data:02x?}"),
        }
        if reply == OptionReplyType::ACK || reply.is_error() {
            answered.push(code);
        }
    }
    const SHORT: usize = ExportNameReply::EXPORT_NAME_SIZE;
    const LONG: usize = SHORT + EXPORT_NAME_PADDING;
    match rest.len() {
        0 => {}
        SHORT | LONG if entered => answered.push(OptionCode::EXPORT_NAME),
        other => panic!("{other} bytes too many"),
    }
    answered
}

/// Simple replies. `spans` tells where those lie that the embedder gave: reads have data behind them. Gives how many
/// there are.
pub(super) fn simple(output: &[u8], start: usize, spans: &[(usize, usize)]) -> usize {
    let (mut at, mut count) = (start, 0);
    let mut spans = spans.iter().skip_while(|(from, _)| *from < start).peekable();
    while at < output.len() {
        let header = SimpleReplyHeader::decode(head(&output[at..])).expect("it has its magic");
        check_error(header.error, true);
        count += 1;
        let end = at + SimpleReplyHeader::SIZE;
        at = match spans.next_if(|(from, _)| *from == at) {
            Some((_, to)) => {
                assert!(*to == end || header.error == ErrorCode::OK, "an error with data");
                *to
            }
            None => end,
        };
    }
    assert!(at == output.len() && spans.next().is_none(), "a reply is cut off");
    count
}

/// Structured or extended chunks. Gives how many replies they make up.
pub(super) fn chunks(mut rest: &[u8], extended: bool) -> usize {
    let mut count = 0;
    while !rest.is_empty() {
        let header = if extended {
            let header = ExtendedReplyHeader::decode(head(rest)).expect("it has its magic");
            rest = &rest[ExtendedReplyHeader::SIZE..];
            header
        } else if rest.starts_with(&magic::SIMPLE_REPLY.to_be_bytes()) {
            let header = SimpleReplyHeader::decode(head(rest)).expect("it has its magic");
            assert_eq!(header.error, ErrorCode::OK, "errors have chunks of their own");
            rest = &rest[SimpleReplyHeader::SIZE..];
            count += 1;
            continue;
        } else {
            let header = StructuredReplyHeader::decode(head(rest)).expect("it has its magic");
            rest = &rest[StructuredReplyHeader::SIZE..];
            let StructuredReplyHeader { flags, reply, cookie, length } = header;
            let length = u64::from(length);
            ExtendedReplyHeader { flags, reply, cookie, offset: 0, length }
        };
        let (payload, after) = rest.split_at(header.length as usize);
        rest = after;
        assert!(ReplyFlags::DONE.contains(header.flags), "an undefined flag");
        let done = header.flags.contains(ReplyFlags::DONE);
        count += usize::from(done);
        chunk(&header, payload, extended, done);
    }
    count
}

fn chunk(header: &ExtendedReplyHeader, payload: &[u8], extended: bool, done: bool) {
    match header.reply {
        ReplyType::NONE => assert!(payload.is_empty() && done),
        ReplyType::OFFSET_DATA => assert!(payload.len() > 8),
        ReplyType::OFFSET_HOLE => assert!(payload.len() == 12 && payload[8..] != [0; 4]),
        ReplyType::BLOCK_STATUS => {
            assert!(!extended && payload.len() > 4 && payload.len() % 8 == 4);
            let mut lengths = payload[4..].chunks_exact(8).map(|extent| &extent[..4]);
            assert!(lengths.all(|length| length != [0; 4]));
        }
        ReplyType::BLOCK_STATUS_EXT => {
            assert!(extended && payload.len() > 8 && payload.len() % 16 == 8);
            let count = u32::from_be_bytes(*head(&payload[4..])) as usize;
            assert_eq!(payload.len(), 8 + 16 * count);
            let mut lengths = payload[8..].chunks_exact(16).map(|extent| &extent[..8]);
            assert!(lengths.all(|length| length != [0; 8]));
        }
        ReplyType::ERROR | ReplyType::ERROR_OFFSET => {
            let chunk = ErrorChunk::decode(header.reply, payload).expect("it is well-formed");
            check_error(chunk.error, false);
            assert!(chunk.message.len() <= MAX_STRING && is_valid_string(chunk.message));
            let fixed = if chunk.offset.is_some() { 14 } else { 6 };
            assert_eq!(payload.len(), fixed + chunk.message.len(), "nothing else is in it");
        }
        other => panic!("an unknown chunk, {other}"),
    }
}

/// Only error values that the specification defines (S-ERR-01).
fn check_error(error: ErrorCode, may_succeed: bool) {
    assert!(error.name().is_some() && (may_succeed || error != ErrorCode::OK), "{error}");
}

/// All that a client sent. `newstyle` says whether there was an option phase.
pub(super) fn client(mut rest: &[u8], newstyle: bool, extended: bool) {
    if newstyle {
        let Some((flags, after)) = rest.split_first_chunk() else { return };
        assert!(u32::from_be_bytes(*flags) <= 3, "an undefined client flag");
        rest = after;
        while rest.starts_with(&magic::IHAVEOPT.to_be_bytes()) {
            let header = OptionHeader::decode(head(rest)).expect("it has its magic");
            rest = &rest[OptionHeader::SIZE + header.length as usize..];
        }
    }
    while !rest.is_empty() {
        let request: ExtendedRequest;
        if extended {
            request = ExtendedRequest::decode(head(rest)).expect("it has its magic");
            rest = &rest[ExtendedRequest::SIZE..];
        } else {
            request = CompactRequest::decode(head(rest)).expect("it has its magic").into();
            rest = &rest[CompactRequest::SIZE..];
        }
        let flagged = request.flags.contains(CommandFlags::PAYLOAD_LEN);
        let writes = request.command == CommandType::WRITE;
        assert_eq!(flagged, extended && (writes || flagged), "a payload is told (C-EH-16)");
        assert!(request.command.name().is_some());
        if flagged || writes {
            rest = &rest[request.length as usize..];
        }
        if request.command == CommandType::DISC {
            assert!(rest.is_empty(), "nothing follows the end");
        }
    }
}
