//! Layers as they are put around a disk.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::SystemTime;

use nbd_engine::export::{
    BaseStamp, Export, Injected, Logged, Overlay, OverlayFile, RateLimit, RateLimited, Rates,
    ReadOnly, RequestLog, Slice, check_overlay,
};
use nbd_engine::net::folder_of;
use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::Layer;
use crate::exit::Failure;
use crate::output::quoted;
use crate::path_error;
use crate::serve::check::Findings;

/// What an overlay has to know of what lies below it.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::serve) struct Base {
    below: Below,
    /// Where the part of it that is left begins.
    offset: u64,
}

#[derive(Clone, Copy, Debug)]
enum Below {
    /// A disk, and when its file was modified, if it is one.
    Disk(Option<SystemTime>),
    Overlay(BaseStamp),
}

impl Default for Below {
    fn default() -> Self {
        Self::Disk(None)
    }
}

impl Base {
    /// The file or block device of that path. When a device's node was modified says nothing of its content.
    pub(in crate::serve) fn of(path: &Path) -> Self {
        let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file);
        let modified = metadata.and_then(|metadata| metadata.modified().ok());
        Self { below: Below::Disk(modified), offset: 0 }
    }

    const fn overlay(stamp: BaseStamp) -> Self {
        Self { below: Below::Overlay(stamp), offset: 0 }
    }

    /// The stamp of the disk that is that part.
    fn stamp(self, disk: &impl Export) -> nbd_engine::export::Result<BaseStamp> {
        let stamp = match self.below {
            Below::Disk(modified) => BaseStamp::new(disk, modified)?,
            Below::Overlay(stamp) => stamp,
        };
        Ok(stamp.part(self.offset, disk.size()))
    }
}

/// Whether the disk itself is only read, since an overlay takes what is written.
pub(in crate::serve) fn has_overlay(layers: &[Layer]) -> bool {
    layers.iter().any(|layer| matches!(layer, Layer::Overlay(_)))
}

/// Puts layers around a disk, the first one nearest to it. Gives the files of the overlays among them, too.
pub(in crate::serve) fn put_around(
    mut disk: Box<dyn Export>,
    layers: &[Layer],
    mut base: Base,
) -> Result<(Box<dyn Export>, Vec<OverlayFile>), Failure> {
    let mut overlays = Vec::new();
    for layer in layers {
        disk = put(disk, layer, &mut base, &mut overlays)?;
    }
    Ok((disk, overlays))
}

/// Finds out whether the files that layers of a disk write can be used, and changes nothing. What is wrong with the other
/// layers is not reported.
pub(in crate::serve) fn check_files(
    mut disk: Box<dyn Export>,
    layers: &[Layer],
    base: Base,
    findings: &mut Findings,
) {
    // Of what lies over an overlay that can't be used it isn't known whether it fits.
    let mut base = Some(base);
    for layer in layers {
        let stands_in = match layer {
            Layer::Overlay(Some(path)) => {
                base = base.and_then(|base| check_overlay_file(&disk, base, path, findings));
                &Layer::Overlay(None)
            }
            Layer::Log(Some(path)) => {
                findings.take(check_log_file(path).map_err(|error| cannot_log(path, &error)));
                &Layer::Log(None)
            }
            other => other,
        };
        let is_disk = base.is_some_and(|base| matches!(base.below, Below::Disk(_)));
        if matches!(layer, Layer::Partition(_)) && !is_disk {
            // The table may be in the overlay, in place of which there is none.
            base = None;
            continue;
        }
        // Nothing is written by those that stand in for them.
        let mut unknown = Base::default();
        let below = base.as_mut().unwrap_or(&mut unknown);
        let Ok(layered) = put(disk, stands_in, below, &mut Vec::new()) else { return };
        disk = layered;
    }
}

/// Gives what lies below the next layer then, if it can be used.
fn check_overlay_file(
    disk: &impl Export,
    base: Base,
    path: &Path,
    findings: &mut Findings,
) -> Option<Base> {
    let error = match check_overlay(path, &base.stamp(disk).ok()?) {
        Ok(stamp) => return Some(Base::overlay(stamp)),
        Err(error) => error,
    };
    let failure = Failure::failed(error.to_string());
    match error.is_in_use() {
        true => findings.add_overlay_in_use(failure),
        false => findings.add(failure),
    }
    None
}

/// Whether a file can be appended to, or made.
fn check_log_file(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(Errno::ISDIR.into()),
        Ok(metadata) if metadata.file_type().is_socket() => Err(Errno::NXIO.into()),
        Ok(_) => Ok(access(path, Access::WRITE_OK)?),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let folder = folder_of(path);
            match fs::metadata(folder)?.is_dir() {
                true => Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?),
                false => Err(Errno::NOTDIR.into()),
            }
        }
        Err(error) => Err(error),
    }
}

fn cannot_log(path: &Path, error: &io::Error) -> Failure {
    let (path, error) = (quoted(path.as_os_str()), path_error::why(error));
    Failure::failed(format!("cannot write the request log {path}: {error}"))
}

fn put(
    disk: Box<dyn Export>,
    layer: &Layer,
    base: &mut Base,
    overlays: &mut Vec<OverlayFile>,
) -> Result<Box<dyn Export>, Failure> {
    let unfit = |error: &dyn std::fmt::Display| Failure::failed(format!("layer {layer}: {error}"));
    Ok(match layer {
        Layer::ReadOnly => Box::new(ReadOnly::new(disk)),
        Layer::Offset { offset, length } => {
            let part = Slice::new(disk, *offset, *length).map_err(|error| unfit(&error))?;
            base.offset += part.offset();
            Box::new(part)
        }
        Layer::Partition(number) => {
            let part = Slice::partition(disk, *number).map_err(|error| unfit(&error))?;
            base.offset += part.offset();
            Box::new(part)
        }
        Layer::Overlay(None) => Box::new(Overlay::in_memory(disk).map_err(|error| unfit(&error))?),
        Layer::Overlay(Some(path)) => {
            let stamp = base.stamp(&disk).map_err(|error| unfit(&error))?;
            let overlay = Overlay::in_file(disk, &stamp, path);
            let overlay = overlay.map_err(|error| Failure::failed(error.to_string()))?;
            *base = Base::overlay(overlay.stamp());
            overlays.push(overlay.file());
            Box::new(overlay)
        }
        Layer::Rate(rate) => {
            let rates = |bytes, requests| {
                Rates::new().bytes_per_second(bytes).requests_per_second(requests)
            };
            let limit = RateLimit::new()
                .for_export(rates(rate.bytes, rate.requests))
                .for_each_client(rates(rate.client_bytes, rate.client_requests))
                .burst(rate.burst.unwrap_or(RateLimit::BURST));
            Box::new(RateLimited::new(disk, limit))
        }
        Layer::Delay(delay, chance) => {
            Box::new(Injected::new(disk, chance.injection().delay(delay.0..=delay.1)))
        }
        Layer::Error(errno, chance) => {
            Box::new(Injected::new(disk, chance.injection().error(errno.0)))
        }
        Layer::Log(None) => Box::new(Logged::new(disk, RequestLog::new())),
        Layer::Log(Some(path)) => {
            let log = RequestLog::to_file(path).map_err(|error| cannot_log(path, &error))?;
            Box::new(Logged::new(disk, log))
        }
    })
}
