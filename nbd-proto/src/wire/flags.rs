//! Flag fields (section "Flag fields" of the specification). Unknown bits survive decoding.

use bitflags::bitflags;

bitflags! {
    /// What the server offers in its greeting (section "Handshake flags").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct HandshakeFlags: u16 {
        /// Fixed newstyle negotiation is spoken.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The 124 zero bytes after `NBD_OPT_EXPORT_NAME` can be left out.
        const NO_ZEROES = 1 << 1;
        const _ = !0;
    }

    /// What the client answers to the greeting (section "Client flags").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ClientFlags: u32 {
        /// Fixed newstyle negotiation is spoken.
        const FIXED_NEWSTYLE = 1 << 0;
        /// The 124 zero bytes after `NBD_OPT_EXPORT_NAME` are left out.
        const NO_ZEROES = 1 << 1;
        const _ = !0;
    }

    /// What an export can do (section "Transmission flags").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct TransmissionFlags: u16 {
        /// Always set by a server.
        const HAS_FLAGS = 1 << 0;
        /// Nothing can be written.
        const READ_ONLY = 1 << 1;
        /// `NBD_CMD_FLUSH` is understood.
        const SEND_FLUSH = 1 << 2;
        /// `NBD_CMD_FLAG_FUA` is understood.
        const SEND_FUA = 1 << 3;
        /// The medium rotates: schedule accesses accordingly.
        const ROTATIONAL = 1 << 4;
        /// `NBD_CMD_TRIM` is understood.
        const SEND_TRIM = 1 << 5;
        /// `NBD_CMD_WRITE_ZEROES` and `NBD_CMD_FLAG_NO_HOLE` are understood.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// `NBD_CMD_FLAG_DF` is understood.
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers the writes answered on all of them.
        const CAN_MULTI_CONN = 1 << 8;
        /// `NBD_CMD_RESIZE` is understood (resize extension).
        const SEND_RESIZE = 1 << 9;
        /// `NBD_CMD_CACHE` is understood.
        const SEND_CACHE = 1 << 10;
        /// `NBD_CMD_FLAG_FAST_ZERO` is understood.
        const SEND_FAST_ZERO = 1 << 11;
        /// `NBD_CMD_BLOCK_STATUS` may carry a payload (extended headers).
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
        const _ = !0;
    }

    /// What a client asks of one command (section "Command flags").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct CommandFlags: u16 {
        /// Force unit access: answer once the data is durable.
        const FUA = 1 << 0;
        /// `NBD_CMD_WRITE_ZEROES` leaves the range provisioned.
        const NO_HOLE = 1 << 1;
        /// `NBD_CMD_READ` is answered by one content chunk at most.
        const DF = 1 << 2;
        /// `NBD_CMD_BLOCK_STATUS` is answered by one extent a context.
        const REQ_ONE = 1 << 3;
        /// `NBD_CMD_WRITE_ZEROES` fails at once unless it is faster than a write.
        const FAST_ZERO = 1 << 4;
        /// The length is that of a payload that follows (extended headers).
        const PAYLOAD_LEN = 1 << 5;
        const _ = !0;
    }

    /// Flags of a structured or extended reply chunk (section "Structured and extended header reply flags").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ReplyFlags: u16 {
        /// This is the last chunk of the reply.
        const DONE = 1 << 0;
        const _ = !0;
    }

    /// Status flags of the metadata context `base:allocation` (section "`base:allocation` metadata context").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct AllocationFlags: u32 {
        /// Not allocated: a write there may find no space.
        const HOLE = 1 << 0;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
        const _ = !0;
    }
}
