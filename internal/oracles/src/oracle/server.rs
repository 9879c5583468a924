//! The server's machine against any client.

use nbd_pair::server::{ServerEnd, server_end};
use nbd_pair::split::Split;
use nbd_proto::server::{Config, Connection, TlsMode};
use nbd_proto::wire::TransmissionFlags;
use nbd_proto::{BlockSize, ContextInfo, ExportInfo, Limits, PeerMisbehaved};

use super::reparse;
use super::whim::Whim;
use crate::choices::{Choices, Whims};

/// How a server is set up and behaves, from the first nine bytes.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) config: Config,
    export: ExportInfo,
    bytes: [u8; 9],
}

impl Setup {
    pub(super) fn take(choices: &mut Choices<'_>) -> Self {
        let bytes: [u8; 9] = choices.bytes();
        let bit = |byte: usize, bit: u8| bytes[byte] >> bit & 1 == 1;
        let mut config = Config::default();
        config.structured_replies = !bit(0, 0);
        config.extended_headers = !bit(0, 1);
        config.no_zeroes = !bit(0, 2);
        config.require_payload_flag = bit(0, 3);
        config.tls = match bytes[0] >> 4 & 3 {
            2 => TlsMode::Available,
            3 => TlsMode::Required,
            _ => TlsMode::Off,
        };
        config.limits = limits(bit(0, 6));
        let mut export = ExportInfo::new(if bit(1, 7) { 1 << 62 } else { 1 << 16 });
        export.flags = TransmissionFlags::all();
        export.flags.set(TransmissionFlags::READ_ONLY, bit(1, 0));
        if bit(1, 6) {
            export.flags = TransmissionFlags::empty();
        }
        if bit(1, 1) {
            export.block_size = BlockSize::new(512, 4096, 1 << 16).expect("it makes sense");
        }
        export.block_size_required = bit(1, 2);
        export.tls_required = bit(1, 3);
        export.contexts = vec![ContextInfo::base_allocation()];
        if bit(1, 4) {
            let names = ["x-a:one", "x-a:two:three", "x-b:wide", "x-a:one"];
            export.contexts.extend(names.into_iter().filter_map(ContextInfo::new));
            export.contexts[3] = export.contexts[3].clone().wide();
        }
        if bit(1, 5) {
            export.name = Some("disk".into());
            export.description = Some("a description that is no valid string\0".into());
        }
        Self { config, export, bytes }
    }

    /// Oldstyle where that is wanted and possible.
    fn connection(&self) -> Connection {
        let oldstyle = (self.bytes[0] >> 4 & 3 == 1)
            .then(|| Connection::oldstyle(self.config.clone(), &self.export).ok())
            .flatten();
        oldstyle.unwrap_or_else(|| Connection::new(self.config.clone()))
    }

    fn whim(&self) -> Whim {
        let mut whim = Whim::new(self.export.clone(), Whims::new(self.bytes[2]));
        whim.patience = usize::from(self.bytes[3] & 31);
        whim.backwards = self.bytes[3] & 64 != 0;
        whim.clumsy = self.bytes[0] & 128 != 0;
        whim.shut_down_at = usize::from(self.bytes[7]);
        whim.shrink_at = usize::from(self.bytes[8]);
        whim
    }

    fn split(&self) -> Split {
        Split::Cycle(vec![usize::from(self.bytes[4]).max(1), usize::from(self.bytes[5]).max(1)])
    }

    fn pieces(&self) -> Split {
        Split::Cycle(vec![usize::from(self.bytes[6]) * 16 + 1])
    }

    /// Control bytes that may wait to be sent, from the formula of [`Limits`].
    fn most_queued(&self) -> usize {
        let limits = &self.config.limits;
        let contexts = self.export.contexts.len().min(limits.max_contexts as usize);
        let in_flight = limits.max_in_flight as usize;
        let replies =
            in_flight * (2 * (32 + 4128) + contexts * (40 + 16 * limits.max_extents as usize));
        // Holes in simple replies are zeroes of the core.
        let zeroes = limits.max_in_flight_bytes.max(u64::from(limits.max_payload)) as usize;
        (256 << 10) + limits.max_option_data as usize + replies + zeroes + (64 << 10)
    }
}

/// Small enough to be reached, or large enough not to be in the way.
fn limits(small: bool) -> Limits {
    let mut limits = Limits::DEFAULT;
    (limits.max_in_flight, limits.max_in_flight_bytes, limits.max_payload) = (16, 1 << 18, 1 << 16);
    if small {
        (limits.max_in_flight, limits.max_in_flight_bytes) = (3, 5000);
        limits.max_payload = 4096;
        (limits.max_option_data, limits.max_option_skip) = (128, 512);
        (limits.max_options, limits.max_contexts, limits.max_extents) = (40, 2, 5);
    }
    limits
}

/// Feeds a client's bytes to the server's machine, in one piece and in several, with an embedder that answers by whim.
///
/// No panic, no endless loop, never more bytes eaten than given, the same events and output for every way to cut the
/// stream, bounded queues, output that the codec understands, nothing left in flight in the end.
pub fn server(data: &[u8]) {
    let mut choices = Choices::new(data);
    let setup = Setup::take(&mut choices);
    run(&setup, choices.rest());
}

/// Gives the session in which the stream came in one piece.
pub(super) fn run(setup: &Setup, stream: &[u8]) -> ServerEnd<Whim> {
    let whole = once(setup, stream, Split::Whole, Split::Whole, false);
    let pieces = once(setup, stream, setup.split(), setup.pieces(), false);
    let lazy = once(setup, stream, setup.split(), Split::Whole, true);
    if whole.error() == Some(PeerMisbehaved::PlaintextAfterStartTls.into()) {
        // In pieces, what follows STARTTLS may come after the handshake.
        let agreed = whole.log.iter().take_while(|line| !line.starts_with("error"));
        let agreed: Vec<_> = agreed.cloned().collect();
        assert!(pieces.log.starts_with(&agreed) && lazy.log.starts_with(&agreed));
        return whole;
    }
    assert_eq!(whole.log, pieces.log, "events depend on how the stream is cut");
    assert_eq!(whole.log, lazy.log, "events depend on when replies are sent");
    assert_eq!(whole.output, pieces.output, "replies depend on how the stream is cut");
    whole
}

fn once(
    setup: &Setup,
    stream: &[u8],
    mut split: Split,
    pieces: Split,
    lazy: bool,
) -> ServerEnd<Whim> {
    let mut server = server_end(setup.connection(), setup.whim(), pieces);
    server.lazy = lazy;
    let mut rest = stream;
    while !rest.is_empty() && !server.ended() {
        let (piece, after) = rest.split_at(split.next(rest.len()));
        rest = after;
        server.receive(piece);
    }
    server.close();
    if server.error().is_none() {
        assert_eq!(server.connection.requests_in_flight(), 0);
    }
    assert!(server.largest_queue() <= setup.most_queued(), "{} bytes", server.largest_queue());
    check_output(&server);
    server
}

fn check_output(server: &ServerEnd<Whim>) {
    let Some(entered) = server.entered else {
        reparse::option_phase(&server.output, false);
        return;
    };
    reparse::option_phase(&server.output[..entered], true);
    let view = server.connection.export().expect("it was entered");
    let replies = if view.structured {
        reparse::chunks(&server.output[entered..], view.extended)
    } else {
        reparse::simple(&server.output, entered, &server.spans)
    };
    // Those that the embedder did not see were answered by the core.
    assert!(replies >= server.finished, "{replies} replies to {} requests", server.finished);
}
