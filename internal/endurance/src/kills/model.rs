//! What each sector may hold, by what clients sent and were told.
//!
//! A change is *acknowledged* when its reply has arrived. It has *replaced* an older one if that was acknowledged before it
//! was sent; changes in flight at the same time have no order. What survives is looked at twice:
//!
//! - in the cache of the system, which outlives a process: after a kill a sector holds a change that none has replaced;
//! - on the medium, behind the cache: a sector holds a change that none has replaced that was flushed.

use core::ops::Range;
use std::collections::HashMap;

use super::stamp::{SECTOR, Value, read};

/// A moment: the number of things that had happened before.
pub type Moment = u64;

/// Where something was found that can't be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// One change of a sector that may show.
#[derive(Clone, Copy, Debug)]
struct Change {
    /// Which request made it; 0 for what the sector held at first, or after a kill.
    request: u64,
    value: Value,
    sent: Moment,
    acknowledged: Option<Moment>,
    flushed: bool,
    /// When a later one was acknowledged that was sent after this one's acknowledgement.
    replaced: Option<Moment>,
    /// A later one was flushed as well.
    gone_from_medium: bool,
}

/// A request that changes sectors and has no reply yet.
#[derive(Clone, Debug)]
struct InFlight {
    sectors: Range<u64>,
    durable: bool,
}

/// A disk as its clients know it.
#[derive(Debug)]
pub struct Model {
    sectors: Vec<Vec<Change>>,
    in_flight: HashMap<u64, InFlight>,
    now: Moment,
    requests: u64,
}

/// What a kill left of the requests that were in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Landed {
    /// Nothing of them is there.
    pub not: u64,
    /// Some sectors are there and some are not.
    pub partly: u64,
    /// All of them that nothing else may have overwritten are there.
    pub wholly: u64,
}

impl Model {
    /// A disk of so many sectors, all of them zero.
    pub fn new(sectors: u64) -> Self {
        let zero = Change {
            request: 0,
            value: Value::Zero,
            sent: 0,
            acknowledged: Some(0),
            flushed: true,
            replaced: None,
            gone_from_medium: false,
        };
        let sectors = vec![vec![zero]; sectors as usize];
        Self { sectors, in_flight: HashMap::new(), now: 0, requests: 0 }
    }

