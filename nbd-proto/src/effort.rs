//! How much tests do. An interpreter that finds undefined behaviour takes a thousand times as long as a processor.

use proptest::prelude::ProptestConfig;

/// Bytes or rounds of a test that has `count` of them on a processor: far fewer in an interpreter, but one at least.
pub(crate) const fn up_to(count: usize) -> usize {
    if !cfg!(miri) {
        return count;
    }
    let few = count / 64;
    if few == 0 { 1 } else { few }
}

/// How many random cases a test tries. An interpreter keeps no file of those that failed, which it may not get at.
pub(crate) fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    if !cfg!(miri) {
        return config;
    }
    let cases = up_to(config.cases as usize) as u32;
    ProptestConfig { cases, failure_persistence: None, ..config }
}
