//! Options and option replies (sections "Option types" and "Option reply types").

use alloc::vec::Vec;

use super::{ArrayWriter, DecodeError, Reader, TransmissionFlags, magic, open_numbers};

open_numbers! {
    /// The number of an option (section "Option types").
    OptionCode(u32) {
        /// Choose an export and enter transmission, without a way to report errors.
        EXPORT_NAME = 1, "NBD_OPT_EXPORT_NAME";
        /// End the session.
        ABORT = 2, "NBD_OPT_ABORT";
        /// List the exports.
        LIST = 3, "NBD_OPT_LIST";
        /// Withdrawn.
        PEEK_EXPORT = 4, "NBD_OPT_PEEK_EXPORT";
        /// Go on over TLS.
        STARTTLS = 5, "NBD_OPT_STARTTLS";
        /// Describe an export.
        INFO = 6, "NBD_OPT_INFO";
        /// Describe an export and enter transmission.
        GO = 7, "NBD_OPT_GO";
        /// Use structured replies.
        STRUCTURED_REPLY = 8, "NBD_OPT_STRUCTURED_REPLY";
        /// List metadata contexts.
        LIST_META_CONTEXT = 9, "NBD_OPT_LIST_META_CONTEXT";
        /// Select metadata contexts.
        SET_META_CONTEXT = 10, "NBD_OPT_SET_META_CONTEXT";
        /// Use 64-bit headers.
        EXTENDED_HEADERS = 11, "NBD_OPT_EXTENDED_HEADERS";
    }
}

open_numbers! {
    /// The type of an option reply (section "Option reply types"). Bit 31 marks an error.
    OptionReplyType(u32) {
        /// Accepted, or the end of a list.
        ACK = 1, "NBD_REP_ACK";
        /// An export.
        SERVER = 2, "NBD_REP_SERVER";
        /// An aspect of an export.
        INFO = 3, "NBD_REP_INFO";
        /// A metadata context.
        META_CONTEXT = 4, "NBD_REP_META_CONTEXT";
        /// The option is unknown.
        ERR_UNSUP = 0x8000_0001, "NBD_REP_ERR_UNSUP";
        /// Forbidden here.
        ERR_POLICY = 0x8000_0002, "NBD_REP_ERR_POLICY";
        /// Malformed.
        ERR_INVALID = 0x8000_0003, "NBD_REP_ERR_INVALID";
        /// Not on this platform or in this build.
        ERR_PLATFORM = 0x8000_0004, "NBD_REP_ERR_PLATFORM";
        /// TLS must be started first.
        ERR_TLS_REQD = 0x8000_0005, "NBD_REP_ERR_TLS_REQD";
        /// No such export.
        ERR_UNKNOWN = 0x8000_0006, "NBD_REP_ERR_UNKNOWN";
        /// The server is shutting down.
        ERR_SHUTDOWN = 0x8000_0007, "NBD_REP_ERR_SHUTDOWN";
        /// Size constraints must be asked for first.
        ERR_BLOCK_SIZE_REQD = 0x8000_0008, "NBD_REP_ERR_BLOCK_SIZE_REQD";
        /// Too large to handle.
        ERR_TOO_BIG = 0x8000_0009, "NBD_REP_ERR_TOO_BIG";
        /// Extended headers are needed, or rule this out.
        ERR_EXT_HEADER_REQD = 0x8000_000a, "NBD_REP_ERR_EXT_HEADER_REQD";
    }
}

impl OptionReplyType {
    /// Whether bit 31 is set: the option failed, whatever the number.
    // C-OPT-18
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }
}

open_numbers! {
    /// The type of an information item (section "Option reply types", `NBD_REP_INFO`).
    InfoType(u16) {
        /// Size and transmission flags.
        EXPORT = 0, "NBD_INFO_EXPORT";
        /// The canonical name.
        NAME = 1, "NBD_INFO_NAME";
        /// A text for people.
        DESCRIPTION = 2, "NBD_INFO_DESCRIPTION";
        /// Size constraints.
        BLOCK_SIZE = 3, "NBD_INFO_BLOCK_SIZE";
    }
}

/// The head of an option, 16 bytes; the data follows (section "Newstyle negotiation").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub code: OptionCode,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Bytes on the wire.
    pub const SIZE: usize = 16;

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new().u64(magic::IHAVEOPT).u32(self.code.0).u32(self.length).done()
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`] when the magic is another one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.u64("magic")?;
        if found != magic::IHAVEOPT {
            return Err(DecodeError::BadMagic { expected: "IHAVEOPT", found });
        }
        let code = OptionCode(reader.u32("option")?);
        let length = reader.u32("length")?;
        Ok(Self { code, length })
    }
}

/// The head of an option reply, 20 bytes; the data follows (section "Fixed newstyle negotiation").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option this answers.
    pub code: OptionCode,
    /// What kind of answer.
    pub reply: OptionReplyType,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Bytes on the wire.
    pub const SIZE: usize = 20;

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new()
            .u64(magic::OPTION_REPLY)
            .u32(self.code.0)
            .u32(self.reply.0)
            .u32(self.length)
            .done()
    }

    /// Decodes the header.
    ///
    /// # Errors
    /// [`DecodeError::BadMagic`] when the magic is another one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.u64("magic")?;
        if found != magic::OPTION_REPLY {
            return Err(DecodeError::BadMagic { expected: "the option reply magic", found });
        }
        let code = OptionCode(reader.u32("option")?);
        let reply = OptionReplyType(reader.u32("reply type")?);
        let length = reader.u32("length")?;
        Ok(Self { code, reply, length })
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO` (section "Option types"). The name is as sent: it may break the rules
/// for strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export asked for; empty for the default one.
    pub name: &'a [u8],
    /// The wanted items, as big-endian pairs of bytes.
    items: &'a [u8],
}

