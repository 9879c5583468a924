//! Commands, for both roles.

use crate::wire::{CommandFlags, CommandType};

/// A command with the flags that mean something to it (section "Request types").
///
/// On a server a command has been found valid before it is raised; on a client it is checked when it is submitted, by
/// the same [`RequestRules`](crate::RequestRules). Offsets and lengths are in bytes. A command may be longer than a
/// single request can be: see [`RequestRules::max_length`](crate::RequestRules::max_length).
///
/// ```
/// use nbd_proto::Command;
/// let write = Command::write(4096, 512).with_fua();
/// assert!(matches!(write, Command::Write { offset: 4096, length: 512, fua: true, .. }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// `NBD_CMD_READ`.
    #[non_exhaustive]
    Read {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u64,
        /// At most one content chunk in reply (`NBD_CMD_FLAG_DF`). A server's embedder need not care: a
        /// [`Reply`](crate::server::Reply) makes one chunk of whatever pieces it is given.
        dont_fragment: bool,
    },
    /// `NBD_CMD_WRITE`; the data is the request's payload.
    #[non_exhaustive]
    Write {
        /// Where to start.
        offset: u64,
        /// How much: the payload's length.
        length: u64,
        /// Durable before it is answered (`NBD_CMD_FLAG_FUA`).
        fua: bool,
    },
    /// `NBD_CMD_FLUSH`: all writes answered so far become durable before this is answered.
    Flush,
    /// `NBD_CMD_TRIM`: the range is no longer needed.
    #[non_exhaustive]
    Trim {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u64,
        /// Durable before it is answered (`NBD_CMD_FLAG_FUA`).
        fua: bool,
    },
    /// `NBD_CMD_CACHE`: the range will be read soon.
    #[non_exhaustive]
    Cache {
        /// Where to start.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// `NBD_CMD_WRITE_ZEROES`.
    #[non_exhaustive]
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
    #[non_exhaustive]
    BlockStatus {
        /// Where to start.
        offset: u64,
        /// The range of interest; a hint.
        length: u64,
        /// One extent a context, not longer than asked (`NBD_CMD_FLAG_REQ_ONE`). A server's embedder need not care: a
        /// [`Reply`](crate::server::Reply) leaves out what is too much.
        one: bool,
    },
    /// `NBD_CMD_RESIZE` (resize extension).
    #[non_exhaustive]
    Resize {
        /// The new size of the export in bytes.
        size: u64,
    },
}

impl Command {
    /// Reads `length` bytes at `offset`.
    #[must_use]
    pub const fn read(offset: u64, length: u64) -> Self {
        Self::Read { offset, length, dont_fragment: false }
    }

    /// Writes `length` bytes at `offset`.
    #[must_use]
    pub const fn write(offset: u64, length: u64) -> Self {
        Self::Write { offset, length, fua: false }
    }

    /// Makes all writes durable that were answered so far.
    #[must_use]
    pub const fn flush() -> Self {
        Self::Flush
    }

    /// Says that `length` bytes at `offset` are no longer needed.
    #[must_use]
    pub const fn trim(offset: u64, length: u64) -> Self {
        Self::Trim { offset, length, fua: false }
    }

    /// Says that `length` bytes at `offset` will be read soon.
    #[must_use]
    pub const fn cache(offset: u64, length: u64) -> Self {
        Self::Cache { offset, length }
    }

    /// Zeroes `length` bytes at `offset`.
    #[must_use]
    pub const fn write_zeroes(offset: u64, length: u64) -> Self {
        Self::WriteZeroes { offset, length, fua: false, no_hole: false, fast: false }
    }

    /// Asks for the status of `length` bytes at `offset`.
    #[must_use]
    pub const fn block_status(offset: u64, length: u64) -> Self {
        Self::BlockStatus { offset, length, one: false }
    }

    /// Changes the size of the export to `size` bytes.
    #[must_use]
    pub const fn resize(size: u64) -> Self {
        Self::Resize { size }
    }

    /// The same, durable before it is answered. No effect on commands other than write, trim and write zeroes.
    #[must_use]
    pub const fn with_fua(mut self) -> Self {
        if let Self::Write { fua, .. } | Self::Trim { fua, .. } | Self::WriteZeroes { fua, .. } =
            &mut self
        {
            *fua = true;
        }
        self
    }

    /// The same, answered by one content chunk at most. No effect on commands other than read.
    #[must_use]
    pub const fn with_dont_fragment(mut self) -> Self {
        if let Self::Read { dont_fragment, .. } = &mut self {
            *dont_fragment = true;
        }
        self
    }

    /// The same, with the range left provisioned. No effect on commands other than write zeroes.
    #[must_use]
    pub const fn with_no_hole(mut self) -> Self {
        if let Self::WriteZeroes { no_hole, .. } = &mut self {
            *no_hole = true;
        }
        self
    }

