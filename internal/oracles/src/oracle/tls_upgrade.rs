//! The upgrade to TLS, of both machines, with plain text around it.

use nbd_pair::split::Split;
use nbd_proto::wire::{OptionCode, OptionHeader};
use nbd_proto::{Segments, Wants, client, server};

use crate::choices::{Choices, Whims};

/// What was received in the clear before TLS is never acted on in TLS: a machine that has any of it unread when the upgrade
/// is agreed on, or before its own half of the agreement is sent, ends the connection. A client that requires TLS says
/// nothing before it but that.
///
/// Three bytes of setup, then what the peer says: in the clear up to where the upgrade happens, then inside of TLS.
pub fn tls_upgrade(data: &[u8]) {
    let mut choices = Choices::new(data);
    let [mode, piece, seed] = choices.bytes();
    let stream = Stream {
        unread: Vec::new(),
        rest: choices.rest(),
        pieces: if piece == 0 { Split::Whole } else { Split::Cycle(vec![piece.into(), 1]) },
        whims: Whims::new(seed),
        steps: data.len() * 8 + 256,
    };
    if mode & 2 == 0 {
        serve(mode & 1 == 1, stream);
    } else {
        connect(mode & 1 == 1, stream);
    }
}

/// What the peer says, and how it arrives.
struct Stream<'a> {
    unread: Vec<u8>,
    rest: &'a [u8],
    pieces: Split,
    whims: Whims,
    /// So many calls are enough for any session.
    steps: usize,
}

impl Stream<'_> {
    /// Receives more. Gives `false` at the end.
    fn receive(&mut self) -> bool {
        let (piece, rest) = self.rest.split_at(self.pieces.next(self.rest.len()));
        self.unread.extend_from_slice(piece);
        self.rest = rest;
        !piece.is_empty()
    }

    /// Calls `next_event` with what is unread, and drops what that took.
    fn feed<E>(&mut self, next_event: impl FnOnce(&mut &[u8]) -> E) -> E {
        assert!(self.steps > 0, "the machine does not come to an end");
        self.steps -= 1;
        let mut input = &self.unread[..];
        let event = next_event(&mut input);
        let taken = self.unread.len() - input.len();
        self.unread.drain(..taken);
        event
    }

    /// Whether something happens that need not.
    const fn one_in_four(&mut self) -> bool {
        self.whims.next() & 3 == 0
    }
}

fn queued(segments: Segments<'_>) -> usize {
    segments.map(|segment| segment.len()).sum()
}

macro_rules! drive {
    ($machine:ident, $stream:ident, $module:ident, |$event:ident| $answer:block, |$sent:ident| $look:block) => {{
        // Whether plain text was there when it must not be.
        let mut early = false;
        let mut agreed = false;
        loop {
            let unsent = queued($machine.segments());
            early |= agreed && unsent > 0 && !$stream.unread.is_empty();
            let event = $stream.feed(|input| $machine.next_event(input));
            match event {
                Some($module::Event::StartTls) => {
                    assert!(!agreed && !$machine.is_tls(), "TLS starts once");
                    agreed = true;
                    early |= !$stream.unread.is_empty();
                    if queued($machine.segments()) > 0 && $stream.one_in_four() {
                        early |= $stream.receive();
                    }
                    continue;
                }
                Some($module::Event::Closed(result)) => {
                    assert!(!early || result.is_err(), "plain text was passed over");
                    return;
                }
                Some($event) => {
                    $answer;
                    continue;
                }
                None => {}
            }
            let unsent = queued($machine.segments());
            if unsent > 0 && !$stream.one_in_four() {
                let $sent = (1 + usize::from($stream.whims.next())).min(unsent);
                $look;
                let finished = $machine.transmitted($sent).expect("as much was queued");
                assert_eq!(finished.count(), 0, "there are no requests");
                continue;
            }
            match $machine.wants() {
                Wants::Tls => {
                    assert!(agreed && !early, "plain text behind the upgrade was passed over");
                    assert_eq!(unsent, 0, "what belongs before TLS is sent before it");
                    $machine.tls_established().expect("it was wanted");
                    assert!($machine.is_tls());
                    agreed = false;
                }
                Wants::Closed => panic!("it was not said how the session ended"),
                Wants::Payload { .. } => panic!("there is no export"),
                _ => {
                    if !$stream.receive() && unsent == 0 {
                        $machine.end_of_stream();
                    }
                }
            }
        }
    }};
}

fn serve(required: bool, mut stream: Stream<'_>) {
    let mut config = server::Config::default();
    config.tls = if required { server::TlsMode::Required } else { server::TlsMode::Available };
    let mut machine = server::Connection::new(config);
    drive!(
        machine,
        stream,
        server,
        |event| {
            assert!(!required || machine.is_tls(), "{event:?} before TLS");
            let answered = match event {
                server::Event::List => machine.refuse_list(server::LookupRefusal::Unknown),
                server::Event::Lookup(_) => {
                    machine.answer_lookup(Err(server::LookupRefusal::Unknown)).map(drop)
                }
                other => panic!("{other:?} without an export"),
            };
            answered.expect("it was asked");
        },
        |_sent| {}
    )
}

fn connect(required: bool, mut stream: Stream<'_>) {
    let mut config = client::Config::default();
    config.tls = if required { client::TlsMode::Required } else { client::TlsMode::Preferred };
    config.goal = client::Goal::Prepare;
    let mut machine = client::Connection::new(config).expect("there is nothing in it");
    let mut clear = Vec::new();
    drive!(
        machine,
        stream,
        client,
        |event| {
            if matches!(event, client::Event::YourTurn) {
                assert!(!required || machine.is_tls(), "a session without TLS");
                machine.disconnect();
            }
        },
        |sent| {
            if required && !machine.is_tls() {
                let bytes = machine.segments().flat_map(|segment| match segment {
                    nbd_proto::Segment::Control(bytes) => bytes.to_vec(),
                    nbd_proto::Segment::Body { .. } => panic!("there are no requests"),
                });
                clear.extend(bytes.take(sent));
                assert_tells_nothing(&clear);
            }
        }
    )
}

/// The client's flags, STARTTLS and ABORT, wholly or in part.
fn assert_tells_nothing(sent: &[u8]) {
    let mut options = sent.get(4..).unwrap_or_default();
    while let Some((header, rest)) = options.split_first_chunk() {
        let header = OptionHeader::decode(header).expect("our own option");
        let harmless = [OptionCode::STARTTLS, OptionCode::ABORT].contains(&header.code);
        assert!(harmless && header.length == 0, "{header:?} before TLS");
        options = rest;
    }
}