impl<'a> InfoRequest<'a> {
    /// Decodes the data of the option.
    ///
    /// # Errors
    /// [`DecodeError`] when the name and the list do not fill the data exactly.
    // S-OPT-GO-09
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(data);
        let length = reader.u32("name length")?;
        let name = reader.bytes(length, "name")?;
        let count = reader.u16("number of information requests")?;
        let items = reader.bytes(u32::from(count).saturating_mul(2), "information requests")?;
        reader.finish()?;
        Ok(Self { name, items })
    }

    /// The wanted items, in the client's order.
    pub fn items(&self) -> impl Iterator<Item = InfoType> + 'a {
        self.items.as_chunks().0.iter().map(|pair| InfoType(u16::from_be_bytes(*pair)))
    }

    /// Appends the data of a request for `name` and `items` to `out`, as they are; items beyond the 65535th are left
    /// out.
    pub fn encode(name: &str, items: &[InfoType], out: &mut Vec<u8>) {
        put_string(name, out);
        let count = u16::try_from(items.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for item in items.iter().take(usize::from(count)) {
            out.extend_from_slice(&item.0.to_be_bytes());
        }
    }
}

/// Appends a 32-bit length and so much of the string. Callers have checked the length against [`super::MAX_STRING`].
pub(super) fn put_string(string: &str, out: &mut Vec<u8>) {
    let length = u32::try_from(string.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend(string.bytes().take(length as usize));
}

/// The data of an `NBD_REP_SERVER` reply: an export's name and, maybe, text for people (section "Option reply types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerReply<'a> {
    /// The name to use in `NBD_OPT_GO`.
    pub name: &'a str,
    /// A description, empty when there is none.
    pub description: &'a str,
}

impl<'a> ServerReply<'a> {
    /// Decodes the data of the reply.
    ///
    /// # Errors
    /// [`DecodeError`] when the name reaches past the end or a string breaks the rules.
    // C-OPT-LS-07
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(data);
        let length = reader.u32("name length")?;
        let name = reader.string(length, "name")?;
        let description = reader.rest_as_string("description")?;
        Ok(Self { name, description })
    }

    /// Appends the data to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_string(self.name, out);
        out.extend_from_slice(self.description.as_bytes());
    }
}

/// `NBD_INFO_EXPORT`: what every successful INFO or GO reports (section "Option reply types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportInfoReply {
    /// The size of the export in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportInfoReply {
    /// Bytes of the `NBD_REP_INFO` data, the type included.
    pub const SIZE: usize = 12;

    /// The data's bytes, the type included.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new().u16(InfoType::EXPORT.0).u64(self.size).u16(self.flags.bits()).done()
    }
}

/// The answer to `NBD_OPT_EXPORT_NAME`, without the padding (section "Newstyle negotiation").
pub type ExportNameReply = ExportInfoReply;

impl ExportNameReply {
    /// Bytes on the wire, without the padding.
    pub const EXPORT_NAME_SIZE: usize = 10;

    /// The ten bytes that answer `NBD_OPT_EXPORT_NAME`; padding may follow.
    #[must_use]
    pub fn encode_export_name(&self) -> [u8; Self::EXPORT_NAME_SIZE] {
        ArrayWriter::new().u64(self.size).u16(self.flags.bits()).done()
    }

    /// Decodes the answer to `NBD_OPT_EXPORT_NAME`.
    ///
    /// # Errors
    /// None: any bytes of this length are an answer.
    pub fn decode_export_name(bytes: &[u8; Self::EXPORT_NAME_SIZE]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let size = reader.u64("size")?;
        let flags = TransmissionFlags::from_bits_retain(reader.u16("transmission flags")?);
        Ok(Self { size, flags })
    }
}

/// `NBD_INFO_BLOCK_SIZE`: size constraints as they are on the wire, in bytes, not yet checked for sense (section "Size
/// constraints").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizeInfo {
    /// The smallest unit of offset and length.
    pub minimum: u32,
    /// The smallest unit that is served efficiently.
    pub preferred: u32,
    /// The longest payload.
    pub maximum_payload: u32,
}

