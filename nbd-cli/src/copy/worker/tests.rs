//! What a copy counts.

use super::*;
use crate::copy::extents::{Extents, Oracle};
use crate::copy::plan::{Cut, Plan};

fn shared() -> Shared {
    let cut = Cut { unit: 1, data: 1, zero: 1 };
    Shared {
        feed: Feed::plan(Plan::new(0, cut, Extents::new(Oracle::None, 0))),
        progress: Progress::Silent,
        source: "source".into(),
        destination: "destination".into(),
        requests: 1,
        request_size: 1,
        sparse: 0,
        skip_zeroes: false,
        allocated: false,
        count: AtomicU64::new(0),
        record: None,
    }
}

#[test]
fn a_byte_that_was_left_out_or_dealt_with_twice_is_a_fault_of_ours() {
    let shared = shared();
    for (bytes, total) in [(0, 0), (3, 3), (4, 7)] {
        shared.done(total - bytes, bytes);
        shared.check(total).unwrap();
        for size in [total + 1, total.wrapping_sub(1)] {
            let said = shared.check(size).unwrap_err();
            assert!(said.text().contains(&format!("{total} bytes of {size} were dealt with")));
        }
    }
}
