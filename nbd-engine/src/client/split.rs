//! From what a program asks for to single requests: flags, and how a command that is too long is split.

use nbd_proto::{Command, InvalidRequest, RequestRules};

use super::Flags;

/// A command with the flags that a program names.
///
/// # Errors
/// When one of them means nothing to the command.
pub(super) fn with_flags(command: Command, flags: Flags) -> Result<Command, InvalidRequest> {
    if flags.is_empty() {
        return Ok(command);
    }
    let mut flagged = command;
    for (flag, with) in [
        (Flags::DF, Command::with_dont_fragment as fn(Command) -> Command),
        (Flags::FUA, Command::with_fua),
        (Flags::NO_HOLE, Command::with_no_hole),
        (Flags::FAST_ZERO, Command::with_fast),
        (Flags::REQ_ONE, Command::with_one),
    ] {
        if flags.contains(flag) {
            flagged = with(flagged);
        }
    }
    // What has no effect was not meant for this command.
    match flagged.flags() == flags {
        true => Ok(flagged),
        false => Err(InvalidRequest::NotOffered(command.command_type())),
    }
}

/// Checks a command of any length. Gives whether there is anything to do: a command about no bytes is done.
pub(super) fn check(rules: &RequestRules, command: &Command) -> Result<bool, InvalidRequest> {
    match rules.check(command) {
        Ok(()) | Err(InvalidRequest::TooLong(_)) => Ok(true),
        Err(InvalidRequest::Empty) => Ok(false),
        Err(invalid) => Err(invalid),
    }
}

/// The request that does what is left of a command from `start` on, counted from the command's own offset; and whether it
/// is the last one. All but the last end on a multiple of the preferred block size, if one is within reach. A block
/// status may be answered in part anyway, so that one request is all it takes.
// C-SZ-18
pub(super) fn next_part(rules: &RequestRules, command: &Command, start: u64) -> (Command, bool) {
    if !command.has_range() {
        return (*command, true);
    }
    let (offset, left) = (command.offset() + start, command.length() - start);
    let max = rules.max_length(command);
    if left <= max {
        return (command.with_range(offset, left), true);
    }
    let end = offset.saturating_add(max);
    let preferred = end - end % u64::from(rules.block_size.preferred());
    let length = if preferred > offset { preferred - offset } else { max };
    let last = matches!(command, Command::BlockStatus { .. });
    (command.with_range(offset, length), last)
}

#[cfg(test)]
mod tests {
    use nbd_proto::BlockSize;
    use nbd_proto::client::{Config, Connection, Event};
    use nbd_proto::wire::{
        ExportInfoReply, HandshakeFlags, NewstyleGreeting, OptionCode, OptionReplyHeader,
        OptionReplyType, TransmissionFlags,
    };
    use proptest::prelude::*;

    use super::*;

    /// The rules of an export of any size with these size constraints.
    fn rules(minimum: u32, preferred: u32, maximum_payload: u32, extended: bool) -> RequestRules {
        let mut rules = any_rules();
        rules.block_size = BlockSize::new(minimum, preferred, maximum_payload).unwrap();
        rules.size = u64::MAX;
        rules.flags = TransmissionFlags::all() - TransmissionFlags::READ_ONLY;
        (rules.extended, rules.has_contexts) = (extended, true);
        rules
    }

    /// Rules can't be made by hand: those of a connection.
    fn any_rules() -> RequestRules {
        let mut config = Config::default();
        (config.extended_headers, config.structured_replies) = (false, false);
        let mut connection = Connection::new(config).unwrap();
        let reply = |reply, data: &[u8]| {
            let length = data.len() as u32;
            let header = OptionReplyHeader { code: OptionCode::GO, reply, length };
            [&header.encode()[..], data].concat()
        };
        let info = ExportInfoReply { size: 1 << 40, flags: TransmissionFlags::HAS_FLAGS };
        let bytes = [
            &NewstyleGreeting { flags: HandshakeFlags::FIXED_NEWSTYLE }.encode()[..],
            &reply(OptionReplyType::INFO, &info.encode()),
            &reply(OptionReplyType::ACK, &[]),
        ]
        .concat();
        let mut input = &bytes[..];
        while let Some(event) = connection.next_event(&mut input) {
            if event == Event::Ready {
                break;
            }
        }
        connection.rules().expect("the export is entered")
    }

