//! How much a connection does before others get their turn.

/// The work that a connection may still do in this turn, in bytes that are copied, zeroed, received or sent. A request
/// costs something in any case.
#[derive(Debug)]
pub(crate) struct Turn {
    left: u64,
    size: u64,
}

impl Turn {
    /// The turn of a task that shares its thread with others: about a tenth of a millisecond.
    const SHARED: u64 = 512 << 10;

    /// Where no other task waits, a turn ends now and then all the same, so that deadlines are looked at.
    const ALONE: u64 = 64 << 20;

    /// What a request costs besides its bytes.
    const REQUEST: u64 = 1 << 10;

    pub(crate) const fn new(shares_thread: bool) -> Self {
        let size = if shares_thread { Self::SHARED } else { Self::ALONE };
        Self { left: size, size }
    }

    /// A new turn begins.
    pub(crate) const fn begin(&mut self) {
        self.left = self.size;
    }

    /// Something was done that took so many bytes.
    pub(crate) const fn spend(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes.saturating_add(Self::REQUEST));
    }

    /// Whether others are to have their turn.
    pub(crate) const fn is_over(&self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_by_bytes_and_by_requests() {
        let mut turn = Turn::new(true);
        turn.spend(Turn::SHARED);
        assert!(turn.is_over());
        turn.begin();
        let requests = (0..)
            .take_while(|_| {
                !turn.is_over() && {
                    turn.spend(0);
                    true
                }
            })
            .count();
        assert_eq!(requests, 512);
    }
}
