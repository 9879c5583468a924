//! Where a volume or an object lies.

#[cfg(test)]
mod tests;

use core::time::Duration;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::error::chain;
use crate::fences::Fences;
use crate::folder::{self, Use};
use crate::http::Bounded;
use crate::names::{self, Translated};
use crate::patience::too_late;
use crate::store::{Traffic, Watched};
use crate::url::{decoded, misnamed, url_path, without_secrets};
use crate::{Error, Key};

/// An object store and a prefix in it: that of one volume, one under which volumes lie, or the name of an object. Clones
/// share the store.
#[derive(Clone)]
pub struct Location {
    url: String,
    store: Arc<Watched>,
    prefix: Path,
    /// What tells stores apart: volumes can be cloned within one.
    origin: String,
    /// For volumes that are encrypted.
    key: Option<Key>,
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({})", self.url)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Location {
    /// The location that a URL names: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or
    /// `file:///DIRECTORY`. What is not a letter, a digit or a common mark is written as `%` and two hexadecimal
    /// digits.
    ///
    /// Credentials, endpoints and regions are taken from the environment, by the names that the stores' own tools use
    /// (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`,
    /// ...). Nothing is asked of the store yet. Requests go by TLS, with the authorities that the system trusts;
    /// plain HTTP takes a variable that allows it (`AWS_ALLOW_HTTP`, `GOOGLE_ALLOW_HTTP`, `AZURE_ALLOW_HTTP`). A
    /// process that has not installed a provider of cryptography for `rustls` gets `ring` as its default.
    ///
    /// Files of a local directory, and the directories that hold them, are synced before a write counts as done.
    ///
    /// # Errors
    /// [`Error::Location`] for a URL of another kind, without a prefix, with a password or a query in it, or when the
    /// environment lacks what the store needs.
    pub fn parse(url: &str) -> Result<Self, Error> {
        Self::parsed(url, Purpose::Volume)
    }

    /// The location and the snapshot that a text such as `s3://BUCKET/PREFIX@SNAPSHOT` names. What stands behind the last
    /// `@` of the last part of the path is the name of a snapshot, written as the rest of the URL is; an `@` of another
    /// name is written as `%40`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and [`Error::Location`] when nothing stands behind the `@`.
    pub fn parse_snapshot(text: &str) -> Result<(Self, Option<String>), Error> {
        let (url, name) = match text.rsplit_once('@') {
            // Before the path it is a user's, which is refused.
            Some((url, name)) if !name.contains('/') && url.matches('/').count() > 2 => (url, name),
            _ => return Ok((Self::parse(text)?, None)),
        };
        let name = decoded(name);
        if name.is_empty() {
            return Err(Error::Location(format!(
                "'{}' ends with an '@', behind which the name of a snapshot is due: give one, or write %40 for an '@' in a name",
                without_secrets(text)
            )));
        }
        Ok((Self::parse(url)?, Some(name)))
    }

    /// The location of an object that is a disk by itself (see [`Object`](crate::Object)): `s3://BUCKET/KEY`,
    /// `gs://BUCKET/KEY`, `az://CONTAINER/KEY`, as in [`parse`](Self::parse), or the URL of a file on a web server,
    /// `https://HOST/PATH` or `http://HOST/PATH`, with a query if need be. A query may be a secret, such as a signature,
    /// and is shown nowhere. No credentials are sent to a web server.
    ///
    /// # Errors
    /// [`Error::Location`], as [`parse`](Self::parse), for a URL of a local file, too: that is served by its path.
    pub fn of_object(url: &str) -> Result<Self, Error> {
        match url.split_once("://") {
            Some(("http" | "https", _)) => Self::on_the_web(url),
            _ => Self::parsed(url, Purpose::Object),
        }
    }

