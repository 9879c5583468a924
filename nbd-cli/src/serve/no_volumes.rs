//! Without the feature `volume` there are none.

use nbd_engine::export::{AnyExport, Withdrawal};

use super::config::{Export, Size};
use crate::exit::Failure;
use crate::feature;

/// None.
#[derive(Debug)]
pub(super) enum Open {}

pub(super) fn inspect(_: &str) -> Result<(), Failure> {
    Err(missing())
}

pub(super) fn open(_: &str, _: &Export) -> Result<(AnyExport, Open), Failure> {
    Err(missing())
}

pub(super) fn open_object(_: &str, _: Option<Size>) -> Result<AnyExport, Failure> {
    Err(missing())
}

fn missing() -> Failure {
    feature::VOLUMES.failure()
}

impl Open {
    pub(super) fn withdraw_when_lost(&self, _: &Withdrawal) {
        match *self {}
    }

    pub(super) fn close_all<'a>(mut open: impl Iterator<Item = &'a Self>) -> Result<(), Failure> {
        open.next().map_or(Ok(()), |open| match *open {})
    }
}
