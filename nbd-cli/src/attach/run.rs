//! `nbd attach`.

use std::io::Write;
use std::os::fd::BorrowedFd;

use nbd_blocking::client::ClientConfig;
use nbd_engine::counted;
use serde_json::json;

use super::arguments::Arguments;
use super::device::{Device, Files};
use super::keeper::{Keeper, Wakers};
use super::link::Link;
use super::netlink::{Channel, Connect, Nbd};
use super::plan::Plan;
use super::{control, explain};
use crate::exit::Failure;
use crate::target::{self, Place, Target};
use crate::{json, output, stderr};

/// `nbd attach`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let places = target::places(&arguments.words)?;
    let (place, device) = match &places[..] {
        [place] => (place, None),
        [place, Place::Word(word)] => {
            let device = word.to_string_lossy().parse().map_err(Failure::Usage)?;
            (place, Some(device))
        }
        _ => return Err(Failure::usage("give a URI, and a device if it matters which")),
    };
    if arguments.persist && matches!(place, Place::Command(_)) {
        return Err(Failure::usage(
            "--persist is for servers that come back: leave it out, or start the server by itself and give its URI",
        ));
    }
    let files = Files::default();
    let nbd = explain::open(&files)?;
    let wakers = Wakers::of_signals()
        .map_err(|error| Failure::failed(format!("cannot watch for signals: {error}")))?;
    let target = Target::open(place, arguments.timeout, &arguments.tls)?;
    arguments.tls.check_used(&[target.uri()])?;
    let attached = attach(nbd, &files, &target, arguments, device)?;
    let device = attached.device();
    output::write(|out| match arguments.json {
        true => Ok(json::write(out, &json!({ "device": device.to_string() }))?),
        false => Ok(writeln!(out, "{device}")?),
    })?;
    match attached.has_to_stay() {
        true => attached.keep(&wakers),
        false => Ok(()),
    }
}

/// Connects, and has the kernel make a device of it.
pub(super) fn attach<'a, C: Channel>(
    mut nbd: Nbd<C>,
    files: &Files,
    target: &'a Target,
    arguments: &Arguments,
    wanted: Option<Device>,
) -> Result<Keeper<'a, C>, Failure> {
    let config = config(target);
    let mut links = vec![Link::connect(target, &config, arguments.persist)?];
    let export = links[0].export().clone();
    let refused = |why: String| Failure::failed(format!("cannot attach {}: {why}", target.name()));
    let plan = Plan::new(&export, arguments.read_only, rustix::param::page_size());
    let plan = plan.map_err(refused)?;
    if plan.tail > 0 {
        stderr::say(&format!(
            "{} has {} more than whole blocks of {}, which the device does not have",
            target.name(),
            counted(plan.tail, "byte"),
            plan.block_size
        ));
    }
    if arguments.connections > 1 && !export.can_multi_conn() {
        stderr::say("the server does not allow several connections: there is one");
    } else {
        for _ in 1..arguments.connections {
            let link = Link::connect(target, &config, arguments.persist)?;
            if let Some(what) = export.difference(link.export()) {
                let text = format!("its connections don't lead to the same export: {what}");
                return Err(refused(text));
            }
            links.push(link);
        }
    }
    let backend = backend(target);
    let sockets: Vec<BorrowedFd<'_>> = links.iter().map(Link::socket).collect();
    let connect = Connect {
        index: wanted.map(|device| device.0),
        size: plan.size,
        block_size: plan.block_size,
        timeout: arguments.timeout,
        dead_timeout: arguments.dead_timeout(),
        flags: plan.flags,
        destroy_on_disconnect: arguments.destroy_on_disconnect,
        disconnect_on_close: arguments.disconnect_on_close,
        backend: &backend,
        sockets,
    };
    let index =
        nbd.connect(&connect).map_err(|error| explain::refused("attach", wanted, &error))?;
    let device = Device(index);
    let stays = arguments.persist || target.is_command() || links.iter().any(Link::is_carried);
    let prepared = limit_requests(files, device, plan.max_payload).and_then(|()| {
        let listener = stays.then(|| control::listen(device)).transpose();
        listener.map_err(|error| format!("another nbd attach stays with {device}: {error}"))
    });
    let listener = prepared.map_err(|why| {
        let _detached = nbd.disconnect(index);
        refused(why)
    })?;
    Ok(Keeper::new(nbd, files.clone(), target, device, listener, links, arguments, plan, backend))
}

/// The kernel knows simple replies and no metadata contexts.
pub(super) fn config(target: &Target) -> ClientConfig {
    target.config().with_structured_replies(false).with_extended_headers(false)
}

/// What has to be repeated to reconfigure the device.
fn backend(target: &Target) -> String {
    target.name()
}

/// The kernel splits requests, but does not know the server's limit.
fn limit_requests(files: &Files, device: Device, max_payload: u64) -> Result<(), String> {
    if files.max_request(device).is_none_or(|bytes| bytes <= max_payload) {
        return Ok(());
    }
    files.set_max_request(device, max_payload).map_err(|error| {
        format!("the server takes no requests of more than {max_payload} bytes, and the kernel can't be limited to that: {error}")
    })
}