    fn parsed(url: &str, purpose: Purpose) -> Result<Self, Error> {
        let wrong = |why: &str| {
            Error::Location(format!("'{}' {why}: give {}", without_secrets(url), purpose.forms()))
        };
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(match (url.split_once(':'), purpose) {
                (Some(("memory", _)), Purpose::Volume) => Error::Location(
                    "a volume in memory ends with its process: serve a disk in memory with memory:SIZE instead"
                        .to_owned(),
                ),
                (_, Purpose::Volume) => wrong("is not the URL of a volume"),
                (_, Purpose::Object) => wrong("is not the URL of an object"),
            });
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.contains('@') {
            return Err(wrong("has a user or a password in it, which belong in the environment"));
        }
        if rest.contains('?') {
            return Err(wrong(
                "has a query (write %3F for a '?' in a name); what the store needs to know belongs in the environment",
            ));
        }
        if rest.contains('#') {
            return Err(Error::Location(format!(
                "'{}' has a fragment, which names nothing in a store: write %23 for a '#' in a name",
                url.replace(char::is_control, "\u{fffd}")
            )));
        }
        if path.contains('@') && purpose == Purpose::Volume {
            return Err(Error::Location(format!(
                "'{}' has an '@', behind which the name of a snapshot stands, and a volume is due here: leave the snapshot out, or \
                 write %40 for an '@' in a name",
                without_secrets(url)
            )));
        }
        let path = path.trim_end_matches('/');
        if let Some(why) = misnamed(path) {
            return Err(Error::Location(format!("'{}' {why}", without_secrets(url))));
        }
        let prefix = Path::from_url_path(path)
            .map_err(|error| wrong(&format!("has a path that stores do not take ({error})")))?;
        if prefix.as_ref().is_empty() {
            return Err(wrong(match purpose {
                Purpose::Volume => "names no directory or prefix for a volume",
                Purpose::Object => "names no object",
            }));
        }
        if matches!(scheme, "s3" | "s3a" | "gs" | "az" | "abfs" | "azure") && host.is_empty() {
            return Err(wrong("names no bucket"));
        }
        if let Some(variable) = plain_endpoint(scheme) {
            return Err(Error::Location(format!(
                "the endpoint in AWS_ENDPOINT_URL is plain HTTP, by which anybody on the way can read and change volumes: give \
                 one with https://, or set {variable}=true"
            )));
        }
        let store = match scheme {
            "file" if purpose == Purpose::Object => {
                return Err(wrong("is a file, which is served by its path"));
            }
            "file" if host.is_empty() || host == "localhost" => {
                Arc::new(LocalFileSystem::new().with_fsync(true)) as Arc<dyn ObjectStore>
            }
            "file" => return Err(wrong("names a file of another host")),
            "s3" | "s3a" => {
                let builder =
                    AmazonS3Builder::from_env().with_url(url).with_http_connector(Bounded);
                built(url, builder.with_retry(retries()).with_client_options(client(url)).build())?
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::from_env()
                    .with_url(url)
                    .with_http_connector(Bounded);
                built(url, builder.with_retry(retries()).with_client_options(client(url)).build())?
            }
            "az" | "abfs" | "azure" => {
                let builder =
                    MicrosoftAzureBuilder::from_env().with_url(url).with_http_connector(Bounded);
                built(url, builder.with_retry(retries()).with_client_options(client(url)).build())?
            }
            _ => return Err(wrong("is of an unknown kind")),
        };
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            store: Arc::new(Watched::new(store, without_secrets(url).trim_end_matches('/'))),
            prefix,
            origin: origin(scheme, host),
            key: None,
        })
    }

    /// A file of a web server, which is a store with one object that has no name.
    fn on_the_web(url: &str) -> Result<Self, Error> {
        let wrong = |why: &str| {
            Error::Location(format!("'{}' {why}: give https://HOST/PATH", without_secrets(url)))
        };
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let rest = rest.split('#').next().unwrap_or_default();
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.contains('@') {
            return Err(wrong(
                "has a user or a password in it, which other users of the machine could read",
            ));
        }
        if host.is_empty() || host.starts_with(':') {
            return Err(wrong("names no host"));
        }
        if path.is_empty() || path.starts_with('?') {
            return Err(wrong("names no file"));
        }
        let builder = HttpBuilder::new().with_url(format!("{scheme}://{rest}"));
        let builder = builder.with_http_connector(Bounded);
        let client = client(url).with_allow_http(scheme == "http");
        let store = builder.with_retry(retries()).with_client_options(client).build();
        Ok(Self {
            url: without_secrets(url),
            store: Arc::new(Watched::new(built(url, store)?, &without_secrets(url))),
            prefix: Path::default(),
            origin: format!("{scheme}://{host}"),
            key: None,
        })
    }

    /// A new store in memory, and a prefix in it: for tests, and for what need not outlive the process.
    #[must_use]
    pub fn in_memory(prefix: &str) -> Self {
        Self::over(Arc::new(InMemory::new()), prefix)
    }

    /// A prefix in a store that the caller brings. Volumes need one that honours
    /// [`PutMode::Create`](object_store::PutMode::Create), and lists and reads what it has answered to hold. It is
    /// shown as `memory:PREFIX`, whatever it is; a volume can be cloned to locations over the same `Arc` alone. A prefix
    /// that is no [`Path`] as it is, with empty parts or control characters, is taken as [`Path::from`] makes one of it.
    #[must_use]
    pub fn over(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let origin = format!("store-{:p}:", Arc::as_ptr(&store));
        Self {
            url: format!("memory:{prefix}"),
            store: Arc::new(Watched::new(store, &format!("memory:{prefix}"))),
            prefix: prefix_of(prefix),
            origin,
            key: None,
        }
    }

    /// The same with a key for the encrypted volumes there. Volumes that are not encrypted don't use it.
    #[must_use]
    pub fn with_key(self, key: Key) -> Self {
        Self { key: Some(key), ..self }
    }

    /// Whether it was [given a key](Self::with_key), whatever the volumes there are encrypted with.
    #[must_use]
    pub const fn has_key(&self) -> bool {
        self.key.is_some()
    }

    pub(crate) fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// Another prefix of the same store, with the same key. For stores of [`in_memory`](Self::in_memory) and
    /// [`over`](Self::over): another prefix of a bucket or directory is a URL of its own, and would be shown wrongly.
    #[must_use]
    pub fn sibling(&self, prefix: &str) -> Self {
        Self { url: format!("memory:{prefix}"), prefix: prefix_of(prefix), ..self.clone() }
    }

    /// What the store was asked for by way of this location, its clones and its [siblings](Self::sibling), and the
    /// volumes and objects that were opened there. The counts only grow.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.store.traffic()
    }

    /// The URL, without a slash at its end.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// The path of an object of ours below the prefix.
    pub(crate) fn object(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store) as Arc<dyn ObjectStore>
    }

    /// The directory, if it is a local one.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        let is_local = self.url.starts_with("file:");
        is_local.then(|| std::path::Path::new("/").join(self.prefix.as_ref()))
    }

    /// The same for who opens the volume there: a local directory is used from then on wherever it is moved.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) async fn opened(&self, patience: Duration) -> Result<Self, Error> {
        let Some(path) = self.folder() else { return Ok(self.clone()) };
        let this = self.clone();
        let opening = move || match this.store.in_folder(&path, &this.prefix) {
            Ok(store) => Ok(Self { store: Arc::new(store), ..this }),
            // There is no volume, which is said where it is looked for.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(this),
            Err(error) => Err(Error::of_folder(&this.url, "open", &path, error)),
        };
        self.on_disk("open", patience, opening).await
    }

    /// Whether this user can use the volume so, if it is in a local directory. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) async fn check_access(&self, how: Use, patience: Duration) -> Result<(), Error> {
        let Some(folder) = self.folder() else { return Ok(()) };
        let url = self.url.clone();
        let checking = move || {
            folder::check_access(&folder, how)
                .map_err(|(path, error)| Error::of_folder(&url, how.verb(), &path, error))
        };
        self.on_disk(how.verb(), patience, checking).await
    }

    /// Does something that may take as long as a disk does.
    async fn on_disk<T: Send + 'static>(
        &self,
        doing: &'static str,
        patience: Duration,
        act: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        match tokio::time::timeout(patience, tokio::task::spawn_blocking(act)).await {
            Ok(Ok(done)) => done,
            Ok(Err(failed)) => std::panic::resume_unwind(failed.into_panic()),
            Err(_) => Err(too_late(self, doing, patience)),
        }
    }

    /// The path of the database, and the store as SlateDB is to see it: see [`names`].
    pub(crate) fn database(&self) -> Path {
        names::safe(&self.prefix)
    }

    pub(crate) fn database_store(&self) -> Arc<dyn ObjectStore> {
        self.database_store_with(Fences::Bare)
    }

    /// The same for who reads or writes the log.
    pub(crate) fn database_store_with(&self, fences: Fences) -> Arc<dyn ObjectStore> {
        Arc::new(Translated::new(Arc::clone(&self.store), fences))
    }

    pub(crate) fn watched(&self) -> &Watched {
        &self.store
    }

    /// Whether both are in one store, so that the one can be cloned to the other.
    pub(crate) fn is_same_store(&self, other: &Self) -> bool {
        self.origin == other.origin
    }

    /// Whether both are one place, however their URLs are written. Local directories are compared with the links on their
    /// way resolved, as far as they exist.
    #[must_use]
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self.folder(), other.folder()) {
            (Some(one), Some(two)) => resolved(one) == resolved(two),
            _ => self.is_same_store(other) && self.prefix == other.prefix,
        }
    }

    /// The location that has that path in the store, with a URL that can be given to any command.
    pub(crate) fn at(&self, path: &Path) -> Self {
        let url = match self.url.starts_with("memory:") {
            true => format!("memory:{path}"),
            false => format!("{}/{}", self.origin, url_path(path)),
        };
        Self { url, prefix: path.clone(), ..self.clone() }
    }
}

