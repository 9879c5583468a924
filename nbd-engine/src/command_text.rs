//! Requests as messages name them.

use crate::counted;
use core::fmt;

use nbd_proto::Command;

/// Such as `NBD_CMD_READ of 512 bytes at 4096`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommandText(pub(crate) Command);

impl fmt::Display for CommandText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(command) = self;
        write!(f, "{}", command.command_type())?;
        match command.length() {
            0 => Ok(()),
            length => write!(f, " of {} at {}", counted(length, "byte"), command.offset()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_in_words() {
        for (command, text) in [
            (Command::write(4096, 512).with_fua(), "NBD_CMD_WRITE of 512 bytes at 4096"),
            (Command::flush(), "NBD_CMD_FLUSH"),
        ] {
            assert_eq!(CommandText(command).to_string(), text);
        }
    }
}
