//! How the server's machine takes STARTTLS: what shows without TLS itself.

use nbd_pair::split::Split;
use nbd_proto::server::{Config, Connection, Event, TlsMode};
use nbd_proto::wire::{OptionCode, OptionHeader, OptionReplyHeader, OptionReplyType};
use nbd_proto::{Error, Misuse, NoSession, NotServed, PauseReason, PeerMisbehaved, Wants};

struct Server(Connection);

impl Server {
    fn new(tls: TlsMode) -> Self {
        let mut config = Config::default();
        config.tls = tls;
        let mut server = Self(Connection::new(config));
        assert_eq!(server.sent().len(), 18);
        server.receive(&[0, 0, 0, 3]).expect("flags are fine");
        server
    }

    /// All that waits to be sent.
    fn sent(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in self.0.segments() {
            let nbd_proto::Segment::Control(run) = segment else { panic!("there is no body") };
            bytes.extend_from_slice(run);
        }
        let finished = self.0.transmitted(bytes.len()).expect("there was as much");
        assert_eq!(finished.count(), 0);
        bytes
    }

    /// Gives bytes in each piece at once; the last event, or how it ended.
    fn receive(&mut self, mut bytes: &[u8]) -> Result<Option<Event>, Error> {
        match self.0.next_event(&mut bytes) {
            Some(Event::Closed(Err(error))) => Err(error),
            event => Ok(event),
        }
    }

    /// Sends an option, and gives how it was answered.
    fn option(&mut self, code: OptionCode, data: &[u8]) -> OptionReplyType {
        let header = OptionHeader { code, length: data.len() as u32 };
        let bytes = [&header.encode()[..], data].concat();
        let mut split = Split::Cycle(vec![5]);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(split.next(rest.len()));
            self.receive(piece).expect("it is answered");
            rest = after;
        }
        let sent = self.sent();
        let head = sent.first_chunk().expect("it is answered");
        let header = OptionReplyHeader::decode(head).expect("it is a reply");
        assert_eq!(header.code, code);
        header.reply
    }

    fn start_tls(&mut self) {
        assert_eq!(self.option(OptionCode::STARTTLS, &[]), OptionReplyType::ACK);
        assert_eq!(self.0.wants(), Wants::Tls);
        self.0.tls_established().expect("it was due");
    }
}

/// S-TLS-04, S-TLS-07: TLS inside of TLS.
#[test]
fn starttls_inside_of_tls_is_invalid() {
    for tls in [TlsMode::Available, TlsMode::Required] {
        let mut server = Server::new(tls);
        server.start_tls();
        assert_eq!(server.option(OptionCode::STARTTLS, &[]), OptionReplyType::ERR_INVALID);
        assert_eq!(server.option(OptionCode(77), &[]), OptionReplyType::ERR_UNSUP);
        assert!(server.0.is_tls());
    }
}

/// S-TLS-08: nothing is upgraded.
#[test]
fn starttls_with_data_is_invalid() {
    for tls in [TlsMode::Available, TlsMode::Required] {
        let mut server = Server::new(tls);
        assert_eq!(server.option(OptionCode::STARTTLS, b"data"), OptionReplyType::ERR_INVALID);
        assert!(!server.0.is_tls());
        server.start_tls();
    }
}

/// S-TLS-09: what was read together with STARTTLS must not pass for something that came through TLS.
#[test]
fn plain_text_behind_starttls_is_fatal() {
    let mut server = Server::new(TlsMode::Available);
    let header = |code| OptionHeader { code, length: 0 }.encode();
    let both = [header(OptionCode::STARTTLS), header(OptionCode::LIST)].concat();
    let error = PeerMisbehaved::PlaintextAfterStartTls;
    assert_eq!(server.receive(&both), Ok(None));
    assert_eq!(server.0.wants(), Wants::Nothing(PauseReason::Closing));
    server.sent();
    assert_eq!(server.receive(&[]), Err(error.into()));
    assert_eq!(server.0.wants(), Wants::Closed);

    // It may come later, too, as long as the client can't have seen the acknowledgement.
    let mut server = Server::new(TlsMode::Available);
    let event = server.receive(&header(OptionCode::STARTTLS)).expect("it is fine");
    assert_eq!(event, Some(Event::StartTls));
    assert_eq!(server.0.wants(), Wants::Nothing(PauseReason::Unsent));
    assert_eq!(server.receive(&header(OptionCode::LIST)), Ok(None));
    server.sent();
    assert_eq!(server.0.tls_established(), Err(Misuse::WrongPhase));
    assert_eq!(server.receive(&[]), Err(error.into()));

    // What comes after that is for TLS to look at.
    let mut server = Server::new(TlsMode::Available);
    server.receive(&header(OptionCode::STARTTLS)).expect("it is fine");
    server.sent();
    let hello = header(OptionCode::LIST);
    let mut input = &hello[..];
    assert_eq!((server.0.next_event(&mut input), input.len()), (None, hello.len()));
    assert_eq!(server.0.wants(), Wants::Tls);
}

/// S-TLS-F-01, S-TLS-F-03: before TLS nothing is revealed but that it is required.
#[test]
fn forced_tls_answers_everything_else_by_tls_reqd() {
    let mut server = Server::new(TlsMode::Required);
    let mut codes: Vec<u32> = (3..=12).collect();
    codes.push(u32::MAX);
    for code in codes.into_iter().map(OptionCode).filter(|code| *code != OptionCode::STARTTLS) {
        assert_eq!(server.option(code, &[0; 6]), OptionReplyType::ERR_TLS_REQD, "{code}");
    }
    assert_eq!(server.option(OptionCode::ABORT, &[]), OptionReplyType::ACK);
}

/// S-TLS-F-02: an answer to EXPORT_NAME has no room for an error.
#[test]
fn forced_tls_ends_the_session_on_export_name() {
    let mut server = Server::new(TlsMode::Required);
    let header = OptionHeader { code: OptionCode::EXPORT_NAME, length: 4 }.encode();
    let bytes = [&header[..], b"disk"].concat();
    assert_eq!(server.receive(&bytes), Err(NoSession::NotServed(NotServed::TlsRequired).into()));
    assert!(server.0.segments().next().is_none());
}
