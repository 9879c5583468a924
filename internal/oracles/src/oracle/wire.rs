//! The codec.

use std::fmt::Debug;

use nbd_proto::wire::{
    BlockStatusDescriptor, CompactRequest, DecodeError, ErrorChunk, ExportNameReply,
    ExtendedReplyHeader, ExtendedRequest, Greeting, HandshakeFlags, InfoReply, InfoRequest,
    InfoType, MAX_STRING, MetaContextReply, MetaContextRequest, NewstyleGreeting, OptionHeader,
    OptionReplyHeader, Reader, ReplyType, ServerReply, SimpleReplyHeader, StructuredReplyHeader,
    is_valid_string,
};

/// What decodes is encoded to the same bytes; where bytes are ignored, to others that decode to the same value.
pub fn wire(data: &[u8]) {
    fixed(data, OptionHeader::decode, |value| value.encode());
    fixed(data, OptionReplyHeader::decode, |value| value.encode());
    fixed(data, CompactRequest::decode, |value| value.encode());
    fixed(data, ExtendedRequest::decode, |value| value.encode());
    fixed(data, SimpleReplyHeader::decode, |value| value.encode());
    fixed(data, StructuredReplyHeader::decode, |value| value.encode());
    fixed(data, ExtendedReplyHeader::decode, |value| value.encode());
    greeting(data);
    // Data stands behind headers of various sizes.
    for start in [0, 16, 20, 28, 32] {
        if let Some(data) = data.get(start..) {
            variable(data);
            requests(data);
            fixed(data, ExportNameReply::decode_export_name, |value| value.encode_export_name());
            fixed(data, BlockStatusDescriptor::decode_compact, |value| descriptor(value, false));
            fixed(data, BlockStatusDescriptor::decode_extended, |value| descriptor(value, true));
        }
    }
}

fn fixed<T: Debug, const N: usize>(
    data: &[u8],
    decode: impl Fn(&[u8; N]) -> Result<T, DecodeError>,
    encode: impl Fn(&T) -> [u8; N],
) {
    if let Some(bytes) = data.first_chunk::<N>() {
        match decode(bytes) {
            Ok(value) => assert_eq!(encode(&value), *bytes, "{value:?}"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn descriptor<const N: usize>(value: &BlockStatusDescriptor, extended: bool) -> [u8; N] {
    let mut out = Vec::new();
    value.encode(extended, &mut out);
    out.try_into().expect("it has this size")
}

fn greeting(data: &[u8]) {
    let Some((magics, rest)) = data.split_first_chunk() else { return };
    match Greeting::decode(magics) {
        Ok(Greeting::Newstyle) => {
            if let Some((flags, _)) = rest.split_first_chunk() {
                let flags = HandshakeFlags::from_bits_retain(u16::from_be_bytes(*flags));
                assert!(data.starts_with(&NewstyleGreeting { flags }.encode()));
            }
        }
        Ok(Greeting::Oldstyle) => {
            let Some(rest) = rest.first_chunk() else { return };
            let Ok(greeting) = Greeting::decode_oldstyle(rest) else { return };
            let bytes = greeting.encode();
            let rest = bytes.last_chunk().expect("it is longer");
            assert_eq!(Greeting::decode_oldstyle(rest), Ok(greeting));
        }
        Err(_) => {}
    }
}

/// Data of options, which may hold names that are no valid strings.
fn requests(data: &[u8]) {
    if let Ok(request) = InfoRequest::decode(data) {
        let items: Vec<InfoType> = request.items().collect();
        if let Ok(name) = std::str::from_utf8(request.name) {
            let mut out = Vec::new();
            InfoRequest::encode(name, &items, &mut out);
            assert_eq!(out, data);
        }
    }
    if let Ok(request) = MetaContextRequest::decode(data) {
        let queries: Vec<&[u8]> = request.queries().collect();
        assert_eq!(queries.len(), request.count as usize);
        let texts: Result<Vec<_>, _> =
            queries.into_iter().map(std::str::from_utf8).collect::<Result<_, _>>();
        if let (Ok(name), Ok(texts)) = (std::str::from_utf8(request.name), texts) {
            let mut out = Vec::new();
            MetaContextRequest::encode(name, texts.into_iter(), &mut out);
            assert_eq!(out, data);
        }
    }
}

/// Data of replies.
fn variable(data: &[u8]) {
    let mut out = Vec::new();
    if let Ok(reply) = ServerReply::decode(data) {
        reply.encode(&mut out);
        assert_eq!(out, data);
        assert!(is_valid_string(reply.name.as_bytes()));
    }
    out.clear();
    if let Ok(reply) = MetaContextReply::decode(data) {
        reply.encode(&mut out);
        assert_eq!(out, data);
        assert!(is_valid_string(reply.name.as_bytes()));
    }
    match InfoReply::decode(data) {
        Ok(InfoReply::Export(export)) => assert_eq!(export.encode(), data),
        Ok(InfoReply::BlockSize(sizes)) => assert_eq!(sizes.encode(), data),
        Ok(InfoReply::Name(text) | InfoReply::Description(text)) => {
            assert_eq!(text.as_bytes(), &data[2..]);
            assert!(is_valid_string(text.as_bytes()));
        }
        _ => {}
    }
    for reply in [ReplyType::ERROR, ReplyType::ERROR_OFFSET, ReplyType(0x9000)] {
        let Ok(chunk) = ErrorChunk::decode(reply, data) else { continue };
        assert_eq!(chunk.offset.is_some(), reply == ReplyType::ERROR_OFFSET);
        let mut out = Vec::new();
        chunk.encode(&mut out);
        assert!(data.starts_with(&out));
        assert_eq!(ErrorChunk::decode(reply, &out), Ok(chunk));
    }
    let mut reader = Reader::new(data);
    let Ok(length) = reader.u16("length") else { return };
    let rest = reader.remaining();
    match reader.string(u32::from(length), "string") {
        Ok(text) => {
            assert!(text.len() <= MAX_STRING && text.len() == usize::from(length));
            assert_eq!(reader.remaining(), rest - text.len());
        }
        Err(DecodeError::TooShort(_)) => assert!(usize::from(length) > rest),
        Err(_) => assert!(!is_valid_string(&data[2..][..usize::from(length)])),
    }
}