    /// The same, to fail unless it is faster than a write. No effect on commands other than write zeroes.
    #[must_use]
    pub const fn with_fast(mut self) -> Self {
        if let Self::WriteZeroes { fast, .. } = &mut self {
            *fast = true;
        }
        self
    }

    /// The same, answered by a single extent in each context. No effect on commands other than block status.
    #[must_use]
    pub const fn with_one(mut self) -> Self {
        if let Self::BlockStatus { one, .. } = &mut self {
            *one = true;
        }
        self
    }

    /// The same with another range: for a part of a command that is too long for one request. No effect on flush and
    /// resize.
    #[must_use]
    pub const fn with_range(mut self, new_offset: u64, new_length: u64) -> Self {
        match &mut self {
            Self::Read { offset, length, .. }
            | Self::Write { offset, length, .. }
            | Self::Trim { offset, length, .. }
            | Self::Cache { offset, length }
            | Self::WriteZeroes { offset, length, .. }
            | Self::BlockStatus { offset, length, .. } => {
                *offset = new_offset;
                *length = new_length;
            }
            Self::Flush | Self::Resize { .. } => {}
        }
        self
    }

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
    pub const fn length(&self) -> u64 {
        match *self {
            Self::Read { length, .. }
            | Self::Write { length, .. }
            | Self::Trim { length, .. }
            | Self::Cache { length, .. }
            | Self::WriteZeroes { length, .. }
            | Self::BlockStatus { length, .. } => length,
            Self::Flush | Self::Resize { .. } => 0,
        }
    }

    /// Whether the command is about a range of the export: all but flush and resize are.
    #[must_use]
    pub const fn has_range(&self) -> bool {
        !matches!(self, Self::Flush | Self::Resize { .. })
    }

    /// Whether the command changes the export.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Trim { .. } | Self::WriteZeroes { .. } | Self::Resize { .. }
        )
    }

    /// Bytes of data that follow the request's header: a write's.
    #[must_use]
    pub const fn payload_length(&self) -> u64 {
        match *self {
            Self::Write { length, .. } => length,
            _ => 0,
        }
    }

    /// Bytes that a buffer of this request holds: what is read or written.
    #[must_use]
    pub const fn buffer_length(&self) -> u64 {
        match *self {
            Self::Read { length, .. } | Self::Write { length, .. } => length,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> [Command; 8] {
        [
            Command::read(512, 1024),
            Command::write(512, 1024),
            Command::flush(),
            Command::trim(512, 1024),
            Command::cache(512, 1024),
            Command::write_zeroes(512, 1024),
            Command::block_status(512, 1024),
            Command::resize(4096),
        ]
    }

    #[test]
    fn a_flag_is_set_on_the_commands_that_have_it_and_on_no_other() {
        type With = fn(Command) -> Command;
        let cases: [(With, CommandFlags, &[CommandType]); 5] = [
            (
                Command::with_fua,
                CommandFlags::FUA,
                &[CommandType::WRITE, CommandType::TRIM, CommandType::WRITE_ZEROES],
            ),
            (Command::with_dont_fragment, CommandFlags::DF, &[CommandType::READ]),
            (Command::with_no_hole, CommandFlags::NO_HOLE, &[CommandType::WRITE_ZEROES]),
            (Command::with_fast, CommandFlags::FAST_ZERO, &[CommandType::WRITE_ZEROES]),
            (Command::with_one, CommandFlags::REQ_ONE, &[CommandType::BLOCK_STATUS]),
        ];
        for (with, flag, having) in cases {
            for command in all() {
                assert!(command.flags().is_empty());
                let flagged = with(command);
                let has = having.contains(&command.command_type());
                assert_eq!(flagged.flags(), if has { flag } else { CommandFlags::empty() });
                assert_eq!(flagged == command, !has);
            }
        }
    }

    #[test]
    fn another_range_changes_the_range_alone() {
        for command in all() {
            let moved = command.with_fua().with_one().with_range(7, 9);
            assert_eq!(moved.flags(), command.with_fua().with_one().flags());
            assert_eq!(moved.command_type(), command.command_type());
            if command.has_range() {
                assert_eq!((moved.offset(), moved.length()), (7, 9));
            } else {
                assert_eq!((moved, moved.length()), (command, 0));
            }
            let buffered = matches!(command, Command::Read { .. } | Command::Write { .. });
            assert_eq!(moved.buffer_length(), if buffered { 9 } else { 0 });
        }
        assert_eq!(Command::read(0, 5).payload_length(), 0);
        assert_eq!(Command::write(0, 5).payload_length(), 5);
    }
}
