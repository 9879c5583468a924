//! What is copied, and where to.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::time::Duration;

use nbd_blocking::Client;
use nbd_blocking::client::{ClientConfig, Uri};
use nbd_engine::export::is_device_path;

use super::disk::{Disk, size_of};
use super::extents::{Oracle, Status};
use super::record;
use super::team::Maker;
use super::worker::{Destination, Source};
use crate::descriptor;
use crate::exit::Failure;
use crate::map::ALLOCATION;
use crate::output;
use crate::path_error;
use crate::retries::Retries;
use crate::target::{self, Place, Target};
use crate::tls::TlsArguments;
use crate::waiting;

/// One side of a copy, open.
#[derive(Debug)]
pub(super) struct Side {
    /// As messages name it.
    pub(super) name: String,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// With the first connection.
    Server {
        target: Box<Target>,
        client: Client,
        config: Box<ClientConfig>,
    },
    Disk {
        disk: Disk,
        size: u64,
        regular: bool,
    },
    /// Something without positions: a pipe, a terminal.
    Stream(File),
    /// Takes everything and keeps nothing.
    Null,
}

/// How to open.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    pub(super) requests: usize,
    pub(super) extents: bool,
    pub(super) allocated: bool,
    /// What is written has to be read, too.
    pub(super) verify: bool,
    /// What an earlier copy wrote has to be read.
    pub(super) resume: bool,
    /// How long servers may take for an answer; zero for any time.
    pub(super) timeout: Duration,
    pub(super) retries: Retries,
    pub(super) tls: TlsArguments,
}

impl Wishes {
    fn config(&self, target: &Target, extents: bool) -> ClientConfig {
        let config = target.config();
        let config = if extents { config.with_contexts([ALLOCATION]) } else { config };
        // Besides reads and writes there are zeroes and block status.
        let max = u32::try_from(self.requests).unwrap_or(u32::MAX).saturating_mul(2);
        let default = config.limits().max_in_flight;
        config.with_max_in_flight(default.max(max))
    }
}

fn connect(place: &Place, wishes: &Wishes, extents: bool) -> Result<Kind, Failure> {
    let mut target = Box::new(Target::open(place, wishes.timeout, &wishes.tls)?);
    target.retry(&wishes.retries, false);
    let config = wishes.config(&target, extents);
    let client = target.connect(&config)?;
    Ok(Kind::Server { target, client, config: Box::new(config) })
}

/// A failure about two sides, in which each server has its name.
pub(super) fn named(failure: Failure, sides: [&Side; 2]) -> Failure {
    let Failure::Failed(text) = failure else { return failure };
    Failure::Failed(sides.iter().fold(text, |text, side| match &side.kind {
        Kind::Server { target, .. } => target.names().put(&text),
        _ => text,
    }))
}

impl Side {
    /// Where the server is, if it is one.
    pub(super) fn uri(&self) -> Option<&Uri> {
        match &self.kind {
            Kind::Server { target, .. } => Some(target.uri()),
            _ => None,
        }
    }

    pub(super) fn source(place: &Place, wishes: &Wishes) -> Result<Self, Failure> {
        let mut name = place.to_string();
        let kind = match place {
            Place::Word(word) if word == "null:" => {
                return Err(Failure::usage("null: is a destination: there is nothing to be read"));
            }
            Place::Word(word) if word == "-" => {
                name = "standard input".into();
                let cloned = descriptor::check_stdin()
                    .and_then(|()| io::stdin().as_fd().try_clone_to_owned());
                let file = cloned.map_err(|error| cannot("read", &name, &error))?;
                Kind::Stream(file.into())
            }
            _ => match path(place)? {
                Some(path) => {
                    let file = open(path, OpenOptions::new().read(true), &name)?;
                    Kind::local(file, &name, wishes)?
                }
                None => connect(place, wishes, wishes.extents)?,
            },
        };
        Ok(Self { name, kind })
    }

    /// Opens the destination. Not a byte of it is changed, but a file that is not there is made.
    pub(super) fn destination(place: &Place, wishes: &Wishes) -> Result<Self, Failure> {
        let mut name = place.to_string();
        let kind = match place {
            Place::Word(word) if word == "null:" => Kind::Null,
            Place::Word(word) if word == "-" => {
                name = "standard output".into();
                let cloned = descriptor::check_stdout()
                    .and_then(|()| io::stdout().as_fd().try_clone_to_owned());
                let file = cloned.map_err(|error| cannot("write", &name, &error))?;
                Kind::Stream(file.into())
            }
            _ => match path(place)? {
                Some(path) => {
                    let mut how = OpenOptions::new();
                    // A missing device must not become a file in the memory that /dev lies in.
                    let create = !is_device_path(path);
                    let reads = wishes.verify || wishes.resume && has_samples(path);
                    how.write(true).create(create).truncate(false).read(reads);
                    let file = open(path, &how, &name)?;
                    Kind::local(file, &name, wishes)?
                }
                None => connect(place, wishes, false)?,
            },
        };
        if let Kind::Server { client, .. } = &kind
            && client.export().is_read_only()
        {
            return Err(Failure::failed(format!(
                "{name} is read-only: nothing can be written, unless its server allows it"
            )));
        }
        Ok(Self { name, kind })
    }

    /// How many bytes it has, or how many fit. `None` for what has no size, or any.
    pub(super) fn size(&self) -> Option<u64> {
        match &self.kind {
            Kind::Server { client, .. } => Some(client.size()),
            Kind::Disk { size, .. } => Some(*size),
            Kind::Stream(_) | Kind::Null => None,
        }
    }

