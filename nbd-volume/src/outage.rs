//! For how long a store has failed, and when somebody is to be told.

use core::time::Duration;

use tokio::time::Instant;

/// The failures of a store since something succeeded.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    failures: Option<Failures>,
    succeeded: Option<Instant>,
}

#[derive(Debug)]
struct Failures {
    since: Instant,
    /// The latest one, and when that was.
    latest: (Instant, String),
    told: bool,
}

impl Outage {
    /// A store that fails for less is not worth a word: requests are repeated.
    const WORTH_A_WORD: Duration = Duration::from_secs(5);

    /// The latest failure and its time, unless something succeeded since.
    pub(crate) fn failure(&self) -> Option<&(Instant, String)> {
        self.failures.as_ref().map(|failures| &failures.latest)
    }

    /// A request failed that had begun at `began`. Returns whether that is to be told, which is so once for each outage.
    pub(crate) fn goes_on(&mut self, began: Instant, now: Instant, reason: &str) -> bool {
        let failures = self.failures.get_or_insert_with(|| Failures {
            since: self.succeeded.map_or(began, |succeeded| began.max(succeeded)),
            latest: (now, String::new()),
            told: false,
        });
        failures.latest = (now, reason.to_owned());
        let is_news = !failures.told && now - failures.since >= Self::WORTH_A_WORD;
        failures.told |= is_news;
        is_news
    }

    /// A request succeeded. Returns how long the outage was if it was told.
    pub(crate) fn ended(&mut self, now: Instant) -> Option<Duration> {
        self.succeeded = Some(now);
        let failures = self.failures.take()?;
        failures.told.then(|| now - failures.since)
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn a_long_outage_is_told_once_and_so_is_its_end() {
        cases(200, |random| {
            let mut outage = Outage::default();
            let mut now = Instant::now() + Duration::from_secs(100);
            let mut succeeded = now - Duration::from_secs(50);
            assert_eq!(outage.ended(succeeded), None);
            // When the present outage began, and whether it was told.
            let mut present: Option<(Instant, bool)> = None;
            for number in 0..100 {
                now += Duration::from_millis(random.below(4000));
                if random.below(4) == 0 {
                    let told = present.take().filter(|(_, told)| *told);
                    assert_eq!(outage.ended(now), told.map(|(since, _)| now - since));
                    assert_eq!(outage.failure(), None);
                    succeeded = now;
                } else {
                    // A request may have hung until it failed.
                    let began = now - Duration::from_millis(random.below(9000));
                    now += Duration::from_millis(random.of(&[0, 0, 1000, 6000]));
                    let (since, told) = present.get_or_insert((began.max(succeeded), false));
                    let is_due = !*told && now - *since >= Outage::WORTH_A_WORD;
                    assert_eq!(outage.goes_on(began, now, &number.to_string()), is_due);
                    *told |= is_due;
                    assert_eq!(outage.failure(), Some(&(now, number.to_string())));
                }
            }
        });
    }
}
