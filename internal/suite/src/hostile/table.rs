//! Faults as tables: what the server answers, and what becomes of the request and of the connection.

use core::time::Duration;

use nbd_engine::client::{ClientConfig, Error, Flags, LostReason};
use nbd_engine::proto;
use nbd_proto::wire::ErrorCode;
use nbd_testkit::assert_same_bytes;
use nbd_testkit::raw::{Cmd, Mode};
use nbd_testkit::scripted::{Answer, Export, Script, ScriptedServer};

use crate::client::ClientUnderTest;
use crate::{ClientSetup, Transport};

pub(super) const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];
/// Those in which replies come in chunks.
pub(super) const CHUNKED: [Mode; 2] = [Mode::Structured, Mode::Extended];

/// What reads and other requests with a range are about.
pub(super) const AT: u64 = 4096;
pub(super) const LENGTH: usize = 1024;

/// A deadline that is there to be reached.
pub(super) const SHORT: Duration = Duration::from_millis(100);

impl ClientSetup {
    /// A server of scripts, on the transport of the setup.
    pub(super) fn play(&self, scripts: impl IntoIterator<Item = Script>) -> ScriptedServer {
        match self.transport() {
            Transport::Tcp => ScriptedServer::tcp(scripts),
            Transport::Unix | Transport::Tls => ScriptedServer::unix(scripts),
        }
    }
}

/// A client that asks for a metadata context, and by far not too soon for anything.
pub(super) fn config() -> ClientConfig {
    ClientConfig::new().with_contexts(["base:allocation"])
}

/// The same with a deadline for requests that is there to be reached.
pub(super) fn hasty() -> ClientConfig {
    config().with_request_timeout(Some(SHORT))
}

/// A script that has got as far as transmission.
pub(super) fn entered(mode: Mode) -> Script {
    Script::new(Export::new(mode)).enter()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Read,
    ReadUnfragmented,
    Write,
    Flush,
    Trim,
    Status,
    StatusOfOne,
}

impl Ask {
    pub(super) const fn command(self) -> Cmd {
        match self {
            Self::Read | Self::ReadUnfragmented => Cmd::READ,
            Self::Write => Cmd::WRITE,
            Self::Flush => Cmd::FLUSH,
            Self::Trim => Cmd::TRIM,
            Self::Status | Self::StatusOfOne => Cmd::BLOCK_STATUS,
        }
    }

    pub(super) fn of(self, client: &dyn ClientUnderTest) -> Result<Vec<u8>, Error> {
        let lent = |(buffer, result): (Vec<u8>, Result<(), Error>)| result.map(|()| buffer);
        let nothing = |()| Vec::new();
        let length = LENGTH as u64;
        match self {
            Self::Read => lent(client.read_into(AT, vec![0; LENGTH], Flags::empty())),
            Self::ReadUnfragmented => {
                lent(client.start_read(AT, vec![0; LENGTH], Flags::DF).wait())
            }
            Self::Write => client.write_all_at(&[1; LENGTH], AT).map(nothing),
            Self::Flush => client.flush().map(nothing),
            Self::Trim => client.trim(AT, length, Flags::empty()).map(nothing),
            Self::Status => client.block_status(AT, length, Flags::empty()).map(|_| Vec::new()),
            Self::StatusOfOne => {
                client.block_status(AT, length, Flags::REQ_ONE).map(|_| Vec::new())
            }
        }
    }
}

/// What a fault is, as far as a pattern tells.
pub(super) type Which = fn(&proto::Error) -> bool;

/// A violation of the protocol, as a pattern.
macro_rules! which {
    ($pattern:pat) => {{
        use nbd_engine::proto::Error::*;
        #[allow(unused_imports, reason = "not every fault is one of these")]
        use nbd_engine::proto::{LimitExceeded as Limit, PeerMisbehaved as Peer};
        |error: &nbd_engine::proto::Error| matches!(error, $pattern)
    }};
}
pub(super) use which;

/// What is to become of it.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    /// The client leaves without a word, and says why.
    Breaks(Which),
    /// The request fails, and later ones do not.
    Fails(ErrorCode),
    /// Nothing happens.
    Succeeds,
}

/// A request, what it is answered in these modes, and what becomes of it.
pub(super) struct Case {
    pub(super) rule: &'static str,
    pub(super) modes: &'static [Mode],
    pub(super) ask: Ask,
    pub(super) answers: Vec<Answer>,
    pub(super) fate: Fate,
}

