//! `nbd volume`: makes, shows, copies and deletes volumes on object storage.

mod ask;
mod show;

use core::future::Future;
use std::env;
use std::io::Write;
use std::path::Path;

use clap::{Args, Subcommand};
use nbd_engine::counted;
use nbd_volume::{Error, Key, Location, NewVolume};

use crate::exit::Failure;
use crate::new_size::NewSize;
use crate::{output, quantity, stderr};

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
    ///
    /// Of one that is encrypted, size and server are not known without its key.
    #[command(display_name = crate::NAME)]
    Info {
        /// The volume
        url: String,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Change the size of a volume, and write the new size in bytes
    ///
    /// What is added reads as zeroes, what is cut off is gone.
    ///
    /// A server that has the volume open does it. Asks before it makes a volume smaller, unless there is --yes.
    #[command(display_name = crate::NAME)]
    Resize {
        /// The volume
        url: String,
        /// The new size: bytes, or a number with a suffix such as 512M, 10G or 1T; with + or - in front so many more or
        /// less than now
        #[arg(value_parser = NewSize::parse, allow_hyphen_values = true)]
        size: NewSize,
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
    ///
    /// Each damaged place is a line with its offset and length; all else is read. The status is 1 if there is one.
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
            let location = location(url)?;
            let found = wait(nbd_volume::list(&location))?;
            if found.is_empty() {
                stderr::say(&format!(
                    "there is no volume at {location} or below: nbd volume create URL --size SIZE makes one"
                ));
            }
            output::write(|out| show::list(out, &found, *json))
        }
        Action::Info { url, json } => {
            let location = location(url)?;
            let about = wait(nbd_volume::info(&location))?;
            output::write(|out| show::info(out, &about, location.has_key(), *json))
        }
        Action::Resize { url, size, yes } => {
            let location = location(url)?;
            let size = new_size(&location, *size, *yes)?;
            wait(nbd_volume::resize(&location, size))?;
            output::write(|out| Ok(writeln!(out, "{size}")?))
        }
        Action::Snapshot { url, name } => wait(nbd_volume::snapshot(&location(url)?, name)),
        Action::Clone { from, to } => {
            let (from, snapshot) = located(from)?;
            wait(nbd_volume::clone(&from, snapshot.as_deref(), &location(to)?))
        }
        Action::Check { url, json } => {
            let (location, snapshot) = located(url)?;
            let report = wait(nbd_volume::check(&location, snapshot.as_deref(), |_| ()))?;
            output::write(|out| show::report(out, &report, *json))?;
            match report.damage.len() {
                0 => Ok(()),
                _ => Err(Failure::failed(format!("the volume at {location} is damaged"))),
            }
        }
        Action::Delete { url, yes } => {
            let (location, snapshot) = located(url)?;
            let snapshot = snapshot.as_deref();
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

/// The size in bytes. Asks before one that is smaller than now, unless there was a `yes` to that.
fn new_size(location: &Location, size: NewSize, yes: bool) -> Result<u64, Failure> {
    // One of 0 is refused.
    if let NewSize::Absolute(size) = size
        && (yes || size == 0)
    {
        return Ok(size);
    }
    let about = wait(nbd_volume::info(location))?;
    let Some(earlier) = about.size else {
        // The volume says so itself, and of which key.
        return match size {
            NewSize::Absolute(size) => Ok(size),
            _ => Err(failure(Error::NoKey { url: about.url })),
        };
    };
    let Some(size) = size.of(earlier).filter(|size| *size > 0) else {
        return Err(Failure::failed(format!(
            "cannot resize the volume at {location}: it has {}, and can have no less than 1 and no more than 2^63 - 1",
            counted(earlier, "byte")
        )));
    };
    if size < earlier && !yes {
        ask::confirm_shrinking(&about, earlier, size)?;
    }
    Ok(size)
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
    Location::parse(url).and_then(with_key).map_err(failure)
}

/// The same, with the key that the environment names.
fn with_key(location: Location) -> Result<Location, Error> {
    Ok(match env::var_os("NBD_VOLUME_KEY_FILE").filter(|path| !path.is_empty()) {
        Some(path) => location.with_key(Key::read(Path::new(&path))?),
        None => location,
    })
}

/// The volume, or the snapshot of one, that a word of the command line names as `URL@SNAPSHOT`.
pub(crate) fn located(word: &str) -> Result<(Location, Option<String>), Failure> {
    let (location, snapshot) = Location::parse_snapshot(word).map_err(failure)?;
    Ok((with_key(location).map_err(failure)?, snapshot))
}
