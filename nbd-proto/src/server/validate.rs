//! The checks that a request must pass before an embedder sees it, in one table.

use crate::wire::{CommandFlags, CommandType, ErrorCode, ExtendedRequest, TransmissionFlags};
use crate::{BlockSize, Command};

/// What a request is checked against.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) size: u64,
    /// As advertised to this client.
    pub(super) flags: TransmissionFlags,
    pub(super) block_size: BlockSize,
    pub(super) extended: bool,
    /// Refuse extended writes without [`CommandFlags::PAYLOAD_LEN`].
    pub(super) require_payload_flag: bool,
    pub(super) has_contexts: bool,
}

/// Why a request is refused: the error value and a text that tells a person what was wrong.
pub(super) type Refusal = (ErrorCode, &'static str);

const EINVAL: ErrorCode = ErrorCode::EINVAL;

impl Rules {
    /// The bytes of payload that follow a request's header. In compact form only WRITE has any. In extended form the
    /// flag says so; but see [`Config::require_payload_flag`](super::Config::require_payload_flag).
    pub(super) fn payload_length(&self, request: &ExtendedRequest) -> u64 {
        let flagged = self.extended && request.flags.contains(CommandFlags::PAYLOAD_LEN);
        let flag_needed = self.extended && self.require_payload_flag;
        let has_payload = flagged || (request.command == CommandType::WRITE && !flag_needed);
        if has_payload { request.length } else { 0 }
    }

    /// Checks all that can be told from the header. `DISC` is not for this function.
    pub(super) fn check(&self, request: &ExtendedRequest) -> Result<Command, Refusal> {
        self.check_header(request)?;
        let command = self.command(request)?;
        match command {
            Command::Flush => {}
            // The new size is not a place in the export as it is.
            Command::Resize { size } => {
                if size > i64::MAX as u64 {
                    return Err((ErrorCode::ENOSPC, "no export is larger than 2^63 - 1 bytes"));
                }
                if !self.block_size.is_aligned(size, 0) {
                    let text = "the new size is not a multiple of the minimum block size";
                    return Err((EINVAL, text));
                }
            }
            _ => self.check_range(&command)?,
        }
        Ok(command)
    }

    /// The part of [`check`](Self::check) that holds for a block status request with a payload, too.
    pub(super) fn check_header(&self, request: &ExtendedRequest) -> Result<(), Refusal> {
        self.check_flags(request)?;
        self.check_negotiated(request)
    }

    /// Known flags, on commands that they are documented for (S-REQ-04, S-REQ-05, S-REQ-13).
    fn check_flags(&self, request: &ExtendedRequest) -> Result<(), Refusal> {
        let mut allowed = match request.command {
            CommandType::READ if self.flags.contains(TransmissionFlags::SEND_DF) => {
                CommandFlags::DF
            }
            CommandType::WRITE_ZEROES if self.flags.contains(TransmissionFlags::SEND_FAST_ZERO) => {
                CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO
            }
            CommandType::WRITE_ZEROES => CommandFlags::NO_HOLE,
            CommandType::WRITE if self.extended => CommandFlags::PAYLOAD_LEN,
            CommandType::BLOCK_STATUS
                if self.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD) =>
            {
                CommandFlags::REQ_ONE | CommandFlags::PAYLOAD_LEN
            }
            CommandType::BLOCK_STATUS => CommandFlags::REQ_ONE,
            _ => CommandFlags::empty(),
        };
        // Some clients set FUA on everything, and that is to be accepted once it is offered (S-REQ-06).
        if self.flags.contains(TransmissionFlags::SEND_FUA) {
            allowed |= CommandFlags::FUA;
        }
        if !allowed.contains(request.flags) {
            return Err((EINVAL, "a command flag is unknown, misplaced or was not negotiated"));
        }
        if self.extended
            && self.require_payload_flag
            && request.command == CommandType::WRITE
            && !request.flags.contains(CommandFlags::PAYLOAD_LEN)
        {
            return Err((EINVAL, "a write without a payload"));
        }
        Ok(())
    }

    /// Read-only exports and commands that were not advertised (S-REQ-03, S-REQ-12, S-REQ-14).
    fn check_negotiated(&self, request: &ExtendedRequest) -> Result<(), Refusal> {
        use TransmissionFlags as Flags;
        let writes = matches!(
            request.command,
            CommandType::WRITE | CommandType::TRIM | CommandType::WRITE_ZEROES
        );
        if writes && self.flags.contains(Flags::READ_ONLY) {
            return Err((ErrorCode::EPERM, "the export is read-only"));
        }
        let needed = match request.command {
            CommandType::READ | CommandType::WRITE => return Ok(()),
            CommandType::FLUSH => Flags::SEND_FLUSH,
            CommandType::TRIM => Flags::SEND_TRIM,
            CommandType::CACHE => Flags::SEND_CACHE,
            CommandType::WRITE_ZEROES => Flags::SEND_WRITE_ZEROES,
            CommandType::RESIZE => Flags::SEND_RESIZE,
            CommandType::BLOCK_STATUS if self.has_contexts => return Ok(()),
            CommandType::BLOCK_STATUS => {
                return Err((EINVAL, "no metadata context was selected for this export"));
            }
            _ => return Err((EINVAL, "the command is unknown")),
        };
        if self.flags.contains(needed) {
            Ok(())
        } else {
            Err((EINVAL, "the command was not advertised for this export"))
        }
    }

    /// The command with its flags; and the bounds on what must fit into a reply or a payload.
    fn command(&self, request: &ExtendedRequest) -> Result<Command, Refusal> {
        let &ExtendedRequest { flags, command, offset, length, .. } = request;
        let fua = flags.contains(CommandFlags::FUA);
        let payload =
            u32::try_from(length).ok().filter(|n| *n <= self.block_size.maximum_payload());
        Ok(match command {
            CommandType::READ => {
                let length = payload
                    .ok_or((ErrorCode::EOVERFLOW, "the read is longer than the maximum payload"))?;
                Command::Read {
                    offset,
                    length: length.into(),
                    dont_fragment: flags.contains(CommandFlags::DF),
                }
            }
            CommandType::WRITE => {
                let length =
                    payload.ok_or((EINVAL, "the write is longer than the maximum payload"))?;
                Command::Write { offset, length: length.into(), fua }
            }
            CommandType::FLUSH => Command::Flush,
            CommandType::TRIM => Command::Trim { offset, length, fua },
            CommandType::CACHE => Command::Cache { offset, length },
            CommandType::WRITE_ZEROES => Command::WriteZeroes {
                offset,
                length,
                fua,
                no_hole: flags.contains(CommandFlags::NO_HOLE),
                fast: flags.contains(CommandFlags::FAST_ZERO),
            },
            CommandType::BLOCK_STATUS => {
                Command::BlockStatus { offset, length, one: flags.contains(CommandFlags::REQ_ONE) }
            }
            CommandType::RESIZE => Command::Resize { size: offset },
            _ => return Err((EINVAL, "the command is unknown")),
        })
    }

    /// Inside the export and aligned (S-REQ-09, S-REQ-10, S-SZ-12).
    pub(super) fn check_range(&self, command: &Command) -> Result<(), Refusal> {
        let (offset, length) = (command.offset(), command.length());
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            let writes = matches!(command, Command::Write { .. } | Command::WriteZeroes { .. });
            let code = if writes { ErrorCode::ENOSPC } else { EINVAL };
            return Err((code, "the request reaches past the end of the export"));
        }
        if !self.block_size.is_aligned(offset, length) {
            return Err((EINVAL, "the request is not aligned to the minimum block size"));
        }
        if length == 0 && matches!(command, Command::BlockStatus { .. }) {
            return Err((EINVAL, "the status of no bytes was asked for"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        let all = TransmissionFlags::from_bits_retain(0x1fff) - TransmissionFlags::READ_ONLY;
        Rules {
            size: 1 << 20,
            flags: all,
            block_size: BlockSize::DEFAULT,
            extended: false,
            require_payload_flag: false,
            has_contexts: true,
        }
    }

    fn request(command: CommandType, flags: u16, offset: u64, length: u64) -> ExtendedRequest {
        let flags = CommandFlags::from_bits_retain(flags);
        ExtendedRequest { flags, command, cookie: 1, offset, length }
    }

    fn code(rules: &Rules, request: &ExtendedRequest) -> ErrorCode {
        rules.check(request).map_or_else(|(code, _)| code, |_| ErrorCode::OK)
    }

    const RANGED: [CommandType; 6] = [
        CommandType::READ,
        CommandType::WRITE,
        CommandType::TRIM,
        CommandType::CACHE,
        CommandType::WRITE_ZEROES,
        CommandType::BLOCK_STATUS,
    ];

    #[test]
    fn past_the_end_is_enospc_for_writes_and_einval_for_the_rest() {
        for command in RANGED {
            let writes = matches!(command, CommandType::WRITE | CommandType::WRITE_ZEROES);
            let expected = if writes { ErrorCode::ENOSPC } else { ErrorCode::EINVAL };
            for (offset, length) in [(1 << 20, 1), ((1 << 20) - 1, 2), (1 << 40, 1), (u64::MAX, 2)]
            {
                assert_eq!(code(&rules(), &request(command, 0, offset, length)), expected);
            }
        }
    }

    #[test]
    fn undocumented_flags_are_einval_and_fua_is_accepted_everywhere() {
        for command in RANGED {
            assert_eq!(code(&rules(), &request(command, 1, 0, 512)), ErrorCode::OK, "{command}");
            for bit in 1..16 {
                let documented = matches!(
                    (command, bit),
                    (CommandType::WRITE_ZEROES, 1 | 4)
                        | (CommandType::READ, 2)
                        | (CommandType::BLOCK_STATUS, 3 | 5)
                );
                let expected = if documented { ErrorCode::OK } else { ErrorCode::EINVAL };
                let request = request(command, 1 << bit, 0, 512);
                assert_eq!(code(&rules(), &request), expected, "{command} bit {bit}");
            }
        }
    }

    #[test]
    fn what_was_not_advertised_is_einval() {
        let mut rules = rules();
        rules.flags = TransmissionFlags::HAS_FLAGS;
        rules.has_contexts = false;
        for command in RANGED.into_iter().skip(2).chain([CommandType::FLUSH, CommandType::RESIZE]) {
            assert_eq!(code(&rules, &request(command, 0, 0, 512)), ErrorCode::EINVAL, "{command}");
        }
        for (command, flags) in [(CommandType::WRITE, 1), (CommandType::READ, 4)] {
            assert_eq!(code(&rules, &request(command, flags, 0, 1)), ErrorCode::EINVAL);
        }
        assert_eq!(code(&rules, &request(CommandType(99), 0, 0, 512)), ErrorCode::EINVAL);
    }

    #[test]
    fn writing_on_a_read_only_export_is_eperm() {
        let mut rules = rules();
        rules.flags |= TransmissionFlags::READ_ONLY;
        for command in [CommandType::WRITE, CommandType::TRIM, CommandType::WRITE_ZEROES] {
            assert_eq!(code(&rules, &request(command, 0, 0, 512)), ErrorCode::EPERM);
        }
        assert_eq!(code(&rules, &request(CommandType::READ, 0, 0, 512)), ErrorCode::OK);
    }

    #[test]
    fn misaligned_requests_are_einval() {
        let mut rules = rules();
        rules.block_size = BlockSize::new(512, 4096, 1 << 20).unwrap();
        for command in RANGED {
            for (offset, length) in [(1, 512), (512, 1), (100, 412)] {
                assert_eq!(code(&rules, &request(command, 0, offset, length)), ErrorCode::EINVAL);
            }
        }
    }

    #[test]
    fn a_read_beyond_the_maximum_payload_is_eoverflow_and_a_large_zero_is_not() {
        let mut rules = rules();
        rules.size = 1 << 40;
        let long = (1 << 25) + 1;
        assert_eq!(code(&rules, &request(CommandType::READ, 0, 0, long)), ErrorCode::EOVERFLOW);
        assert_eq!(code(&rules, &request(CommandType::READ, 0, 0, long - 1)), ErrorCode::OK);
        assert_eq!(code(&rules, &request(CommandType::WRITE, 0, 0, long)), ErrorCode::EINVAL);
        for command in [CommandType::TRIM, CommandType::WRITE_ZEROES, CommandType::CACHE] {
            assert_eq!(code(&rules, &request(command, 0, 0, 1 << 39)), ErrorCode::OK);
        }
    }

    #[test]
    fn a_new_size_is_aligned_and_no_more_than_any_disk_can_have() {
        let mut rules = rules();
        rules.block_size = BlockSize::new(512, 4096, 1 << 20).unwrap();
        for (size, expected) in [
            (0, ErrorCode::OK),
            (1 << 62, ErrorCode::OK),
            (513, ErrorCode::EINVAL),
            (1 << 63, ErrorCode::ENOSPC),
        ] {
            assert_eq!(code(&rules, &request(CommandType::RESIZE, 0, size, 0)), expected, "{size}");
        }
    }

    #[test]
    fn an_extended_length_is_never_truncated() {
        let mut rules = rules();
        rules.extended = true;
        for command in RANGED {
            let request = request(command, 0, 0, (1 << 32) + 512);
            assert_ne!(code(&rules, &request), ErrorCode::OK, "{command}");
        }
    }

    #[test]
    fn an_extended_write_needs_its_payload_flag_where_the_configuration_says_so() {
        let mut rules = rules();
        rules.extended = true;
        let bare = request(CommandType::WRITE, 0, 0, 512);
        assert_eq!((code(&rules, &bare), rules.payload_length(&bare)), (ErrorCode::OK, 512));
        rules.require_payload_flag = true;
        assert_eq!((code(&rules, &bare), rules.payload_length(&bare)), (ErrorCode::EINVAL, 0));
        let whole = request(CommandType::WRITE, 1 << 5, 0, 512);
        assert_eq!((code(&rules, &whole), rules.payload_length(&whole)), (ErrorCode::OK, 512));
    }
}
