//! The checks that options and requests must pass before they are sent, and those on what an export says of itself.

use crate::wire::{BlockSizeInfo, CommandType, InfoType, TransmissionFlags, is_valid_string};
use crate::{BlockSize, Command, InvalidBlockSize};

/// Why an option was not sent. The connection is unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// It is not your turn: the greeting has not arrived, an option awaits its reply, or haggling is over
    /// (C-OPT-14, C-OPT-GO-21).
    #[error("it is not the time for an option")]
    NotYourTurn,
    /// One side does not speak fixed newstyle, so that only `NBD_OPT_EXPORT_NAME` can be sent (C-HS-18, C-TLS-20).
    #[error("the option needs fixed newstyle negotiation")]
    NeedsFixedNewstyle,
    /// TLS is required and has not been started (C-TLS-25).
    #[error("the option must not be sent before TLS")]
    NeedsTls,
    /// TLS is running already (C-TLS-20).
    #[error("TLS is running already")]
    TlsRunning,
    /// The option was agreed to before (C-OPT-15).
    #[error("this was agreed to already")]
    AlreadyAgreed,
    /// `NBD_OPT_EXPORT_NAME` must not be used once extended headers were agreed (C-OPT-EN-06).
    #[error("an export can't be entered by NBD_OPT_EXPORT_NAME with extended headers")]
    ExtendedHeaders,
    /// Metadata contexts need structured replies or extended headers (C-OPT-SM-11).
    #[error("metadata contexts need structured replies or extended headers")]
    NeedsStructuredReplies,
    /// A name or query of more than 4096 bytes, or with a NUL (B-CONV-02, B-CONV-03).
    #[error("a string contains NUL or is longer than 4096 bytes")]
    BadString,
    /// A query without a namespace and a colon (C-OPT-SM-13).
    #[error("a metadata query must begin with a namespace and a colon")]
    BadQuery,
    /// An information request that occurs twice (C-OPT-GO-19).
    #[error("{0} is asked for twice")]
    RepeatedItem(InfoType),
    /// The option has a method of its own, which keeps account of what it changes.
    #[error("the option has a method of its own")]
    HasMethod,
}

pub(super) fn name(name: &str) -> Result<(), OptionError> {
    if is_valid_string(name.as_bytes()) { Ok(()) } else { Err(OptionError::BadString) }
}

pub(super) fn query(query: &str) -> Result<(), OptionError> {
    name(query)?;
    match query.split_once(':') {
        Some((namespace, _)) if !namespace.is_empty() => Ok(()),
        _ => Err(OptionError::BadQuery),
    }
}

pub(super) fn items(items: &[InfoType]) -> Result<(), OptionError> {
    let mut earlier = items.iter().enumerate();
    let twice = earlier.find(|(at, item)| items.get(..*at).unwrap_or_default().contains(*item));
    twice.map_or(Ok(()), |(_, item)| Err(OptionError::RepeatedItem(*item)))
}

/// Size constraints as they will be obeyed (C-OPT-GO-25). The minimum and the maximum payload are obligations: values
/// that make no sense can't be obeyed. The preferred size is a hint, and is corrected.
pub(super) fn block_size(info: &BlockSizeInfo) -> Result<BlockSize, InvalidBlockSize> {
    let &BlockSizeInfo { minimum, preferred, maximum_payload } = info;
    let floor = minimum.max(512);
    if maximum_payload < floor {
        // The minimum may be the one at fault: let it be named then.
        BlockSize::new(minimum, floor.checked_next_power_of_two().unwrap_or(floor), u32::MAX)?;
        return Err(InvalidBlockSize::MaximumPayload(maximum_payload));
    }
    let ceiling = 1 << maximum_payload.ilog2();
    let wanted = preferred.max(floor).checked_next_power_of_two().unwrap_or(ceiling);
    BlockSize::new(minimum, wanted.min(ceiling), maximum_payload)
}

/// Why a request was not submitted. The connection is unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// No export has been entered, or the connection is over.
    #[error("the connection is not in the transmission phase")]
    NotTransmitting,
    /// You are leaving: nothing may follow (C-CMD-DISC-16).
    #[error("the connection is being left")]
    Disconnecting,
    /// The server is shutting down: [`disconnect`](super::Connection::disconnect) (C-END-06).
    #[error("the server is shutting down")]
    ServerShuttingDown,
    /// As many requests as the limits allow are in flight: wait for one to complete.
    #[error("too many requests are in flight")]
    TooManyRequests,
    /// A request about no bytes (C-REQ-20).
    #[error("the request is about no bytes")]
    Empty,
    /// A request that reaches past the end of the export, of which the size in bytes is given (C-SZ-15).
    #[error("the request reaches past the end of the export at {0}")]
    OutOfRange(u64),
    /// Offset and length must be multiples of the minimum block size, which is given in bytes (C-SZ-15).
    #[error("the request is not aligned to {0} bytes")]
    Misaligned(u32),
    /// A request that is longer than what a server takes at once, which is given in bytes (C-SZ-16): split it.
    #[error("the request is longer than {0} bytes")]
    TooLong(u32),
    /// The export can't be written to.
    #[error("the export is read-only")]
    ReadOnly,
    /// The export does not have this command, or not with this flag (C-XF-09).
    #[error("the server did not offer {0}, or not with these flags")]
    NotOffered(CommandType),
    /// No metadata context was selected (C-CMD-BS-12).
    #[error("no metadata context was selected for this export")]
    NoContexts,
    /// A metadata context that was not selected, or occurs twice (C-EH-19).
    #[error("the metadata context {0} was not selected, or occurs twice")]
    BadContext(u32),
    /// A resize changes the part of the export that this request is about, or this resize would change the part that
    /// another request is about (C-RSZ-06).
    #[error("a resize changes what another request is about")]
    Resizing,
}

