//! Handing the listening sockets over to a successor, which is `nbd serve --take-over`.
//!
//! The successor asks by the verb `take-over` and gets the sockets (`SCM_RIGHTS`); on the same connection, and once it
//! serves on them, it says `serving`. Until then nothing changes here, whatever becomes of it. Then this server stops
//! accepting, and its clients have some time to end by themselves before it shuts down as at any other end.
//!
//! Volumes have one writer. A successor that serves some says `hand-over` before it opens them: this server then stops
//! accepting, gives its clients that time, closes the volumes and answers. If the successor says `take-back` or is gone,
//! this server opens them again, says how that went, and goes on.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::protocol::{self, Answer, MAX_REQUEST, Request};
use super::verbs::{Conversation, Verbs};
use crate::serve::Timed;
use crate::serve::live::HandedOver;
use crate::serve::reload::Reload;
use crate::serve::sockets::{Offer, Sockets};

/// Asks for the sockets.
pub(crate) const TAKE_OVER: &str = "take-over";
/// Says that they are served on.
pub(crate) const SERVING: &str = "serving";

/// Asks that volumes be closed, for the successor to open them.
pub(crate) const HAND_OVER: &str = "hand-over";
/// Says that it does not open them.
pub(crate) const TAKE_BACK: &str = "take-back";

/// How long a successor may take from its sockets to serving on them. It has opened everything before but volumes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same from closed volumes on: longer than each step of opening one may take.
const VOLUMES_PATIENCE: Duration = Duration::from_secs(150);

/// How long a successor waits for the end of another one, which may have died and is about to be noticed.
const TURN: Duration = Duration::from_secs(5);

/// How long a server that was replaced waits for other clients of its control socket to have their answers.
const ANSWERS: Duration = Duration::from_secs(5);

/// How often a successor looks whether its turn has come.
const LOOK: Duration = Duration::from_millis(10);

/// Sockets that one message can carry: as many as Linux allows.
const MAX_SOCKETS: usize = 253;

/// The arguments of [`TAKE_OVER`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serve) struct TakeOver {
    /// Whether what lives in the memory of the server may be lost.
    pub(in crate::serve) discard_state: bool,
}

/// The arguments of [`HAND_OVER`] and [`SERVING`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::serve) struct Linger {
    /// How long clients may stay connected, in milliseconds.
    pub(in crate::serve) linger_ms: u64,
}

/// A server that can be replaced.
pub(in crate::serve) struct Replaceable {
    pub(in crate::serve) sockets: Sockets,
    /// What closes volumes, and opens them again.
    pub(in crate::serve) reload: Arc<Reload>,
    /// What would be lost with this process.
    pub(in crate::serve) state: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Clients that are connected.
    pub(in crate::serve) connections: Box<dyn Fn() -> usize + Send + Sync>,
    /// Lets requests in flight finish, and ends.
    pub(in crate::serve) shut_down: Box<dyn Fn() + Send + Sync>,
}

impl Replaceable {
    /// The verb by which it is replaced.
    pub(in crate::serve) fn verbs(self, verbs: Verbs) -> Verbs {
        let turn = Mutex::new(());
        verbs.with_conversation(TAKE_OVER, move |arguments: TakeOver, conversation| {
            let Some(turn) = take(&turn, Instant::now() + TURN) else {
                return conversation.refuse("another server is about to take over");
            };
            let replaced = self.converse(&arguments, conversation)?;
            // Those that wait for their turn learn that it does not come.
            drop(turn);
            if let Some(linger) = replaced {
                let end = Instant::now() + ANSWERS;
                super::super::linger::linger(linger, &self.connections);
                // Nobody is accepted any more, and those that were would lose their answers with this process.
                let left = end.saturating_duration_since(Instant::now());
                super::super::linger::linger(left, || conversation.others());
                (self.shut_down)();
            }
            Ok(())
        })
    }

    /// Gives how long clients may stay, if the successor serves.
    fn converse(
        &self,
        arguments: &TakeOver,
        conversation: &Conversation<'_>,
    ) -> io::Result<Option<Duration>> {
        let stream = conversation.allow(PATIENCE);
        let (peer, own) = (sockopt::socket_peercred(stream)?, rustix::process::geteuid());
        let offer = match self.offer(arguments, peer.uid == own) {
            Ok(offer) => offer,
            Err(text) => return conversation.refuse(&text).map(|()| None),
        };
        let (offers, sockets) = offer;
        let pid = peer.pid.as_raw_pid();
        tracing::info!(pid, "handing sockets over to another server");
        send_with(stream, &Answer::Ok(serde_json::to_value(offers)?), &sockets)?;
        drop(sockets);
        let mut handed_over = None;
        let serving = self.await_serving(conversation, &mut handed_over);
        // While this process lives it answers, so that the successor can tell its death from a refusal.
        conversation.allow(PATIENCE);
        let replaced = |linger| {
            // Exports may have been added meanwhile.
            self.refuse_loss(arguments)?;
            self.sockets.replaced().map(|()| linger)
        };
        let linger = match serving.and_then(replaced) {
            Ok(linger) => linger,
            Err(text) => {
                let left = handed_over.map(|volumes| self.reload.take_back(volumes));
                let left = left.filter(|left| !left.is_empty());
                let text = left.map_or_else(|| text.clone(), |left| format!("{text}; {left}"));
                tracing::warn!("was not replaced, and goes on: {text}");
                conversation.allow(PATIENCE);
                return conversation.refuse(&text).map(|()| None);
            }
        };
        conversation.replaced();
        tracing::info!(pid, ?linger, "replaced by another server");
        if let Err(error) = conversation.answer(&Answer::Ok(Value::Null)) {
            tracing::info!(%error, "the other server did not wait for the answer");
        }
        // Clients that waited for a volume are to connect again.
        drop(handed_over);
        Ok(Some(linger))
    }

