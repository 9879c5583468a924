//! Whether a client gets on: the deadlines of a connection after the handshake.
//!
//! Nothing is timed while requests come and go. Every few seconds a timer looks at what has been counted since it
//! looked before; an idle connection is looked at ever more seldom.
//!
//! A look that comes much later than it was due says that the server itself did not run, stopped by a signal for
//! example. What the client did meanwhile still lies in the socket, so that such a time does not count.

use core::time::Duration;
use std::time::Instant;

use super::{ServerConfig, Stall};

/// What a connection is doing, and what it has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Activity {
    /// Bytes received, inside of TLS once they are decrypted.
    pub(crate) received: u64,
    /// Bytes received of a TLS record of which the rest has yet to arrive. A record that is complete need not have any
    /// data, so that they count for as long as it is incomplete.
    pub(crate) incomplete: u64,
    /// Bytes sent.
    pub(crate) sent: u64,
    /// Requests that were received to their end.
    pub(crate) requests: u64,
    /// Times that nothing was left to be sent.
    pub(crate) drained: u64,
    /// Whether a part of a request, or of a TLS record, has been received, and the client is to send the rest.
    pub(crate) receiving: bool,
    /// Whether something is to be sent.
    pub(crate) sending: bool,
    /// Whether the client will send no more requests.
    pub(crate) closing: bool,
    /// Whether others wait for buffers that this connection holds.
    pub(crate) in_the_way: bool,
    /// Whether nothing is in flight.
    pub(crate) idle: bool,
}

impl Activity {
    /// Bytes that the client has sent so far towards its requests.
    const fn arrived(&self) -> u64 {
        self.received + self.incomplete
    }
}

/// What is to be done about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Look again after that time.
    LookAgain(Duration),
    /// It is idle: give back buffers, and look again after that time.
    Idle(Duration),
    /// It has been idle for long: its slot may go to a client that waits for one. Look again after that time.
    LongIdle(Duration),
    /// The client does not get on with sending a request.
    ReceiveStalled(Stall),
    /// The client does not get on with taking its replies.
    SendStalled(Stall),
}

/// The deadlines of one connection.
#[derive(Debug)]
pub(crate) struct Watch {
    stall: Duration,
    crowded: Duration,
    idle: Option<Duration>,
    rate: u64,
    period: Duration,
    receive: Mark,
    send: Mark,
    /// Since when nothing happened, by the number of bytes that were received before.
    quiet: Mark,
}

/// A moment at which things were well.
#[derive(Clone, Copy, Debug)]
struct Mark {
    time: Instant,
    bytes: u64,
    events: u64,
}

impl Mark {
    /// Nothing that was before counts.
    const fn restart(&mut self, now: Instant, bytes: u64, events: u64) {
        *self = Self { time: now, bytes, events };
    }

    /// Moves on if things are well; gives how long they have not been.
    fn update(&mut self, well: bool, now: Instant, bytes: u64, events: u64) -> Duration {
        if well {
            self.restart(now, bytes, events);
        }
        now.saturating_duration_since(self.time)
    }

    /// Bytes that have been moved since; none if the count has gone back, as that of incomplete records does.
    const fn moved(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(self.bytes)
    }

    /// Whether at least `rate` bytes a second have been moved since, and one at least.
    fn is_outrun(&self, now: Instant, bytes: u64, rate: u64) -> bool {
        let moved = self.moved(bytes);
        let millis = now.saturating_duration_since(self.time).as_millis();
        moved > 0 && u128::from(moved) * 1000 >= u128::from(rate) * millis
    }
}

/// How often a busy connection is looked at, unless a deadline is shorter than that.
const PERIOD: Duration = Duration::from_secs(2);

/// How soon it has to be found out, at the earliest, that a client is idle.
const SHORTEST_IDLE: Duration = Duration::from_secs(1);

/// Clients that keep others waiting and move not a single byte have this part of the crowded timeout: all that others
/// wait for depends on them, and a client that works moves something all the time.
const STUCK_PART: u32 = 5;

/// How often to look at what has to happen within `limit`; also by how much a look may be late before that is taken
/// for a time in which the server did not run.
pub(crate) fn period_within(limit: Duration) -> Duration {
    (limit / 2).clamp(Duration::from_millis(1), PERIOD)
}

