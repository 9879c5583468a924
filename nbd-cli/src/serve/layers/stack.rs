//! Layers as they are put around a disk.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use nbd_engine::export::{
    BaseStamp, Export, Injected, Logged, Overlay, RateLimit, RateLimited, Rates, ReadOnly,
    RequestLog, Slice,
};

use super::Layer;
use crate::exit::Failure;
use crate::output::quoted;
use crate::path_error;

/// What an overlay has to know of the disk below all layers.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::serve) struct Base {
    /// When its file was modified, if it is one.
    pub(in crate::serve) modified: Option<SystemTime>,
}

impl Base {
    /// The file or block device of that path. When a device's node was modified says nothing of its content.
    pub(in crate::serve) fn of(path: &Path) -> Self {
        let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file);
        Self { modified: metadata.and_then(|metadata| metadata.modified().ok()) }
    }
}

/// Whether the disk itself is only read, since an overlay takes what is written.
pub(in crate::serve) fn has_overlay(layers: &[Layer]) -> bool {
    layers.iter().any(|layer| matches!(layer, Layer::Overlay(_)))
}

/// Puts layers around a disk, the first one nearest to it.
pub(in crate::serve) fn put_around(
    mut disk: Box<dyn Export>,
    layers: &[Layer],
    base: Base,
) -> Result<Box<dyn Export>, Failure> {
    for layer in layers {
        disk = put(disk, layer, base)?;
    }
    Ok(disk)
}

fn put(disk: Box<dyn Export>, layer: &Layer, base: Base) -> Result<Box<dyn Export>, Failure> {
    let unfit = |error: &dyn std::fmt::Display| Failure::failed(format!("layer {layer}: {error}"));
    Ok(match layer {
        Layer::ReadOnly => Box::new(ReadOnly::new(disk)),
        Layer::Offset { offset, length } => {
            Box::new(Slice::new(disk, *offset, *length).map_err(|error| unfit(&error))?)
        }
        Layer::Partition(number) => {
            Box::new(Slice::partition(disk, *number).map_err(|error| unfit(&error))?)
        }
        Layer::Overlay(None) => Box::new(Overlay::in_memory(disk).map_err(|error| unfit(&error))?),
        Layer::Overlay(Some(path)) => {
            let stamp = BaseStamp::new(&disk, base.modified).map_err(|error| unfit(&error))?;
            let overlay = Overlay::in_file(disk, &stamp, path);
            Box::new(overlay.map_err(|error| Failure::failed(error.to_string()))?)
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
            let log = RequestLog::to_file(path).map_err(|error| {
                let (path, error) = (quoted(path.as_os_str()), path_error::why(&error));
                Failure::failed(format!("cannot write the request log {path}: {error}"))
            })?;
            Box::new(Logged::new(disk, log))
        }
    })
}
