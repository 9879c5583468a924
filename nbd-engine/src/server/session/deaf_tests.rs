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
const MANY: usize = 1000;

/// The greeting, and the size and the flags of the export.
const NEGOTIATION: usize = 18 + 8 + 2;

/// A session of a client, and the disk that counts the bytes which were written.
fn session(transport: Script) -> (Session<Script>, Arc<Counter>) {
    session_with(transport, ServerConfig::new())
}

fn session_with(transport: Script, config: ServerConfig) -> (Session<Script>, Arc<Counter>) {
    let disk = Arc::new(Counter::default());
    let exports = ExportMap::new().with("", Arc::clone(&disk)).unwrap();
    let state = ServerState::new(exports, config);
    let client = state.client(PeerAddr::Unix(None));
    let session = Session::new(Arc::clone(&state), transport, client, None, &Still);
    (session.now_or_never().unwrap().unwrap(), disk)
}

/// How it ends: of itself, or once it was waited for long enough. Nothing is written meanwhile for a client that takes no
/// more replies, unless it has left in order.
fn end_of(session: &mut Session<Script>, disk: &Counter) -> Option<Result<End, ConnectionError>> {
    let mut cx = Context::from_waker(Waker::noop());
    // After a stall, the same error may say that all was done.
    let mut at_loss = None;
    for _ in 0..2 {
        for _ in 0..MANY {
            let polled = session.poll(&mut cx);
            let done = disk.0.load(Ordering::Relaxed);
            if let Poll::Ready(result) = polled {
                if let (Err(ConnectionError::Transport(_)), Some(before)) = (&result, at_loss) {
                    assert_eq!(done, before, "a request was carried out after the loss");
                }
                return Some(result);
            }
            if session.deaf.is_some() && session.pump.machine.ending().is_none() {
                at_loss = at_loss.or(Some(done));
            } else {
                at_loss = None;
            }
        }
        let Some(deaf) = &mut session.deaf else { break };
        assert!(session.pump.machine.ending().is_none(), "it is known how the client left");
        deaf.deadline = Instant::now();
        assert!(session.due().is_some_and(|due| due <= Instant::now()));
    }
    None
}

/// A request to disconnect.
fn disconnect() -> Vec<u8> {
    let (flags, command) = (CommandFlags::empty(), CommandType::DISC);
    CompactRequest { flags, command, cookie: 0, offset: 0, length: 0 }.encode().to_vec()
}

/// What the server takes at once at most, beyond which it does not look for a disconnect.
const MAX_IN_FLIGHT: u64 = 128;

proptest! {
    /// What a client sends before it disconnects is carried out, wherever its stream stops to take replies, or nothing of
    /// what was not begun by then is.
    #[test]
    fn what_comes_before_a_disconnect_is_carried_out(
        count in 1..1000_u64,
        length in 1..6000_u32,
        takes in 0..20_000_usize,
        max in 1..100_000_usize,
        disconnects: bool,
        stalls: bool,
    ) {
        let mut input = script(CommandType::WRITE, length, count);
        if disconnects {
            input.extend(disconnect());
        }
        let script = Script::new(input).in_pieces(max).deaf_after(takes, !stalls);
        let (mut session, disk) = session(script);
        let mut end = end_of(&mut session, &disk);
        if stalls && end.is_none() {
            let before = disk.0.load(Ordering::Relaxed) as u64 / u64::from(length);
            session.stop_sending(Stall { time: Duration::from_secs(30), bytes: 0, min_rate: 0 });
            prop_assert!(!session.activity().sending);
            end = end_of(&mut session, &disk);
            if end.is_none() {
                prop_assert_eq!(before, count, "all is done, and the client has not left");
            }
        }
        let done = disk.0.load(Ordering::Relaxed) as u64;
        let all = count * u64::from(length);
        match end {
            Some(Ok(End::Closed(OrderlyEnd::Disconnected))) => {
                prop_assert!(disconnects);
                prop_assert_eq!(done, all);
                prop_assert!(session.is_idle());
            }
            Some(Err(ConnectionError::Transport(_))) if !stalls => {
                prop_assert!(!disconnects || count > MAX_IN_FLIGHT);
            }
            Some(Err(ConnectionError::SendStalled(_))) if stalls => {
                prop_assert!(!disconnects || count > MAX_IN_FLIGHT || done == all);
            }
            None => prop_assert!(!disconnects && takes >= NEGOTIATION + 16 * count as usize),
            end => prop_assert!(false, "{end:?}"),
        }
    }
    /// However much memory the requests need and how little there is, the connection ends.
    #[test]
    fn a_client_that_takes_no_replies_and_leaves_is_soon_gone(
        requests in prop::collection::vec((any::<bool>(), 0..16_u32), 1..8),
        takes in 0..100_usize,
        stalls: bool,
    ) {
        let mut input = script(CommandType::READ, 0, 0);
        for (is_write, shift) in requests {
            let (flags, length) = (CommandFlags::empty(), (32 << 20) >> shift);
            let command = if is_write { CommandType::WRITE } else { CommandType::READ };
            input.extend(CompactRequest { flags, command, cookie: 1, offset: 0, length }.encode());
            if is_write {
                input.resize(input.len() + length as usize, 1);
            }
        }
        input.extend(disconnect());
        let config = ServerConfig::new().with_max_buffer_memory(Some(1));
        let script = Script::new(input).deaf_after(takes, !stalls);
        let (mut session, disk) = session_with(script, config);
        let mut end = end_of(&mut session, &disk);
        if stalls && end.is_none() {
            session.stop_sending(Stall { time: Duration::from_secs(30), bytes: 0, min_rate: 0 });
            end = end_of(&mut session, &disk);
        }
        prop_assert!(end.is_some());
        prop_assert_eq!(session.due(), None);
    }
}
