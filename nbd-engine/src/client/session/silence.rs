//! Servers that owe replies and send nothing: after a while their connection counts as lost.
//!
//! Nothing is timed while requests come and go: a timer looks from time to time at what happened since it looked before.

use std::task::{Context, Poll};
use std::time::Duration;

use super::super::LostReason;
use super::super::timer::{Alarm, Ring, Timer};
use super::Session;

/// Looks within the limit, at least. A server is given up at the latest two looks after the limit has passed.
const LOOKS: u32 = 4;

/// The longest time between two looks while replies are due: callers that drive the connection may be there for no longer.
const PERIOD: Duration = Duration::from_secs(5);

/// What a connection knows about its server's silence.
pub(super) struct Silence {
    timer: Timer,
    limit: Duration,
    /// The next look, and how long after the former one it is due.
    alarm: Option<(Alarm, Duration)>,
    /// Something was received since the latest look.
    pub(super) has_received: bool,
    /// Something was sent since then.
    pub(super) has_sent: bool,
    /// How long nothing has happened that should have, as far as this process has been looking; `None` if all is well.
    quiet: Option<Duration>,
}

impl Silence {
    pub(super) const fn new(timer: Timer, limit: Duration) -> Self {
        Self { timer, limit, alarm: None, has_received: false, has_sent: false, quiet: None }
    }

    /// There is a new connection.
    pub(super) fn begin_anew(&mut self) {
        (self.alarm, self.quiet) = (None, None);
    }

    /// How long until the next look.
    fn period(&self, owes: bool) -> Duration {
        let period = self.limit / LOOKS;
        if owes { period.min(PERIOD) } else { period }
    }

    /// Gives whether the server has been silent for too long. `waited` is how long this process was looking since the
    /// former look, `owes` whether replies are due, and `sending` whether something is still to be sent, which the server
    /// may be taking in.
    fn look(&mut self, waited: Duration, owes: bool, sending: bool) -> bool {
        let received = core::mem::take(&mut self.has_received);
        let sent = core::mem::take(&mut self.has_sent);
        let is_well = !owes || received || sent && sending;
        self.quiet = match self.quiet {
            _ if is_well => None,
            None => Some(Duration::ZERO),
            Some(quiet) => Some(quiet + waited),
        };
        self.quiet.is_some_and(|quiet| quiet >= self.limit)
    }
}

impl Session {
    /// Why the connection is lost, if the server has been silent for too long.
    pub(super) fn look_for_silence(&mut self, cx: &mut Context<'_>) -> Option<LostReason> {
        let owes = self.pump.machine.requests_in_flight() > 0;
        let sending = !self.is_silent();
        let silence = self.recovery.as_mut()?.silence.as_mut()?;
        loop {
            let (period, limit) = (silence.period(owes), silence.limit);
            let timer = &silence.timer;
            let (alarm, wait) =
                silence.alarm.get_or_insert_with(|| (timer.alarm(period, limit), period));
            let Poll::Ready(ring) = alarm.poll(cx) else { return None };
            // What came while this process did not run was received before this look.
            let waited = if ring == Ring::Late { Duration::ZERO } else { *wait };
            silence.alarm = None;
            if silence.look(waited, owes, sending) {
                return Some(LostReason::Silent { limit });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::super::super::timer::tests::Manual;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(8);

    #[test]
    fn a_server_is_given_up_that_owes_replies_and_moves_nothing_for_as_long_as_the_limit() {
        cases(200, |random| {
            let mut silence = Silence::new(Manual::default().timer(), LIMIT);
            // How long nothing has happened that should have.
            let mut quiet = None;
            for _ in 0..random.below(60) {
                let owes = !random.one_in(30);
                let [received, sent] = [40, 3].map(|share| random.one_in(share));
                let sending = random.one_in(3);
                // No time counts in which this process was not looking.
                let waited = random.below(2) * LIMIT.as_secs() / u64::from(LOOKS);
                (silence.has_received, silence.has_sent) = (received, sent);
                let is_well = !owes || received || sent && sending;
                quiet = if is_well { None } else { Some(quiet.map_or(0, |quiet| quiet + waited)) };
                let silent = silence.look(Duration::from_secs(waited), owes, sending);
                assert_eq!(silent, quiet.is_some_and(|quiet| quiet >= LIMIT.as_secs()));
            }
        });
    }
}
