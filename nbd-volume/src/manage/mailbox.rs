//! Asking the server that has a volume open to do something, by way of the store: whoever can reach that can ask, and no other
//! way to the server need be known.
//!
//! The request is an object that must not be there yet. The server looks for it whenever it looks whether it still is the writer,
//! carries it out, and replaces it by the answer, which the asker removes.

use core::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

use crate::volume::encoded;
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
    Snapshot { name: String },
    Resize { size: u64 },
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
    let url = || location.url().to_owned();
    let path = location.object(REQUEST);
    let id = super::create::new_id()?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let letter = Letter { id: id.clone(), since, request, answer: None };
    let busy = |remedy: &str| Error::Busy {
        url: url(),
        writer: server.to_owned(),
        remedy: remedy.to_owned(),
    };
    let asking = async {
        while !put_new(location, &path, encoded(&letter)).await? {
            if let Some(other) = read(location, &path).await?
                && since.saturating_sub(other.since) > STALE.as_secs()
            {
                remove(location, &path).await?;
            }
            tokio::time::sleep(LOOK).await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            match read(location, &path).await? {
                Some(Letter { id: this, answer: Some(answer), .. }) if this == id => break Ok(answer),
                Some(Letter { id: this, .. }) if this == id => (),
                _ => break Err(busy("another request took the place of this one: try again")),
            }
        }
    };
    let answer = match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer?,
        Err(_) => {
            let _removed = remove(location, &path).await;
            return Err(busy(
                "it does not answer. If it crashed, serve the volume, which takes it over, and try again",
            ));
        }
    };
    remove(location, &path).await?;
    match answer {
        Answer::Done => Ok(()),
        Answer::Failed(reason) => Err(Error::Invalid(format!("the server of {location} ({server}) says: {reason}"))),
    }
}

/// Carries out what the server is asked for, if anything is.
pub(crate) async fn answer(volume: &Volume) {
    let location = volume.location();
    let path = location.object(REQUEST);
    let Ok(Some(letter)) = read(location, &path).await else { return };
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

/// The letter that lies there. One that is not understood is as none.
async fn read(location: &Location, path: &Path) -> Result<Option<Letter>, Error> {
    let failed = |error: object_store::Error| Error::store(location.url(), "read", &error);
    let found = match location.store().get(path).await {
        Ok(found) => found.bytes().await.map_err(failed)?,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    Ok(serde_json::from_slice(&found).ok())
}

/// Stores an object unless there is one; returns whether it did.
async fn put_new(location: &Location, path: &Path, bytes: Bytes) -> Result<bool, Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match location.store().put_opts(path, bytes.into(), options).await {
        Ok(_) => Ok(true),
        Err(
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. },
        ) => Ok(false),
        Err(error) => Err(Error::store(location.url(), "write to", &error)),
    }
}

async fn remove(location: &Location, path: &Path) -> Result<(), Error> {
    match location.store().delete(path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(Error::store(location.url(), "delete from", &error)),
    }
}