/// Whether a request can tell its length: in compact form it has 32 bits for it. Not even tests can do without this.
pub(super) fn fits(command: &Command, extended: bool) -> Result<(), SubmitError> {
    if extended || u32::try_from(command.length()).is_ok() {
        Ok(())
    } else {
        Err(SubmitError::TooLong(u32::MAX))
    }
}

/// What a request is checked against.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) size: u64,
    pub(super) flags: TransmissionFlags,
    pub(super) block_size: BlockSize,
}

impl Rules {
    pub(super) fn check(&self, command: &Command) -> Result<(), SubmitError> {
        self.check_offered(command)?;
        match *command {
            Command::Flush => Ok(()),
            // The new size is not a place in the export as it is.
            Command::Resize { size } if self.block_size.is_aligned(size, 0) => Ok(()),
            Command::Resize { .. } => Err(SubmitError::Misaligned(self.block_size.minimum())),
            _ => self.check_range(command),
        }
    }

    /// Commands and flags that were advertised (C-XF-09).
    fn check_offered(&self, command: &Command) -> Result<(), SubmitError> {
        use TransmissionFlags as Flags;
        if command.is_write() && self.flags.contains(Flags::READ_ONLY) {
            return Err(SubmitError::ReadOnly);
        }
        let mut needed = match *command {
            Command::Read { dont_fragment: true, .. } => Flags::SEND_DF,
            Command::Read { .. } | Command::Write { .. } | Command::BlockStatus { .. } => {
                Flags::empty()
            }
            Command::Flush => Flags::SEND_FLUSH,
            Command::Trim { .. } => Flags::SEND_TRIM,
            Command::Cache { .. } => Flags::SEND_CACHE,
            Command::WriteZeroes { fast: true, .. } => {
                Flags::SEND_WRITE_ZEROES | Flags::SEND_FAST_ZERO
            }
            Command::WriteZeroes { .. } => Flags::SEND_WRITE_ZEROES,
            Command::Resize { .. } => Flags::SEND_RESIZE,
        };
        if matches!(
            command,
            Command::Write { fua: true, .. }
                | Command::Trim { fua: true, .. }
                | Command::WriteZeroes { fua: true, .. }
        ) {
            needed |= Flags::SEND_FUA;
        }
        if self.flags.contains(needed) {
            Ok(())
        } else {
            Err(SubmitError::NotOffered(command.command_type()))
        }
    }

    /// Not empty, inside the export, aligned, and not too long (C-REQ-20, C-SZ-15, C-SZ-16).
    fn check_range(&self, command: &Command) -> Result<(), SubmitError> {
        let (offset, length) = (command.offset(), command.length());
        if length == 0 {
            return Err(SubmitError::Empty);
        }
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(SubmitError::OutOfRange(self.size));
        }
        if !self.block_size.is_aligned(offset, length) {
            return Err(SubmitError::Misaligned(self.block_size.minimum()));
        }
        let longest = self.block_size.maximum_payload();
        if command.buffer_length() > u64::from(longest) {
            return Err(SubmitError::TooLong(longest));
        }
        Ok(())
    }
}

