//! `nbd volume`: makes, shows, copies and deletes volumes on object storage.

mod ask;
mod show;

use core::future::Future;
use std::env;
use std::path::Path;

use clap::{Args, Subcommand};
use nbd_volume::{Error, Key, Location, NewVolume};

use crate::exit::Failure;
use crate::{output, quantity};

/// Make, show, snapshot, clone, check and delete volumes on object storage.
///
/// A URL is s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY. Credentials, regions
/// and endpoints are taken from the environment, by the names that the stores' own tools use: AWS_ACCESS_KEY_ID,
/// AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME
/// and others. A volume is served by nbd serve volume:URL. NBD_VOLUME_KEY_FILE names the file with the key of volumes that
/// are encrypted: 32 bytes, or 64 hexadecimal digits, as openssl rand -hex 32 writes them.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a volume, which reads as zeroes and takes no space
    #[command(display_name = crate::NAME)]
    Create {
        /// Where
        url: String,
        /// Its size: bytes, or a number with a suffix such as 512M, 10G or 1T
        #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
        size: u64,
        /// Bytes of a block, 4k, 8k, 16k, 32k or 64k, which stays as it is
        ///
        /// Shorter writes read their block first. Larger blocks are read and written faster in sequence.
        #[arg(long, value_name = "N", default_value = "4k", value_parser = quantity::size)]
        block_size: u64,
        /// Encrypt its data, with the key in the file that NBD_VOLUME_KEY_FILE names
        #[arg(long)]
        encrypt: bool,
    },
    /// Write the URLs of the volumes at a URL and below
    #[command(display_name = crate::NAME)]
    List {
        /// Where
        url: String,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the size of a volume, the space that it takes, its snapshots, and the server that has it open
    #[command(display_name = crate::NAME)]
    Info {
        /// The volume
        url: String,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Change the size of a volume; what is added reads as zeroes, what is cut off is gone
    ///
    /// A server that has the volume open does it. Asks before it makes a volume smaller, unless there is --yes.
    #[command(display_name = crate::NAME)]
    Resize {
        /// The volume
        url: String,
        /// The new size: bytes, or a number with a suffix such as 512M, 10G or 1T
        #[arg(value_parser = quantity::size)]
        size: u64,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Keep what a volume holds now, under a name, for nbd serve volume:URL@NAME
    ///
    /// A server that has the volume open does it, with all that its clients have written.
    #[command(display_name = crate::NAME)]
    Snapshot {
        /// The volume
        url: String,
        /// The snapshot's name
        name: String,
    },
    /// Make a volume of what another one, or a snapshot of it, holds, at once and without a copy
    ///
    /// The new one reads the objects of the other one, which can't be deleted before it.
    #[command(display_name = crate::NAME)]
    Clone {
        /// The volume, or URL@SNAPSHOT
        #[arg(value_name = "URL[@SNAPSHOT]")]
        from: String,
        /// Where the new volume is to be, in the same store
        #[arg(value_name = "URL")]
        to: String,
    },
    /// Read everything that a volume holds, verify the checksums, and report what is damaged
    #[command(display_name = crate::NAME)]
    Check {
        /// The volume, or URL@SNAPSHOT
        #[arg(value_name = "URL[@SNAPSHOT]")]
        url: String,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a volume with all of its snapshots, or one snapshot
    ///
    /// Asks first, unless there is --yes.
    #[command(display_name = crate::NAME)]
    Delete {
        /// The volume, or URL@SNAPSHOT for a snapshot
        #[arg(value_name = "URL[@SNAPSHOT]")]
        url: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `nbd volume`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    crate::log::start(0)?;
    match &arguments.action {
        Action::Create { url, size, block_size, encrypt } => {
            let block_size = u32::try_from(*block_size).unwrap_or(u32::MAX);
            let volume = NewVolume::of_size(*size).with_block_size(block_size);
            let volume = if *encrypt { volume.with_encryption() } else { volume };
            wait(nbd_volume::create(&location(url)?, &volume))
        }
        Action::List { url, json } => {
            let found = wait(nbd_volume::list(&location(url)?))?;
            output::write(|out| show::list(out, &found, *json))
        }
        Action::Info { url, json } => {
            let about = wait(nbd_volume::info(&location(url)?))?;
            output::write(|out| show::info(out, &about, *json))
        }
        Action::Resize { url, size, yes } => {
            let location = location(url)?;
            // A size of 0 is refused.
            if !yes && *size > 0 {
                let about = wait(nbd_volume::info(&location))?;
                if *size < about.size {
                    ask::confirm_shrinking(&about, *size)?;
                }
            }
            wait(nbd_volume::resize(&location, *size))
        }
        Action::Snapshot { url, name } => wait(nbd_volume::snapshot(&location(url)?, name)),
        Action::Clone { from, to } => {
            let (from, snapshot) = split_snapshot(from);
            wait(clone(from, snapshot, to))
        }
        Action::Check { url, json } => {
            let (url, snapshot) = split_snapshot(url);
            let report = wait(nbd_volume::check(&location(url)?, snapshot, |_| ()))?;
            output::write(|out| show::report(out, &report, *json))?;
            match report.damage.len() {
                0 => Ok(()),
                _ => Err(Failure::failed(format!("the volume at {url} is damaged"))),
            }
        }
        Action::Delete { url, yes } => {
            let (volume, snapshot) = split_snapshot(url);
            let location = location(volume)?;
            if !yes {
                let about = wait(nbd_volume::info(&location))?;
                // One that is not there is an error, and no question.
                if snapshot.is_none_or(|name| about.snapshots.iter().any(|one| one.name == name)) {
                    ask::confirm(&about, snapshot)?;
                }
            }
            match snapshot {
                None => wait(nbd_volume::delete(&location)),
                Some(name) => wait(nbd_volume::delete_snapshot(&location, name)),
            }
        }
    }
}

/// Both URLs by one store, so that they are compared as what they are.
async fn clone(from: &str, snapshot: Option<&str>, to: &str) -> Result<(), Error> {
    nbd_volume::clone(&keyed(from)?, snapshot, &keyed(to)?).await
}

/// Runs a command to its end.
fn wait<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::failed(format!("cannot start a runtime: {error}; raise ulimit -u and -n"))
    })?;
    runtime.block_on(work).map_err(failure)
}

pub(crate) fn failure(error: Error) -> Failure {
    match error {
        Error::Location(text) | Error::Invalid(text) => Failure::Usage(text),
        error => Failure::failed(error.to_string()),
    }
}

/// The location that a URL of the command line names.
pub(crate) fn location(url: &str) -> Result<Location, Failure> {
    keyed(url).map_err(failure)
}

/// The same, with the key that the environment names.
fn keyed(url: &str) -> Result<Location, Error> {
    let location = Location::parse(url)?;
    Ok(match env::var_os("NBD_VOLUME_KEY_FILE").filter(|path| !path.is_empty()) {
        Some(path) => location.with_key(Key::read(Path::new(&path))?),
        None => location,
    })
}

/// `URL@SNAPSHOT`: what stands behind the last `@` of the last part of the path.
pub(crate) fn split_snapshot(word: &str) -> (&str, Option<&str>) {
    match word.rsplit_once('@') {
        Some((url, name)) if !name.contains('/') && url.matches('/').count() > 2 => {
            (url, Some(name))
        }
        _ => (word, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_stands_behind_the_url() {
        assert_eq!(split_snapshot("s3://b/v@monday"), ("s3://b/v", Some("monday")));
        assert_eq!(split_snapshot("s3://b/v"), ("s3://b/v", None));
        assert_eq!(split_snapshot("s3://b/a@b/v"), ("s3://b/a@b/v", None));
        assert_eq!(split_snapshot("s3://user:secret@b"), ("s3://user:secret@b", None));
        assert_eq!(split_snapshot("file:///v@"), ("file:///v", Some("")));
    }
}
