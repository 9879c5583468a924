//! The numbers of the protocol, typed so that a failed assertion prints names instead of digits.
//!
//! Written from the protocol text, on purpose not shared with the project's own protocol crate.

/// Defines a number with named values; unknown values stay representable, since tests send and meet them.
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident($int:ty) { $($(#[$doc:meta])* $code:ident = $value:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$doc])* pub const $code: Self = Self($value);)*

            /// The values that the protocol defines.
            pub const KNOWN: &'static [Self] = &[$(Self::$code),*];

            /// Whether the protocol defines this value.
            pub fn is_known(self) -> bool {
                Self::KNOWN.contains(&self)
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match *self {
                    $(Self::$code => f.write_str(stringify!($code)),)*
                    Self(other) => write!(f, concat!(stringify!($name), "({:#x})"), other),
                }
            }
        }
    };
}

/// Magic numbers.
pub mod magic {
    /// `NBDMAGIC`, the first eight bytes of every server.
    pub const INIT: u64 = 0x4e42_444d_4147_4943;
    /// `IHAVEOPT`, second magic of the newstyle greeting and first field of every option.
    pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
    /// First field of every option reply.
    pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
    /// Compact request.
    pub const REQUEST: u32 = 0x2560_9513;
    /// Extended request.
    pub const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
    /// Simple reply.
    pub const SIMPLE_REPLY: u32 = 0x6744_6698;
    /// Structured reply chunk.
    pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;
    /// Extended reply chunk.
    pub const EXTENDED_REPLY: u32 = 0x6e8a_278c;
    /// Request magics of the past, which no server may accept any more.
    pub const HISTORIC_REQUESTS: [u32; 2] = [0x1256_0953, 0x2560_9514];
}

/// Handshake flags (16 bits, server) and client flags (32 bits) share their bit numbers.
pub mod handshake {
    /// Fixed newstyle.
    pub const FIXED_NEWSTYLE: u32 = 1 << 0;
    /// No 124 zero bytes after `EXPORT_NAME`.
    pub const NO_ZEROES: u32 = 1 << 1;
}

codes! {
    /// An option of the handshake.
    Opt(u32) {
        /// Choose an export the old way.
        EXPORT_NAME = 1,
        /// Leave.
        ABORT = 2,
        /// List exports.
        LIST = 3,
        /// Withdrawn extension: unknown to a server of today.
        PEEK_EXPORT = 4,
        /// Upgrade to TLS.
        STARTTLS = 5,
        /// Ask about an export.
        INFO = 6,
        /// Choose an export.
        GO = 7,
        /// Ask for structured replies.
        STRUCTURED_REPLY = 8,
        /// List metadata contexts.
        LIST_META_CONTEXT = 9,
        /// Select metadata contexts.
        SET_META_CONTEXT = 10,
        /// Ask for extended headers.
        EXTENDED_HEADERS = 11,
    }
}

codes! {
    /// The type of an option reply.
    Rep(u32) {
        /// Success, no data.
        ACK = 1,
        /// An export of the list.
        SERVER = 2,
        /// An information about an export.
        INFO = 3,
        /// A metadata context.
        META_CONTEXT = 4,
        /// Unknown option.
        ERR_UNSUP = 0x8000_0001,
        /// Forbidden.
        ERR_POLICY = 0x8000_0002,
        /// Malformed or out of place.
        ERR_INVALID = 0x8000_0003,
        /// Not built in.
        ERR_PLATFORM = 0x8000_0004,
        /// TLS first.
        ERR_TLS_REQD = 0x8000_0005,
        /// No such export.
        ERR_UNKNOWN = 0x8000_0006,
        /// Shutting down.
        ERR_SHUTDOWN = 0x8000_0007,
        /// The client must promise to keep block sizes.
        ERR_BLOCK_SIZE_REQD = 0x8000_0008,
        /// Too large to process.
        ERR_TOO_BIG = 0x8000_0009,
        /// Extended headers first.
        ERR_EXT_HEADER_REQD = 0x8000_000a,
    }
}

