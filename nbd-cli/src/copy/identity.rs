//! Which file or block device something is, to be recognised by a later process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::UNIX_EPOCH;

use nbd_engine::counted;
use serde_json::{Value, json};

use super::disk::size_of;
use crate::sysfs::Device;

/// The member that has what is known of a block device.
const DEVICE: &str = "block device";

/// The member that has when a file was made. Its number may be that of another one by now.
const BORN: &str = "born";

/// What disks say of themselves that stays when they are attached again, and is of no other disk.
const NAMES: [&str; 5] = ["dm/uuid", "wwid", "device/wwid", "serial", "device/cid"];

/// What identifies a file, or a block device with its size.
///
/// # Errors
/// When the system does not say.
pub(super) fn of(file: &File) -> io::Result<Value> {
    let metadata = file.metadata()?;
    if !metadata.file_type().is_block_device() {
        let mut identity = json!({ "device": metadata.dev(), "inode": metadata.ino() });
        // Not all file systems know.
        let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        if let Some(born) = born {
            identity[BORN] = format!("{}.{:09}", born.as_secs(), born.subsec_nanos()).into();
        }
        return Ok(identity);
    }
    let device = Device::new(metadata.rdev());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    Ok(json!({
        "size": size_of(file)?,
        DEVICE: {
            "name": name(&device),
            "start": device.start(),
            "boot": boot.map(|boot| boot.trim().to_owned()),
            "number": device.number(),
            "sequence": device.about_disk("diskseq"),
        },
    }))
}

/// What a disk is called wherever it is attached, if that is known.
fn name(device: &Device) -> Option<String> {
    if let Some(path) = device.backing_file() {
        let metadata = fs::metadata(path).ok()?;
        let begin = device.about_disk("loop/offset").unwrap_or_default();
        return Some(format!("file {}:{} from {begin}", metadata.dev(), metadata.ino()));
    }
    let mut known = NAMES.iter().filter_map(|name| Some((name, device.about_disk(name)?)));
    known.next().map(|(name, text)| format!("{name} {text}"))
}

/// Whether what was recorded of a file or block device is about the one that is there now. Numbers of devices go to
/// others when those are attached first; so one is the same if its disk says so, or if no other has taken its number
/// since, which the kernel says by its sequence.
pub(super) fn is_same(recorded: &Value, now: &Value) -> bool {
    let (was, is) = (&recorded[DEVICE], &now[DEVICE]);
    if was.is_null() || is.is_null() {
        let but_when_born = |value: &Value| {
            let mut value = value.clone();
            value.as_object_mut().and_then(|members| members.remove(BORN));
            value
        };
        return !is_born_again(recorded, now) && but_when_born(recorded) == but_when_born(now);
    }
    let agrees = |key: &str| was[key] == is[key];
    let is_known = |key: &str| agrees(key) && is[key].is_string();
    let same_disk = match (was["name"].is_null(), is["name"].is_null()) {
        (false, false) => agrees("name"),
        (true, true) => ["boot", "number", "sequence"].into_iter().all(is_known),
        _ => false,
    };
    same_disk && agrees("start") && recorded["size"] == now["size"]
}

/// Whether a file is known to be made since.
fn is_born_again(recorded: &Value, now: &Value) -> bool {
    recorded[BORN].is_string() && now[BORN].is_string() && recorded[BORN] != now[BORN]
}

/// The first thing that differs of what was recorded and what is known now, in words that follow "it".
pub(super) fn difference(recorded: &Value, now: &Value) -> String {
    if let (Some(was), Some(is)) = (recorded["size"].as_u64(), now["size"].as_u64())
        && was != is
    {
        return sizes(was, is);
    }
    let differs = |key: &str| recorded[key] != now[key];
    let texts = |key: &str| Some((recorded[key].as_str()?, now[key].as_str()?));
    for (key, what) in [("server", "server"), ("name", "name"), ("description", "description")] {
        if let Some((was, is)) = texts(key)
            && was != is
        {
            return format!("its {what} is '{is}' instead of '{was}'");
        }
    }
    if differs("device") || differs("inode") || is_born_again(recorded, now) {
        "it is another file".into()
    } else if differs("changed") {
        "it was written to, or its attributes were changed, since".into()
    } else {
        "it is another disk, or cannot be recognised after it was attached again".into()
    }
}

