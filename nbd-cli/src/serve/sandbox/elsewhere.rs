//! Systems and processors without landlock, or that the filter of calls is not known for.

use super::Needs;

const NOTHING: &str =
    "there is no sandbox for this system, only for Linux on x86-64, ARM64 and RISC-V";

#[derive(Debug)]
pub(super) struct Confined;

pub(super) fn is_single_threaded() -> Result<(), String> {
    Ok(())
}

pub(super) fn confine(_: &Needs) -> Result<Confined, String> {
    Err(NOTHING.into())
}

pub(super) fn seal() -> Result<(), String> {
    Err(NOTHING.into())
}
