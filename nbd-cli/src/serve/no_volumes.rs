//! Without the feature `volume` there are none.

use std::fmt;

use nbd_engine::export::{AnyExport, Withdrawal};

use super::config::{Export, Size};
use crate::exit::Failure;
use crate::feature;

/// None.
#[derive(Debug)]
pub(super) enum Open {}

/// None.
#[derive(Clone, Debug)]
pub(super) enum Place {}

impl Place {
    pub(super) fn of(_: &str) -> Result<Self, Failure> {
        Err(missing())
    }

    pub(super) fn is_writable(&self) -> bool {
        match *self {}
    }

    pub(super) fn is_same(&self, _: &Self) -> bool {
        match *self {}
    }
}

impl fmt::Display for Place {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

pub(super) fn settle_all() {}

pub(super) fn check_cache(_: &Export) -> Result<(), Failure> {
    Ok(())
}

pub(super) fn check_use(place: &Place, _: &Export) -> Result<(), Failure> {
    match *place {}
}

pub(super) fn inspect(_: &str, _: &Export) -> Result<(), Failure> {
    Err(missing())
}

pub(super) fn open(_: &str, _: &Export) -> Result<Open, Failure> {
    Err(missing())
}

pub(super) fn open_object(_: &str, _: Option<Size>) -> Result<AnyExport, Failure> {
    Err(missing())
}

fn missing() -> Failure {
    feature::VOLUMES.failure()
}

impl Open {
    pub(super) fn export(&self) -> AnyExport {
        match *self {}
    }

    pub(super) fn serves(&self, _: &Place) -> bool {
        match *self {}
    }

    pub(super) fn is_written(&self) -> bool {
        match *self {}
    }

    pub(super) fn is_closed(&self) -> bool {
        match *self {}
    }

    pub(super) fn has_settings_of(&self, _: &Export) -> bool {
        match *self {}
    }

    pub(super) fn withdraw_when_lost(&self, _: &Withdrawal, _: impl FnOnce() + Send + 'static) {
        match *self {}
    }

    pub(super) fn close_all<'a>(mut open: impl Iterator<Item = &'a Self>) -> Result<(), Failure> {
        open.next().map_or(Ok(()), |open| match *open {})
    }
}
