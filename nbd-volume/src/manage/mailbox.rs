//! Asking the server that has a volume open to do something, by way of the store: whoever can reach that can ask, and
//! no other way to the server need be known.
//!
//! The request is an object that must not be there yet. The server looks for it whenever it looks whether it still is
//! the writer, carries it out, and replaces it by the answer, which the asker removes.
//!
//! Either may be gone or late. A request whose asker waits no longer is not carried out: nobody expects that any more, and
//! the volume may have become something else. An answer that nobody takes is removed by the next asker. An answer
//! replaces nothing but its own request.

use core::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::chain;
use crate::patience::patiently;
use crate::records::encoded;
use crate::replies::record;
use crate::{Error, Location, Volume};

/// The request's name below the volume's prefix.
pub(super) const REQUEST: &str = "nbd-request.json";

/// How long a server may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// After which time without an answer the asker says for what it waits.
const WORTH_A_WORD: Duration = Duration::from_secs(5);

/// How often the asker looks for the answer.
const LOOK: Duration = Duration::from_millis(200);

/// How old a request is that its asker has given up: another one replaces it. More than [`PATIENCE`], as clocks differ.
const STALE: Duration = PATIENCE.saturating_add(Duration::from_secs(30));

/// How long an answer lies there that its asker does not take: many times [`LOOK`].
const UNCLAIMED: Duration = Duration::from_secs(10);

/// How long something lies there that is no request: more than a later version, whose request it may be, takes for one.
const NOT_UNDERSTOOD: Duration = Duration::from_secs(60);

/// What a server is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// To show that it is alive.
    Ping,
    Snapshot {
        name: String,
    },
    Resize {
        size: u64,
    },
}

/// What lies in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Letter {
    /// Tells requests apart.
    id: String,
    /// Seconds since 1970 in which it was asked for.
    since: u64,
    request: Request,
    /// What became of it; nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done,
    Failed(String),
}

