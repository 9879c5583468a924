//! Whether a client gets on: the deadlines of a connection after the handshake.
//!
//! Nothing is timed while requests come and go. Every few seconds a timer looks at what has been counted since it
//! looked before; an idle connection is looked at ever more seldom.

use core::time::Duration;
use std::time::Instant;

use super::ServerConfig;

/// What a connection is doing, and what it has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Activity {
    /// Bytes received.
    pub(crate) received: u64,
    /// Bytes sent.
    pub(crate) sent: u64,
    /// Requests that were received to their end.
    pub(crate) requests: u64,
    /// Times that nothing was left to be sent.
    pub(crate) drained: u64,
    /// Whether a part of a request has been received, and the client is to send the rest.
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

/// What is to be done about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Look again after that time.
    LookAgain(Duration),
    /// It is idle: give back buffers, and look again after that time.
    Idle(Duration),
    /// It has been idle for long: its place may go to somebody who waits for one. Look again after that time.
    LongIdle(Duration),
    /// The client does not get on with sending a request.
    ReceiveStalled(Duration),
    /// The client does not get on with taking its replies.
    SendStalled(Duration),
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
    /// Moves on if things are well; gives how long they have not been.
    fn update(&mut self, well: bool, now: Instant, bytes: u64, events: u64) -> Duration {
        if well {
            *self = Self { time: now, bytes, events };
        }
        now.saturating_duration_since(self.time)
    }

    /// Whether at least `rate` bytes a second have been moved since, and one at least.
    fn is_outrun(&self, now: Instant, bytes: u64, rate: u64) -> bool {
        let moved = bytes - self.bytes;
        let millis = now.saturating_duration_since(self.time).as_millis();
        moved > 0 && u128::from(moved) * 1000 >= u128::from(rate) * millis
    }
}

/// How often a busy connection is looked at, unless a deadline is shorter than that.
const PERIOD: Duration = Duration::from_secs(4);

impl Watch {
    /// A watch over a connection that entered transmission now.
    pub(crate) fn new(config: &ServerConfig, now: Instant) -> Self {
        let (stall, crowded) = (config.stall_timeout(), config.crowded_timeout());
        let mark = Mark { time: now, bytes: 0, events: 0 };
        Self {
            stall,
            crowded,
            idle: config.idle_timeout(),
            rate: config.min_transfer_rate(),
            period: (stall.min(crowded) / 2).clamp(Duration::from_millis(1), PERIOD),
            receive: mark,
            send: mark,
            quiet: mark,
        }
    }

    /// How long until the first look.
    pub(crate) const fn period(&self) -> Duration {
        self.period
    }

    /// Looks at the connection.
    pub(crate) fn look(&mut self, now: Instant, activity: &Activity) -> Verdict {
        let crowded = activity.in_the_way || activity.closing;
        let limit = if crowded { self.stall.min(self.crowded) } else { self.stall };

        let receive = &mut self.receive;
        let well = !activity.receiving
            || receive.events != activity.requests
            || receive.is_outrun(now, activity.received, self.rate);
        if receive.update(well, now, activity.received, activity.requests) >= limit {
            return Verdict::ReceiveStalled(limit);
        }

        let send = &mut self.send;
        let well = !activity.sending
            || send.events != activity.drained
            || send.is_outrun(now, activity.sent, self.rate);
        if send.update(well, now, activity.sent, activity.drained) >= limit {
            return Verdict::SendStalled(limit);
        }

        let moved = activity.received != self.quiet.bytes;
        let quiet = self.quiet.update(moved || !activity.idle, now, activity.received, 0);
        if !activity.idle || quiet.is_zero() {
            return Verdict::LookAgain(self.period);
        }
        match self.idle {
            Some(idle) if quiet >= idle => Verdict::LongIdle(idle.max(self.period)),
            Some(idle) => Verdict::Idle(idle - quiet),
            None => Verdict::Idle(self.period * 16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watch() -> (Watch, Instant) {
        let now = Instant::now();
        let config = ServerConfig::new()
            .with_stall_timeout(30 * SECOND)
            .with_crowded_timeout(10 * SECOND)
            .with_idle_timeout(Some(60 * SECOND))
            .with_min_transfer_rate(1000);
        (Watch::new(&config, now), now)
    }

    /// Looks every second, as `activity` says it is at that second; gives the verdict that ended it.
    fn run(seconds: u32, activity: impl Fn(u64) -> Activity) -> (u32, Verdict) {
        let (mut watch, start) = watch();
        for second in 1..=seconds {
            let now = start + second * SECOND;
            match watch.look(now, &activity(u64::from(second))) {
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
            assert_eq!(run(100, dribble), (30, Verdict::ReceiveStalled(30 * SECOND)), "{rate}");
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
    fn replies_that_nobody_takes_are_stalled_sooner_when_others_wait_or_the_client_is_leaving() {
        let unread = |second| Activity { sending: true, sent: second, ..Activity::default() };
        assert_eq!(run(100, unread), (30, Verdict::SendStalled(30 * SECOND)));
        let in_the_way = |second| Activity { in_the_way: true, ..unread(second) };
        assert_eq!(run(100, in_the_way), (10, Verdict::SendStalled(10 * SECOND)));
        let closing = |second| Activity { closing: true, ..unread(second) };
        assert_eq!(run(100, closing), (10, Verdict::SendStalled(10 * SECOND)));
    }

    #[test]
    fn a_request_that_takes_long_is_nobodys_stall() {
        let working = |_| Activity { idle: false, in_the_way: true, ..Activity::default() };
        assert_eq!(run(1000, working).0, 1000);
    }

    #[test]
    fn an_idle_connection_gives_back_buffers_and_then_its_place() {
        let (mut watch, start) = watch();
        let busy = Activity { received: 28, ..Activity::default() };
        assert_eq!(watch.look(start + SECOND, &busy), Verdict::LookAgain(4 * SECOND));
        let idle = Activity { idle: true, ..busy };
        assert_eq!(watch.look(start + 5 * SECOND, &idle), Verdict::Idle(56 * SECOND));
        assert_eq!(watch.look(start + 61 * SECOND, &idle), Verdict::LongIdle(60 * SECOND));
        let again = Activity { received: 56, ..idle };
        assert_eq!(watch.look(start + 70 * SECOND, &again), Verdict::LookAgain(4 * SECOND));
    }
}
