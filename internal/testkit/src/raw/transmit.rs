//! Requests out, replies in.

use super::assembly::{Assembly, Reply, Rules};
use super::chunk::Chunk;
use super::client::{Mode, RawClient};
use super::codes::{Cmd, Errno, magic};
use super::late::gone;
use super::request::Request;

impl RawClient {
    /// Sends a request and remembers it, so that its reply can be judged; gives its cookie.
    #[track_caller]
    pub fn send(&mut self, request: &Request) -> u64 {
        self.send_all(core::slice::from_ref(request))[0]
    }

    /// Sends requests in one write (S-REQ-15); gives their cookies.
    #[track_caller]
    pub fn send_all(&mut self, requests: &[Request]) -> Vec<u64> {
        let mut bytes = Vec::new();
        let cookies = requests.iter().map(|request| self.stage(request, &mut bytes)).collect();
        self.wire.send(&bytes);
        cookies
    }

    /// Sends a request one byte at a time (S-REQ-15).
    #[track_caller]
    pub fn send_dribbled(&mut self, request: &Request) -> u64 {
        let mut bytes = Vec::new();
        let cookie = self.stage(request, &mut bytes);
        self.wire.dribble(&bytes);
        cookie
    }

    /// Appends the bytes of a request and expects its reply from now on: for scripts that send it themselves.
    pub fn stage(&mut self, request: &Request, bytes: &mut Vec<u8>) -> u64 {
        let cookie = request.cookie.unwrap_or(self.next_cookie);
        self.next_cookie += 1;
        bytes.extend(request.encode(self.mode, cookie));
        if request.command != Cmd::DISC {
            self.pending.push(Assembly::new(request, self.mode, cookie));
        }
        cookie
    }

    /// Stops expecting replies: for scripts whose request must be met with a close.
    pub fn forget_pending(&mut self) {
        self.pending.clear();
    }

    /// Sends a request and receives its reply; replies to others are kept for later.
    #[track_caller]
    pub fn call(&mut self, request: &Request) -> Reply {
        let cookie = self.send(request);
        self.reply_to(cookie)
    }

    /// Receives the reply to the request with this cookie.
    #[track_caller]
    pub fn reply_to(&mut self, cookie: u64) -> Reply {
        loop {
            if let Some(at) = self.finished.iter().position(|reply| reply.cookie == cookie) {
                return self.finished.remove(at);
            }
            match self.receive() {
                Some(reply) => self.finished.push(reply),
                None => gone("the server closed instead of replying".into()),
            }
        }
    }

    /// Receives the next reply, whichever it is; none if the server closed.
    #[track_caller]
    pub fn next_reply(&mut self) -> Option<Reply> {
        if self.finished.is_empty() { self.receive() } else { Some(self.finished.remove(0)) }
    }

    /// Receives the replies to everything that was sent, in the order they come (S-ORD-03).
    #[track_caller]
    pub fn drain(&mut self) -> Vec<Reply> {
        let mut replies = core::mem::take(&mut self.finished);
        while !self.pending.is_empty() {
            match self.receive() {
                Some(reply) => replies.push(reply),
                None => gone("the server closed before all replies were there".into()),
            }
        }
        replies
    }

    /// READ that must succeed.
    #[track_caller]
    pub fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        self.call(&Request::read(offset, length)).data()
    }

    /// WRITE that must succeed.
    #[track_caller]
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.call(&Request::write(offset, data)).ok();
    }

    /// Receives messages until a reply is complete; none if the server closed between two messages.
    #[track_caller]
    fn receive(&mut self) -> Option<Reply> {
        loop {
            let magic = self.wire.recv_or_end(4, "reply")?;
            let magic = u32::from_be_bytes(magic.try_into().expect("four bytes"));
            let at = match (magic, self.mode) {
                (magic::SIMPLE_REPLY, Mode::Simple | Mode::Structured) => {
                    Some(self.receive_simple())
                }
                (magic::STRUCTURED_REPLY, Mode::Structured)
                | (magic::EXTENDED_REPLY, Mode::Extended) => self.receive_chunk(),
                _ => panic!(
                    "S-REP-SIMPLE-01, S-OPT-SR-03, S-EH-01: a reply with magic {magic:#x} in {:?} mode",
                    self.mode
                ),
            };
            if let Some(at) = at {
                let assembly = self.pending.remove(at);
                self.remarks.extend(assembly.remarks);
                return Some(assembly.reply);
            }
        }
    }

    /// S-REP-01, S-REP-02: a reply belongs to a request that has none yet.
    #[track_caller]
    fn position(&self, cookie: u64) -> usize {
        let at = self.pending.iter().position(|assembly| assembly.reply.cookie == cookie);
        at.unwrap_or_else(|| panic!("S-REP-01, -02: unsolicited reply with cookie {cookie:#x}"))
    }

    #[track_caller]
    fn receive_simple(&mut self) -> usize {
        let error = Errno(self.wire.u32("simple reply"));
        let cookie = self.wire.u64("simple reply");
        let at = self.position(cookie);
        let error = (error != Errno(0)).then_some(error);
        let len = match error {
            None => self.pending[at].simple_data_len(),
            Some(_) => 0,
        };
        let data = match self.mode {
            Mode::Simple => self.wire.recv(len, "data of a simple reply"),
            _ => Vec::new(),
        };
        let rules = Rules::new(self.mode, &self.export, &self.selection);
        self.pending[at].accept_simple(error, data, &rules);
        at
    }

    #[track_caller]
    fn receive_chunk(&mut self) -> Option<usize> {
        let chunk = Chunk::read(&mut self.wire, self.mode);
        let at = self.position(chunk.cookie);
        let rules = Rules::new(self.mode, &self.export, &self.selection);
        self.pending[at].accept(&chunk, &rules).then_some(at)
    }
}
