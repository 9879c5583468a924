//! The verbs of `nbd bitmap`: dirty bitmaps are started, cleared and stopped while the server runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_engine::export::Tracker;
use serde::{Deserialize, Serialize};

use super::verbs::{NoArguments, Verbs};

/// Gives the names.
pub(crate) const LIST: &str = "bitmap-list";
/// Adds a bitmap.
pub(crate) const START: &str = "bitmap-start";
/// Empties one.
pub(crate) const CLEAR: &str = "bitmap-clear";
/// Removes one.
pub(crate) const STOP: &str = "bitmap-stop";

/// What a request is about.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Named {
    /// The bitmap.
    pub(crate) name: String,
}

/// The bitmaps of all exports. Those that a client starts, every export has. Clones are the same bitmaps.
#[derive(Clone, Debug)]
pub(in crate::serve) struct Bitmaps(Arc<Mutex<Vec<Arc<Tracker>>>>);

impl Bitmaps {
    /// The bitmaps that these trackers have.
    pub(in crate::serve) fn new(trackers: Vec<Arc<Tracker>>) -> Self {
        Self(Arc::new(Mutex::new(trackers)))
    }

    /// From now on those of other exports.
    pub(in crate::serve) fn replace(&self, trackers: Vec<Arc<Tracker>>) {
        *self.trackers() = trackers;
    }

    /// The verbs by which clients change them.
    pub(in crate::serve) fn verbs(&self, verbs: Verbs) -> Verbs {
        let [list, start, clear, stop] = [(); 4].map(|()| self.clone());
        verbs
            .with(LIST, move |NoArguments {}| Ok(list.names()))
            .with(START, move |Named { name }| start.start(&name))
            .with(CLEAR, move |Named { name }| clear.each(&name, Tracker::clear))
            .with(STOP, move |Named { name }| stop.each(&name, Tracker::stop))
    }

    /// Held by one change as a whole.
    fn trackers(&self) -> MutexGuard<'_, Vec<Arc<Tracker>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What they are called, in the order of the exports.
    pub(in crate::serve) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for name in self.trackers().iter().flat_map(|tracker| tracker.names()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// All or none.
    fn start(&self, name: &str) -> Result<(), String> {
        let trackers = self.trackers();
        if trackers.is_empty() {
            return Err(format!(
                "'{name}': no export of this server can have a bitmap: each is read-only or a directory, changes to whose \
                 files are not recorded"
            ));
        }
        for (index, tracker) in trackers.iter().enumerate() {
            if let Err(error) = tracker.start(name) {
                for started in &trackers[..index] {
                    started.stop(name);
                }
                return Err(format!("'{name}': {error}"));
            }
        }
        Ok(())
    }

    fn each(&self, name: &str, act: impl Fn(&Tracker, &str) -> bool) -> Result<(), String> {
        let known = self.trackers().iter().filter(|tracker| act(tracker, name)).count();
        if known > 0 {
            Ok(())
        } else {
            Err(format!(
                "'{name}': there is no such bitmap: see which there are with nbd bitmap CONTROL list"
            ))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use nbd_engine::export::{Memory, Tracked};

    use super::*;

    pub(in crate::serve::control) fn trackers() -> Vec<Arc<Tracker>> {
        let tracked = || Tracked::new(Memory::new(1 << 20).unwrap());
        [tracked(), tracked()].iter().map(|one| Arc::clone(one.tracker())).collect()
    }

    #[test]
    fn bitmaps_are_started_for_all_exports_or_none() {
        let trackers = trackers();
        let bitmaps = Bitmaps::new(trackers.clone());
        assert_eq!(bitmaps.start("a"), Ok(()));
        assert_eq!(bitmaps.names(), ["a"]);
        trackers[1].start("b").unwrap();
        assert!(bitmaps.start("b").unwrap_err().contains("'b'"));
        assert_eq!(trackers[0].names(), ["a"]);
        assert_eq!(bitmaps.start("c"), Ok(()));
        assert_eq!(trackers[1].names(), ["a", "b", "c"]);
        assert_eq!(bitmaps.each("a", Tracker::stop), Ok(()));
        assert!(bitmaps.each("a", Tracker::stop).unwrap_err().contains("no such bitmap"));
        assert!(bitmaps.each("a", Tracker::clear).is_err());
        assert!(bitmaps.each("c", Tracker::clear).is_ok());
    }

    #[test]
    fn without_an_export_that_can_be_written_there_is_none() {
        let bitmaps = Bitmaps::new(Vec::new());
        assert!(
            bitmaps.start("a").unwrap_err().contains("no export of this server can have a bitmap")
        );
        assert_eq!(bitmaps.names(), [""; 0]);
    }

    #[test]
    fn there_are_only_so_many_bitmaps() {
        let bitmaps = Bitmaps::new(trackers());
        for name in 0..Tracker::MAX_BITMAPS {
            assert_eq!(bitmaps.start(&name.to_string()), Ok(()));
        }
        assert!(bitmaps.start("more").unwrap_err().contains("256 bitmaps"));
    }

    #[test]
    fn the_names_are_those_of_all_exports() {
        let trackers = trackers();
        trackers[0].start("a").unwrap();
        trackers[1].start("a").unwrap();
        trackers[1].start("b").unwrap();
        let bitmaps = Bitmaps::new(trackers.clone());
        assert_eq!(bitmaps.names(), ["a", "b"]);
        bitmaps.replace(trackers[..1].to_vec());
        assert_eq!(bitmaps.names(), ["a"]);
    }
}