impl Letter {
    fn of(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// How old it is by the clock here, or how far ahead.
    fn age(&self) -> Duration {
        Duration::from_secs(seconds_since_1970().abs_diff(self.since))
    }
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Request {
    /// Does what is asked for.
    pub(crate) async fn carry_out(&self, volume: &Volume) -> Result<(), Error> {
        use nbd_engine::export::{AsyncCanResize as _, AsyncExport as _};
        match self {
            Self::Ping => Ok(()),
            Self::Snapshot { name } => volume.snapshot(name).await,
            Self::Resize { size } => {
                let Some(resize) = volume.can_resize() else { return Ok(()) };
                let resized = resize.resize(*size).await;
                resized.map_err(|error| Error::Store {
                    url: volume.location().to_string(),
                    doing: "resize",
                    reason: error.text().to_owned(),
                })
            }
        }
    }
}

/// Has the server that has the volume open do something.
pub(super) async fn ask(location: &Location, request: Request, server: &str) -> Result<(), Error> {
    match exchange(location, request, server, PATIENCE).await? {
        Outcome::Answer(Answer::Done) => Ok(()),
        Outcome::Answer(Answer::Failed(reason)) => {
            let (url, server) = (location.url().to_owned(), server.to_owned());
            Err(Error::Server { url, server, reason })
        }
        Outcome::Silence => Err(busy(
            location,
            server,
            "it does not answer. If it was stopped, continue it; if it crashed, serve the volume, which takes it over; then try \
             again",
        )),
    }
}

/// Whether the server that has the volume open answers within that time.
pub(crate) async fn is_alive(
    location: &Location,
    server: &str,
    patience: Duration,
) -> Result<bool, Error> {
    let outcome = exchange(location, Request::Ping, server, patience).await?;
    Ok(matches!(outcome, Outcome::Answer(_)))
}

/// What became of a request that was in the store.
enum Outcome {
    Answer(Answer),
    Silence,
}

/// Puts a request into the store, and waits for the answer. Both together take so long at most.
async fn exchange(
    location: &Location,
    request: Request,
    server: &str,
    patience: Duration,
) -> Result<Outcome, Error> {
    let path = location.object(REQUEST);
    let id = super::create::new_id()?;
    let since = seconds_since_1970();
    let letter = Letter { id: id.clone(), since, request, answer: None };
    let mut was_asked = false;
    let asking = async {
        deliver(location, &path, &letter).await?;
        was_asked = true;
        loop {
            tokio::time::sleep(LOOK).await;
            match read(location, &path).await?.as_deref().and_then(Letter::of) {
                Some(Letter { id: this, answer: Some(answer), .. }) if this == id => {
                    break Ok(Outcome::Answer(answer));
                }
                Some(Letter { id: this, .. }) if this == id => (),
                _ => {
                    let remedy = "another request took the place of this one: try again";
                    break Err(busy(location, server, remedy));
                }
            }
        }
    };
    let slow = async {
        tokio::time::sleep(WORTH_A_WORD).await;
        tracing::warn!(
            "asking {server} by way of the store of {location}: no answer for {WORTH_A_WORD:?}, waiting for at most {patience:?}"
        );
        core::future::pending().await
    };
    let answered = tokio::select! {
        answered = tokio::time::timeout(patience, asking) => answered,
        never = slow => never,
    };
    match answered {
        Ok(answered) => {
            let outcome = answered?;
            remove(location, &path).await?;
            Ok(outcome)
        }
        Err(_) if was_asked => {
            let _removed = remove(location, &path).await;
            Ok(Outcome::Silence)
        }
        Err(_) => Err(busy(location, server, "another request waits for it: try again")),
    }
}

/// Puts a request into the store, as soon as the one that is there is gone, or was given up.
async fn deliver(location: &Location, path: &Path, letter: &Letter) -> Result<(), Error> {
    let mut seen: Option<(Bytes, Instant)> = None;
    loop {
        if put_new(location, path, letter).await? {
            return Ok(());
        }
        if let Some(there) = read(location, path).await? {
            let other = Letter::of(&there);
            if other.as_ref().is_some_and(|other| other.id == letter.id) {
                // The reply to an attempt was lost.
                return Ok(());
            }
            let first = match &seen {
                Some((bytes, first)) if *bytes == there => *first,
                _ => Instant::now(),
            };
            let is_given_up = match other {
                Some(Letter { answer: Some(_), .. }) => first.elapsed() > UNCLAIMED,
                Some(other) => other.age() > STALE,
                None => first.elapsed() > NOT_UNDERSTOOD,
            };
            if is_given_up {
                remove(location, path).await?;
                continue;
            }
            seen = Some((there, first));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn busy(location: &Location, server: &str, remedy: &str) -> Error {
    Error::Busy {
        url: location.url().to_owned(),
        writer: server.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// Carries out what the server is asked for, if anything is.
///
/// Takes as long as that does, so that the look at who writes must not wait for it: without the lease nothing that is to
/// be carried out would be confirmed.
pub(crate) async fn answer(volume: Volume) {
    let location = volume.location();
    let (store, path) = (location.store(), location.object(REQUEST));
    // Once only: it is looked for again soon.
    let Ok(Some((bytes, version))) = record(&*store, &path).await else { return };
    let Some(letter) = Letter::of(&bytes).filter(|letter| letter.answer.is_none()) else { return };
    tracing::info!(volume = %location, request = ?letter.request, "asked by way of the store");
    let age = letter.age();
    let answer = if age > PATIENCE {
        let request = &letter.request;
        tracing::warn!(volume = %location, ?request, ?age, "a request was given up by its asker: not carrying it out");
        Answer::Failed(format!(
            "by its clock the request is off by {age:?}, and is not carried out: try again, and synchronise the clocks"
        ))
    } else {
        match letter.request.carry_out(&volume).await {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Failed(error.to_string()),
        }
    };
    if volume.is_lost() {
        // It is for the server that has taken over to answer.
        return;
    }
    let answered = encoded(&Letter { answer: Some(answer), ..letter });
    if let Err(error) = replace(&*store, &path, (bytes, version), answered).await {
        tracing::warn!(volume = %location, error = chain(&error), "cannot answer a request");
    }
}

/// How long the store may take for a step.
const STEP: Duration = super::PATIENCE;

/// Puts an answer in place of its request, unless that is gone. A store that fails is asked a few times: a request that is
/// not answered is carried out again.
async fn replace(
    store: &dyn ObjectStore,
    path: &Path,
    (request, version): (Bytes, UpdateVersion),
    answered: Bytes,
) -> object_store::Result<()> {
    let options = PutOptions { mode: PutMode::Update(version), ..PutOptions::default() };
    let mut outcome = store.put_opts(path, answered.clone().into(), options).await.map(drop);
    for seconds in [0, 1, 2, 4, 8] {
        match outcome {
            Ok(())
            | Err(
                object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. },
            ) => return Ok(()),
            Err(_) => tokio::time::sleep(Duration::from_secs(seconds)).await,
        }
        // Not every store has conditions for that. What comes between the look and the answer is lost, which its asker
        // notices.
        outcome = match record(store, path).await {
            Ok(Some((there, _))) if there == request => {
                store.put(path, answered.clone().into()).await.map(drop)
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
    }
    outcome
}

/// What lies there.
async fn read(location: &Location, path: &Path) -> Result<Option<Bytes>, Error> {
    let store = location.store();
    let found = patiently(location, "read", STEP, async || record(&*store, path).await);
    Ok(found.await?.map(|(bytes, _)| bytes))
}

/// Stores a letter unless there is one; returns whether it did.
async fn put_new(location: &Location, path: &Path, letter: &Letter) -> Result<bool, Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let (store, bytes) = (location.store(), encoded(letter));
    let stored = patiently(location, "write to", STEP, async || {
        match store.put_opts(path, bytes.clone().into(), options.clone()).await {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(false),
            Err(error) => Err(error),
        }
    });
    stored.await
}

async fn remove(location: &Location, path: &Path) -> Result<(), Error> {
    let store = location.store();
    let removed =
        patiently(location, "delete from", STEP, async || match store.delete(path).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            result => result,
        });
    removed.await
}
