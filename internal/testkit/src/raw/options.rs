//! Options and their replies.

use super::client::{Mode, RawClient, check_string};
use super::codes::{MAX_STRING, Opt, Rep, magic};
use super::late::gone;

/// Longest reply that any option can give: an export's name and description with their framing.
const MAX_REPLY: u32 = (4 + 2 * MAX_STRING) as u32;

/// A reply packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// Its type.
    pub kind: Rep,
    /// Its data.
    pub data: Vec<u8>,
}

/// The error that an option ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError {
    /// The error.
    pub code: Rep,
    /// Its text for a human.
    pub text: String,
    /// Replies that came before it.
    pub before: Vec<OptionReply>,
}

impl RawClient {
    /// Sends an option, well formed.
    #[track_caller]
    pub fn send_option(&mut self, option: Opt, data: &[u8]) {
        let len = u32::try_from(data.len()).expect("an option this long cannot be said");
        self.send_option_header(magic::IHAVEOPT, option, len);
        self.wire.send(data);
    }

    /// Sends the header of an option with any values in it.
    #[track_caller]
    pub fn send_option_header(&mut self, magic: u64, option: Opt, len: u32) {
        self.wire.send(&option_header(magic, option, len));
    }

    /// Receives one reply to `option` and checks its form (S-OPT-01, S-OPT-07, S-OPT-08).
    #[track_caller]
    pub fn read_option_reply(&mut self, option: Opt) -> OptionReply {
        let reply = self.read_option_reply_or_end(option);
        reply.unwrap_or_else(|| gone(format!("{option:?}: the peer closed instead of replying")))
    }

    /// Receives one reply, or nothing if the server closed without one.
    #[track_caller]
    pub fn read_option_reply_or_end(&mut self, option: Opt) -> Option<OptionReply> {
        let magic = self.wire.recv_or_end(8, "option reply")?;
        assert_eq!(magic, magic::OPTION_REPLY.to_be_bytes(), "S-OPT-01: option reply magic");
        let echoed = Opt(self.wire.u32("option reply"));
        assert_eq!(echoed, option, "S-OPT-01: the option is echoed");
        let kind = Rep(self.wire.u32("option reply"));
        assert!(kind.is_known(), "S-OPT-01: {kind:?} is not a reply type");
        let len = self.wire.u32("option reply");
        assert!(len <= MAX_REPLY, "option reply of {len} bytes");
        let data = self.wire.recv(len as usize, "option reply data");
        if kind == Rep::ACK {
            assert!(data.is_empty(), "S-OPT-07: ACK carries no data, got {data:?}");
        }
        if kind.is_error() {
            check_string(&data, "S-OPT-08: error text");
        }
        Some(OptionReply { kind, data })
    }

    /// Receives all replies to an option.
    #[track_caller]
    pub fn read_option_replies(&mut self, option: Opt) -> Result<Vec<OptionReply>, OptionError> {
        let mut before = Vec::new();
        loop {
            let reply = self.read_option_reply(option);
            match reply.kind {
                Rep::ACK => return Ok(before),
                code if code.is_error() => {
                    let text = check_string(&reply.data, "error text");
                    return Err(OptionError { code, text, before });
                }
                _ => before.push(reply),
            }
            assert!(before.len() < 10_000, "no end of replies to {option:?}");
        }
    }

    /// Sends an option and receives all its replies.
    #[track_caller]
    pub fn option(&mut self, option: Opt, data: &[u8]) -> Result<Vec<OptionReply>, OptionError> {
        self.send_option(option, data);
        self.read_option_replies(option)
    }

    /// Sends an option that must fail, and gives the error (S-OPT-10).
    #[track_caller]
    pub fn option_error(&mut self, option: Opt, data: &[u8]) -> Rep {
        match self.option(option, data) {
            Ok(replies) => panic!("{option:?} was acknowledged after {replies:?}"),
            Err(error) => error.code,
        }
    }

    /// LIST: names and descriptions (S-OPT-LS-01, S-OPT-LS-02).
    #[track_caller]
    pub fn list(&mut self) -> Result<Vec<(String, String)>, OptionError> {
        let replies = self.option(Opt::LIST, &[])?;
        Ok(replies.iter().map(|reply| self.parse_server(reply)).collect())
    }

    #[track_caller]
    fn parse_server(&mut self, reply: &OptionReply) -> (String, String) {
        assert_eq!(reply.kind, Rep::SERVER, "S-OPT-LS-01: reply to LIST");
        let (len, rest) = reply.data.split_first_chunk().expect("S-OPT-LS-02: a name length");
        let len = u32::from_be_bytes(*len) as usize;
        assert!(len <= rest.len(), "S-OPT-LS-02: name of {len} bytes in {} bytes", rest.len());
        let name = self.string(&rest[..len], "name in LIST");
        (name, self.string(&rest[len..], "description in LIST"))
    }

    /// `STRUCTURED_REPLY`.
    #[track_caller]
    pub fn structured_reply(&mut self) -> Result<(), OptionError> {
        let replies = self.option(Opt::STRUCTURED_REPLY, &[])?;
        assert_eq!(replies, [], "STRUCTURED_REPLY is answered by ACK alone");
        if self.mode == Mode::Simple {
            self.mode = Mode::Structured;
        }
        Ok(())
    }

    /// `EXTENDED_HEADERS`: wins over structured replies (S-OPT-EH-03).
    #[track_caller]
    pub fn extended_headers(&mut self) -> Result<(), OptionError> {
        let replies = self.option(Opt::EXTENDED_HEADERS, &[])?;
        assert_eq!(replies, [], "EXTENDED_HEADERS is answered by ACK alone");
        self.mode = Mode::Extended;
        Ok(())
    }

    /// Checks a string and remarks on its length (B-CONV-04).
    #[track_caller]
    pub(super) fn string(&mut self, bytes: &[u8], what: &str) -> String {
        if bytes.len() > 256 {
            self.remark(format!("B-CONV-04: {what} has {} bytes", bytes.len()));
        }
        check_string(bytes, what)
    }
}

/// The header of an option.
pub(super) fn option_header(magic: u64, option: Opt, len: u32) -> Vec<u8> {
    [&magic.to_be_bytes()[..], &option.0.to_be_bytes(), &len.to_be_bytes()].concat()
}

/// An option as bytes, for scripts that send several messages at once.
pub fn option_bytes(option: Opt, data: &[u8]) -> Vec<u8> {
    let mut bytes = option_header(magic::IHAVEOPT, option, data.len() as u32);
    bytes.extend_from_slice(data);
    bytes
}
