//! Opening the volumes among the exports, which takes them over from whatever has them open, this server included: so it is
//! done last, when nothing else can fail any more, and what this server has open is closed before.

use std::sync::{Arc, MutexGuard, PoisonError};

use nbd_engine::export::Withdrawal;
use tokio::sync::RwLockWriteGuard;

use super::{Disk, Live, Next, Opened, Prepared, What};
use crate::exit::Failure;
use crate::serve::backend;
use crate::serve::config::{Backend, Config, Export};
use crate::serve::volumes::{self, Place};

/// A volume that is not open yet.
pub(super) struct Pending {
    /// Which of the exports it is.
    pub(super) index: usize,
    pub(super) export: Export,
    pub(super) tracked: bool,
    /// What has it open, and is closed before.
    pub(super) earlier: Option<Arc<Disk>>,
}

/// Flushes and closes the volumes among these.
///
/// # Errors
/// When a store does not take what was not flushed.
pub(super) fn close(disks: &[Arc<Disk>]) -> Result<(), Failure> {
    volumes::Open::close_all(disks.iter().filter_map(|disk| disk.opened.volume.as_deref()))
}

impl Disk {
    /// The disk of a volume: with what is open already, if it has the same settings.
    pub(super) fn of_volume(
        live: &Live,
        current: &[Arc<Self>],
        url: &str,
        export: &Export,
        config: &Config,
    ) -> Result<Next, Failure> {
        let place = Place::of(url)?;
        let serves = |volume: &Arc<volumes::Open>| volume.serves(&place);
        let mut holders =
            current.iter().filter(|disk| disk.opened.volume.as_ref().is_some_and(serves));
        let has_settings = |disk: &&Arc<Self>| {
            disk.opened.volume.as_ref().is_some_and(|volume| volume.has_settings_of(export))
        };
        volumes::check_use(&place, export)?;
        // It may have been moved, and goes on wherever it is.
        if let Some(volume) =
            holders.clone().find(has_settings).and_then(|disk| disk.opened.volume.clone())
        {
            return Self::with_volume(volume, export, config.is_tracked(export), live)
                .map(Next::Open);
        }
        volumes::inspect(url, export)?;
        volumes::check_cache(export)?;
        // Snapshots can be open more than once.
        Ok(Next::Volume(holders.find(|_| place.is_writable()).cloned()))
    }

    /// Opens a volume, which takes it over from another server that has it open, or a snapshot.
    fn open_volume(export: &Export, tracked: bool, live: &Live) -> Result<Arc<Self>, Failure> {
        let Ok(Backend::Volume(url)) = export.backend() else {
            return Err(Failure::failed("it is no volume"));
        };
        let volume = Arc::new(volumes::open(url, export)?);
        Self::with_volume(volume, export, tracked, live)
    }

    fn with_volume(
        volume: Arc<volumes::Open>,
        export: &Export,
        tracked: bool,
        live: &Live,
    ) -> Result<Arc<Self>, Failure> {
        let withdrawal = Withdrawal::new();
        let entry = backend::entry(export, volume.export())?.with_withdrawal(&withdrawal);
        let live = Arc::downgrade(&live.0);
        volume.withdraw_when_lost(&withdrawal, move || {
            if live.upgrade().is_some_and(|shared| Live(shared).served().is_all_lost()) {
                tracing::warn!(
                    "this server has no export left that it serves, and goes on without: a server that ended and was started \
                     anew would take the volume back from the one that has it; end it, or start it anew to take it back"
                );
            }
        });
        // A volume has no layers.
        let (volume, overlays) = (Some(volume), Vec::new());
        let opened = Opened { tracked, tracker: None, withdrawal, volume, overlays };
        let (what, opened) = (What::Entry(entry), Arc::new(opened));
        Ok(Arc::new(Self { export: export.clone(), what, opened }))
    }
}

