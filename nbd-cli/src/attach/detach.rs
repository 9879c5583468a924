//! `nbd detach`.

use std::ffi::OsString;

use clap::Args;

use super::device::{Device, Files};
use super::netlink::{Nbd, Socket};
use super::{control, explain};
use crate::exit::Failure;
use crate::stderr;

/// Detach devices that nbd attach, or another program, has attached.
///
/// A device that is mounted or used in another way is left alone, unless --force is given. What was written and not
/// flushed yet is lost with --force.
#[derive(Debug, Args)]
#[command(override_usage = "nbd detach [OPTIONS] <DEVICE>...\n       nbd detach [OPTIONS] --all")]
pub(crate) struct Arguments {
    /// The devices, such as /dev/nbd0
    #[arg(value_name = "DEVICE", required_unless_present = "all", conflicts_with = "all")]
    devices: Vec<OsString>,

    /// All that are attached
    #[arg(long)]
    all: bool,

    /// Detach what is in use, too
    #[arg(long)]
    force: bool,
}

/// `nbd detach`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let named = arguments.devices.iter().map(|word| word.to_string_lossy().parse());
    let mut devices = named.collect::<Result<Vec<Device>, _>>().map_err(Failure::Usage)?;
    let files = Files::default();
    let mut nbd = explain::open(&files)?;
    let states = nbd.devices().map_err(|error| explain::refused("list", None, &error))?;
    let attached: Vec<_> =
        states.iter().filter(|state| state.connected).map(|state| Device(state.index)).collect();
    if arguments.all {
        devices.clone_from(&attached);
    }
    let mut result = Ok(());
    for device in devices {
        let detached = match attached.contains(&device) {
            true => detach(&mut nbd, &files, device, arguments.force),
            false => Err(Failure::failed(format!("{device} is not attached"))),
        };
        if let Err(failure) = detached {
            // The last one is reported in the end.
            if let Err(earlier) = core::mem::replace(&mut result, Err(failure)) {
                stderr::say(earlier.text());
            }
        }
    }
    result
}

fn detach(
    nbd: &mut Nbd<Socket>,
    files: &Files,
    device: Device,
    force: bool,
) -> Result<(), Failure> {
    let refused = |why: String| Err(Failure::failed(format!("cannot detach {device}: {why}")));
    if !force {
        if let Some(used) = files.use_of(device) {
            return refused(format!("{used}; unmount it first, or give --force"));
        }
        match control::ask(device) {
            Ok(None) => {}
            Ok(Some(Ok(()))) => return Ok(()),
            Ok(Some(Err(why))) => return refused(why),
            Err(error) => {
                let text = format!("the process that stays with it does not answer: {error}");
                return refused(format!("{text}; give --force to do without"));
            }
        }
    }
    nbd.disconnect(device.0).map_err(|error| explain::refused("detach", Some(device), &error))
}
