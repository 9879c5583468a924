//! What the phases of a connection have in common.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::Event;
use super::export::EnteredExport;
use crate::{OrderlyEnd, PauseReason, Wants};

/// What a phase made of the front of its input.
#[derive(Debug)]
pub(super) enum Progress {
    /// More bytes are needed, or something else has to happen first.
    Stuck,
    /// Something was done, there may be more.
    Continue,
    Event(Event),
    EventAndClose(Event, OrderlyEnd),
    /// An export is entered: transmission begins.
    Enter(Box<EnteredExport>),
    Close(OrderlyEnd),
}

/// Moves bytes into `collected` until it holds `length`, which was compared with a bound before.
pub(super) fn collect(collected: &mut Vec<u8>, input: &mut &[u8], length: usize) -> bool {
    // Nothing is missing where there is more than enough.
    let missing = length.saturating_sub(collected.len());
    if let Some((head, rest)) = input.split_at_checked(missing.min(input.len())) {
        collected.extend_from_slice(head);
        *input = rest;
    }
    collected.len() >= length
}

/// Drops up to `count` bytes off the front of `input`, and gives how many.
pub(super) fn drop_front(input: &mut &[u8], count: usize) -> usize {
    let count = count.min(input.len());
    if let Some((_, rest)) = input.split_at_checked(count) {
        *input = rest;
    }
    count
}

/// What a message of `total` bytes wants when `have` of them are here.
pub(super) const fn missing(total: usize, have: usize) -> Wants {
    match total.checked_sub(have) {
        Some(at_least @ 1..) => Wants::Bytes { at_least },
        _ => Wants::Nothing(PauseReason::EventDue),
    }
}