impl Watch {
    /// A watch over a connection that entered transmission now.
    pub(crate) fn new(config: &ServerConfig, now: Instant) -> Self {
        let (stall, crowded) = (config.stall_timeout(), config.crowded_timeout());
        let mark = Mark { time: now, bytes: 0, events: 0 };
        let idle = config.idle_timeout();
        // One that is shorter than that is worth no more looks, which could all come late.
        let soon = idle.map_or(stall, |idle| idle.max(SHORTEST_IDLE));
        Self {
            stall,
            crowded,
            idle,
            rate: config.min_transfer_rate(),
            period: period_within(stall.min(crowded).min(soon)),
            receive: mark,
            send: mark,
            quiet: mark,
        }
    }

    /// How long until the first look.
    pub(crate) const fn period(&self) -> Duration {
        self.period
    }

    /// The connection begins to do something, after a rest or a time in which the server did not run: nothing that was
    /// before counts.
    pub(crate) const fn restart(&mut self, now: Instant, activity: &Activity) {
        self.receive.restart(now, activity.arrived(), activity.requests);
        self.send.restart(now, activity.sent, activity.drained);
        self.quiet.restart(now, activity.received, 0);
    }

    /// Looks at the connection, `late` after the look was due.
    pub(crate) fn look(&mut self, now: Instant, late: Duration, activity: &Activity) -> Verdict {
        let Activity { requests, sent, drained, .. } = *activity;
        if late > self.period {
            self.restart(now, activity);
            return Verdict::LookAgain(self.period);
        }

        let (receive, arrived) = (&mut self.receive, activity.arrived());
        let well = !activity.receiving
            || receive.events != requests
            || receive.is_outrun(now, arrived, self.rate);
        let time = receive.update(well, now, arrived, requests);
        let bytes = receive.moved(arrived);
        if time >= self.limit(activity, bytes) {
            return Verdict::ReceiveStalled(Stall { time, bytes, min_rate: self.rate });
        }

        let send = &mut self.send;
        let well =
            !activity.sending || send.events != drained || send.is_outrun(now, sent, self.rate);
        let time = send.update(well, now, sent, drained);
        let bytes = send.moved(sent);
        if time >= self.limit(activity, bytes) {
            return Verdict::SendStalled(Stall { time, bytes, min_rate: self.rate });
        }

        let moved = activity.received != self.quiet.bytes;
        let quiet = self.quiet.update(moved || !activity.idle, now, activity.received, 0);
        // A client that stalls inside of a header has nothing in flight.
        if !activity.idle || activity.receiving || quiet.is_zero() {
            return Verdict::LookAgain(self.period);
        }
        match self.idle {
            Some(idle) if quiet >= idle => Verdict::LongIdle(idle.max(self.period)),
            Some(idle) => Verdict::Idle(idle - quiet),
            None => Verdict::Idle(self.period * 16),
        }
    }

