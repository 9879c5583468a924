//! The rules that a request must obey: one table for the client that sends it and the server that receives it.

use crate::export::MAX_SIZE;
use crate::wire::{CommandType, ErrorCode, TransmissionFlags};
use crate::{BlockSize, Command};

/// What requests are checked against (sections "Request types" and "Size constraints").
///
/// [`ExportView::rules`](crate::ExportView::rules) has those of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestRules {
    /// The size of the export in bytes.
    pub size: u64,
    /// Transmission flags as advertised.
    pub flags: TransmissionFlags,
    /// Size constraints as enforced.
    pub block_size: BlockSize,
    /// Whether extended headers are in use, which have room for lengths of 64 bits.
    pub extended: bool,
    /// Whether a metadata context was selected.
    pub has_contexts: bool,
}

/// The longest effect of a request with a compact header: a multiple of every minimum block size. (Its last byte would
/// be the 2^32 - 1st otherwise, and nbdkit 1.32 aborts when it is asked for the status of so many.)
const LONGEST_COMPACT: u64 = (1 << 32) - (1 << 16);

/// Which rule a request breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRequest {
    /// The export can't be written to.
    #[error("the export is read-only")]
    ReadOnly,
    /// The export does not have this command, or not with this flag.
    #[error("the server did not offer {0}, or not with these flags")]
    NotOffered(CommandType),
    /// The status is asked for, and no metadata context was selected.
    #[error("no metadata context was selected for this export")]
    NoContexts,
    /// A request about no bytes, with which nothing else is wrong.
    #[error("the request is about no bytes")]
    Empty,
    /// A request that reaches past the end of the export, of which the size in bytes is given.
    #[error("the request reaches past the end of the export at {0}")]
    OutOfRange(u64),
    /// Offset and length (or the new size) must be multiples of the minimum block size, which is given in bytes.
    #[error("the request is not aligned to {0} bytes")]
    Misaligned(u32),
    /// A new size of more than 2^63 - 1 bytes, which no export can have.
    #[error("no export is larger than 2^63 - 1 bytes")]
    SizeTooLarge,
    /// The request is longer than a single one can be, which is given in bytes. Nothing else is wrong with it, so that
    /// it can be split.
    #[error("the request is longer than {0} bytes")]
    TooLong(u64),
}

impl InvalidRequest {
    /// The error value that a server answers (section "Error values").
    #[must_use]
    pub const fn code(&self, command: &Command) -> ErrorCode {
        match (self, command) {
            (Self::ReadOnly, _) => ErrorCode::EPERM,
            (Self::SizeTooLarge, _)
            | (Self::OutOfRange(_), Command::Write { .. } | Command::WriteZeroes { .. }) => {
                ErrorCode::ENOSPC
            }
            (Self::TooLong(_), Command::Read { .. }) => ErrorCode::EOVERFLOW,
            _ => ErrorCode::EINVAL,
        }
    }
}

impl RequestRules {
    /// Whether a request may be sent, or has to be carried out.
    ///
    /// # Errors
    /// The rule that it breaks. [`InvalidRequest::Empty`] and [`InvalidRequest::TooLong`] only when it breaks no
    /// other: a server may answer the former, and a client can split the latter.
    #[inline]
    pub fn check(&self, command: &Command) -> Result<(), InvalidRequest> {
        self.check_offered(command)?;
        match *command {
            Command::Flush => Ok(()),
            // The new size is not a range of the export as it is.
            Command::Resize { size } if size > MAX_SIZE => Err(InvalidRequest::SizeTooLarge),
            Command::Resize { size } if !self.block_size.is_aligned(size, 0) => {
                Err(InvalidRequest::Misaligned(self.block_size.minimum()))
            }
            Command::Resize { .. } => Ok(()),
            _ => self.check_range(command),
        }
    }

    /// The longest single request of this kind, in bytes: a multiple of the minimum block size. Zero for commands that
    /// are not about a range.
    #[must_use]
    pub fn max_length(&self, command: &Command) -> u64 {
        let longest = match command {
            Command::Read { .. } | Command::Write { .. } => {
                self.block_size.maximum_payload().into()
            }
            Command::Flush | Command::Resize { .. } => 0,
            _ if self.extended => u64::MAX,
            _ => LONGEST_COMPACT,
        };
        // The minimum is a power of two.
        longest & !u64::from(self.block_size.minimum().wrapping_sub(1))
    }

