//! Clients that take no replies.

use std::sync::atomic::Ordering;
use std::task::Waker;

use futures_util::FutureExt;
use nbd_proto::wire::{CommandFlags, CommandType};
use proptest::prelude::*;

use super::tests::{Counter, Script, Still, script};
use super::*;
use crate::export::{ExportMap, PeerAddr};
use crate::server::ServerConfig;

/// Polls after which whatever has not happened never will.
const MANY: usize = 3000;

/// The greeting, and the size and the flags of the export.
const NEGOTIATION: usize = 18 + 8 + 2;

/// A session of a client, and the disk that counts the bytes which were written.
fn session(transport: Script) -> (Session<Script>, Arc<Counter>) {
    let disk = Arc::new(Counter::default());
    let exports = ExportMap::new().with("", Arc::clone(&disk)).unwrap();
    let state = ServerState::new(exports, ServerConfig::new());
    let client = state.client(PeerAddr::Unix(None));
    let session = Session::new(Arc::clone(&state), transport, client, None, &Still);
    (session.now_or_never().unwrap().unwrap(), disk)
}

/// How it ends, if it does.
fn end_of(session: &mut Session<Script>) -> Option<Result<End, ConnectionError>> {
    let mut cx = Context::from_waker(Waker::noop());
    (0..MANY).find_map(|_| match session.poll(&mut cx) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    })
}

/// A request to disconnect.
fn disconnect() -> Vec<u8> {
    let (flags, command) = (CommandFlags::empty(), CommandType::DISC);
    CompactRequest { flags, command, cookie: 0, offset: 0, length: 0 }.encode().to_vec()
}

proptest! {
    /// What a client sends before it disconnects is carried out, wherever its stream stops to take replies.
    #[test]
    fn what_comes_before_a_disconnect_is_carried_out(
        count in 1..1000_u64,
        length in 1..6000_u32,
        takes in 0..20_000_usize,
        max in 1..100_000_usize,
    ) {
        let mut input = script(CommandType::WRITE, length, count);
        input.extend(disconnect());
        let (mut session, disk) = session(Script::new(input).in_pieces(max).deaf_after(takes, true));
        let end = end_of(&mut session);
        prop_assert!(matches!(end, Some(Ok(End::Closed(OrderlyEnd::Disconnected)))), "{end:?}");
        prop_assert_eq!(disk.0.load(Ordering::Relaxed) as u64, count * u64::from(length));
        prop_assert!(session.is_idle());
    }

    /// The same where replies can't be sent for too long.
    #[test]
    fn what_comes_before_a_disconnect_is_carried_out_after_a_stall(
        count in 1..1000_u64,
        takes in 0..20_000_usize,
    ) {
        let mut input = script(CommandType::WRITE, 512, count);
        input.extend(disconnect());
        let (mut session, disk) = session(Script::new(input).deaf_after(takes, false));
        if end_of(&mut session).is_some() {
            return Ok(());
        }
        let stall = Stall { time: Duration::from_secs(30), bytes: 0, min_rate: 0 };
        let is_left = session.pump.machine.ending().is_some();
        let stopped = session.stop_sending(stall);
        if !is_left {
            prop_assert!(matches!(stopped, Err(ConnectionError::SendStalled(_))));
            return Ok(());
        }
        prop_assert!(!session.activity().sending);
        let end = end_of(&mut session);
        prop_assert!(matches!(end, Some(Err(ConnectionError::SendStalled(_)))), "{end:?}");
        prop_assert_eq!(disk.0.load(Ordering::Relaxed) as u64, count * 512);
    }

    /// A client that takes no replies and does not leave either is left by the server.
    #[test]
    fn a_client_that_takes_no_replies_and_stays_is_cut_off(
        count in 1..1000_u64,
        cut in 0..600_usize,
        takes in 0..20_000_usize,
    ) {
        let mut input = script(CommandType::WRITE, 512, count);
        input.truncate(input.len() - cut);
        let complete = count - (cut as u64).div_ceil(512 + 28);
        let sent = NEGOTIATION + 16 * complete as usize;
        let (mut session, _) = session(Script::new(input).deaf_after(takes, true));
        let end = end_of(&mut session);
        if takes < sent {
            prop_assert!(matches!(end, Some(Err(ConnectionError::Transport(_)))), "{end:?}");
        } else {
            prop_assert!(end.is_none(), "{end:?}");
        }
    }
}
