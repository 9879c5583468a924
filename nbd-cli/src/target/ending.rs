//! How servers that we started come to their end, on every path: our connections first, then the servers, then what is
//! left of them.

use core::sync::atomic::{AtomicBool, Ordering};
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nbd_blocking::Client;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use super::sockets::{self, LOOK};
use crate::first_signal;
use crate::ignored_signals::not_ignored;
use crate::waiting;

/// How long a server may take to answer what it was asked, and to come to the end of the connection; then it is closed. Only
/// one that hangs takes so long.
const GOODBYE: Duration = Duration::from_secs(3);

/// How long a server may take to end when it is asked to; then it is killed. It may have much to write.
const PATIENCE: Duration = Duration::from_secs(10);

/// The servers that run, so that none outlives us when a signal ends us. `None` before the first.
static RUNNING: Mutex<Option<Vec<Running>>> = Mutex::new(None);

/// What is to be done before a signal ends this process.
static LAST_ACT: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// What this process ends with, once that is decided.
static END: OnceLock<End> = OnceLock::new();

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// What the command has come to.
    Result,
    Signal,
}

/// Whether this process ends that way: whichever is wanted first is it, and the other one does nothing any more.
fn is_end(end: End) -> bool {
    *END.get_or_init(|| end) == end
}

/// Whether a signal wants this process to end.
static SIGNALLED: AtomicBool = AtomicBool::new(false);

/// Whether a second one does.
static AGAIN: AtomicBool = AtomicBool::new(false);

/// Whether a signal has come that is to end this process, and waits for whoever holds [`servers`].
pub(super) fn is_signalled() -> bool {
    SIGNALLED.load(Ordering::Relaxed)
}

fn is_signalled_again() -> bool {
    AGAIN.load(Ordering::Relaxed)
}

/// A server that was started, with all that has to end with it.
pub(super) struct Running {
    pub(super) child: Child,
    /// The command as it was given.
    pub(super) command: String,
    /// The name that its socket was bound to.
    pub(super) socket: Vec<u8>,
    /// The clients that are connected to it, or were.
    pub(super) clients: Vec<Client>,
    /// Their sockets, which show when the server has come to the end of a connection.
    pub(super) sockets: Vec<OwnedFd>,
    /// Where the socket lies.
    pub(super) dir: TempDir,
    /// The same, open, if the socket is reached by that.
    pub(super) folder: Option<OwnedFd>,
}

/// The servers that run. A signal waits for the thread that holds this, and the other way round.
pub(super) fn servers() -> MutexGuard<'static, Option<Vec<Running>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `act` with one of the servers that run.
pub(super) fn with<R>(number: u32, act: impl FnOnce(&mut Running) -> R) -> Option<R> {
    let mut servers = servers();
    servers.as_mut()?.iter_mut().find(|one| one.child.id() == number).map(act)
}

/// Ends one of the servers that run.
pub(super) fn end(number: u32) {
    let mut servers = servers();
    let Some(running) = servers.as_mut() else { return };
    if let Some(index) = running.iter().position(|one| one.child.id() == number) {
        // A signal that comes now waits for the lock, but its sender need not.
        stop(vec![running.swap_remove(index)], is_signalled_again, is_signalled);
    }
}

/// Ends servers, and waits for it: for our farewell no longer once `again` says so, and for their ends once `hurry` does. Their
/// sockets go, too.
fn stop(mut servers: Vec<Running>, again: fn() -> bool, hurry: fn() -> bool) {
    let deadline = Instant::now() + GOODBYE;
    for running in &mut servers {
        sockets::add(&mut running.sockets, sockets::connected_to(&running.socket));
    }
    // A server that waits for its clients would wait for us.
    let clients = servers.iter_mut().flat_map(|one| one.clients.drain(..)).collect();
    disconnect(clients, deadline, again);
    for running in &mut servers {
        sockets::close(core::mem::take(&mut running.sockets), deadline, again);
        // A child that was not waited for keeps its number, even if it has ended.
        if let Ok(None) = running.child.try_wait() {
            let _ended_already = kill_process(Pid::from_child(&running.child), Signal::TERM);
        }
    }
    for Running { child, command, dir, folder, .. } in servers {
        let mut child = child;
        let _reported = waiting::on(move |seconds| {
            format!("waiting for {command} to end: it was asked to {seconds} s ago")
        });
        if wait(&mut child, PATIENCE, hurry).is_none() {
            let _ended_already = child.kill();
            let _reaped = child.wait();
        }
        drop((folder, dir));
    }
}

