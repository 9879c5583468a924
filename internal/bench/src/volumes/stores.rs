//! The stores that volumes lie in.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nbd_testkit::objects::ObjectServer;
use slatedb::object_store::aws::AmazonS3Builder;
use slatedb::object_store::local::LocalFileSystem;
use slatedb::object_store::{ClientOptions, ObjectStore};
use tempfile::TempDir;

use crate::volumes::run::Problem;

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A local directory, whose files are synced.
    Directory,
    /// S3 over HTTP on loopback.
    S3,
    /// The same, with each answer held back for 20 ms.
    FarS3,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Directory, Self::S3, Self::FarS3];

    /// What it is called on the command line and in tables.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::S3 => "s3",
            Self::FarS3 => "s3-20ms",
        }
    }
}

/// A store that lasts until this is dropped.
#[derive(Debug)]
pub(super) enum Store {
    Directory(TempDir),
    S3(ObjectServer),
}

impl Store {
    pub(super) fn new(place: Place, folder: &Path) -> io::Result<Self> {
        let server = |delay| {
            let server = ObjectServer::start();
            server.set_delay(delay);
            Self::S3(server)
        };
        Ok(match place {
            Place::Directory => {
                Self::Directory(tempfile::Builder::new().prefix("nbd-bench").tempdir_in(folder)?)
            }
            Place::S3 => server(Duration::ZERO),
            Place::FarS3 => server(Duration::from_millis(20)),
        })
    }

    /// The URL of a volume in it.
    pub(super) fn url(&self, name: &str) -> String {
        match self {
            Self::Directory(folder) => format!("file://{}/{name}", folder.path().display()),
            Self::S3(_) => format!("s3://bench/{name}"),
        }
    }

    /// The path of a volume, or of a database, in [`objects`](Self::objects).
    pub(super) fn path(&self, name: &str) -> String {
        match self {
            Self::Directory(folder) => {
                format!("{}/{name}", folder.path().display()).trim_start_matches('/').to_owned()
            }
            Self::S3(_) => name.to_owned(),
        }
    }

    /// What a program needs to find it.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Directory(_) => Vec::new(),
            Self::S3(server) => server.environment().to_vec(),
        }
    }

    /// The store for this program.
    pub(super) fn objects(&self) -> Result<Arc<dyn ObjectStore>, Problem> {
        match self {
            Self::Directory(_) => Ok(Arc::new(LocalFileSystem::new().with_fsync(true))),
            Self::S3(server) => {
                // Fails if there is one, which is as good.
                let _there = rustls::crypto::ring::default_provider().install_default();
                let builder = AmazonS3Builder::new()
                    .with_bucket_name("bench")
                    .with_endpoint(server.url())
                    .with_region("us-east-1")
                    .with_access_key_id("test")
                    .with_secret_access_key("test")
                    .with_client_options(ClientOptions::new().with_allow_http(true));
                Ok(Arc::new(builder.build()?))
            }
        }
    }
}
