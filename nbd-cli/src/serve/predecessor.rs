//! `--take-over`: the server that this one replaces.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nbd_engine::net::LocalAddr;
use serde::Serialize;

use super::activation::Socket;
use super::control::{
    Answer, HAND_OVER, Linger, MAX_ANSWER, Request, SERVING, TAKE_BACK, TAKE_OVER, TakeOver,
    receive_with,
};
use super::process::ProcessArguments;
use super::sockets::{Bound, Offer, Role, Sockets, is_ending};
use super::timed::Timed;
use super::{receive, send};
use crate::control;
use crate::exit::Failure;

/// How long the other server may take for each answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs and goes on until it is told that this one serves.
pub(super) struct Predecessor {
    path: PathBuf,
    stream: UnixStream,
    linger: Duration,
    offered: Vec<Offered>,
}

/// A socket of the other server.
struct Offered {
    offer: Offer,
    address: Option<LocalAddr>,
    socket: Socket,
}

impl Offered {
    fn bound(self) -> Bound {
        Bound { file: self.offer.file(), socket: self.socket }
    }

    fn is_tcp(&self, address: SocketAddr, role: Role) -> bool {
        self.offer.role == role && self.address == Some(LocalAddr::Tcp(address))
    }
}

impl Predecessor {
    /// The server that is to be replaced, which is asked for its sockets.
    pub(super) fn of(arguments: &ProcessArguments) -> Result<Option<Self>, Failure> {
        let Some(path) = &arguments.take_over else { return Ok(None) };
        Self::ask(path, arguments.discard_state, arguments.linger).map(Some)
    }

    fn ask(path: &Path, discard_state: bool, linger: Duration) -> Result<Self, Failure> {
        let stream = control::connect(path)?;
        let this = Self { path: path.to_owned(), stream, linger, offered: Vec::new() };
        let peer = rustix::net::sockopt::socket_peercred(&this.stream)
            .map_err(|error| this.failed(error))?;
        if peer.uid != rustix::process::geteuid() {
            return Err(this.failed("it belongs to another user"));
        }
        let asked = this.say(TAKE_OVER, &TakeOver { discard_state });
        let end = Instant::now() + PATIENCE;
        let received = asked.and_then(|()| receive_with(&this.stream, MAX_ANSWER, end));
        let received = received.and_then(|(line, sockets)| Ok((some(line)?, sockets)));
        let (line, sockets) = received.map_err(|error| this.gone("it did not answer", &error))?;
        let offers = match serde_json::from_slice(&line) {
            Ok(Answer::Ok(offers)) => serde_json::from_value::<Vec<Offer>>(offers).ok(),
            Ok(Answer::Error(text)) => return Err(this.said(&text)),
            Err(_) => None,
        };
        let offers = offers.filter(|offers| offers.len() == sockets.len());
        let offers = offers.ok_or_else(|| this.failed(
                "it is not the control socket of nbd serve, or of another version: it gave an unexpected answer",
            ))?;
        let offered = offers.into_iter().zip(sockets).map(offered).collect::<Result<_, _>>();
        let offered = offered.map_err(|text| this.failed(text))?;
        Ok(Self { offered, ..this })
    }

    fn failed(&self, why: impl core::fmt::Display) -> Failure {
        let path = self.path.display();
        Failure::failed(format!("cannot replace the server of {path}, which goes on: {why}"))
    }

    /// The same of a server that does not go on.
    fn ended(&self, why: impl core::fmt::Display) -> Failure {
        let path = self.path.display();
        Failure::failed(format!("cannot replace the server of {path}: {why}"))
    }

    /// What it answers in place of what it was asked for.
    fn said(&self, why: &str) -> Failure {
        if is_ending(why) { self.ended(why) } else { self.failed(why) }
    }