/// A store by one of the names that it has in URLs.
fn origin(scheme: &str, host: &str) -> String {
    match scheme {
        "s3a" => format!("s3://{host}"),
        "abfs" | "azure" => format!("az://{host}"),
        "file" => "file://".to_owned(),
        _ => format!("{scheme}://{host}"),
    }
}

/// The folder without links on the way to it, as far as it exists.
fn resolved(folder: PathBuf) -> PathBuf {
    folder.canonicalize().unwrap_or(folder)
}

/// The prefix that a caller names.
fn prefix_of(text: &str) -> Path {
    Path::parse(text).unwrap_or_else(|_| Path::from(text))
}

/// What a URL is to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Volume,
    Object,
}

impl Purpose {
    /// What to give instead of what is no such URL.
    const fn forms(self) -> &'static str {
        match self {
            Self::Volume => {
                "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY"
            }
            Self::Object => {
                "s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY or https://HOST/PATH"
            }
        }
    }
}

/// How often a request is repeated before its failure is known here. SlateDB goes on repeating, and what it repeats
/// is what the error of a request that waited in vain names.
fn retries() -> RetryConfig {
    RetryConfig { max_retries: 2, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() }
}

/// The variable that has to be set for an endpoint without encryption, unless it is.
fn plain_endpoint(scheme: &str) -> Option<&'static str> {
    let is_plain = |name| std::env::var(name).is_ok_and(|url: String| url.starts_with("http://"));
    let plain = is_plain("AWS_ENDPOINT_URL") || is_plain("AWS_ENDPOINT");
    (matches!(scheme, "s3" | "s3a") && plain && !is_set("AWS_ALLOW_HTTP"))
        .then_some("AWS_ALLOW_HTTP")
}

fn is_set(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "true" || value == "1")
}

/// HTTP as we want it: there is no plain one unless the environment asks for it. How long a request may take depends on its
/// length: see [`http`](crate::http).
fn client(url: &str) -> ClientOptions {
    provide_cryptography();
    let variable = match url.split("://").next().unwrap_or_default() {
        "gs" => "GOOGLE_ALLOW_HTTP",
        "s3" | "s3a" => "AWS_ALLOW_HTTP",
        _ => "AZURE_ALLOW_HTTP",
    };
    let allowed = is_set(variable);
    ClientOptions::new()
        .with_allow_http(allowed)
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout_disabled()
}

/// The HTTP client takes the process's provider, and has none of its own.
fn provide_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread was faster.
        let _installed = rustls::crypto::ring::default_provider().install_default();
    }
}

fn built<S: ObjectStore>(
    url: &str,
    store: Result<S, object_store::Error>,
) -> Result<Arc<dyn ObjectStore>, Error> {
    let store = store.map_err(|error| {
        Error::Location(format!(
            "cannot use the store of {}: {}; the environment has to have what it needs",
            without_secrets(url),
            chain(&error)
        ))
    })?;
    Ok(Arc::new(store))
}