    /// Commands and flags that were advertised.
    #[inline]
    fn check_offered(&self, command: &Command) -> Result<(), InvalidRequest> {
        use TransmissionFlags as Flags;
        if command.is_write() && self.flags.contains(Flags::READ_ONLY) {
            return Err(InvalidRequest::ReadOnly);
        }
        let (needed, fua) = match *command {
            Command::Read { dont_fragment: true, .. } => (Flags::SEND_DF, false),
            Command::Read { .. } => (Flags::empty(), false),
            Command::BlockStatus { .. } if !self.has_contexts => {
                return Err(InvalidRequest::NoContexts);
            }
            Command::BlockStatus { .. } => (Flags::empty(), false),
            Command::Write { fua, .. } => (Flags::empty(), fua),
            Command::Flush => (Flags::SEND_FLUSH, false),
            Command::Trim { fua, .. } => (Flags::SEND_TRIM, fua),
            Command::Cache { .. } => (Flags::SEND_CACHE, false),
            Command::WriteZeroes { fast: true, fua, .. } => {
                (Flags::SEND_WRITE_ZEROES | Flags::SEND_FAST_ZERO, fua)
            }
            Command::WriteZeroes { fua, .. } => (Flags::SEND_WRITE_ZEROES, fua),
            Command::Resize { .. } => (Flags::SEND_RESIZE, false),
        };
        let offered = self.flags.contains(needed) && (!fua || self.flags.contains(Flags::SEND_FUA));
        if offered { Ok(()) } else { Err(InvalidRequest::NotOffered(command.command_type())) }
    }

