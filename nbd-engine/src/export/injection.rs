//! An export that is slow or fails now and then, for tests of clients.

use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use nbd_proto::Command;
use nbd_proto::wire::{CommandType, ErrorCode};

use super::layer::{Admit, Layer, Layered};
use super::{ClientInfo, ExportError};
use crate::runtime::share_of;

/// Another export, of either kind, some of whose requests are delayed or fail by chance.
///
/// Requests that are delayed occupy no thread and hold up no others. Which requests are chosen follows from the
/// seed and the order in which requests arrive: a client that sends one after the other meets the
/// same again.
///
/// ```
/// use std::time::Duration;
///
/// use nbd_engine::export::{ErrorCode, Injected, Injection, Memory};
/// use nbd_engine::proto::wire::CommandType;
///
/// // Every read takes 5 to 20 ms longer; one write in a thousand fails.
/// let slow = Injection::new(1)
///     .commands([CommandType::READ])
///     .delay(Duration::from_millis(5)..=Duration::from_millis(20));
/// let faulty = Injection::new(2)
///     .commands([CommandType::WRITE])
///     .probability(0.001)
///     .error(ErrorCode::EIO);
/// let disk = Injected::new(Injected::new(Memory::new(1 << 30)?, slow), faulty);
/// # let _ = disk;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Injected<E> = Layered<E, Injection>;

impl<E> Injected<E> {
    /// Puts delays and errors in front of `inner`.
    pub const fn new(inner: E, injection: Injection) -> Self {
        Self::with(inner, injection)
    }
}

/// The layer of [`Injected`]: which requests are delayed or fail, and how.
#[derive(Debug)]
pub struct Injection {
    seed: u64,
    /// Requests of these commands that have arrived so far.
    arrived: AtomicU64,
    /// `None` for all.
    commands: Option<Vec<CommandType>>,
    /// In 2^-64.
    probability: u64,
    delay: RangeInclusive<Duration>,
    error: Option<ErrorCode>,
}

impl Injection {
    /// Chooses all requests, and does nothing about them yet.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            arrived: AtomicU64::new(0),
            commands: None,
            probability: u64::MAX,
            delay: Duration::ZERO..=Duration::ZERO,
            error: None,
        }
    }

    /// Chooses among requests of these types alone. By default among all.
    #[must_use]
    pub fn commands(mut self, commands: impl IntoIterator<Item = CommandType>) -> Self {
        self.commands = Some(commands.into_iter().collect());
        self
    }

    /// The part of the requests that is chosen, from 0 for none to 1 for all, which is the default. What lies outside
    /// is taken for the nearer of the two, and not-a-number for 0.
    #[must_use]
    pub fn probability(mut self, probability: f64) -> Self {
        // A conversion to an integer saturates.
        self.probability = (probability * 2.0_f64.powi(64)) as u64;
        self
    }

    /// Delays the chosen requests by a time that is evenly distributed over this range. Those that fail are delayed,
    /// too. A range that ends before it begins counts as its beginning. By default nothing is delayed.
    #[must_use]
    pub const fn delay(mut self, delay: RangeInclusive<Duration>) -> Self {
        self.delay = delay;
        self
    }

    /// Has the chosen requests fail with this error, as [`ExportError::new`] has it reach clients; they are not carried
    /// out. By default none fails.
    #[must_use]
    pub const fn error(mut self, error: ErrorCode) -> Self {
        self.error = Some(error);
        self
    }

    /// What becomes of the request of that number.
    fn decide(&self, number: u64) -> Admit {
        let chance = mixed(self.seed ^ mixed(2 * number));
        if chance >= self.probability && self.probability < u64::MAX {
            return Admit::NOW;
        }
        let (shortest, longest) = (*self.delay.start(), *self.delay.end());
        let span = longest.saturating_sub(shortest);
        let fraction = mixed(self.seed ^ mixed(2 * number + 1)) as f64 / 2.0_f64.powi(64);
        let delay = shortest.saturating_add(share_of(span, fraction));
        match self.error {
            Some(code) => {
                Admit::refuse(ExportError::new(code, "an error was injected")).delayed(delay)
            }
            None => Admit::after(delay),
        }
    }
}

impl Layer for Injection {
    const ADMITS: bool = true;

    fn admit(&self, _client: &ClientInfo, command: &Command) -> Admit {
        let concerned = |commands: &Vec<_>| commands.contains(&command.command_type());
        if !self.commands.as_ref().is_none_or(concerned) {
            return Admit::NOW;
        }
        self.decide(self.arrived.fetch_add(1, Ordering::Relaxed))
    }
}

/// A number that has nothing to do with the one it is made of (the finaliser of MurmurHash3, 64 bits).
const fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::PeerAddr;

    fn outcomes(injection: &Injection, command: Command, count: usize) -> Vec<Admit> {
        let client = ClientInfo::new(0, PeerAddr::Unix(None));
        (0..count).map(|_| injection.admit(&client, &command)).collect()
    }

    #[test]
    fn about_the_part_that_was_asked_for_is_chosen_and_the_same_again_by_the_same_seed() {
        for probability in [0.0, 0.001, 0.25, 0.5, 0.999, 1.0, -1.0, 7.0, f64::NAN] {
            let injection =
                |seed| Injection::new(seed).probability(probability).error(ErrorCode::EIO);
            let all = outcomes(&injection(7), Command::flush(), 20_000);
            assert_eq!(all, outcomes(&injection(7), Command::flush(), 20_000));
            let failed = all.iter().filter(|one| one.result.is_err()).count() as f64 / 20_000.0;
            let expected = if probability > 0.0 { probability.min(1.0) } else { 0.0 };
            assert!((failed - expected).abs() < 0.02, "{probability}: {failed}");
            assert!(expected > 0.0 && expected < 1.0 || failed == expected, "{probability}");
            let other = outcomes(&injection(8), Command::flush(), 20_000);
            assert_eq!(all == other, [0.0, 1.0].contains(&expected));
        }
    }

    #[test]
    fn delays_are_spread_over_the_range_and_other_commands_have_none() {
        let milliseconds = Duration::from_millis;
        let injection = Injection::new(1)
            .commands([CommandType::READ, CommandType::FLUSH])
            .delay(milliseconds(10)..=milliseconds(30));
        let delays: Vec<_> = outcomes(&injection, Command::read(0, 1), 5000)
            .into_iter()
            .map(|one| one.delay)
            .collect();
        let range = milliseconds(10)..=milliseconds(30);
        assert!(delays.iter().all(|delay| range.contains(delay)));
        let mean = delays.iter().sum::<Duration>() / 5000;
        assert!((milliseconds(19)..milliseconds(21)).contains(&mean), "{mean:?}");
        assert!(delays.iter().min().unwrap() < &milliseconds(11));
        assert!(delays.iter().max().unwrap() > &milliseconds(29));
        assert_eq!(outcomes(&injection, Command::write(0, 1), 3), vec![Admit::NOW; 3]);
        let vast = Injection::new(1).delay(Duration::MAX..=Duration::MAX);
        assert_eq!(outcomes(&vast, Command::flush(), 1), [Admit::after(Duration::MAX)]);
        // A range that is none is its beginning.
        let fixed = Injection::new(1).delay(milliseconds(7)..=milliseconds(3));
        assert_eq!(outcomes(&fixed, Command::flush(), 1), [Admit::after(milliseconds(7))]);
    }
}