    /// How long a client may be too slow that has moved so many bytes meanwhile.
    fn limit(&self, activity: &Activity, bytes: u64) -> Duration {
        let limit = if activity.in_the_way && bytes == 0 {
            self.crowded / STUCK_PART
        } else if activity.in_the_way || activity.closing {
            self.crowded
        } else {
            self.stall
        };
        limit.min(self.stall)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn stall(seconds: u32, bytes: u64) -> Stall {
        Stall { time: seconds * SECOND, bytes, min_rate: 1000 }
    }

    fn watch() -> (Watch, Instant) {
        let now = Instant::now();
        let config = ServerConfig::new()
            .with_stall_timeout(30 * SECOND)
            .with_crowded_timeout(10 * SECOND)
            .with_idle_timeout(Some(60 * SECOND))
            .with_min_transfer_rate(1000);
        (Watch::new(&config, now), now)
    }

    proptest! {
        /// Whenever a client stalls inside of a header, the looks come soon enough to notice it in time.
        #[test]
        fn a_client_that_stalls_inside_of_a_header_is_noticed_in_time(
            requests in 0u64..3,
            begins in 0u32..200_000,
        ) {
            let (mut watch, start) = watch();
            let begins = begins * (SECOND / 1000);
            let mut next = watch.period();
            let mut rests = false;
            let mut begun = false;
            loop {
                let receiving = next >= begins;
                let received = requests * 28 + if receiving { 10 } else { 0 };
                let activity =
                    Activity { received, requests, receiving, idle: true, ..Activity::default() };
                // What arrives at a connection that rests has it looked at a period later.
                if receiving && !core::mem::replace(&mut begun, true) && rests {
                    watch.restart(start + begins, &activity);
                    next = begins + watch.period();
                }
                match watch.look(start + next, Duration::ZERO, &activity) {
                    Verdict::LookAgain(time) => {
                        rests = false;
                        next += time;
                    }
                    Verdict::Idle(time) | Verdict::LongIdle(time) => {
                        rests = true;
                        next += time;
                    }
                    verdict => {
                        prop_assert!(matches!(verdict, Verdict::ReceiveStalled(_)), "{:?}", verdict);
                        prop_assert!(next + watch.period() >= begins + 30 * SECOND, "{:?}", next);
                        prop_assert!(next <= begins + 34 * SECOND, "{:?} for {:?}", next, begins);
                        break;
                    }
                }
                prop_assert!(next < begins + 100 * SECOND, "it is never noticed");
            }
        }
    }

    /// Looks every second, as `activity` says it is at that second; gives the verdict that ended it.
    fn run(seconds: u32, activity: impl Fn(u64) -> Activity) -> (u32, Verdict) {
        let (mut watch, start) = watch();
        for second in 1..=seconds {
            let now = start + second * SECOND;
            match watch.look(now, Duration::ZERO, &activity(u64::from(second))) {
                Verdict::LookAgain(_) | Verdict::Idle(_) | Verdict::LongIdle(_) => {}
                verdict => return (second, verdict),
            }
        }
        (seconds, Verdict::LookAgain(Duration::ZERO))
    }

    #[test]
    fn a_request_that_dribbles_is_stalled() {
        for rate in [0, 1, 999] {
            let dribble = |second| Activity {
                receiving: true,
                received: second * rate,
                ..Activity::default()
            };
            assert_eq!(
                run(100, dribble),
                (30, Verdict::ReceiveStalled(stall(30, 30 * rate))),
                "{rate}"
            );
        }
    }

    #[test]
    fn a_slow_transfer_is_not_stalled() {
        let slow = |second| Activity {
            receiving: true,
            sending: true,
            received: second * 1000,
            sent: second * 1000,
            ..Activity::default()
        };
        assert_eq!(run(1000, slow).0, 1000);
    }

    #[test]
    fn a_record_that_stays_incomplete_is_stalled() {
        for rate in [0, 999] {
            let dribble = |second| Activity {
                receiving: true,
                idle: true,
                incomplete: 5 + second * rate,
                ..Activity::default()
            };
            let (seconds, verdict) = run(100, dribble);
            assert!(matches!(verdict, Verdict::ReceiveStalled(_)), "{verdict:?}");
            assert!((30..=32).contains(&seconds), "after {seconds} s at {rate} bytes/s");
        }
        // Records of 16 KiB, one byte more than the rate demands.
        let slow = |second| Activity {
            receiving: true,
            received: second * 1001 / (16 << 10) * (16 << 10),
            incomplete: second * 1001 % (16 << 10),
            ..Activity::default()
        };
        assert_eq!(run(1000, slow).0, 1000);
    }

    /// Records may have nothing but padding: however many of them arrive, the request does not get on.
    #[test]
    fn records_without_data_are_no_progress() {
        for step in [1, 1000, 7000, 16_407] {
            let empty = |second| Activity {
                receiving: true,
                received: 10,
                incomplete: second * step % 16_406,
                ..Activity::default()
            };
            let (seconds, verdict) = run(200, empty);
            assert!(matches!(verdict, Verdict::ReceiveStalled(_)), "{verdict:?}");
            // Those of the first one count.
            assert!(seconds <= 30 + 32, "after {seconds} s");
        }
    }

    #[test]
    fn small_requests_now_and_then_are_not_stalled() {
        // Each look happens to find a part of the next request.
        let sparse = |second| Activity {
            receiving: true,
            received: second / 20 * 28,
            requests: second / 20,
            ..Activity::default()
        };
        assert_eq!(run(1000, sparse).0, 1000);
    }

    #[test]
    fn replies_that_are_not_read_are_stalled_sooner_when_others_wait_or_the_client_disconnects() {
        let unread = |second| Activity { sending: true, sent: second, ..Activity::default() };
        assert_eq!(run(100, unread), (30, Verdict::SendStalled(stall(30, 30))));
        let in_the_way = |second| Activity { in_the_way: true, ..unread(second) };
        assert_eq!(run(100, in_the_way), (10, Verdict::SendStalled(stall(10, 10))));
        let closing = |second| Activity { closing: true, ..unread(second) };
        assert_eq!(run(100, closing), (10, Verdict::SendStalled(stall(10, 10))));
    }

    #[test]
    fn a_client_that_moves_nothing_while_others_wait_for_its_buffers_is_stalled_soonest() {
        let still = Activity { in_the_way: true, ..Activity::default() };
        let unread = |_| Activity { sending: true, ..still };
        assert_eq!(run(100, unread), (2, Verdict::SendStalled(stall(2, 0))));
        let unsent = |_| Activity { receiving: true, ..still };
        assert_eq!(run(100, unsent), (2, Verdict::ReceiveStalled(stall(2, 0))));
        // A byte every two seconds is something.
        let dribbled = |second| Activity { sent: second / 2 + 1, ..unread(second) };
        assert_eq!(run(100, dribbled).0, 10);
        let quick = |second| Activity { sent: second * 1000, ..unread(second) };
        assert_eq!(run(1000, quick).0, 1000);
    }

    proptest! {
        /// Time in which the server does not run does not count, whatever the client does.
        #[test]
        fn a_late_look_begins_anew(
            receiving: bool,
            closing: bool,
            in_the_way: bool,
            idle: bool,
            late in 3_u32..100_000,
            stopped_at in 1_u32..30,
        ) {
            let activity = Activity {
                receiving: receiving && !idle,
                sending: !receiving && !idle,
                closing,
                in_the_way,
                idle,
                ..Activity::default()
            };
            // As long as it takes while the server runs; idle clients are to go after a minute.
            let lasts = |watch: &mut Watch, start: Instant| {
                (1..=100).find(|second| {
                    let verdict = watch.look(start + *second * SECOND, Duration::ZERO, &activity);
                    !matches!(verdict, Verdict::LookAgain(_) | Verdict::Idle(_))
                })
            };
            let (mut undisturbed, start) = watch();
            let expected = lasts(&mut undisturbed, start);
            prop_assert!(expected.is_some());

            let (mut stopped, start) = watch();
            let resumed = start + (stopped_at + late) * SECOND;
            let verdict = stopped.look(resumed, late * SECOND, &activity);
            prop_assert_eq!(verdict, Verdict::LookAgain(2 * SECOND));
            prop_assert_eq!(lasts(&mut stopped, resumed), expected);
        }
    }

    #[test]
    fn a_look_that_is_a_little_late_counts() {
        let (mut watch, start) = watch();
        let unread = Activity { sending: true, ..Activity::default() };
        let verdict = watch.look(start + 32 * SECOND, 2 * SECOND, &unread);
        assert_eq!(verdict, Verdict::SendStalled(stall(32, 0)));
    }

    #[test]
    fn a_request_that_takes_long_is_no_stall() {
        let working = |_| Activity { idle: false, in_the_way: true, ..Activity::default() };
        assert_eq!(run(1000, working).0, 1000);
    }

    #[test]
    fn an_idle_connection_gives_back_its_buffers_and_then_its_slot() {
        let (mut watch, start) = watch();
        let busy = Activity { received: 28, ..Activity::default() };
        assert_eq!(
            watch.look(start + SECOND, Duration::ZERO, &busy),
            Verdict::LookAgain(2 * SECOND)
        );
        let idle = Activity { idle: true, ..busy };
        assert_eq!(
            watch.look(start + 5 * SECOND, Duration::ZERO, &idle),
            Verdict::Idle(56 * SECOND)
        );
        assert_eq!(
            watch.look(start + 61 * SECOND, Duration::ZERO, &idle),
            Verdict::LongIdle(60 * SECOND)
        );
        let again = Activity { received: 56, ..idle };
        assert_eq!(
            watch.look(start + 70 * SECOND, Duration::ZERO, &again),
            Verdict::LookAgain(2 * SECOND)
        );
    }
}