    /// Inside the export, aligned, not empty, and not too long.
    #[inline]
    fn check_range(&self, command: &Command) -> Result<(), InvalidRequest> {
        let (offset, length) = (command.offset(), command.length());
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(InvalidRequest::OutOfRange(self.size));
        }
        if !self.block_size.is_aligned(offset, length) {
            return Err(InvalidRequest::Misaligned(self.block_size.minimum()));
        }
        if length == 0 {
            return Err(InvalidRequest::Empty);
        }
        let longest = match command {
            // Whole blocks may reach to the end of what a header has room for, whatever a client prefers to send.
            Command::Read { .. } | Command::Write { .. } => {
                self.block_size.maximum_payload().into()
            }
            _ if self.extended => u64::MAX,
            _ => u64::from(u32::MAX),
        };
        if length > longest {
            return Err(InvalidRequest::TooLong(self.max_length(command)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> RequestRules {
        let flags = TransmissionFlags::from_bits_retain(0x1fff) - TransmissionFlags::READ_ONLY;
        RequestRules {
            size: 1 << 40,
            flags,
            block_size: BlockSize::new(512, 4096, 1 << 20).unwrap(),
            extended: false,
            has_contexts: true,
        }
    }

    fn ranged(offset: u64, length: u64) -> [Command; 6] {
        [
            Command::read(offset, length).with_dont_fragment(),
            Command::write(offset, length).with_fua(),
            Command::trim(offset, length).with_fua(),
            Command::cache(offset, length),
            Command::write_zeroes(offset, length).with_fua().with_fast().with_no_hole(),
            Command::block_status(offset, length).with_one(),
        ]
    }

    #[test]
    fn requests_stay_inside_the_export_and_on_its_blocks() {
        let rules = rules();
        for index in 0..6 {
            let check = |offset, length| rules.check(&ranged(offset, length)[index]);
            assert_eq!(check(512, 1024), Ok(()));
            assert_eq!(check(0, 0), Err(InvalidRequest::Empty));
            let past_the_end = Err(InvalidRequest::OutOfRange(1 << 40));
            assert_eq!(check((1 << 40) - 512, 1024), past_the_end);
            assert_eq!(check(u64::MAX - 511, 512), past_the_end);
            assert_eq!(check(1, 512), Err(InvalidRequest::Misaligned(512)));
            assert_eq!(check(512, 100), Err(InvalidRequest::Misaligned(512)));
            let long = check(0, (1 << 20) + 512);
            assert_eq!(long.is_err(), index < 2, "only reads and writes have a payload");
        }
    }

    #[test]
    fn the_longest_request_is_allowed_and_is_made_of_whole_blocks() {
        for (minimum, payload) in [(1, 4096), (1, 1_000_001), (512, 1_000_001), (4096, u32::MAX)] {
            for extended in [false, true] {
                let rules = RequestRules {
                    size: u64::MAX - 0xffff,
                    block_size: BlockSize::new(minimum, 4096, payload).unwrap(),
                    extended,
                    ..rules()
                };
                for command in ranged(0, 1) {
                    let longest = rules.max_length(&command);
                    assert_eq!(longest % u64::from(minimum), 0);
                    assert!(longest > 0);
                    let fits = longest.min(rules.size);
                    assert_eq!(rules.check(&command.with_range(0, fits)), Ok(()));
                    if command.buffer_length() > 0 {
                        let more = longest + u64::from(minimum.max(4096));
                        let refused = rules.check(&command.with_range(0, more));
                        assert_eq!(refused, Err(InvalidRequest::TooLong(longest)));
                    }
                }
                for command in [Command::flush(), Command::resize(512)] {
                    assert_eq!(rules.max_length(&command), 0);
                }
            }
        }
    }

    #[test]
    fn a_compact_length_has_32_bits() {
        for (extended, expected) in
            [(false, Err(InvalidRequest::TooLong(LONGEST_COMPACT))), (true, Ok(()))]
        {
            let rules = RequestRules { extended, ..rules() };
            for command in &ranged(0, 1 << 32)[2..] {
                assert_eq!(rules.check(command), expected, "{command:?}");
            }
        }
    }

    #[test]
    fn a_request_that_is_only_too_long_is_distinguished_from_an_invalid_one() {
        let rules = RequestRules { size: 4 << 20, ..rules() };
        let check = |offset, length| rules.check(&Command::read(offset, length));
        assert_eq!(check(0, 2 << 20), Err(InvalidRequest::TooLong(1 << 20)));
        assert_eq!(check(0, 8 << 20), Err(InvalidRequest::OutOfRange(4 << 20)));
        assert_eq!(check(1, 2 << 20), Err(InvalidRequest::Misaligned(512)));
    }

    #[test]
    fn commands_and_flags_need_their_transmission_flag() {
        use TransmissionFlags as Flags;
        for (flag, refused) in [
            (Flags::SEND_DF, &[0][..]),
            (Flags::SEND_FUA, &[1, 2, 4]),
            (Flags::SEND_TRIM, &[2]),
            (Flags::SEND_CACHE, &[3]),
            (Flags::SEND_WRITE_ZEROES, &[4]),
            (Flags::SEND_FAST_ZERO, &[4]),
        ] {
            let mut rules = rules();
            rules.flags.remove(flag);
            for (index, command) in ranged(0, 512).iter().enumerate() {
                assert_eq!(rules.check(command).is_err(), refused.contains(&index), "{command:?}");
            }
        }
        for (flag, command) in
            [(Flags::SEND_FLUSH, Command::flush()), (Flags::SEND_RESIZE, Command::resize(512))]
        {
            let mut rules = rules();
            assert_eq!(rules.check(&command), Ok(()));
            rules.flags.remove(flag);
            let refused = InvalidRequest::NotOffered(command.command_type());
            assert_eq!(rules.check(&command), Err(refused));
        }
        let rules = RequestRules { has_contexts: false, ..rules() };
        assert_eq!(rules.check(&Command::block_status(0, 512)), Err(InvalidRequest::NoContexts));
    }

    #[test]
    fn a_read_only_export_takes_no_writes() {
        let mut rules = rules();
        rules.flags |= TransmissionFlags::READ_ONLY;
        for (index, command) in ranged(0, 512).iter().enumerate() {
            assert_eq!(rules.check(command).is_err(), [1, 2, 4].contains(&index), "{command:?}");
        }
        assert_eq!(rules.check(&Command::resize(0)), Err(InvalidRequest::ReadOnly));
    }

    #[test]
    fn a_new_size_is_aligned_and_no_more_than_any_disk_can_have() {
        for (size, expected) in [
            (0, Ok(())),
            (1 << 62, Ok(())),
            (513, Err(InvalidRequest::Misaligned(512))),
            (1 << 63, Err(InvalidRequest::SizeTooLarge)),
        ] {
            assert_eq!(rules().check(&Command::resize(size)), expected, "{size}");
        }
    }

    #[test]
    fn the_error_value_says_what_kind_of_rule_was_broken() {
        use ErrorCode as Code;
        let past_the_end = InvalidRequest::OutOfRange(9);
        let too_long = InvalidRequest::TooLong(9);
        let codes = |broken: InvalidRequest| ranged(0, 1).map(|command| broken.code(&command));
        let invalid = Code::EINVAL;
        assert_eq!(
            codes(past_the_end),
            [invalid, Code::ENOSPC, invalid, invalid, Code::ENOSPC, invalid]
        );
        assert_eq!(codes(too_long), [Code::EOVERFLOW, invalid, invalid, invalid, invalid, invalid]);
        assert_eq!(codes(InvalidRequest::ReadOnly), [Code::EPERM; 6]);
        assert_eq!(codes(InvalidRequest::Misaligned(512)), [invalid; 6]);
        assert_eq!(InvalidRequest::SizeTooLarge.code(&Command::resize(0)), Code::ENOSPC);
    }
}