impl BlockSizeInfo {
    /// Bytes of the `NBD_REP_INFO` data, the type included.
    pub const SIZE: usize = 14;

    /// The data's bytes, the type included.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        ArrayWriter::new()
            .u16(InfoType::BLOCK_SIZE.0)
            .u32(self.minimum)
            .u32(self.preferred)
            .u32(self.maximum_payload)
            .done()
    }
}

/// The data of an `NBD_REP_INFO` reply (section "Option reply types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InfoReply<'a> {
    /// Size and transmission flags.
    Export(ExportInfoReply),
    /// The canonical name.
    Name(&'a str),
    /// A text for people.
    Description(&'a str),
    /// Size constraints.
    BlockSize(BlockSizeInfo),
    /// A type this version does not know; clients ignore it.
    // C-OPT-GO-20
    Unknown(InfoType),
}

impl<'a> InfoReply<'a> {
    /// Decodes the data of the reply.
    ///
    /// # Errors
    /// [`DecodeError`] when a known item has the wrong length or a broken string.
    // S-OPT-GO-02, S-OPT-GO-12
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(data);
        let reply = match InfoType(reader.u16("information type")?) {
            InfoType::EXPORT => {
                let size = reader.u64("size")?;
                let flags = TransmissionFlags::from_bits_retain(reader.u16("transmission flags")?);
                Self::Export(ExportInfoReply { size, flags })
            }
            InfoType::NAME => Self::Name(reader.rest_as_string("name")?),
            InfoType::DESCRIPTION => Self::Description(reader.rest_as_string("description")?),
            InfoType::BLOCK_SIZE => Self::BlockSize(BlockSizeInfo {
                minimum: reader.u32("minimum block size")?,
                preferred: reader.u32("preferred block size")?,
                maximum_payload: reader.u32("maximum payload size")?,
            }),
            unknown => {
                reader.take_rest();
                Self::Unknown(unknown)
            }
        };
        reader.finish()?;
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_keep_unknown_numbers() {
        let header = OptionHeader { code: OptionCode(0xdead_beef), length: u32::MAX };
        assert_eq!(OptionHeader::decode(&header.encode()), Ok(header));
        let reply = OptionReplyHeader {
            code: OptionCode::GO,
            reply: OptionReplyType(0x9999_9999),
            length: 7,
        };
        assert_eq!(OptionReplyHeader::decode(&reply.encode()), Ok(reply));
        assert!(reply.reply.is_error());
    }

    #[test]
    fn an_option_without_its_magic_is_refused() {
        let mut bytes = OptionHeader { code: OptionCode::LIST, length: 0 }.encode();
        bytes[0] ^= 1;
        assert!(matches!(OptionHeader::decode(&bytes), Err(DecodeError::BadMagic { .. })));
    }

    #[test]
    fn each_malformed_info_request_is_named() {
        let mut good = Vec::new();
        InfoRequest::encode("disk", &[InfoType::BLOCK_SIZE, InfoType(0x7fff)], &mut good);
        let request = InfoRequest::decode(&good).unwrap();
        assert_eq!(request.name, b"disk");
        assert!(request.items().eq([InfoType::BLOCK_SIZE, InfoType(0x7fff)]));

        assert_eq!(InfoRequest::decode(&good[..3]), Err(DecodeError::TooShort("name length")));
        assert_eq!(InfoRequest::decode(&[0, 0, 0, 9, 0, 0]), Err(DecodeError::TooShort("name")));
        let short_list = &good[..good.len() - 1];
        assert_eq!(
            InfoRequest::decode(short_list),
            Err(DecodeError::TooShort("information requests"))
        );
        good.push(0);
        assert_eq!(InfoRequest::decode(&good), Err(DecodeError::LeftOver(1)));
    }

    #[test]
    fn info_replies_of_the_wrong_length_are_refused() {
        let export = ExportInfoReply { size: 5, flags: TransmissionFlags::HAS_FLAGS };
        assert_eq!(InfoReply::decode(&export.encode()), Ok(InfoReply::Export(export)));
        assert!(InfoReply::decode(&export.encode()[..11]).is_err());
        let sizes = BlockSizeInfo { minimum: 1, preferred: 4096, maximum_payload: 1 << 25 };
        assert_eq!(InfoReply::decode(&sizes.encode()), Ok(InfoReply::BlockSize(sizes)));
        assert!(InfoReply::decode(&[0, 3, 0, 0]).is_err());
        assert_eq!(InfoReply::decode(&[9, 9, 1]), Ok(InfoReply::Unknown(InfoType(0x0909))));
    }

    #[test]
    fn a_server_reply_whose_name_is_longer_than_its_data_is_refused() {
        assert_eq!(ServerReply::decode(&[0, 0, 0, 2, b'a']), Err(DecodeError::TooShort("name")));
        let reply = ServerReply { name: "a", description: "text" };
        let mut data = Vec::new();
        reply.encode(&mut data);
        assert_eq!(ServerReply::decode(&data), Ok(reply));
    }
}