    /// It answers as long as it lives: without an answer it is late, or gone.
    fn gone(&self, what: &str, error: &std::io::Error) -> Failure {
        match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => self
                .ended(
                    "it closed the connection without an answer: it has ended, as when another server takes over at the \
                     same time, or it is not the control socket of nbd serve",
                ),
            _ => self.failed(format!("{what}: {error}")),
        }
    }

    fn say(&self, verb: &str, arguments: &impl Serialize) -> std::io::Result<()> {
        let end = Instant::now() + PATIENCE;
        send(Timed::new(&self.stream, end), &Request::new(verb, arguments))
    }

    /// Where its sockets have their files.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.offered.iter().filter_map(|offered| offered.address.as_ref()?.unix())
    }

    /// All sockets for clients.
    pub(super) fn take_all(&mut self) -> Vec<Bound> {
        self.take(|offered| offered.offer.role == Role::Clients)
    }

    /// The socket that is at a TCP address.
    pub(super) fn take_tcp(&mut self, address: SocketAddr, role: Role) -> Option<Bound> {
        self.take(|offered| offered.is_tcp(address, role)).pop()
    }

    /// Whether it listens on a TCP address for clients.
    pub(super) fn has_tcp(&self, address: SocketAddr) -> bool {
        self.offered.iter().any(|offered| offered.is_tcp(address, Role::Clients))
    }

    /// The socket whose file is at that path.
    pub(super) fn take_unix(&mut self, path: &Path, role: Role) -> Option<Bound> {
        let metadata = std::fs::symlink_metadata(path).ok()?;
        let identity = (metadata.dev(), metadata.ino());
        self.take(|offered| offered.offer.role == role && offered.offer.is_file(identity)).pop()
    }

    fn take(&mut self, wanted: impl Fn(&Offered) -> bool) -> Vec<Bound> {
        let (taken, left) = core::mem::take(&mut self.offered).into_iter().partition(wanted);
        self.offered = left;
        Vec::into_iter(taken).map(Offered::bound).collect()
    }

    /// Has it close its volumes, so that this process can open them. It accepts nothing from then on.
    ///
    /// # Errors
    /// When it can't, and goes on.
    pub(super) fn hand_over(&self) -> Result<(), Failure> {
        // A store may take a minute for what was not flushed.
        let patience = self.linger.saturating_add(PATIENCE * 2);
        match self.exchange(HAND_OVER, &self.lingering(), patience) {
            Ok(Answer::Ok(_)) => Ok(()),
            Ok(Answer::Error(text)) => Err(self.said(&text)),
            Err(error) => Err(self.gone("it did not close its volumes", &error)),
        }
    }

    /// Tells it that its volumes could not be opened here. Gives the failure with what it says of that.
    pub(super) fn give_back(&self, failure: &Failure) -> Failure {
        let answer = self.exchange(TAKE_BACK, &serde_json::json!({}), PATIENCE * 3);
        let said = match answer {
            // It says that it was not replaced, and what became of its volumes.
            Ok(Answer::Error(text)) => text,
            Ok(Answer::Ok(_)) => "it did not say what became of its volumes".into(),
            Err(error) => format!("it did not say what became of its volumes: {error}"),
        };
        let path = self.path.display();
        Failure::failed(format!(
            "{}; the server of {path}, which was to be replaced, goes on: {said}",
            failure.text()
        ))
    }

    fn lingering(&self) -> Linger {
        Linger { linger_ms: u64::try_from(self.linger.as_millis()).unwrap_or(u64::MAX) }
    }

    fn exchange(
        &self,
        verb: &str,
        arguments: &impl Serialize,
        patience: Duration,
    ) -> std::io::Result<Answer> {
        self.say(verb, arguments)?;
        let end = Instant::now().checked_add(patience);
        let end = end.unwrap_or_else(|| Instant::now() + PATIENCE);
        let line = some(receive(Timed::new(&self.stream, end), MAX_ANSWER)?)?;
        serde_json::from_slice(&line)
            .map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error))
    }

    /// Tells it that its sockets are served on. Then it accepts nothing more, and its files are this process's: those of
    /// the sockets that are used, and those of the other ones, which are removed.
    ///
    /// # Errors
    /// When the other one goes on, or has ended by itself and taken its files with it.
    pub(super) fn retire(self, sockets: &Sockets) -> Result<(), Failure> {
        match self.exchange(SERVING, &self.lingering(), PATIENCE) {
            Ok(Answer::Ok(_)) => {}
            Ok(Answer::Error(text)) => return Err(self.said(&text)),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Err(self.failed("it did not say that it ends"));
            }
            // It always answers while it lives.
            Err(_) => {
                tracing::warn!("the server that is to be replaced has ended by itself");
            }
        }
        sockets.adopt().map_err(|error| {
            let path = self.path.display();
            Failure::failed(format!(
                "the server of {path} has ended meanwhile: {error}; start without --take-over"
            ))
        })?;
        for offered in self.offered {
            // One that is gone need not be removed.
            let _removed = offered.offer.file().adopt();
        }
        Ok(())
    }
}

/// A line, of which there is nothing where the other server has ended.
fn some(line: Vec<u8>) -> std::io::Result<Vec<u8>> {
    if line.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(line) }
}

fn offered((offer, socket): (Offer, OwnedFd)) -> Result<Offered, String> {
    let socket = Socket::try_from(socket).map_err(|what| format!("one of its sockets {what}"))?;
    Ok(Offered { address: offer.address(), offer, socket })
}
