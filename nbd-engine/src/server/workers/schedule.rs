//! Which job is next: exports take turns, and the connections of an export do.

use std::collections::VecDeque;

/// How many threads the parts of a server may occupy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// Threads that all exports compete for.
    pub(super) total: usize,
    /// Threads that one export occupies at most.
    per_export: usize,
    /// Threads that one connection occupies at most.
    per_connection: usize,
    /// Threads that an export gets even when `total` are occupied by others.
    guaranteed: usize,
}

impl Shares {
    /// Threads that each export gets whatever the others do: one for a slow request, one for a flush beside it.
    const GUARANTEED: usize = 2;

    /// The shares in a pool of `total` threads: all of them for one export, since the others have their own in any
    /// case, and three quarters for one connection.
    pub(super) fn new(total: usize) -> Self {
        let total = total.max(1);
        Self {
            total,
            per_export: total,
            per_connection: total - total / 4,
            guaranteed: Self::GUARANTEED.min(total),
        }
    }
}

/// Jobs that wait, by export and connection, and how many are running.
///
/// A connection has a [lane](Self::open_lane). Lanes and exports keep their queues while they are in use, so that
/// handing over a job allocates nothing.
#[derive(Debug)]
pub(super) struct Schedule<J> {
    shares: Shares,
    exports: Slab<ExportQueue>,
    lanes: Slab<Lane<J>>,
    /// Exports that have waiting jobs, the one whose turn it is first.
    turns: VecDeque<usize>,
    running: usize,
}

#[derive(Debug)]
struct ExportQueue {
    /// What tells it from others.
    identity: usize,
    lanes: usize,
    running: usize,
    /// Lanes that have waiting jobs, the one whose turn it is first.
    turns: VecDeque<usize>,
}

#[derive(Debug)]
struct Lane<J> {
    export: usize,
    running: usize,
    jobs: VecDeque<J>,
    closed: bool,
}

impl<J> Schedule<J> {
    pub(super) fn new(shares: Shares) -> Self {
        Self {
            shares,
            exports: Slab::default(),
            lanes: Slab::default(),
            turns: VecDeque::new(),
            running: 0,
        }
    }

    /// A lane for a connection that uses the export with this identity.
    pub(super) fn open_lane(&mut self, identity: usize) -> usize {
        let known = self.exports.position(|export| export.identity == identity);
        let export = known.unwrap_or_else(|| {
            let turns = VecDeque::new();
            self.exports.insert(ExportQueue { identity, lanes: 0, running: 0, turns })
        });
        self.exports[export].lanes += 1;
        self.lanes.insert(Lane { export, running: 0, jobs: VecDeque::new(), closed: false })
    }

    /// The connection is gone. Gives its waiting jobs, which are not needed any more.
    pub(super) fn close_lane(&mut self, index: usize) -> VecDeque<J> {
        let lane = &mut self.lanes[index];
        lane.closed = true;
        let jobs = core::mem::take(&mut lane.jobs);
        let export = lane.export;
        self.exports[export].turns.retain(|waiting| *waiting != index);
        self.forget_unused(index);
        jobs
    }

    /// Jobs that are running.
    pub(super) const fn running(&self) -> usize {
        self.running
    }

    /// Jobs that wait.
    pub(super) fn waiting(&self) -> usize {
        self.lanes.iter().map(|lane| lane.jobs.len()).sum()
    }

    /// Queues a job.
    pub(super) fn push(&mut self, index: usize, job: J) {
        let lane = &mut self.lanes[index];
        lane.jobs.push_back(job);
        let export = lane.export;
        if lane.jobs.len() == 1 {
            let queue = &mut self.exports[export].turns;
            queue.push_back(index);
            if queue.len() == 1 {
                self.turns.push_back(export);
            }
        }
    }

    /// Whether [`start_next`](Self::start_next) would give a job.
    pub(super) fn may_start(&self) -> bool {
        self.turns.iter().any(|export| {
            let mut lanes = self.exports[*export].turns.iter();
            self.export_may_start(*export)
                && lanes.any(|lane| self.lanes[*lane].running < self.shares.per_connection)
        })
    }

    fn export_may_start(&self, export: usize) -> bool {
        let running = self.exports[export].running;
        let room = self.running < self.shares.total || running < self.shares.guaranteed;
        room && running < self.shares.per_export
    }

