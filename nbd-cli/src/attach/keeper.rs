//! What stays with a device: carries its bytes, replaces connections that are lost, and detaches it in the end.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nbd_blocking::client::{ClientConfig, ExportDetails};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::arguments::Arguments;
use super::device::{Device, Files};
use super::link::Link;
use super::netlink::{Channel, Nbd, Reconfigure};
use super::plan::Plan;
use super::run::config;
use super::{control, explain};
use crate::exit::Failure;
use crate::first_signal;
use crate::stderr;
use crate::target::Target;

/// How long to wait before a lost connection is replaced, and then twice as long before each further attempt. The kernel
/// reports the loss of a socket a little before it takes another one in its stead.
const MIN_DELAY: Duration = Duration::from_millis(200);

/// The longest time between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// How long a server may take to connect while signals wait.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait in the end until what the kernel sent last was carried to the server.
const FAREWELL: Duration = Duration::from_secs(2);

/// Streams from which a byte can be read when something is to be done.
#[derive(Debug)]
pub(super) struct Wakers {
    /// To detach the device and end.
    end: UnixStream,
    /// To ask the server for the size.
    resize: UnixStream,
}

impl Wakers {
    /// SIGINT and SIGTERM, and SIGHUP. From now on these don't end the process.
    pub(super) fn of_signals() -> std::io::Result<Self> {
        let (wakers, [end, resize]) = Self::new()?;
        pipe::register(SIGINT, end.try_clone()?)?;
        pipe::register(SIGTERM, end)?;
        pipe::register(SIGHUP, resize)?;
        Ok(wakers)
    }

    /// With what to write to.
    pub(super) fn new() -> std::io::Result<(Self, [UnixStream; 2])> {
        let ((end, ends), (resize, resizes)) = (UnixStream::pair()?, UnixStream::pair()?);
        end.set_nonblocking(true)?;
        resize.set_nonblocking(true)?;
        Ok((Self { end, resize }, [ends, resizes]))
    }

    /// What there was to read, which is gone then.
    fn take(mut stream: &UnixStream) -> Woken {
        match stream.read(&mut [0; 64]) {
            Ok(0) => Woken::NeverAgain,
            Ok(_) => Woken::Yes,
            Err(_) => Woken::No,
        }
    }
}

/// Whether something is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    Yes,
    No,
    /// The other end is closed.
    NeverAgain,
}

/// One of the device's connections.
#[derive(Debug)]
struct Slot {
    /// `None` once it is lost.
    link: Option<Link>,
    /// Attempts to replace it that failed.
    attempts: u32,
    due: Instant,
    /// Why the last one failed.
    why: String,
}

impl Slot {
    fn lost(&mut self) {
        (self.link, self.attempts, self.due) = (None, 0, Instant::now() + MIN_DELAY);
        self.why.clear();
    }

    /// Gives whether this is news.
    fn failed(&mut self, why: String) -> bool {
        self.attempts += 1;
        let factor = 1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        self.due = Instant::now() + MIN_DELAY.saturating_mul(factor).min(MAX_DELAY);
        core::mem::replace(&mut self.why, why) != self.why
    }
}

/// What stays with a device.
#[derive(Debug)]
pub(super) struct Keeper<'a, C> {
    nbd: Nbd<C>,
    files: Files,
    target: &'a Target,
    config: ClientConfig,
    device: Device,
    /// For `nbd detach`.
    listener: Option<UnixListener>,
    slots: Vec<Slot>,
    persist: bool,
    read_only: bool,
    /// The export as it was when it was last seen.
    export: ExportDetails,
    plan: Plan,
    backend: String,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    /// The device is detached.
    Detached,
}