/// Transmission flags as far as they mean something: none without `HAS_FLAGS` but the prohibition to write (C-XF-12),
/// none that needs what was not negotiated. Unknown ones are kept for those who print them (C-XF-10).
pub(super) fn flags(
    sent: TransmissionFlags,
    structured: bool,
    extended: bool,
) -> TransmissionFlags {
    use TransmissionFlags as Flags;
    if !sent.contains(Flags::HAS_FLAGS) {
        return sent & Flags::READ_ONLY;
    }
    let mut flags = sent;
    if !structured && !extended {
        flags.remove(Flags::SEND_DF);
    }
    if !extended {
        flags.remove(Flags::BLOCK_STATUS_PAYLOAD);
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        let flags = TransmissionFlags::from_bits_retain(0x1fff) - TransmissionFlags::READ_ONLY;
        Rules { size: 1 << 40, flags, block_size: BlockSize::new(512, 4096, 1 << 20).unwrap() }
    }

    fn ranged(offset: u64, length: u64) -> [Command; 6] {
        [
            Command::Read { offset, length, dont_fragment: true },
            Command::Write { offset, length, fua: true },
            Command::Trim { offset, length, fua: true },
            Command::Cache { offset, length },
            Command::WriteZeroes { offset, length, fua: true, no_hole: true, fast: true },
            Command::BlockStatus { offset, length, one: true },
        ]
    }

    #[test]
    fn requests_stay_inside_the_export_and_on_its_blocks() {
        let rules = rules();
        for at in 0..6 {
            let check = |offset, length| rules.check(&ranged(offset, length)[at]);
            assert_eq!(check(512, 1024), Ok(()));
            assert_eq!(check(0, 0), Err(SubmitError::Empty));
            assert_eq!(check((1 << 40) - 512, 1024), Err(SubmitError::OutOfRange(1 << 40)));
            assert_eq!(check(u64::MAX - 511, 512), Err(SubmitError::OutOfRange(1 << 40)));
            assert_eq!(check(1, 512), Err(SubmitError::Misaligned(512)));
            assert_eq!(check(512, 100), Err(SubmitError::Misaligned(512)));
            let long = check(0, (1 << 20) + 512);
            assert_eq!(long.is_err(), at < 2, "only reads and writes have a payload");
        }
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
            for (at, command) in ranged(0, 512).iter().enumerate() {
                assert_eq!(rules.check(command).is_err(), refused.contains(&at), "{command:?}");
            }
        }
        for (flag, command) in [
            (Flags::SEND_FLUSH, Command::Flush),
            (Flags::SEND_RESIZE, Command::Resize { size: 512 }),
        ] {
            let mut rules = rules();
            assert_eq!(rules.check(&command), Ok(()));
            rules.flags.remove(flag);
            let refused = Err(SubmitError::NotOffered(command.command_type()));
            assert_eq!(rules.check(&command), refused);
        }
        let odd = Command::Resize { size: 513 };
        assert_eq!(rules().check(&odd), Err(SubmitError::Misaligned(512)));
    }

    #[test]
    fn a_read_only_export_takes_no_writes() {
        let mut rules = rules();
        rules.flags |= TransmissionFlags::READ_ONLY;
        for (at, command) in ranged(0, 512).iter().enumerate() {
            assert_eq!(rules.check(command).is_err(), [1, 2, 4].contains(&at), "{command:?}");
        }
        assert_eq!(rules.check(&Command::Resize { size: 0 }), Err(SubmitError::ReadOnly));
    }

    #[test]
    fn a_compact_length_has_32_bits() {
        let [.., zeroes, _] = ranged(0, 1 << 32);
        assert_eq!(fits(&zeroes, false), Err(SubmitError::TooLong(u32::MAX)));
        assert_eq!(fits(&zeroes, true), Ok(()));
    }

    #[test]
    fn queries_and_items_are_checked() {
        assert_eq!(query("base:allocation"), Ok(()));
        assert_eq!(query("base:"), Ok(()));
        assert_eq!(query("base"), Err(OptionError::BadQuery));
        assert_eq!(query(":leaf"), Err(OptionError::BadQuery));
        assert_eq!(query("a:\0"), Err(OptionError::BadString));
        assert_eq!(items(&[InfoType::NAME, InfoType::BLOCK_SIZE]), Ok(()));
        let twice = [InfoType::NAME, InfoType::BLOCK_SIZE, InfoType::NAME];
        assert_eq!(items(&twice), Err(OptionError::RepeatedItem(InfoType::NAME)));
    }

    #[test]
    fn hints_are_corrected_and_impossible_obligations_refused() {
        let sizes = |minimum, preferred, maximum_payload| {
            block_size(&BlockSizeInfo { minimum, preferred, maximum_payload })
        };
        assert_eq!(sizes(512, 4096, 1 << 25), BlockSize::new(512, 4096, 1 << 25));
        for (minimum, preferred, maximum, corrected) in [
            (1, 1, u32::MAX, 512),
            (4096, 512, 1 << 20, 4096),
            (1, 3000, 1 << 20, 4096),
            (1, 1 << 21, 1_000_000, 1 << 19),
            (1, u32::MAX, u32::MAX, 1 << 31),
            (1, 4096, 512, 512),
        ] {
            let sizes = sizes(minimum, preferred, maximum).unwrap();
            assert_eq!((sizes.minimum(), sizes.preferred()), (minimum, corrected));
            assert_eq!(sizes.maximum_payload(), maximum);
        }
        for (minimum, maximum) in [(0, 1 << 20), (3, 1 << 20), (1 << 17, 1 << 20), (1 << 17, 1)] {
            assert_eq!(sizes(minimum, 1 << 18, maximum), Err(InvalidBlockSize::Minimum(minimum)));
        }
        assert_eq!(sizes(1, 4096, 511), Err(InvalidBlockSize::MaximumPayload(511)));
        assert_eq!(sizes(4096, 4096, 512), Err(InvalidBlockSize::MaximumPayload(512)));
    }

    #[test]
    fn flags_without_has_flags_only_forbid() {
        let all = TransmissionFlags::all();
        assert_eq!(flags(all, true, true), all);
        assert_eq!(
            flags(all - TransmissionFlags::HAS_FLAGS, true, true),
            TransmissionFlags::READ_ONLY
        );
        let compact = all - TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        assert_eq!(flags(all, true, false), compact);
        assert_eq!(flags(all, false, false), compact - TransmissionFlags::SEND_DF);
    }
}