pub(super) fn case(
    rule: &'static str,
    modes: &'static [Mode],
    ask: Ask,
    answers: impl Into<Vec<Answer>>,
    fate: Fate,
) -> Case {
    Case { rule, modes, ask, answers: answers.into(), fate }
}

impl Case {
    /// Plays it in each of its modes.
    pub(super) fn play(&self, setup: ClientSetup) {
        for &mode in self.modes {
            let answers: String = format!("{:?}", self.answers).chars().take(300).collect();
            let what = format!("{}, {mode:?}, {:?} answered by {answers}", self.rule, self.ask);
            let script = entered(mode).request(self.ask.command());
            let script = self.answers.iter().cloned().fold(script, Script::answer);
            match self.fate {
                Fate::Breaks(which) => {
                    // It is the client that has to hang up.
                    let server = setup.play([script.silence()]);
                    self.breaks(setup, server, which, &what);
                }
                Fate::Fails(_) | Fate::Succeeds => {
                    let server = setup.play([script.serve()]);
                    self.survives(setup, server, &what);
                }
            }
        }
    }

    fn breaks(&self, setup: ClientSetup, server: ScriptedServer, which: Which, what: &str) {
        let client = connect(setup, &server, &config(), what);
        let result = self.ask.of(&*client);
        let Err(error) = result else { panic!("{what}: a success") };
        expect_broken(&error, Some(true), which, what);
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{what}: {error}");
        assert!(!client.is_connected(), "{what}: nothing is taken any more");
        let later = client.flush().expect_err(what);
        expect_broken(&later, Some(false), which, what);
        assert!(server.finish()[0].left, "{what}: the client has hung up");
    }

    fn survives(&self, setup: ClientSetup, server: ScriptedServer, what: &str) {
        let client = connect(setup, &server, &config(), what);
        match (self.fate, self.ask.of(&*client)) {
            (Fate::Fails(code), Err(error)) => {
                assert!(matches!(error, Error::Command { .. }), "{what}: {error}");
                assert_eq!(error.code(), Some(code), "{what}: {error}");
            }
            (Fate::Succeeds, Ok(data)) => {
                let content = Export::CONTENT.bytes(AT, data.len());
                assert_same_bytes(&data, &content, what);
            }
            (Fate::Succeeds, Err(error)) => panic!("{what}: {error}"),
            _ => panic!("{what}: a success"),
        }
        expect_alive(&*client, what);
        drop(client);
        server.finish();
    }
}

#[track_caller]
pub(super) fn connect(
    setup: ClientSetup,
    server: &ScriptedServer,
    config: &ClientConfig,
    what: &str,
) -> Box<dyn ClientUnderTest> {
    let client = setup.connect(server.endpoint(), config);
    client.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// The connection was lost because of this violation.
#[track_caller]
pub(super) fn expect_broken(error: &Error, was_sent: Option<bool>, which: Which, what: &str) {
    let Error::Lost { sent, reason: LostReason::Protocol(source), .. } = error else {
        panic!("{what}: {error:?}");
    };
    assert!(which(source), "{what}: {source:?}");
    assert!(was_sent.is_none_or(|was| was == *sent), "{what}: {error}");
}

/// The request was given up once it had been sent. Nothing if it was given up before that: on a busy machine its time may
/// be over first, and the case is to be played again.
#[track_caller]
pub(super) fn expect_given_up(error: &Error, what: &str) -> Option<()> {
    let Error::TimedOut { sent, .. } = error else { panic!("{what}: {error:?}") };
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    sent.then_some(())
}

/// Requests succeed, and nothing of the server's is mistaken for something else. A deadline that was made to be reached
/// may be reached on a busy machine: then it is asked again.
#[track_caller]
pub(super) fn expect_alive(client: &dyn ClientUnderTest, what: &str) {
    for offset in [0, 512] {
        let data = loop {
            match client.read(offset, 1000, Flags::empty()) {
                Ok(data) => break data,
                Err(Error::TimedOut { .. }) => {}
                Err(error) => panic!("{what}: {error}"),
            }
        };
        assert_same_bytes(&data, &Export::CONTENT.bytes(offset, 1000), what);
    }
    assert!(client.is_connected(), "{what}");
}
