//! One request to the store: it is repeated until all of its parts are there, or the store was away for too long.

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use object_store::{Error as Kind, GetOptions, GetRange, ObjectStoreExt as _};
use tokio::time::{Instant, sleep, timeout};

use super::read::Shared;
use super::schedule::{Arrived, Run};
use crate::error::chain;

/// Why a request failed.
enum Trouble {
    /// It may succeed the next time.
    Passing(String),
    /// It won't.
    Lasting(String),
    /// The object was changed, in this way.
    Changed(String),
}

impl Trouble {
    fn of(error: &Kind) -> Self {
        let reason = chain(error);
        match error {
            Kind::Precondition { .. } => Self::Changed("its ETag is another one".to_owned()),
            Kind::NotFound { .. } => Self::Lasting("it is not there any more".to_owned()),
            Kind::NotSupported { .. }
            | Kind::NotImplemented { .. }
            | Kind::PermissionDenied { .. }
            | Kind::Unauthenticated { .. } => Self::Lasting(reason),
            _ => Self::Passing(reason),
        }
    }
}

/// A request that is carried out. When it ends, in whatever way, others may begin.
struct Turn {
    shared: Arc<Shared>,
    run: Run,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.schedule().finished(&self.run);
        self.shared.begin_requests();
    }
}

impl Shared {
    /// Carries out a request of the schedule.
    pub(super) async fn carry_out(self: Arc<Self>, run: Run) {
        const FIRST_PAUSE: Duration = Duration::from_millis(100);
        const LONGEST_PAUSE: Duration = Duration::from_secs(2);
        let patience = self.options.patience;
        let mut turn = Turn { shared: Arc::clone(&self), run };
        let mut began = Instant::now();
        let mut pause = FIRST_PAUSE;
        let size = self.identity.size();
        while !turn.run.is_empty() {
            let before = turn.run.missing(size);
            let trouble = match timeout(patience, self.attempt(&mut turn.run)).await {
                Ok(Ok(())) => return,
                Ok(Err(trouble)) => trouble,
                Err(_) => Trouble::Passing("it does not answer, or is too slow".to_owned()),
            };
            let trouble = self.examined(trouble).await;
            if turn.run.missing(size) != before {
                (began, pause) = (Instant::now(), FIRST_PAUSE);
            }
            let reason = match trouble {
                Trouble::Changed(how) => {
                    self.set_changed(how);
                    self.changed_text()
                }
                Trouble::Lasting(reason) => {
                    format!("cannot read the object {}: {reason}", self.location)
                }
                Trouble::Passing(reason) if began.elapsed() + pause > patience => {
                    self.gave_up(Some(&reason))
                }
                Trouble::Passing(reason) => {
                    tracing::info!(object = %self.location, reason, "cannot read the object, trying again");
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
            };
            self.fail(&mut turn.run, &reason);
        }
    }

    /// Asks for the parts that are left, and hands over each as it comes.
    async fn attempt(&self, run: &mut Run) -> Result<(), Trouble> {
        let size = self.identity.size();
        let options = GetOptions {
            range: Some(GetRange::Bounded(run.missing(size))),
            ..self.identity.condition()
        };
        let (store, path) = (self.location.store(), self.location.prefix());
        let result = store.get_opts(path, options).await.map_err(|error| Trouble::of(&error))?;
        if let Some(difference) = self.identity.difference(&result.meta) {
            return Err(Trouble::Changed(difference));
        }
        if self.identity.is_lost_in(&result.meta) {
            return Err(Trouble::Changed("it had an ETag, and has none".to_owned()));
        }
        let mut stream = result.into_stream();
        // Not to the end: a body may be longer than what was asked for, or have no end.
        while !run.is_empty()
            && let Some(chunk) = stream.next().await
        {
            let mut chunk = chunk.map_err(|error| Trouble::of(&error))?;
            while !chunk.is_empty() && !run.is_empty() {
                if let Some((part, arrived, bytes)) = run.take(&mut chunk, size) {
                    self.deliver(part, &arrived, bytes);
                }
            }
        }
        match run.is_empty() {
            true => Ok(()),
            false => {
                Err(Trouble::Passing("the reply is shorter than what was asked for".to_owned()))
            }
        }
    }

    /// A part is there.
    fn deliver(&self, part: u64, arrived: &Arrived, bytes: Bytes) {
        // First there, and then no longer asked for: nobody may find it neither here nor there.
        self.parts.insert(part, bytes.clone());
        self.schedule().arrived(part);
        arrived.send_replace(Some(Ok(bytes)));
    }

    /// All parts that are left don't come.
    fn fail(&self, run: &mut Run, reason: &str) {
        let reason: Arc<str> = reason.into();
        while let Some((part, arrived)) = run.pop() {
            self.schedule().arrived(part);
            arrived.send_replace(Some(Err(Arc::clone(&reason))));
        }
    }

    /// The trouble, or that the object was changed, if that is behind it: one that became shorter has not all ranges
    /// any more, and not every store honours conditions.
    async fn examined(&self, trouble: Trouble) -> Trouble {
        if let Trouble::Passing(_) = trouble
            && let (store, path) = (self.location.store(), self.location.prefix())
            && let Ok(Ok(meta)) = timeout(self.options.patience, store.head(path)).await
            && let Some(difference) = self.identity.difference(&meta)
        {
            return Trouble::Changed(difference);
        }
        trouble
    }
}