    /// Does what the successor asks for until it serves; gives how long clients may stay then, or why it does not serve.
    fn await_serving<'a>(
        &'a self,
        conversation: &Conversation<'_>,
        handed_over: &mut Option<HandedOver<'a>>,
    ) -> Result<Duration, String> {
        loop {
            let stream = conversation.allow(match handed_over {
                None => PATIENCE,
                Some(_) => VOLUMES_PATIENCE,
            });
            let request = receive_request(stream, conversation.end())?;
            match &*request.verb {
                SERVING => return linger(request.arguments),
                HAND_OVER if handed_over.is_none() => {
                    let time = linger(request.arguments)?;
                    tracing::info!("closing the volumes for another server");
                    let lingering = || super::super::linger::linger(time, &self.connections);
                    let closed = self.reload.hand_over(lingering);
                    let closed = closed.map_err(|failure| failure.text().to_owned())?;
                    *handed_over = Some(closed);
                    let stream = conversation.allow(PATIENCE);
                    let answer = Answer::Ok(Value::Null);
                    protocol::send(Timed::new(stream, conversation.end()), &answer)
                        .map_err(|error| format!("the other server is gone: {error}"))?;
                }
                TAKE_BACK => return Err("the other server could not open its volumes".into()),
                verb => return Err(format!("'{verb}' was received where {SERVING} is due")),
            }
        }
    }

    /// What the successor gets, or why it gets nothing.
    fn offer(
        &self,
        arguments: &TakeOver,
        same_user: bool,
    ) -> Result<(Vec<Offer>, Vec<OwnedFd>), String> {
        if !same_user {
            return Err("only the user that runs this server can replace it".into());
        }
        self.refuse_loss(arguments)?;
        let (offers, sockets) = self.sockets.offer()?;
        if sockets.len() > MAX_SOCKETS {
            return Err(format!("it listens on more than {MAX_SOCKETS} sockets"));
        }
        Ok((offers, sockets))
    }

    /// Fails if what the successor did not say may be lost would be.
    fn refuse_loss(&self, arguments: &TakeOver) -> Result<(), String> {
        let lost = (self.state)();
        if lost.is_empty() || arguments.discard_state {
            return Ok(());
        }
        let lost = lost.join(" and ");
        Err(format!(
            "{lost} would be lost with it: to replace it all the same, give --discard-state"
        ))
    }
}

/// The turn of a successor, once no other one has it any more.
fn take(turn: &Mutex<()>, end: Instant) -> Option<MutexGuard<'_, ()>> {
    loop {
        match turn.try_lock() {
            Ok(turn) => return Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
        }
    }
}

/// What the successor asks for next.
fn receive_request(stream: &UnixStream, end: Instant) -> Result<Request, String> {
    match protocol::receive(Timed::new(stream, end), MAX_REQUEST) {
        Ok(line) if line.is_empty() => Err("the other server has failed".into()),
        Ok(line) => Request::parse(&line),
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            Err("the other server did not serve in time".into())
        }
        Err(error) => Err(format!("nothing came from the other server: {error}")),
    }
}

/// How long clients may stay.
fn linger(arguments: Value) -> Result<Duration, String> {
    let Linger { linger_ms } = serde_json::from_value(arguments)
        .map_err(|error| format!("the arguments of a successor are malformed: {error}"))?;
    Ok(Duration::from_millis(linger_ms))
}

/// Sends a message with descriptors.
fn send_with(stream: &UnixStream, message: &Answer, sockets: &[OwnedFd]) -> io::Result<()> {
    let mut line = Vec::new();
    protocol::send(&mut line, message)?;
    let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("too many descriptors for a message"));
    }
    let sent = sendmsg(stream, &[IoSlice::new(&line)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut rest = stream;
    rest.write_all(&line[sent..])
}

/// Receives a message, and the descriptors that came with it.
pub(in crate::serve) fn receive_with(
    stream: &UnixStream,
    max: usize,
    end: Instant,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut receiver = Receiver { stream, end, descriptors: Vec::new() };
    let line = protocol::receive(&mut receiver, max)?;
    Ok((line, receiver.descriptors))
}

/// Reads bytes, and keeps the descriptors that came with them.
struct Receiver<'a> {
    stream: &'a UnixStream,
    end: Instant,
    descriptors: Vec<OwnedFd>,
}

impl Read for Receiver<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Timed::new(self.stream, self.end).limit_read()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(self.stream, &mut slices, &mut ancillary, flags) {
            Err(rustix::io::Errno::AGAIN) => return Err(ErrorKind::TimedOut.into()),
            received => received?,
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        Ok(received.bytes)
    }
}
