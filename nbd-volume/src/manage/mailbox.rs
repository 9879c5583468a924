//! Asking the server that has a volume open to do something, by way of the store: whoever can reach that can ask, and
//! no other way to the server need be known.
//!
//! The request is an object that must not be there yet. The server looks for it whenever it looks whether it still is
//! the writer, carries it out, and replaces it by the answer, which the asker removes.

use core::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

use crate::patience::patiently;
use crate::records::encoded;
use crate::{Error, Location, Volume};

/// The request's name below the volume's prefix.
const REQUEST: &str = "nbd-request.json";

/// How long a server may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the asker looks for the answer.
const LOOK: Duration = Duration::from_millis(200);

/// How old a request is that its asker has given up, and that another one replaces.
const STALE: Duration = PATIENCE.saturating_mul(2);

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
            Err(Error::Invalid(format!("the server of {location} ({server}) says: {reason}")))
        }
        Outcome::Silence => Err(busy(
            location,
            server,
            "it does not answer. If it crashed, serve the volume, which takes it over, and try again",
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
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let letter = Letter { id: id.clone(), since, request, answer: None };
    let mut was_asked = false;
    let asking = async {
        while !put_new(location, &path, &letter).await? {
            if let Some(other) = read(location, &path).await?
                && since.saturating_sub(other.since) > STALE.as_secs()
            {
                remove(location, &path).await?;
            }
            tokio::time::sleep(LOOK).await;
        }
        was_asked = true;
        loop {
            tokio::time::sleep(LOOK).await;
            match read(location, &path).await? {
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
    let answered = tokio::time::timeout(patience, asking).await;
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

fn busy(location: &Location, server: &str, remedy: &str) -> Error {
    Error::Busy {
        url: location.url().to_owned(),
        writer: server.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// Carries out what the server is asked for, if anything is.
pub(crate) async fn answer(volume: &Volume) {
    let location = volume.location();
    let path = location.object(REQUEST);
    // Once only: it is looked for again soon, and this must not hold up the look at who writes.
    let Ok(found) = location.store().get(&path).await else { return };
    let Ok(bytes) = found.bytes().await else { return };
    let Ok(letter) = serde_json::from_slice::<Letter>(&bytes) else { return };
    if letter.answer.is_some() {
        return;
    }
    tracing::info!(volume = %location, request = ?letter.request, "asked by way of the store");
    let answer = match letter.request.carry_out(volume).await {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Failed(error.to_string()),
    };
    let letter = Letter { answer: Some(answer), ..letter };
    if let Err(error) = location.store().put(&path, encoded(&letter).into()).await {
        tracing::warn!(volume = %location, %error, "cannot answer a request");
    }
}

/// How long the store may take for a step.
const STEP: Duration = super::PATIENCE;

/// The letter that lies there. One that is not understood is as none.
async fn read(location: &Location, path: &Path) -> Result<Option<Letter>, Error> {
    let store = location.store();
    let found = patiently(location, "read", STEP, async || match store.get(path).await {
        Ok(found) => found.bytes().await.map(Some),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    });
    Ok(found.await?.and_then(|found| serde_json::from_slice(&found).ok()))
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
    // It may be this one, if the reply to the first attempt was lost.
    Ok(stored.await? || read(location, path).await?.is_some_and(|there| there.id == letter.id))
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