impl Rep {
    /// Whether this is an error: bit 31, known or not.
    pub fn is_error(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }
}

codes! {
    /// An information type of INFO and GO.
    Info(u16) {
        /// Size and transmission flags.
        EXPORT = 0,
        /// Canonical name.
        NAME = 1,
        /// Description.
        DESCRIPTION = 2,
        /// Size constraints.
        BLOCK_SIZE = 3,
    }
}

/// Transmission flags.
pub mod flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// The export refuses writes.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// A rotating disk.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` and its `NO_HOLE` work.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF works.
    pub const SEND_DF: u16 = 1 << 7;
    /// Caches are shared by all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// RESIZE works.
    pub const SEND_RESIZE: u16 = 1 << 9;
    /// CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// `FAST_ZERO` is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// `BLOCK_STATUS` takes a payload.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
    /// Every defined bit.
    pub const DEFINED: u16 = (1 << 13) - 1;
}

codes! {
    /// A command.
    Cmd(u16) {
        /// Read.
        READ = 0,
        /// Write.
        WRITE = 1,
        /// Disconnect.
        DISC = 2,
        /// Make earlier writes durable.
        FLUSH = 3,
        /// Discard.
        TRIM = 4,
        /// Prefetch.
        CACHE = 5,
        /// Zero a range.
        WRITE_ZEROES = 6,
        /// Query metadata contexts.
        BLOCK_STATUS = 7,
        /// Change the size of the export.
        RESIZE = 8,
    }
}

/// Command flags.
pub mod cmd_flag {
    /// Reply only when durable.
    pub const FUA: u16 = 1 << 0;
    /// `WRITE_ZEROES`: do not punch a hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ: one content chunk.
    pub const DF: u16 = 1 << 2;
    /// `BLOCK_STATUS`: one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// `WRITE_ZEROES`: fast or not at all.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// Extended headers: the length counts a payload that follows.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

codes! {
    /// The type of a reply chunk.
    ChunkType(u16) {
        /// End of a reply, nothing more.
        NONE = 0,
        /// Data at an offset.
        OFFSET_DATA = 1,
        /// Zeroes at an offset.
        OFFSET_HOLE = 2,
        /// Extents of one context, 32 bits.
        BLOCK_STATUS = 5,
        /// Extents of one context, 64 bits.
        BLOCK_STATUS_EXT = 6,
        /// Error.
        ERROR = 0x8001,
        /// Error at an offset.
        ERROR_OFFSET = 0x8002,
    }
}

impl ChunkType {
    /// Whether this is an error: bit 15, known or not.
    pub fn is_error(self) -> bool {
        self.0 & 0x8000 != 0
    }
}

/// Reply flag: last chunk of a reply.
pub const REPLY_DONE: u16 = 1 << 0;

codes! {
    /// An error value. The known ones are all that a server may send (S-ERR-01).
    Errno(u32) {
        /// Not permitted.
        EPERM = 1,
        /// Input/output error.
        EIO = 5,
        /// Out of memory.
        ENOMEM = 12,
        /// Invalid argument.
        EINVAL = 22,
        /// No space, or beyond the end.
        ENOSPC = 28,
        /// Too long.
        EOVERFLOW = 75,
        /// Not fast.
        ENOTSUP = 95,
        /// Shutting down.
        ESHUTDOWN = 108,
    }
}

/// `base:allocation`: not allocated.
pub const STATE_HOLE: u64 = 1 << 0;
/// `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u64 = 1 << 1;

/// Longest string that the protocol allows (B-CONV-03).
pub const MAX_STRING: usize = 4096;
/// Payload that every server must be able to take when nothing else was said (S-SZ-06).
pub const DEFAULT_MAX_PAYLOAD: u32 = 32 << 20;