    /// The job whose turn it is, among those with a share left to their export and connection, with its lane.
    pub(super) fn start_next(&mut self) -> Option<(usize, J)> {
        for _ in 0..self.turns.len() {
            let export = self.turns.pop_front()?;
            let started = if self.export_may_start(export) { self.start_of(export) } else { None };
            if !self.exports[export].turns.is_empty() {
                self.turns.push_back(export);
            }
            if started.is_some() {
                return started;
            }
        }
        None
    }

    fn start_of(&mut self, export: usize) -> Option<(usize, J)> {
        let queue = &mut self.exports[export];
        for _ in 0..queue.turns.len() {
            let index = queue.turns.pop_front()?;
            let lane = &mut self.lanes[index];
            let within_share = lane.running < self.shares.per_connection;
            let job = if within_share { lane.jobs.pop_front() } else { None };
            if !lane.jobs.is_empty() {
                queue.turns.push_back(index);
            }
            if let Some(job) = job {
                lane.running += 1;
                queue.running += 1;
                self.running += 1;
                return Some((index, job));
            }
        }
        None
    }

    /// A job of this lane has stopped running. Gives whether its connection is still there.
    pub(super) fn stopped(&mut self, index: usize) -> bool {
        let lane = &mut self.lanes[index];
        lane.running -= 1;
        let open = !lane.closed;
        self.exports[lane.export].running -= 1;
        self.running -= 1;
        self.forget_unused(index);
        open
    }

    fn forget_unused(&mut self, index: usize) {
        let lane = &self.lanes[index];
        if !lane.closed || lane.running > 0 {
            return;
        }
        let export = lane.export;
        self.lanes.remove(index);
        let queue = &mut self.exports[export];
        queue.lanes -= 1;
        if queue.turns.is_empty() {
            self.turns.retain(|waiting| *waiting != export);
        }
        if queue.lanes == 0 {
            self.exports.remove(export);
        }
    }

    /// All jobs that wait, taken out.
    pub(super) fn take_all(&mut self) -> Vec<J> {
        self.turns.clear();
        self.exports.iter_mut().for_each(|export| export.turns.clear());
        self.lanes.iter_mut().flat_map(|lane| lane.jobs.drain(..)).collect()
    }
}

/// Values at stable indices.
#[derive(Debug)]
struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    fn insert(&mut self, value: T) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.entries[index] = Some(value);
                index
            }
            None => {
                self.entries.push(Some(value));
                self.entries.len() - 1
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }

    fn remove(&mut self, index: usize) {
        if self.entries[index].take().is_some() {
            self.free.push(index);
        }
    }

    fn position(&self, matches: impl Fn(&T) -> bool) -> Option<usize> {
        self.entries.iter().position(|entry| entry.as_ref().is_some_and(&matches))
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().flatten()
    }
}

impl<T> core::ops::Index<usize> for Slab<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        self.entries[index].as_ref().expect("indices are used only while their entry exists")
    }
}

