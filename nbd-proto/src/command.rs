//! Commands, as both roles speak of them.

use crate::wire::{CommandFlags, CommandType};

/// A command with the flags that mean something to it (section "Request types").
///
/// On a server a command has been validated before it is raised; on a client it is validated when it is submitted.
/// Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// `NBD_CMD_READ`.
    Read {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u32,
        /// At most one content chunk in reply (`NBD_CMD_FLAG_DF`).
        dont_fragment: bool,
    },
    /// `NBD_CMD_WRITE`; the data is the request's payload.
    Write {
        /// Where to start.
        offset: u64,
        /// How much: the payload's length.
        length: u32,
        /// Durable before it is answered (`NBD_CMD_FLAG_FUA`).
        fua: bool,
    },
    /// `NBD_CMD_FLUSH`: all writes answered so far become durable before this is answered.
    Flush,
    /// `NBD_CMD_TRIM`: the range is no longer needed.
    Trim {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u64,
        /// Durable before it is answered (`NBD_CMD_FLAG_FUA`).
        fua: bool,
    },
    /// `NBD_CMD_CACHE`: the range will be read soon.
    Cache {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// `NBD_CMD_WRITE_ZEROES`.
    WriteZeroes {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u64,
        /// Durable before it is answered (`NBD_CMD_FLAG_FUA`).
        fua: bool,
        /// Leave the range provisioned (`NBD_CMD_FLAG_NO_HOLE`).
        no_hole: bool,
        /// Fail with `ENOTSUP` unless this is faster than a write (`NBD_CMD_FLAG_FAST_ZERO`).
        fast: bool,
    },
    /// `NBD_CMD_BLOCK_STATUS`.
    BlockStatus {
        /// Where to start.
        offset: u64,
        /// The range of interest; a hint.
        length: u64,
        /// One extent a context, not longer than asked (`NBD_CMD_FLAG_REQ_ONE`).
        one: bool,
    },
    /// `NBD_CMD_RESIZE` (resize extension).
    Resize {
        /// The new size of the export.
        size: u64,
    },
}

impl Command {
    /// The type on the wire.
    #[must_use]
    pub const fn command_type(&self) -> CommandType {
        match self {
            Self::Read { .. } => CommandType::READ,
            Self::Write { .. } => CommandType::WRITE,
            Self::Flush => CommandType::FLUSH,
            Self::Trim { .. } => CommandType::TRIM,
            Self::Cache { .. } => CommandType::CACHE,
            Self::WriteZeroes { .. } => CommandType::WRITE_ZEROES,
            Self::BlockStatus { .. } => CommandType::BLOCK_STATUS,
            Self::Resize { .. } => CommandType::RESIZE,
        }
    }

    /// The flags on the wire, without [`CommandFlags::PAYLOAD_LEN`], which depends on the kind of header.
    #[must_use]
    pub fn flags(&self) -> CommandFlags {
        let mut flags = CommandFlags::empty();
        match *self {
            Self::Read { dont_fragment, .. } => flags.set(CommandFlags::DF, dont_fragment),
            Self::Write { fua, .. } | Self::Trim { fua, .. } => flags.set(CommandFlags::FUA, fua),
            Self::WriteZeroes { fua, no_hole, fast, .. } => {
                flags.set(CommandFlags::FUA, fua);
                flags.set(CommandFlags::NO_HOLE, no_hole);
                flags.set(CommandFlags::FAST_ZERO, fast);
            }
            Self::BlockStatus { one, .. } => flags.set(CommandFlags::REQ_ONE, one),
            Self::Flush | Self::Cache { .. } | Self::Resize { .. } => {}
        }
        flags
    }

    /// The offset on the wire: zero for a flush, the new size for a resize.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        match *self {
            Self::Read { offset, .. }
            | Self::Write { offset, .. }
            | Self::Trim { offset, .. }
            | Self::Cache { offset, .. }
            | Self::WriteZeroes { offset, .. }
            | Self::BlockStatus { offset, .. } => offset,
            Self::Flush => 0,
            Self::Resize { size } => size,
        }
    }

    /// The length on the wire: zero for a flush and a resize.
    #[must_use]
    pub fn length(&self) -> u64 {
        match *self {
            Self::Read { length, .. } | Self::Write { length, .. } => u64::from(length),
            Self::Trim { length, .. }
            | Self::Cache { length, .. }
            | Self::WriteZeroes { length, .. }
            | Self::BlockStatus { length, .. } => length,
            Self::Flush | Self::Resize { .. } => 0,
        }
    }

    /// Whether the command changes the export.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Trim { .. } | Self::WriteZeroes { .. } | Self::Resize { .. }
        )
    }

    /// Bytes that a buffer of this request holds: what is read or written.
    #[must_use]
    pub const fn buffer_length(&self) -> u32 {
        match *self {
            Self::Read { length, .. } | Self::Write { length, .. } => length,
            _ => 0,
        }
    }
}