    fn parts(rules: &RequestRules, command: &Command) -> Vec<Command> {
        let (mut start, mut parts) = (0, Vec::new());
        loop {
            let (part, last) = next_part(rules, command, start);
            start += part.length();
            parts.push(part);
            if last {
                return parts;
            }
        }
    }

    #[test]
    fn parts_end_where_the_server_prefers_it() {
        let rules = rules(512, 4096, 1_000_000, false);
        for (offset, length, expected) in [
            (0, 2_000_000 / 512 * 512, &[999_424, 999_424, 1024][..]),
            (512, 1_500_160, &[998_912, 501_248]),
            (512, 999_936, &[999_936]),
        ] {
            let parts = parts(&rules, &Command::read(offset, length));
            let lengths: Vec<_> = parts.iter().map(Command::length).collect();
            assert_eq!(lengths, expected, "{offset}+{length}");
        }
    }

    #[test]
    fn flags_are_taken_where_they_mean_something() {
        let trim = Command::trim(0, 512);
        assert_eq!(with_flags(trim, Flags::FUA), Ok(trim.with_fua()));
        let zeroes = with_flags(Command::write_zeroes(0, 1), Flags::FAST_ZERO | Flags::NO_HOLE);
        assert_eq!(zeroes, Ok(Command::write_zeroes(0, 1).with_fast().with_no_hole()));
        for flags in [Flags::FUA, Flags::DF | Flags::REQ_ONE, Flags::PAYLOAD_LEN] {
            let refused = Err(InvalidRequest::NotOffered(Command::read(0, 1).command_type()));
            assert_eq!(with_flags(Command::read(0, 1), flags), refused);
        }
    }

    #[test]
    fn a_status_is_one_request_of_any_length() {
        let rules = rules(1, 4096, 1 << 20, false);
        let parts = parts(&rules, &Command::block_status(0, 1 << 40));
        assert_eq!(parts.len(), 1);
        assert!(rules.check(&parts[0]).is_ok());
    }

    proptest! {
        /// Whatever the size constraints: the parts are valid requests, follow each other, and make up the whole.
        #[test]
        fn parts_make_up_the_whole_and_each_is_valid(
            shift in 0..17u32,
            preferred in 0..4u32,
            payload in 0..(1u32 << 26),
            extended: bool,
            kind in 0..5usize,
            blocks in 1..(1u64 << 36),
            first in 0..(1u64 << 36),
        ) {
            let minimum = 1u32 << shift;
            let preferred = minimum.max(512) << preferred;
            let rules = rules(minimum, preferred, preferred.saturating_add(payload), extended);
            let block = u64::from(minimum);
            let offset = first.saturating_mul(block);
            // What is split into more parts than that shows no more.
            let max = rules.max_length(&Command::read(0, 1)) / block * 200;
            let length = |kind: usize| match kind {
                0 | 1 => (1 + blocks % max) * block,
                _ => blocks.saturating_mul(block),
            };
            let length = length(kind);
            let command = [
                Command::read(offset, length),
                Command::write(offset, length),
                Command::trim(offset, length),
                Command::cache(offset, length),
                Command::write_zeroes(offset, length),
            ][kind];
            prop_assert_eq!(check(&rules, &command), Ok(true));
            let mut end = offset;
            for part in parts(&rules, &command) {
                prop_assert_eq!(rules.check(&part), Ok(()));
                prop_assert_eq!(part.offset(), end);
                end += part.length();
            }
            prop_assert_eq!(end, offset + length);
        }
    }
}
