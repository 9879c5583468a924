//! Whether a request makes sense for an export, and how it is split.

use core::fmt;

use nbd_proto::client::{ExportView, OptionError, SubmitError};
use nbd_proto::wire::{CommandFlags, CommandType, TransmissionFlags};
use nbd_proto::{BlockSize, Command};

/// Why a request makes no sense for the export. Numbers are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Invalid {
    /// Offset and length must be multiples of the minimum block size.
    Misaligned {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// The minimum block size of the export.
        minimum: u32,
    },
    /// The range reaches past the end of the export.
    OutOfRange {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// The size of the export.
        size: u64,
    },
    /// The export can't be written to.
    ReadOnly(CommandType),
    /// The server does not offer the command.
    NotOffered(CommandType),
    /// The server does not offer the command with these flags, or they mean nothing to it.
    Flags {
        /// Which command.
        command: CommandType,
        /// The flags that are too much.
        flags: CommandFlags,
    },
    /// Block status needs a metadata context, and none was selected on connecting.
    NoContexts,
    /// An option that must not be sent, or not to this server.
    Option(OptionError),
    /// A rule that the protocol's machine knows.
    Rule(SubmitError),
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned { offset, length, minimum } => write!(
                f,
                "{length} bytes at {offset} are not aligned to the export's minimum block size: both must be \
                 multiples of {minimum}"
            ),
            Self::OutOfRange { offset, length, size } => write!(
                f,
                "{length} bytes at {offset} reach past the end of the export, which has {size} bytes"
            ),
            Self::ReadOnly(command) => write!(f, "{command} on an export that is read-only"),
            Self::NotOffered(command) => write!(f, "the server does not offer {command}"),
            Self::Flags { command, flags } => {
                write!(f, "the server does not offer {command} with the flags {flags:?}")
            }
            Self::NoContexts => f.write_str(
                "no metadata context was selected: name some in the options before connecting, such as \
                 base:allocation",
            ),
            Self::Option(error) => error.fmt(f),
            Self::Rule(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Invalid {}

/// What is asked for, of any length: it goes out as one [`Command`] or as several.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) command: CommandType,
    pub(crate) flags: CommandFlags,
    /// Where; the new size for a resize.
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Operation {
    pub(crate) fn new(command: CommandType, offset: u64, length: u64, flags: CommandFlags) -> Self {
        Self { command, flags, offset, length }
    }

    /// The part of it that begins at `start`, counted from its own offset.
    pub(crate) fn piece(&self, start: u64, length: u64) -> Command {
        use CommandFlags as Flags;
        let (offset, set) = (self.offset + start, |flag| self.flags.contains(flag));
        let mut command = match self.command {
            CommandType::READ => Command::read(offset, length),
            CommandType::WRITE => Command::write(offset, length),
            CommandType::TRIM => Command::trim(offset, length),
            CommandType::CACHE => Command::cache(offset, length),
            CommandType::WRITE_ZEROES => Command::write_zeroes(offset, length),
            CommandType::BLOCK_STATUS => Command::block_status(offset, length),
            CommandType::RESIZE => Command::resize(offset),
            _ => Command::flush(),
        };
        for (flag, with) in [
            (Flags::DF, Command::with_dont_fragment as fn(Command) -> Command),
            (Flags::FUA, Command::with_fua),
            (Flags::NO_HOLE, Command::with_no_hole),
            (Flags::FAST_ZERO, Command::with_fast),
            (Flags::REQ_ONE, Command::with_one),
        ] {
            if set(flag) {
                command = with(command);
            }
        }
        command
    }

    pub(crate) fn is_write(&self) -> bool {
        self.command == CommandType::WRITE
    }

    /// Whether a flush is needed before it is durable.
    pub(crate) fn changes_export(&self) -> bool {
        use CommandType as Type;
        matches!(self.command, Type::WRITE | Type::TRIM | Type::WRITE_ZEROES | Type::RESIZE)
    }

    pub(crate) fn is_flush(&self) -> bool {
        self.command == CommandType::FLUSH
    }

    /// Whether one request is all it takes: the answer of a block status may fall short, and is asked for again.
    pub(crate) fn is_single(&self) -> bool {
        matches!(self.command, CommandType::FLUSH | CommandType::RESIZE | CommandType::BLOCK_STATUS)
    }

    /// What it is, for people.
    pub(crate) fn what(&self) -> &'static str {
        self.command.name().unwrap_or("a request")
    }

    /// Whether it has a payload, in either direction.
    pub(crate) fn has_payload(&self) -> bool {
        matches!(self.command, CommandType::READ | CommandType::WRITE)
    }
}