impl<'a, C: Channel> Keeper<'a, C> {
    #[expect(
        clippy::too_many_arguments,
        reason = "it is made in one place, of what is known there"
    )]
    pub(super) fn new(
        nbd: Nbd<C>,
        files: Files,
        target: &'a Target,
        device: Device,
        listener: Option<UnixListener>,
        links: Vec<Link>,
        arguments: &Arguments,
        plan: Plan,
        backend: String,
    ) -> Self {
        let config = config(target);
        let timeout = config.connect_timeout().min(CONNECT_TIMEOUT);
        let config = config.with_connect_timeout(timeout);
        let export = links[0].export().clone();
        let now = Instant::now();
        let slot = |link| Slot { link: Some(link), attempts: 0, due: now, why: String::new() };
        let slots = links.into_iter().map(slot).collect();
        let (persist, read_only) = (arguments.persist, arguments.read_only);
        Self {
            nbd,
            files,
            target,
            config,
            device,
            listener,
            slots,
            persist,
            read_only,
            export,
            plan,
            backend,
        }
    }

    pub(super) const fn device(&self) -> Device {
        self.device
    }

    /// Whether the device needs this process.
    pub(super) const fn has_to_stay(&self) -> bool {
        self.listener.is_some()
    }

    /// Stays until the device is detached, by whomever.
    ///
    /// # Errors
    /// When all connections are lost, and are not to be replaced.
    pub(super) fn keep(mut self, wakers: &Wakers) -> Result<(), Failure> {
        let mut refused_to_end = false;
        loop {
            self.wait(wakers);
            match Wakers::take(&wakers.end) {
                Woken::No => {}
                Woken::NeverAgain => return Err(Failure::failed("signals are lost")),
                Woken::Yes => match self.detach() {
                    Ok(()) => return Ok(()),
                    Err(why) if refused_to_end => {
                        let text = format!("{} stays attached: {why}", self.device);
                        return Err(Failure::failed(text));
                    }
                    Err(why) => {
                        refused_to_end = true;
                        stderr::say(&format!(
                            "cannot detach {}: {why}; a second signal ends this without",
                            self.device
                        ));
                        first_signal::wait_for_echo();
                        let _echo = Wakers::take(&wakers.end);
                    }
                },
            }
            if self.answer() == Next::Detached {
                return Ok(());
            }
            if Wakers::take(&wakers.resize) == Woken::Yes {
                self.ask_for_the_size();
            }
            if self.look()? == Next::Detached || self.replace_what_is_due()? == Next::Detached {
                stderr::say(&format!("{} was detached", self.device));
                return Ok(());
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, wakers: &Wakers) {
        let mut sources = vec![
            PollFd::new(&wakers.end, PollFlags::IN),
            PollFd::new(&wakers.resize, PollFlags::IN),
        ];
        sources.extend(self.listener.iter().map(|it| PollFd::new(it, PollFlags::IN)));
        let links = self.slots.iter().filter_map(|slot| slot.link.as_ref());
        sources
            .extend(links.map(|link| PollFd::from_borrowed_fd(link.socket(), PollFlags::empty())));
        let lost = self.slots.iter().filter(|slot| slot.link.is_none());
        let due = lost.map(|slot| slot.due.saturating_duration_since(Instant::now())).min();
        let timeout = due.and_then(|due| Timespec::try_from(due).ok());
        // Whatever comes of it, everything is looked at.
        let _ready = poll(&mut sources, timeout.as_ref());
    }

    /// Detaches the device, unless it is in use.
    fn detach(&mut self) -> Result<(), String> {
        if let Some(used) = self.files.use_of(self.device) {
            return Err(format!("{used}; unmount it first"));
        }
        self.nbd.disconnect(self.device.0).map_err(|error| error.to_string())?;
        let end = Instant::now() + FAREWELL;
        let links = || self.slots.iter().filter_map(|slot| slot.link.as_ref());
        while Instant::now() < end && !links().all(Link::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Answers `nbd detach`.
    fn answer(&mut self) -> Next {
        let Some(listener) = self.listener.take() else { return Next::GoOn };
        let mut next = Next::GoOn;
        let served = control::serve(&listener, || {
            self.detach()?;
            next = Next::Detached;
            Ok(())
        });
        if let Err(error) = served
            && error.kind() != std::io::ErrorKind::WouldBlock
        {
            tracing::warn!(%error, "a request to detach the device was not answered");
        }
        self.listener = Some(listener);
        next
    }

    /// Notices lost connections.
    fn look(&mut self) -> Result<Next, Failure> {
        let (mut whys, count) = (Vec::new(), self.slots.len());
        for (slot, number) in self.slots.iter_mut().zip(1..) {
            if let Some(link) = slot.link.take_if(|link| link.is_lost()) {
                whys.push((number, link.end()));
                slot.lost();
            }
        }
        if whys.is_empty() {
            return Ok(Next::GoOn);
        }
        if !self.is_attached()? {
            return Ok(Next::Detached);
        }
        let device = self.device;
        for (number, why) in whys {
            let which = if count > 1 { format!(" {number} of {count}") } else { String::new() };
            stderr::say(&format!("{device}: connection{which} lost: {why}"));
        }
        if self.persist || self.slots.iter().any(|slot| slot.link.is_some()) {
            return Ok(Next::GoOn);
        }
        let _detached = self.nbd.disconnect(device.0);
        Err(Failure::failed(format!(
            "{device} has no connection any more, and was detached; --persist makes new ones"
        )))
    }

    fn is_attached(&mut self) -> Result<bool, Failure> {
        let attached = self.nbd.is_connected(self.device.0);
        attached.map_err(|error| explain::refused("watch", Some(self.device), &error))
    }

    /// Makes new connections in place of those that are lost, where it is time to.
    fn replace_what_is_due(&mut self) -> Result<Next, Failure> {
        if !self.persist {
            return Ok(Next::GoOn);
        }
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.link.is_some() || slot.due > Instant::now() {
                continue;
            }
            if !self.is_attached()? {
                return Ok(Next::Detached);
            }
            let device = self.device;
            match self.replace() {
                Ok(link) => {
                    self.slots[index].link = Some(link);
                    stderr::say(&format!("{device}: connected again"));
                }
                Err(why) => {
                    if self.slots[index].failed(why.clone()) {
                        stderr::say(&format!("{device}: not connected yet: {why}"));
                    }
                }
            }
        }
        Ok(Next::GoOn)
    }

    /// Makes a new connection, and has the kernel take it in place of a lost one.
    fn replace(&mut self) -> Result<Link, String> {
        let text = |failure: Failure| failure.text().to_owned();
        let link = Link::connect(self.target, &self.config, true).map_err(text)?;
        if let Some(what) = self.export.difference(link.export()) {
            return Err(format!("the server has another export: {what}"));
        }
        let export = link.export().clone();
        self.reconfigure(&export, Some(&link))?;
        Ok(link)
    }

    /// Tells the kernel of a socket, and of the size if the export has grown.
    fn reconfigure(&mut self, export: &ExportDetails, link: Option<&Link>) -> Result<(), String> {
        let plan = Plan::new(export, self.read_only, rustix::param::page_size())?;
        let size = (plan.size > self.plan.size).then_some(plan.size);
        if size.is_none() && link.is_none() {
            return Ok(());
        }
        let change = Reconfigure {
            index: self.device.0,
            backend: &self.backend,
            size,
            sockets: link.map(Link::socket).into_iter().collect(),
        };
        self.nbd.reconfigure(&change).map_err(|error| match error.errno() {
            Some(Errno::PERM) => "the right CAP_SYS_ADMIN was lost".to_owned(),
            _ => format!("the kernel does not take the connection: {error}"),
        })?;
        if let Some(size) = size {
            stderr::say(&format!("{}: the export has grown to {size} bytes", self.device));
        }
        (self.plan, self.export) = (plan, export.clone());
        Ok(())
    }

    /// Asks the server for the size, and has the device grow with the export.
    fn ask_for_the_size(&mut self) {
        // As the device's connections are made, since what a server can do depends on what was agreed on.
        let negotiation = self.target.negotiate_with(&self.config);
        let asked = negotiation.and_then(|mut negotiation| {
            let export = negotiation.info(self.target.uri().export());
            let _left = negotiation.abort();
            export.map_err(|error| self.target.explain(&error))
        });
        let result = match asked {
            Err(failure) => Err(failure.text().to_owned()),
            Ok(export) if export.size() < self.export.size() => Err(format!(
                "the export has shrunk from {} to {} bytes, and a device in use must not",
                self.export.size(),
                export.size()
            )),
            Ok(export) => self.reconfigure(&export, None),
        };
        if let Err(why) = result {
            stderr::say(&format!("{}: its size stays as it is: {why}", self.device));
        }
    }
}