    /// Whether it is a file that takes the size of what is copied.
    pub(super) fn is_regular(&self) -> bool {
        matches!(self.kind, Kind::Disk { regular: true, .. })
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self.kind, Kind::Stream(_))
    }

    /// What offsets and lengths have to be multiples of.
    pub(super) fn unit(&self) -> u64 {
        self.client().map_or(1, |client| client.export().block_size().minimum().into())
    }

    /// The longest request.
    pub(super) fn payload(&self) -> u64 {
        self.client()
            .map_or(u64::MAX, |client| client.export().block_size().maximum_payload().into())
    }

    /// The first connection, if it is a server.
    pub(super) fn client(&self) -> Option<&Client> {
        match &self.kind {
            Kind::Server { client, .. } => Some(client),
            _ => None,
        }
    }

    /// How many of the wanted connections it may have. A command is started for us alone, and some take no second client.
    pub(super) fn most_connections(&self, wanted: usize) -> usize {
        match &self.kind {
            Kind::Server { target, client, .. } => {
                if client.export().can_multi_conn() && !target.is_command() { wanted } else { 1 }
            }
            Kind::Disk { .. } | Kind::Null => wanted,
            Kind::Stream(_) => 1,
        }
    }

    /// Where a thread reads by a connection of its own; `None` where there can be no such thread.
    pub(super) fn read_by(&self, client: Option<&Client>) -> Option<Source> {
        match (&self.kind, client) {
            (Kind::Server { .. }, Some(client)) => Some(Source::Server(client.clone())),
            (Kind::Disk { disk, .. }, None) => Some(Source::Disk(disk.clone())),
            _ => None,
        }
    }

    /// The same of one that writes, or reads what was written.
    pub(super) fn written_by(&self, client: Option<&Client>) -> Option<Destination> {
        match (&self.kind, client) {
            (Kind::Server { .. }, Some(client)) => Some(Destination::Server(client.clone())),
            (Kind::Disk { disk, .. }, None) => Some(Destination::Disk(disk.clone())),
            (Kind::Null, None) => Some(Destination::Nowhere),
            _ => None,
        }
    }

    /// Who knows where its zeroes are.
    pub(super) fn oracle(&self) -> Oracle {
        match &self.kind {
            Kind::Server { client, target, .. } if client.export().has_context(ALLOCATION) => {
                Oracle::Server(Box::new(Status::new(client, client.size(), target.names())))
            }
            Kind::Disk { disk, .. } => Oracle::Disk(disk.clone()),
            _ => Oracle::None,
        }
    }

    /// How to make further connections, if it is a server.
    pub(super) fn maker(&self) -> Option<Maker> {
        let Kind::Server { target, client, config } = &self.kind else { return None };
        Some(Maker::new(target.uri().clone(), (**config).clone(), client))
    }
}

impl Kind {
    fn local(file: File, name: &str, wishes: &Wishes) -> Result<Self, Failure> {
        let failed = |error: io::Error| cannot("use", name, &error);
        let metadata: Metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(Failure::failed(format!("{name} is a folder: name a file in it")));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Ok(Self::Stream(file));
        }
        let size = size_of(&file).map_err(failed)?;
        if size == 0 && has_bytes(&file) {
            return Ok(Self::Stream(file));
        }
        let disk = Disk::new(file, wishes.allocated).map_err(failed)?;
        Ok(Self::Disk { disk, size, regular: kind.is_file() })
    }
}

/// Whether there is something to be read. The kernel's own files in `/proc` have no size, which does not mean that
/// they are empty.
fn has_bytes(file: &File) -> bool {
    matches!(file.read_at(&mut [0], 0), Ok(1))
}

/// Whether what was copied there, as far as there is a record, is compared with the source before the copy goes on.
fn has_samples(path: &Path) -> bool {
    let Ok(metadata) = path.metadata() else { return false };
    metadata.file_type().is_block_device() || metadata.is_file() && record::path_of(path).exists()
}

/// Whether that is neither a file nor a disk, such as a pipe.
pub(super) fn is_stream(path: &Path) -> bool {
    let kind = path.metadata().map(|metadata| metadata.file_type());
    kind.is_ok_and(|kind| !kind.is_file() && !kind.is_block_device() && !kind.is_dir())
}

/// The path of a side that is a file or device; `None` for a server.
pub(super) fn path(place: &Place) -> Result<Option<&Path>, Failure> {
    match place {
        Place::Word(word) => target::path(word),
        Place::Command(_) => Ok(None),
    }
}

/// Opens a file or device, which may take any time: a pipe waits for its other end, a device for its medium.
fn open(path: &Path, how: &OpenOptions, name: &str) -> Result<File, Failure> {
    let shown = name.to_owned();
    let is_pipe = path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    let _reported = waiting::on(move |seconds| match is_pipe {
        true => format!("waiting for {shown}: its other end has not been opened for {seconds} s"),
        false => format!("waiting for {shown}: opening it has taken {seconds} s so far"),
    });
    how.open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if is_device_path(path) => Failure::failed(format!(
            "cannot open {name}: no such device; attach it or set it up first"
        )),
        io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let remedy = match parent.filter(|parent| !parent.exists()) {
                Some(parent) => {
                    format!("make the folder first: mkdir -p {}", output::shell_path(parent))
                }
                None => "check the path".into(),
            };
            Failure::failed(format!("cannot open {name}: {error}; {remedy}"))
        }
        io::ErrorKind::IsADirectory => {
            Failure::failed(format!("{name} is a folder: name a file in it"))
        }
        _ => cannot("open", name, &error),
    })
}

pub(super) fn cannot(what: &str, name: &str, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot {what} {name}: {}", path_error::why(error)))
}