impl Prepared<'_> {
    /// Opens the volumes. One that this server has open with other settings is closed before, for which its clients are
    /// disconnected; others wait until that is over. To be called when all else that may fail is done, and not in a
    /// runtime.
    ///
    /// # Errors
    /// When one can't be opened. Then those that were closed are open again as they were, as far as the error does not say
    /// otherwise.
    pub(in crate::serve) fn open_volumes(mut self, config: &Config) -> Result<Self, Failure> {
        let pending = core::mem::take(&mut self.volumes);
        let closed: Vec<_> = pending.iter().filter_map(|one| one.earlier.clone()).collect();
        if !closed.is_empty() {
            self.waiting = Some(self.live.0.exchange.blocking_write());
            closed.iter().for_each(|disk| disk.withdraw());
            if let Err(failure) = close(&closed) {
                // As after a crash: what was flushed is there.
                tracing::error!("{}", failure.text());
            }
        }
        let mut opened = Vec::new();
        for Pending { index, export, tracked, .. } in &pending {
            match Disk::open_volume(export, *tracked, self.live) {
                Ok(disk) => {
                    opened.push(Arc::clone(&disk));
                    self.next[*index] = Some(disk);
                }
                Err(failure) => {
                    if let Err(failure) = close(&opened) {
                        tracing::error!("{}", failure.text());
                    }
                    let left = self.live.open_again(&mut self.current, &closed);
                    let failure = with_note(failure, &left);
                    return Err(config.source.blame(&format!("export.{index}"), failure));
                }
            }
        }
        Ok(self)
    }
}

/// The same failure with what became of the rest, if there is anything to say.
fn with_note(failure: Failure, note: &str) -> Failure {
    match failure {
        failure if note.is_empty() => failure,
        Failure::Usage(text) => Failure::Usage(format!("{text}; {note}")),
        failure => Failure::failed(format!("{}; {note}", failure.text())),
    }
}

/// Volumes that were closed here for another server, which opens them. No other change begins meanwhile, and clients that
/// ask for one of them wait.
pub(in crate::serve) struct HandedOver<'a> {
    live: &'a Live,
    current: MutexGuard<'a, Vec<Arc<Disk>>>,
    closed: Vec<Arc<Disk>>,
    _waiting: RwLockWriteGuard<'a, ()>,
}

impl Live {
    /// Disconnects the clients of all volumes, and closes these, so that another server can open them at once. Not to be
    /// called in a runtime.
    ///
    /// # Errors
    /// When a store does not take what was not flushed. Then they are open again, as far as the error does not say
    /// otherwise.
    pub(in crate::serve) fn hand_over(&self) -> Result<HandedOver<'_>, Failure> {
        let current = self.0.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_written =
            |disk: &&Arc<Disk>| disk.opened.volume.as_ref().is_some_and(|one| one.is_written());
        let closed: Vec<_> = current.iter().filter(is_written).cloned().collect();
        let waiting = self.0.exchange.blocking_write();
        closed.iter().for_each(|disk| disk.withdraw());
        let outcome = close(&closed);
        let handed_over = HandedOver { live: self, current, closed, _waiting: waiting };
        match outcome {
            Ok(()) => Ok(handed_over),
            Err(failure) => Err(with_note(failure, &handed_over.take_back())),
        }
    }

    /// Opens volumes again as they were, and says what became of each.
    fn open_again(&self, current: &mut [Arc<Disk>], closed: &[Arc<Disk>]) -> String {
        let mut said = Vec::new();
        for disk in closed {
            let name = disk.export.noun();
            match Disk::open_volume(&disk.export, disk.opened.tracked, self) {
                Ok(again) => {
                    for one in current.iter_mut().filter(|one| Arc::ptr_eq(one, disk)) {
                        *one = Arc::clone(&again);
                    }
                    said.push(format!(
                        "{name} is served as before, and its clients were disconnected"
                    ));
                }
                Err(failure) => said.push(format!(
                    "{name} is not served any more, since it can't be opened as before either ({}): repair that, and reload, \
                     or start the server anew",
                    failure.text()
                )),
            }
        }
        self.serve(current);
        said.join("; ")
    }
}

impl HandedOver<'_> {
    /// Opens them again, since the other server does not. Says what became of each; nothing if there were none.
    pub(in crate::serve) fn take_back(mut self) -> String {
        self.live.open_again(&mut self.current, &self.closed)
    }
}