/// Disconnects as the protocol wants it, unless that takes long: a server that hangs must not hold us up, and less so once
/// `hurry` says so.
fn disconnect(clients: Vec<Client>, deadline: Instant, hurry: fn() -> bool) {
    let (sender, over) = mpsc::channel::<()>();
    for client in clients {
        let sender = sender.clone();
        let run = move || {
            client.disconnect();
            drop((client, sender));
        };
        // Without a thread the connection is closed without a word.
        let _started = thread::Builder::new().name("nbd-goodbye".into()).spawn(run);
    }
    drop(sender);
    // Nothing is ever sent: the channel closes when the last one is done.
    while Instant::now() < deadline && !hurry() {
        if over.recv_timeout(LOOK) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// The status of a process that ends within `limit`, and before `hurry` says that it is not waited for.
pub(super) fn wait(
    child: &mut Child,
    limit: Duration,
    mut hurry: impl FnMut() -> bool,
) -> Option<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if start.elapsed() >= limit || hurry() {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The command has its result, and this process is about to end with it. A signal that comes from now on has nothing done
/// any more. After one that came before this never returns: it is the signal that ends this process.
///
/// Called before anything that only one of the two may do, such as to say that the command is complete. Further calls
/// change nothing.
pub(crate) fn conclude() {
    if is_end(End::Result) {
        return;
    }
    loop {
        thread::park();
    }
}

/// Has something done before a signal ends this process, in place of what was to be done before; nothing once the
/// command [has its result](conclude). A second signal ends it without waiting for that.
pub(crate) fn before_a_signal_ends_this(act: impl FnOnce() + Send + 'static) -> io::Result<()> {
    *LAST_ACT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(act));
    watch_signals()
}

/// Does what is to be done before the end; for no longer once `hurry` says so.
fn last_act(mut hurry: impl FnMut() -> bool) {
    let Some(act) = LAST_ACT.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    // Without a thread it is not done.
    let Ok(thread) = thread::Builder::new().name("nbd-last-act".into()).spawn(act) else { return };
    while !thread.is_finished() && !hurry() {
        thread::sleep(LOOK);
    }
}

/// Stops the servers before a signal ends this process. A second signal has them killed. Signals that were ignored when this
/// process began stay so.
pub(super) fn watch_signals() -> io::Result<()> {
    let mut servers = servers();
    if servers.is_some() {
        return Ok(());
    }
    let mut signals = Signals::new(not_ignored([SIGINT, SIGTERM, SIGHUP, SIGQUIT]))?;
    let run = move || {
        let Some(signal) = signals.forever().next() else { return };
        SIGNALLED.store(true, Ordering::Relaxed);
        if is_end(End::Signal) {
            // Seen when it comes, whatever this thread waits for then.
            let watch = move || {
                first_signal::take_echo(&mut signals);
                AGAIN.store(signals.forever().next().is_some(), Ordering::Relaxed);
            };
            let _watched = thread::Builder::new().name("nbd-signals".into()).spawn(watch);
            last_act(is_signalled_again);
            // Held to the end: a thread that wants to start or stop a server now waits for the end of all.
            let mut servers = self::servers();
            let running = servers.take().unwrap_or_default();
            stop(running, is_signalled_again, is_signalled_again);
            std::process::exit(128 + signal);
        }
        // The command ends this process, unless something keeps it from that.
        first_signal::take_echo(&mut signals);
        if let Some(signal) = signals.forever().next() {
            std::process::exit(128 + signal);
        }
    };
    thread::Builder::new().name("nbd-signals".into()).spawn(run)?;
    *servers = Some(Vec::new());
    Ok(())
}