    /// How many sectors there are.
    pub fn len(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// Whether there are no sectors.
    pub fn is_empty(&self) -> bool {
        self.sectors.is_empty()
    }

    /// The present moment, which is over.
    pub fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// A write is about to be sent, with `FUA` if it is `durable`; gives its number, which its data has.
    pub fn write(&mut self, sectors: Range<u64>, durable: bool) -> u64 {
        self.change(sectors, durable, Value::Write)
    }

    /// Zeroes are about to be written.
    pub fn zero(&mut self, sectors: Range<u64>, durable: bool) -> u64 {
        self.change(sectors, durable, |_| Value::Zero)
    }

    fn change(&mut self, sectors: Range<u64>, durable: bool, value: fn(u64) -> Value) -> u64 {
        self.requests += 1;
        let (request, sent) = (self.requests, self.tick());
        let value = value(request);
        for sector in &mut self.sectors[sectors.start as usize..sectors.end as usize] {
            sector.push(Change {
                request,
                value,
                sent,
                acknowledged: None,
                flushed: false,
                replaced: None,
                gone_from_medium: false,
            });
        }
        self.in_flight.insert(request, InFlight { sectors, durable });
        request
    }

    /// The reply to a change has arrived, without an error.
    pub fn acknowledge(&mut self, request: u64) {
        let now = self.tick();
        let Some(InFlight { sectors, durable }) = self.in_flight.remove(&request) else {
            unreachable!("a change is acknowledged once")
        };
        for sector in &mut self.sectors[sectors.start as usize..sectors.end as usize] {
            let mut sent = now;
            for change in sector.iter_mut().filter(|change| change.request == request) {
                change.acknowledged = Some(now);
                change.flushed |= durable;
                sent = change.sent;
            }
            for change in sector.iter_mut() {
                if change.acknowledged.is_some_and(|moment| moment < sent) {
                    change.replaced.get_or_insert(now);
                }
            }
            if durable {
                forget_what_flushes_replaced(sector);
            }
        }
    }

    /// The reply to a flush has arrived that was sent at that moment.
    pub fn flushed(&mut self, sent: Moment) {
        for sector in &mut self.sectors {
            for change in sector.iter_mut() {
                change.flushed |= change.acknowledged.is_some_and(|moment| moment < sent);
            }
            forget_what_flushes_replaced(sector);
        }
    }

    /// Compares what a read that was sent at that moment has brought.
    ///
    /// # Errors
    /// When a sector holds what it can't hold.
    pub fn check_read(&self, first: u64, data: &[u8], sent: Moment) -> Result<(), Violation> {
        self.check(first, data, "a read", |change| change.replaced.is_none_or(|then| then > sent))
    }

    /// Compares the whole disk after a kill, as it is in the system's cache.
    ///
    /// # Errors
    /// When a sector holds what it can't hold.
    pub fn check_cache(&self, data: &[u8]) -> Result<(), Violation> {
        self.check(0, data, "the disk after the kill", |change| change.replaced.is_none())
    }

    /// Compares the whole disk behind the cache.
    ///
    /// # Errors
    /// When a sector holds what it can't hold.
    pub fn check_medium(&self, data: &[u8]) -> Result<(), Violation> {
        self.check(0, data, "the medium behind the cache", |change| !change.gone_from_medium)
    }

    fn check(
        &self,
        first: u64,
        data: &[u8],
        what: &str,
        may_show: impl Fn(&Change) -> bool,
    ) -> Result<(), Violation> {
        for (index, bytes) in data.chunks(SECTOR).enumerate() {
            let sector = first + index as u64;
            let found = read(sector, bytes);
            let changes = &self.sectors[sector as usize];
            if !changes.iter().any(|change| change.value == found && may_show(change)) {
                let possible: Vec<&Change> = changes.iter().filter(|one| may_show(one)).collect();
                let history = changes.iter().find(|change| change.value == found);
                return Err(Violation(format!(
                    "{what} has {found:?} in sector {sector}, which can only be one of {possible:?}; that change: \
                     {history:?}"
                )));
            }
        }
        Ok(())
    }

    /// The server was killed, and this is what is there: from now on that is what sectors hold, and nothing that was in
    /// flight can come any more. `cache` and `medium` were checked.
    pub fn settle(&mut self, cache: &[u8], medium: &[u8]) -> Landed {
        let landed = self.landed(cache);
        let before = self.tick();
        let now = self.tick();
        let pairs = cache.chunks(SECTOR).zip(medium.chunks(SECTOR)).enumerate();
        for (sector, (cached, stored)) in pairs {
            let [cached, stored] = [cached, stored].map(|bytes| read(sector as u64, bytes));
            let of = |value, moment| Change {
                request: 0,
                value,
                sent: moment,
                acknowledged: Some(moment),
                flushed: false,
                replaced: None,
                gone_from_medium: false,
            };
            let old = Change { replaced: Some(now), flushed: true, ..of(stored, before) };
            self.sectors[sector] = vec![old, of(cached, now)];
        }
        self.in_flight.clear();
        landed
    }

    fn landed(&self, cache: &[u8]) -> Landed {
        let mut landed = Landed::default();
        for (request, InFlight { sectors, .. }) in &self.in_flight {
            let [mut there, mut missing] = [0u64; 2];
            for sector in sectors.clone() {
                // What else may show says nothing of this one.
                let changes = &self.sectors[sector as usize];
                let open = changes.iter().filter(|change| change.replaced.is_none());
                if open
                    .clone()
                    .any(|change| change.acknowledged.is_none() && change.request != *request)
                {
                    continue;
                }
                let start = sector as usize * SECTOR;
                let found = read(sector, &cache[start..start + SECTOR]);
                match found == Value::Write(*request) {
                    true => there += 1,
                    false => missing += 1,
                }
            }
            match (there, missing) {
                (0, 0) => {}
                (0, _) => landed.not += 1,
                (_, 0) => landed.wholly += 1,
                _ => landed.partly += 1,
            }
        }
        landed
    }
}

/// What was acknowledged before something flushed was sent is on the medium no more.
fn forget_what_flushes_replaced(sector: &mut [Change]) {
    let latest = sector.iter().filter(|change| change.flushed).map(|change| change.sent).max();
    let Some(latest) = latest else { return };
    for change in sector {
        change.gone_from_medium |= change.acknowledged.is_some_and(|moment| moment < latest);
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::{Random, cases};

    use super::super::stamp::data;
    use super::*;

    const SECTORS: u64 = 8;

    /// A disk with a cache that does what it should, and the model beside it.
    struct Honest {
        model: Model,
        cache: Vec<u8>,
        medium: Vec<u8>,
    }

    impl Honest {
        fn new() -> Self {
            let bytes = vec![0; SECTORS as usize * SECTOR];
            Self { model: Model::new(SECTORS), cache: bytes.clone(), medium: bytes }
        }

        fn write(&mut self, random: &mut Random) -> (u64, Range<u64>) {
            let start = random.below(SECTORS);
            let sectors = start..start + 1 + random.below(SECTORS - start);
            let request = self.model.write(sectors.clone(), false);
            (request, sectors)
        }

        fn put(&mut self, request: u64, sectors: Range<u64>) {
            let bytes = data(request, sectors.start, sectors.end - sectors.start);
            let start = sectors.start as usize * SECTOR;
            self.cache[start..start + bytes.len()].copy_from_slice(&bytes);
        }

        fn step(&mut self, random: &mut Random) {
            match random.below(5) {
                0 => {
                    let sent = self.model.tick();
                    self.medium.copy_from_slice(&self.cache);
                    self.model.flushed(sent);
                }
                1 => {
                    // The cache may be written back at any time.
                    let start = random.below(SECTORS) as usize * SECTOR;
                    let sector = start..start + SECTOR;
                    self.medium[sector.clone()].copy_from_slice(&self.cache[sector]);
                }
                2 => {
                    // Two at the same time, in either order.
                    let mut pair = [self.write(random), self.write(random)];
                    if random.one_in(2) {
                        pair.reverse();
                    }
                    for (request, sectors) in pair.clone() {
                        self.put(request, sectors);
                    }
                    for (request, _) in pair {
                        self.model.acknowledge(request);
                    }
                }
                3 => {
                    // One that was in flight: nothing, or some of it.
                    let (request, sectors) = self.write(random);
                    let length = random.below(sectors.end - sectors.start + 1);
                    self.put(request, sectors.start..sectors.start + length);
                    self.check().unwrap();
                    self.model.settle(&self.cache, &self.medium);
                }
                _ => {
                    let (request, sectors) = self.write(random);
                    self.put(request, sectors);
                    self.model.acknowledge(request);
                }
            }
        }

        fn check(&self) -> Result<(), Violation> {
            self.model.check_read(0, &self.cache, self.model.now)?;
            self.model.check_cache(&self.cache)?;
            self.model.check_medium(&self.medium)
        }
    }

    #[test]
    fn a_disk_that_does_what_it_should_is_never_blamed() {
        cases(100, |random| {
            let mut disk = Honest::new();
            for _ in 0..random.below(50) {
                disk.step(random);
                disk.check().unwrap();
            }
        });
    }

    #[test]
    fn an_acknowledged_write_that_is_not_there_is_found() {
        cases(300, |random| {
            let mut disk = Honest::new();
            for _ in 0..random.below(40) {
                disk.step(random);
            }
            let (request, _) = disk.write(random);
            disk.model.acknowledge(request);
            assert!(disk.model.check_cache(&disk.cache).is_err());
            assert!(disk.model.check_read(0, &disk.cache, disk.model.now).is_err());
        });
    }

    #[test]
    fn a_flush_that_did_nothing_is_found() {
        cases(300, |random| {
            let mut disk = Honest::new();
            for _ in 0..random.below(40) {
                disk.step(random);
            }
            let (request, sectors) = disk.write(random);
            disk.put(request, sectors);
            disk.model.acknowledge(request);
            disk.check().unwrap();
            let sent = disk.model.tick();
            disk.model.flushed(sent);
            assert!(disk.model.check_medium(&disk.medium).is_err());
        });
    }

    #[test]
    fn what_was_replaced_before_a_kill_or_not_there_after_it_may_not_come_back() {
        cases(300, |random| {
            let mut disk = Honest::new();
            let (request, sectors) = disk.write(random);
            let landed = random.one_in(2);
            if landed {
                disk.put(request, sectors.clone());
            }
            let found = disk.model.settle(&disk.cache, &disk.medium);
            assert_eq!((found.wholly, found.not), if landed { (1, 0) } else { (0, 1) });
            if landed {
                disk.cache.fill(0);
            } else {
                disk.put(request, sectors);
            }
            assert!(disk.model.check_cache(&disk.cache).is_err());
        });
    }

    #[test]
    fn torn_and_misplaced_sectors_are_found() {
        cases(300, |random| {
            let mut disk = Honest::new();
            let request = disk.model.write(0..SECTORS, false);
            disk.put(request, 0..SECTORS);
            disk.model.acknowledge(request);
            let sector = random.below(SECTORS) as usize * SECTOR;
            // The first word is the write's number, which is small.
            let cut = 8 + random.below(SECTOR as u64 - 9) as usize;
            disk.cache[sector + cut..sector + SECTOR].fill(0);
            assert!(disk.model.check_cache(&disk.cache).is_err());
            disk.put(request, 0..SECTORS);
            disk.cache.rotate_left(SECTOR);
            assert!(disk.model.check_cache(&disk.cache).is_err());
        });
    }
}