/// The longest effect of a request with a compact header: a multiple of every minimum block size. (Its last byte would
/// be the 2^32 - 1st otherwise, and nbdkit 1.32 aborts when it is asked for the status of so many.)
const LONGEST_COMPACT: u64 = (1 << 32) - (1 << 16);

/// What requests have to fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) flags: TransmissionFlags,
    pub(crate) block_size: BlockSize,
    pub(crate) extended: bool,
    pub(crate) has_contexts: bool,
}

impl Terms {
    pub(crate) fn new(export: &ExportView<'_>) -> Self {
        Self {
            flags: export.flags,
            block_size: export.block_size,
            extended: export.extended,
            has_contexts: !export.contexts.is_empty(),
        }
    }

    /// The length of the piece of an operation that begins `start` bytes behind the operation's own offset. Every piece
    /// but the last ends on a multiple of the preferred size, if one is within reach (C-SZ-18).
    pub(crate) fn piece_length(&self, operation: &Operation, start: u64) -> u64 {
        let (left, longest) = (operation.length - start, self.longest_piece(operation));
        if left <= longest {
            return left;
        }
        let from = operation.offset + start;
        let end = from.saturating_add(longest);
        let preferred = end - end % u64::from(self.block_size.preferred());
        if preferred > from { preferred - from } else { longest }
    }

    /// The longest piece of an operation that the server takes at once, aligned.
    fn longest_piece(&self, operation: &Operation) -> u64 {
        let longest = if operation.has_payload() {
            u64::from(self.block_size.maximum_payload())
        } else if self.extended {
            u64::MAX
        } else {
            LONGEST_COMPACT
        };
        longest - longest % u64::from(self.block_size.minimum())
    }

    /// Whether an operation makes sense on an export of `size` bytes.
    pub(crate) fn check(&self, operation: &Operation, size: u64) -> Result<(), Invalid> {
        let &Operation { command, offset, length, .. } = operation;
        self.check_offered(operation)?;
        if command == CommandType::FLUSH {
            return Ok(());
        }
        if !self.block_size.is_aligned(offset, length) {
            let minimum = self.block_size.minimum();
            return Err(Invalid::Misaligned { offset, length, minimum });
        }
        let inside = offset.checked_add(length).is_some_and(|end| end <= size);
        if !inside && command != CommandType::RESIZE {
            return Err(Invalid::OutOfRange { offset, length, size });
        }
        Ok(())
    }

    fn check_offered(&self, operation: &Operation) -> Result<(), Invalid> {
        use TransmissionFlags as Offer;
        let &Operation { command, flags, .. } = operation;
        let fua = if self.flags.contains(Offer::SEND_FUA) {
            CommandFlags::FUA
        } else {
            CommandFlags::empty()
        };
        let (needed, mut possible) = match command {
            CommandType::READ => (Offer::empty(), CommandFlags::DF),
            CommandType::WRITE => (Offer::empty(), fua),
            CommandType::FLUSH => (Offer::SEND_FLUSH, CommandFlags::empty()),
            CommandType::TRIM => (Offer::SEND_TRIM, fua),
            CommandType::CACHE => (Offer::SEND_CACHE, CommandFlags::empty()),
            CommandType::WRITE_ZEROES => {
                (Offer::SEND_WRITE_ZEROES, fua | CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO)
            }
            CommandType::BLOCK_STATUS => (Offer::empty(), CommandFlags::REQ_ONE),
            _ => (Offer::SEND_RESIZE, CommandFlags::empty()),
        };
        possible.set(CommandFlags::DF, command == CommandType::READ && self.offers(Offer::SEND_DF));
        if !self.offers(Offer::SEND_FAST_ZERO) {
            possible.remove(CommandFlags::FAST_ZERO);
        }
        let writes = matches!(
            command,
            CommandType::WRITE
                | CommandType::TRIM
                | CommandType::WRITE_ZEROES
                | CommandType::RESIZE
        );
        if writes && self.offers(Offer::READ_ONLY) {
            return Err(Invalid::ReadOnly(command));
        }
        if !self.flags.contains(needed) {
            return Err(Invalid::NotOffered(command));
        }
        if command == CommandType::BLOCK_STATUS && !self.has_contexts {
            return Err(Invalid::NoContexts);
        }
        let excess = flags - possible;
        if excess.is_empty() { Ok(()) } else { Err(Invalid::Flags { command, flags: excess }) }
    }