impl<T> core::ops::IndexMut<usize> for Slab<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        self.entries[index].as_mut().expect("indices are used only while their entry exists")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(total: usize) -> Schedule<u32> {
        Schedule::new(Shares::new(total))
    }

    #[test]
    fn a_stuck_export_leaves_every_other_export_its_threads() {
        let mut schedule = schedule(16);
        // Many exports hang, each with two greedy connections.
        for identity in 0..20 {
            for _ in 0..2 {
                let lane = schedule.open_lane(identity);
                (0..64).for_each(|job| schedule.push(lane, job));
            }
        }
        while schedule.start_next().is_some() {}
        let other = schedule.open_lane(1000);
        schedule.push(other, 1);
        schedule.push(other, 2);
        assert_eq!(schedule.start_next(), Some((other, 1)));
        assert_eq!(schedule.start_next(), Some((other, 2)));
    }

    #[test]
    fn connections_of_an_export_take_turns() {
        let mut schedule = schedule(1);
        let [greedy, modest] = [(); 2].map(|()| schedule.open_lane(7));
        (0..10).for_each(|job| schedule.push(greedy, job));
        schedule.push(modest, 100);
        let mut order = Vec::new();
        while let Some((lane, job)) = schedule.start_next() {
            order.push(job);
            schedule.stopped(lane);
        }
        assert_eq!(order[..3], [0, 100, 1]);
        assert_eq!(order.len(), 11);
    }

    #[test]
    fn jobs_of_a_connection_that_is_gone_are_given_back() {
        let mut schedule = schedule(4);
        let lane = schedule.open_lane(1);
        (0..10).for_each(|job| schedule.push(lane, job));
        let (started, job) = schedule.start_next().unwrap();
        assert_eq!((started, job), (lane, 0));
        assert_eq!(schedule.close_lane(lane).len(), 9);
        assert_eq!(schedule.start_next(), None);
        assert!(!schedule.stopped(lane));
        assert_eq!(schedule.lanes.position(|_| true), None);
        assert_eq!(schedule.exports.position(|_| true), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open(usize),
        Close(usize),
        Push(usize),
        Start,
        Stop(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (0..4_usize).prop_map(Step::Open),
            1 => any::<usize>().prop_map(Step::Close),
            8 => any::<usize>().prop_map(Step::Push),
            8 => Just(Step::Start),
            6 => any::<usize>().prop_map(Step::Stop),
        ]
    }

    /// Takes one of a list by any number.
    fn choose<T: Copy>(list: &[T], number: usize) -> Option<T> {
        (!list.is_empty()).then(|| list[number % list.len()])
    }

    proptest! {
        /// Whatever happens: no share is exceeded, no job is lost or run twice, and an export that occupies fewer
        /// threads than it is guaranteed is never kept waiting.
        #[test]
        fn shares_hold_and_no_job_is_lost(
            total in 1..20_usize,
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let shares = Shares::new(total);
            let mut schedule = Schedule::new(shares);
            let mut open: Vec<(usize, usize)> = Vec::new();
            let mut running: Vec<(usize, usize)> = Vec::new();
            let mut waiting: Vec<(usize, usize, u32)> = Vec::new();
            for (job, step) in (0..).zip(steps) {
                match step {
                    Step::Open(identity) => open.push((schedule.open_lane(identity), identity)),
                    Step::Close(number) => {
                        if let Some((lane, _)) = choose(&open, number) {
                            open.retain(|(other, _)| *other != lane);
                            let given_back = schedule.close_lane(lane);
                            let known = waiting.iter().filter(|(other, ..)| *other == lane).count();
                            prop_assert_eq!(given_back.len(), known);
                            waiting.retain(|(other, ..)| *other != lane);
                        }
                    }
                    Step::Push(number) => {
                        if let Some((lane, identity)) = choose(&open, number) {
                            schedule.push(lane, job);
                            waiting.push((lane, identity, job));
                        }
                    }
                    Step::Start => {
                        let by_export = |identity| {
                            running.iter().filter(|(_, other)| *other == identity).count()
                        };
                        let by_lane = |lane| {
                            running.iter().filter(|(other, _)| *other == lane).count()
                        };
                        let starved = waiting.iter().any(|(lane, identity, _)| {
                            by_export(*identity) < shares.guaranteed
                                && by_lane(*lane) < shares.per_connection
                        });
                        let may_start = schedule.may_start();
                        let started = schedule.start_next();
                        prop_assert_eq!(started.is_some(), may_start);
                        match started {
                            None => prop_assert!(!starved),
                            Some((lane, job)) => {
                                let index = waiting
                                    .iter()
                                    .position(|(other, _, known)| (*other, *known) == (lane, job));
                                let (_, identity, _) = waiting.remove(index.unwrap());
                                running.push((lane, identity));
                                let count = |matches: &dyn Fn(&(usize, usize)) -> bool| {
                                    running.iter().filter(|one| matches(one)).count()
                                };
                                let of_export = count(&|one| one.1 == identity);
                                prop_assert!(of_export <= shares.per_export);
                                prop_assert!(count(&|one| one.0 == lane) <= shares.per_connection);
                                let guaranteed = of_export <= shares.guaranteed;
                                prop_assert!(running.len() <= shares.total || guaranteed);
                            }
                        }
                    }
                    Step::Stop(number) => {
                        if let Some((lane, identity)) = choose(&running, number) {
                            let index = running.iter().position(|one| *one == (lane, identity));
                            running.remove(index.unwrap());
                            let known = open.iter().any(|(other, _)| *other == lane);
                            prop_assert_eq!(schedule.stopped(lane), known);
                        }
                    }
                }
                prop_assert_eq!(schedule.running, running.len());
            }
        }
    }
}
