//! Opening a volume only if no other server has it.

use core::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use nbd_engine::age;

use crate::layout::{Descriptor, WriterRecord};
use crate::manage::{close, latest, mailbox};
use crate::records::writer;
use crate::{Error, Location, Options};

/// What a server has beyond its lease to show that it is alive: the store may be slow, and the server busy.
const GRACE: Duration = Duration::from_secs(5);

/// An error if another server has the volume open and is alive. That is found out by a request by way of the store, which
/// it would answer within its lease: a record alone says nothing of a server that crashed.
pub(crate) async fn refuse_if_open(
    location: &Location,
    descriptor: &Descriptor,
    options: &Options,
) -> Result<(), Error> {
    let database = latest(location, descriptor).await?;
    let found = writer(location, &database, options.patience).await;
    close(database).await;
    // One without a volume is of a later version.
    let is_of_this =
        |found: &WriterRecord| found.volume == descriptor.id || found.volume.is_empty();
    let Some(writer) = found?.filter(|found| found.open && is_of_this(found)) else {
        return Ok(());
    };
    let lease = Duration::from_millis(writer.lease);
    let who = format!("process {} on {}", writer.pid, writer.host);
    tracing::info!(volume = %location, server = who, ?lease, "asking the server that has the volume whether it is alive");
    if !mailbox::is_alive(location, &who, lease + GRACE).await? {
        tracing::warn!(volume = %location, server = who, "the server that had the volume open does not answer");
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Err(Error::Busy {
        url: location.url().to_owned(),
        writer: format!(
            "{who}, which opened it {} ago with a lease of {lease:?},",
            age(Duration::from_secs(now.saturating_sub(writer.since)))
        ),
        remedy: "end that server first, or open the volume without asking for it to be exclusive, which takes it over"
            .to_owned(),
    })
}
