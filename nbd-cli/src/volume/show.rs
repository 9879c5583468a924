//! What is written about volumes.

use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use nbd_engine::{age, counted};
use nbd_volume::{Info, Location, Report};
use serde_json::{Value, json};

use crate::output::{Failed, Out, printable};

/// The URLs, one a line.
pub(super) fn list(out: &mut Out, found: &[Location], json: bool) -> Result<(), Failed> {
    if json {
        let found: Vec<_> = found.iter().map(|one| json!({ "url": one.to_string() })).collect();
        return Ok(crate::json::write(out, &found)?);
    }
    for location in found {
        writeln!(out, "{}", printable(&location.to_string()))?;
    }
    Ok(())
}

/// `has_key` says whether any key was there to read it with.
pub(super) fn info(out: &mut Out, about: &Info, has_key: bool, json: bool) -> Result<(), Failed> {
    if json {
        return Ok(crate::json::write(out, &document(about))?);
    }
    let unknown = match has_key {
        true => "not known: NBD_VOLUME_KEY_FILE has another key than that of the volume",
        false => "not known without the key: name its file in NBD_VOLUME_KEY_FILE",
    };
    writeln!(out, "url         {}", printable(&about.url))?;
    match about.size {
        Some(size) => writeln!(out, "size        {size}")?,
        None => writeln!(out, "size        {unknown}")?,
    }
    writeln!(out, "block size  {}", about.block_size)?;
    if about.encrypted {
        writeln!(out, "encrypted   yes")?;
    }
    writeln!(out, "stored      {} bytes in {} objects", about.stored, about.objects)?;
    match &about.writer {
        None if about.size.is_none() => writeln!(out, "server      {unknown}")?,
        None => writeln!(out, "server      none yet")?,
        Some(writer) => {
            let host = printable(&writer.host);
            let since = ago(writer.since);
            let state = match writer.open {
                true => {
                    format!("opened it {since} ago and has not closed it: it runs, or it crashed")
                }
                false => format!("closed it {since} ago"),
            };
            writeln!(out, "server      process {} on {host}, {state}", writer.process)?;
        }
    }
    for snapshot in &about.snapshots {
        let since = ago(u64::try_from(snapshot.created).unwrap_or(0));
        writeln!(out, "snapshot    {} (made {since} ago)", printable(&snapshot.name))?;
    }
    Ok(())
}

/// What is known of a volume, for programs.
fn document(about: &Info) -> Value {
    let snapshots =
        about.snapshots.iter().map(|one| json!({ "name": one.name, "created": one.created }));
    let writer = about.writer.as_ref().map(|writer| {
        json!({
            "host": writer.host,
            "process": writer.process,
            "open": writer.open,
            "since": writer.since,
        })
    });
    json!({
        "url": about.url,
        "size": about.size,
        "block-size": about.block_size,
        "format": about.format,
        "encrypted": about.encrypted,
        "stored": about.stored,
        "objects": about.objects,
        "snapshots": Vec::from_iter(snapshots),
        "writer": writer,
    })
}

pub(super) fn report(out: &mut Out, report: &Report, json: bool) -> Result<(), Failed> {
    if json {
        let damage = report.damage.iter();
        let damage = damage
            .map(|one| json!({ "offset": one.offset, "length": one.length, "what": one.what }));
        let document = json!({
            "blocks": report.blocks,
            "damage": Vec::from_iter(damage),
            "unlisted": report.unlisted,
        });
        return Ok(crate::json::write(out, &document)?);
    }
    for damage in &report.damage {
        let (offset, length) = (damage.offset, damage.length);
        let what = printable(&damage.what);
        // Of a volume whose size can't be read either: where the volume ends, nothing is damaged any more.
        let is_of_any_size = length >> 62 > 0;
        match is_of_any_size {
            true => writeln!(out, "from offset {offset} on, it is not known how far: {what}")?,
            // What has no place.
            false if length == 0 => writeln!(out, "{what}")?,
            false => writeln!(out, "offset {offset}, {}: {what}", counted(length, "byte"))?,
        }
    }
    if report.unlisted > 0 {
        writeln!(out, "and more")?;
    }
    let are = |count: u64| if count == 1 { "is" } else { "are" };
    let blocks = format!("{} {} good", counted(report.blocks, "block"), are(report.blocks));
    let places = match report.damage.len() as u64 + report.unlisted {
        0 => "nothing is damaged".to_owned(),
        count => format!("{} {} damaged", counted(count, "place"), are(count)),
    };
    Ok(writeln!(out, "{blocks}, {places}")?)
}

/// How long ago those seconds since 1970 are.
fn ago(seconds: u64) -> String {
    let then = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH);
    age(then.elapsed().unwrap_or_default())
}