/// The difference between two sizes.
pub(super) fn sizes(was: u64, is: u64) -> String {
    format!("it has {} instead of {was}", counted(is, "byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let file = |changes: Value| {
            let mut file = json!({ "device": 1, "inode": 2, "size": 4096, "changed": "1.0" });
            for (key, value) in changes.as_object().unwrap() {
                file[key] = value.clone();
            }
            file
        };
        let server =
            |name: &str| json!({ "server": name, "size": 1, "name": "", "description": "d" });
        for (was, is, text) in [
            (file(json!({})), file(json!({ "size": 5 })), "it has 5 bytes instead of 4096"),
            (file(json!({})), file(json!({ "inode": 3 })), "it is another file"),
            (file(json!({ "born": "1.0" })), file(json!({ "born": "2.0" })), "it is another file"),
            (file(json!({})), file(json!({ "changed": "2.0" })), "it was written to"),
            (file(json!({})), device(&[]), "it has 1048576 bytes instead of 4096"),
            (device(&[]), device(&[("number", Some("9"))]), "it is another disk"),
            (server("nbd://a"), server("nbd://b"), "its server is 'nbd://b' instead of 'nbd://a'"),
            (server("nbd://a"), file(json!({ "size": 1 })), "it is another file"),
        ] {
            assert!(!is_same(&was, &is));
            let difference = difference(&was, &is);
            assert!(difference.starts_with(text), "{difference}");
        }
    }

    fn device(changes: &[(&str, Option<&str>)]) -> Value {
        let mut device = json!({
            "name": null, "start": "2048", "boot": "b1", "number": "8:1", "sequence": "7",
        });
        for (key, value) in changes {
            device[*key] = json!(value);
        }
        json!({ "size": 1 << 20, DEVICE: device })
    }

    #[test]
    fn a_disk_without_a_name_is_the_same_while_nothing_takes_its_number() {
        assert!(is_same(&device(&[]), &device(&[])));
        for key in ["start", "boot", "number", "sequence"] {
            assert!(!is_same(&device(&[]), &device(&[(key, Some("9"))])), "{key}");
            // A kernel that does not say it does not say that nothing has changed.
            let unknown = device(&[(key, None)]);
            assert_eq!(is_same(&unknown, &unknown), key == "start", "{key}");
        }
        let mut larger = device(&[]);
        larger["size"] = json!(2 << 20);
        assert!(!is_same(&device(&[]), &larger));
    }

    #[test]
    fn a_disk_with_a_name_is_the_same_wherever_it_is_attached() {
        let named = device(&[("name", Some("wwid 1"))]);
        let elsewhere = [
            ("name", Some("wwid 1")),
            ("boot", Some("b2")),
            ("number", Some("8:17")),
            ("sequence", Some("9")),
        ];
        assert!(is_same(&named, &device(&elsewhere)));
        assert!(!is_same(&named, &device(&[("name", Some("wwid 2"))])));
        assert!(!is_same(&named, &device(&[("name", Some("wwid 1")), ("start", Some("0"))])));
        assert!(!is_same(&named, &device(&[])));
        assert!(!is_same(&device(&[]), &named));
    }

    #[test]
    fn a_file_system_may_not_know_when_a_file_was_made() {
        let file = |born: Option<&str>| {
            let mut file = json!({ "device": 1, "inode": 2 });
            if let Some(born) = born {
                file["born"] = born.into();
            }
            file
        };
        for (was, is, same) in [
            (None, None, true),
            (None, Some("1.0"), true),
            (Some("1.0"), None, true),
            (Some("1.0"), Some("1.0"), true),
            (Some("1.0"), Some("1.1"), false),
        ] {
            assert_eq!(is_same(&file(was), &file(is)), same, "{was:?} {is:?}");
        }
    }

    #[test]
    fn a_file_is_no_device_and_no_other_file() {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (one, other) = (of(&one).unwrap(), of(&other).unwrap());
        assert!(is_same(&one, &one));
        assert!(!is_same(&one, &other));
        assert!(!is_same(&one, &device(&[])) && !is_same(&device(&[]), &one));
    }
}
