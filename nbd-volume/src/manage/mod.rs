//! What people do with volumes besides serving them.

mod check;
mod create;
mod info;
pub(crate) mod mailbox;
mod nesting;
mod remove;
mod snapshot;
mod tables;

pub use check::{Damage, Report, check};
pub use create::{NewVolume, create};
pub use info::{Info, Snapshot, Writer, info, inspect, list};
pub(crate) use info::{close, latest};
pub use remove::{delete, delete_snapshot};
pub(crate) use snapshot::{check_new_snapshot, find_snapshot};
pub use snapshot::{clone, resize, snapshot};

use core::time::Duration;

/// How long the store may take for a step.
const PATIENCE: Duration = Duration::from_secs(60);