    fn offers(&self, flag: TransmissionFlags) -> bool {
        self.flags.contains(flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(flags: TransmissionFlags) -> Terms {
        let block_size = BlockSize::new(512, 4096, 1_000_000).unwrap();
        Terms { flags, block_size, extended: false, has_contexts: false }
    }

    fn read(offset: u64, length: u64) -> Operation {
        Operation::new(CommandType::READ, offset, length, CommandFlags::empty())
    }

    #[test]
    fn errors_name_the_numbers() {
        let terms = terms(TransmissionFlags::HAS_FLAGS);
        let misaligned = terms.check(&read(100, 512), 4096).unwrap_err();
        assert_eq!(misaligned, Invalid::Misaligned { offset: 100, length: 512, minimum: 512 });
        let text = misaligned.to_string();
        assert!(text.contains("100") && text.contains("multiples of 512"), "{text}");
        let outside = terms.check(&read(4096, 512), 4096).unwrap_err();
        assert_eq!(outside, Invalid::OutOfRange { offset: 4096, length: 512, size: 4096 });
        assert!(terms.check(&read(u64::MAX - 511, 512), 4096).is_err());
        assert_eq!(terms.check(&read(3584, 512), 4096), Ok(()));
    }

    #[test]
    fn pieces_are_aligned_and_fit_the_header() {
        let terms = terms(TransmissionFlags::all());
        assert_eq!(terms.longest_piece(&read(0, 1 << 30)), 999_936);
        let trim = Operation::new(CommandType::TRIM, 0, 1 << 40, CommandFlags::empty());
        assert_eq!(terms.longest_piece(&trim), (1 << 32) - (1 << 16));
        let extended = Terms { extended: true, ..terms };
        assert!(extended.longest_piece(&trim) > 1 << 40);
    }

    #[test]
    fn pieces_end_where_the_server_prefers_it() {
        let terms = terms(TransmissionFlags::all());
        for (offset, length, expected) in [
            (0, 2_000_000 / 512 * 512, &[999_424, 999_424, 1024][..]),
            (512, 1_500_160, &[998_912, 501_248]),
            (512, 999_936, &[999_936]),
        ] {
            let whole = read(offset, length);
            let (mut start, mut pieces) = (0, Vec::new());
            while start < length {
                pieces.push(terms.piece_length(&whole, start));
                start += pieces[pieces.len() - 1];
            }
            assert_eq!(pieces, expected, "{offset}+{length}");
        }
        // And there is no end of them that a number can't hold.
        let all = Operation::new(CommandType::TRIM, 512, u64::MAX - 1023, CommandFlags::empty());
        assert_eq!(Terms { extended: true, ..terms }.piece_length(&all, 0), all.length);
    }

    #[test]
    fn flags_are_refused_where_they_mean_nothing() {
        use TransmissionFlags as Offer;
        let all = Offer::all() - Offer::READ_ONLY;
        let operation = |command, flags| Operation::new(command, 0, 512, flags);
        let zero = operation(CommandType::WRITE_ZEROES, CommandFlags::FAST_ZERO);
        assert_eq!(terms(all).check(&zero, 512), Ok(()));
        let slow = terms(all - Offer::SEND_FAST_ZERO).check(&zero, 512);
        assert!(matches!(slow, Err(Invalid::Flags { flags: CommandFlags::FAST_ZERO, .. })));
        let durable = operation(CommandType::WRITE, CommandFlags::FUA);
        assert_eq!(terms(all).check(&durable, 512), Ok(()));
        assert!(terms(all - Offer::SEND_FUA).check(&durable, 512).is_err());
        assert!(terms(all | Offer::READ_ONLY).check(&durable, 512).is_err());
        let odd = operation(CommandType::READ, CommandFlags::FUA);
        assert!(terms(all).check(&odd, 512).is_err());
        let status = operation(CommandType::BLOCK_STATUS, CommandFlags::empty());
        assert_eq!(terms(all).check(&status, 512), Err(Invalid::NoContexts));
    }
}
