//! The client: connection, greeting, leaving.

use super::assembly::{Assembly, Reply};
use super::codes::{Cmd, MAX_STRING, Opt, handshake, magic};
use super::export::ExportInfo;
use super::late::gone;
use super::meta::Context;
use super::request::Request;
use super::wire::{Wire, is_end, trusting};
use crate::Endpoint;

/// How requests and replies look on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies (and simple ones without data).
    Structured,
    /// Extended headers both ways.
    Extended,
}

/// What the server said first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The second magic: `IHAVEOPT` of a newstyle server.
    pub magic: u64,
    /// Handshake flags.
    pub flags: u16,
}

/// A scripted client on one connection.
#[derive(Debug)]
pub struct RawClient {
    pub(super) wire: Wire,
    pub(super) mode: Mode,
    /// Handshake flags that both sides have set.
    pub(super) agreed: u32,
    offered: u32,
    pub(super) export: Option<ExportInfo>,
    /// The export that contexts were selected for, and the contexts.
    pub(super) selection: Option<(Vec<u8>, Vec<Context>)>,
    pub(super) pending: Vec<Assembly>,
    pub(super) finished: Vec<Reply>,
    pub(super) next_cookie: u64,
    pub(super) remarks: Vec<String>,
}

impl RawClient {
    /// Connects, and neither sends nor receives anything yet.
    #[track_caller]
    pub fn connect(endpoint: &Endpoint) -> Self {
        Self::over(Wire::connect(endpoint))
    }

    /// A client over a stream that is there already.
    pub fn over(wire: Wire) -> Self {
        Self {
            wire,
            mode: Mode::Simple,
            agreed: 0,
            offered: 0,
            export: None,
            selection: None,
            pending: Vec::new(),
            finished: Vec::new(),
            next_cookie: 0xc001_0000_0000_0001,
            remarks: Vec::new(),
        }
    }

    /// Connects, agrees on everything that the greeting offers, and upgrades to TLS where the server requires it: ready
    /// for options.
    #[track_caller]
    pub fn negotiate(endpoint: &Endpoint) -> Self {
        let mut client = Self::connect(endpoint);
        let offered = u32::from(client.read_greeting().flags);
        client.send_client_flags(offered & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES));
        if let Endpoint::Tls { certificates, .. } = endpoint {
            client.option(Opt::STARTTLS, &[]).expect("STARTTLS is acknowledged");
            let config = trusting(&certificates.join("ca-cert.pem"));
            if let Err(error) = client.wire.start_tls(config, "localhost") {
                let what = format!("a handshake: {error}");
                if is_end(&error) { gone(what) } else { panic!("{what}") }
            }
        }
        client
    }

    /// Connects and enters transmission on the default export with simple replies.
    #[track_caller]
    pub fn go_simple(endpoint: &Endpoint) -> Self {
        let mut client = Self::negotiate(endpoint);
        client.go("", &[]).expect("the default export is there");
        client
    }

    /// The same with structured replies and `base:allocation`.
    #[track_caller]
    pub fn go_structured(endpoint: &Endpoint) -> Self {
        let mut client = Self::negotiate(endpoint);
        client.structured_reply().expect("structured replies are supported");
        client.set_meta_context("", &["base:allocation"]).expect("contexts are supported");
        client.go("", &[]).expect("the default export is there");
        client
    }

    /// The same with extended headers and `base:allocation`.
    #[track_caller]
    pub fn go_extended(endpoint: &Endpoint) -> Self {
        let mut client = Self::negotiate(endpoint);
        client.extended_headers().expect("extended headers are supported");
        client.set_meta_context("", &["base:allocation"]).expect("contexts are supported");
        client.go("", &[]).expect("the default export is there");
        client
    }

    /// Enters transmission on the default export in the given mode.
    #[track_caller]
    pub fn go_in(mode: Mode, endpoint: &Endpoint) -> Self {
        match mode {
            Mode::Simple => Self::go_simple(endpoint),
            Mode::Structured => Self::go_structured(endpoint),
            Mode::Extended => Self::go_extended(endpoint),
        }
    }

    /// Reads the greeting: the first magic is checked, the second is the caller's to judge.
    #[track_caller]
    pub fn read_greeting(&mut self) -> Greeting {
        let init = self.wire.u64("greeting");
        assert_eq!(init, magic::INIT, "S-HS-01: the greeting starts with NBDMAGIC");
        let magic = self.wire.u64("greeting");
        let flags = self.wire.u16("greeting");
        self.offered = flags.into();
        Greeting { magic, flags }
    }

    /// Sends client flags, sensible or not.
    #[track_caller]
    pub fn send_client_flags(&mut self, flags: u32) {
        self.agreed = self.offered & flags;
        self.wire.send(&flags.to_be_bytes());
    }

    /// The stream itself, for bytes that no method would send.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// How requests and replies look now.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Makes the client use another form than what was negotiated.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// The export that transmission was entered on.
    #[track_caller]
    pub fn export(&self) -> &ExportInfo {
        self.export.as_ref().expect("transmission was entered")
    }

    /// Whether a transmission flag is set.
    #[track_caller]
    pub fn has_flag(&self, flag: u16) -> bool {
        self.export().flags & flag != 0
    }

    /// Broken SHOULD rules so far.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    pub(super) fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    /// Leaves properly and checks that the session was clean: every reply was read, nothing unsolicited is
    /// left on the stream (S-REP-02), the server closes (S-OPT-AB-01, S-CMD-DISC-01), no SHOULD was broken.
    #[track_caller]
    pub fn finish(self) {
        let remarks = self.leave();
        assert!(remarks.is_empty(), "broken SHOULD rules: {remarks:#?}");
    }

    /// The same for peers that are known to break a SHOULD: gives the remarks instead of judging them.
    #[track_caller]
    pub fn leave(mut self) -> Vec<String> {
        assert!(self.pending.is_empty() && self.finished.is_empty(), "replies were left unread");
        if self.export.is_some() {
            self.send(&Request::new(Cmd::DISC, 0, 0));
        } else {
            self.option(Opt::ABORT, &[]).expect("S-OPT-AB-01: ABORT is acknowledged");
        }
        self.wire.expect_eof();
        self.remarks
    }
}

/// Checks a string that a server sent (B-CONV-02, B-CONV-03).
#[track_caller]
pub(super) fn check_string(bytes: &[u8], what: &str) -> String {
    assert!(bytes.len() <= MAX_STRING, "B-CONV-03: {what} has {} bytes", bytes.len());
    assert!(!bytes.contains(&0), "B-CONV-02: {what} contains NUL: {bytes:?}");
    match core::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(error) => panic!("B-CONV-02: {what} is not UTF-8: {error}: {bytes:?}"),
    }
}
