//! From a request's header to a valid command.

use core::fmt;

use crate::wire::{CommandFlags, CommandType, ErrorCode, ExtendedRequest, TransmissionFlags};
use crate::{Command, InvalidRequest, RequestRules};

/// Why a request is refused: the error value, and a text that says what was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: ErrorCode,
    reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Text(&'static str),
    Rule(InvalidRequest),
}

impl Refused {
    pub(super) const fn new(code: ErrorCode, text: &'static str) -> Self {
        Self { code, reason: Reason::Text(text) }
    }

    const fn invalid(text: &'static str) -> Self {
        Self::new(ErrorCode::EINVAL, text)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::Text(text) => f.write_str(text),
            Reason::Rule(rule) => rule.fmt(f),
        }
    }
}

/// Bytes of payload that follow a request's header. In compact form only WRITE has any. In extended form the flag says
/// so; but see [`Config::require_payload_flag`](super::Config::require_payload_flag).
#[inline]
pub(super) fn payload_length(
    request: &ExtendedRequest,
    rules: &RequestRules,
    require_flag: bool,
) -> u64 {
    let flagged = rules.extended && request.flags.contains(CommandFlags::PAYLOAD_LEN);
    let flag_needed = rules.extended && require_flag;
    let has_payload = flagged || (request.command == CommandType::WRITE && !flag_needed);
    if has_payload { request.length } else { 0 }
}

/// The command of a request, if it is one to be carried out. `DISC` is not for this function, and of a block status
/// with a payload the length is not the one that is meant.
#[inline]
pub(super) fn command(
    request: &ExtendedRequest,
    rules: &RequestRules,
    require_flag: bool,
) -> Result<Command, Refused> {
    let &ExtendedRequest { flags, command, offset, length, .. } = request;
    let fua = flags.contains(CommandFlags::FUA);
    let command = match command {
        CommandType::READ => {
            Command::Read { offset, length, dont_fragment: flags.contains(CommandFlags::DF) }
        }
        CommandType::WRITE => Command::Write { offset, length, fua },
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
        // S-REQ-03
        _ => return Err(Refused::invalid("the command is unknown")),
    };
    check_flags(request, rules, require_flag)?;
    Ok(command)
}

/// Checks a command by the rules. Requests of no bytes pass, since most can be answered without the embedder.
#[inline]
pub(super) fn check(command: &Command, rules: &RequestRules) -> Result<(), Refused> {
    match rules.check(command) {
        Ok(()) => Ok(()),
        Err(InvalidRequest::Empty) if !matches!(command, Command::BlockStatus { .. }) => Ok(()),
        Err(rule) => Err(Refused { code: rule.code(command), reason: Reason::Rule(rule) }),
    }
}

/// Known flags, on commands that they are documented for. Whether they were advertised is for the rules to say, except
/// of those that a [`Command`] does not know.
// S-REQ-04, S-REQ-05, S-REQ-13
#[inline]
fn check_flags(
    request: &ExtendedRequest,
    rules: &RequestRules,
    require_flag: bool,
) -> Result<(), Refused> {
    let mut allowed = match request.command {
        CommandType::READ => CommandFlags::DF,
        CommandType::WRITE_ZEROES => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
        CommandType::WRITE if rules.extended => CommandFlags::PAYLOAD_LEN,
        CommandType::BLOCK_STATUS
            if rules.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD) =>
        {
            CommandFlags::REQ_ONE | CommandFlags::PAYLOAD_LEN
        }
        CommandType::BLOCK_STATUS => CommandFlags::REQ_ONE,
        _ => CommandFlags::empty(),
    };
    // Some clients set FUA on everything, which servers accept once they offer FUA (S-REQ-06).
    if rules.flags.contains(TransmissionFlags::SEND_FUA) {
        allowed |= CommandFlags::FUA;
    }
    if !allowed.contains(request.flags) {
        return Err(Refused::invalid("a command flag is unknown, misplaced or was not negotiated"));
    }
    if rules.extended
        && require_flag
        && request.command == CommandType::WRITE
        && !request.flags.contains(CommandFlags::PAYLOAD_LEN)
    {
        return Err(Refused::invalid("a write without a payload"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockSize;

    fn rules() -> RequestRules {
        let all = TransmissionFlags::from_bits_retain(0x1fff) - TransmissionFlags::READ_ONLY;
        RequestRules {
            size: 1 << 20,
            flags: all,
            block_size: BlockSize::DEFAULT,
            extended: false,
            has_contexts: true,
        }
    }

    fn request(command: CommandType, flags: u16, offset: u64, length: u64) -> ExtendedRequest {
        let flags = CommandFlags::from_bits_retain(flags);
        ExtendedRequest { flags, command, cookie: 1, offset, length }
    }

    fn strict_code(rules: &RequestRules, request: &ExtendedRequest, strict: bool) -> ErrorCode {
        let checked = command(request, rules, strict).and_then(|command| check(&command, rules));
        checked.map_or_else(|refused| refused.code, |()| ErrorCode::OK)
    }

    fn code(rules: &RequestRules, request: &ExtendedRequest) -> ErrorCode {
        strict_code(rules, request, false)
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
            for (offset, length) in
                [(1 << 20, 1), ((1 << 20) - 1, 2), (1 << 40, 1), (1 << 40, 0), (u64::MAX, 2)]
            {
                assert_eq!(code(&rules(), &request(command, 0, offset, length)), expected);
            }
        }
    }

    #[test]
    fn requests_of_no_bytes_pass_but_for_the_status_of_nothing() {
        for command in RANGED {
            let status = command == CommandType::BLOCK_STATUS;
            let expected = if status { ErrorCode::EINVAL } else { ErrorCode::OK };
            for offset in [0, 1 << 20] {
                assert_eq!(code(&rules(), &request(command, 0, offset, 0)), expected, "{command}");
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
        for command in RANGED {
            assert_eq!(code(&rules, &request(command, 1, 0, 1)), ErrorCode::EINVAL, "FUA");
        }
        assert_eq!(code(&rules, &request(CommandType::READ, 4, 0, 1)), ErrorCode::EINVAL, "DF");
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
            assert_eq!(code(&rules, &request(command, 0, 0, u32::MAX.into())), ErrorCode::OK);
            rules.extended = true;
            assert_eq!(code(&rules, &request(command, 0, 0, 1 << 39)), ErrorCode::OK);
            rules.extended = false;
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
        let whole = request(CommandType::WRITE, 1 << 5, 0, 512);
        for (request, strict, expected) in [
            (&bare, false, (ErrorCode::OK, 512)),
            (&bare, true, (ErrorCode::EINVAL, 0)),
            (&whole, false, (ErrorCode::OK, 512)),
            (&whole, true, (ErrorCode::OK, 512)),
        ] {
            let found = strict_code(&rules, request, strict);
            assert_eq!((found, payload_length(request, &rules, strict)), expected);
        }
    }
}
