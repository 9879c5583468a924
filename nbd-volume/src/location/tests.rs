//! URLs of all kinds, and what they name.

use super::*;

#[test]
fn what_is_no_location_is_refused_with_what_to_give() {
    for url in [
        "",
        "disk.img",
        "file:",
        "file://",
        "file:///",
        "file://host/dir",
        "ftp://host/dir",
        "nbd://host/x",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3:///prefix",
        "gs://bucket",
        "s3://bucket/a?key=secret",
        "s3://user:secret@bucket/a",
        "file:///a/../b",
        "memory:",
        "memory:1G",
    ] {
        let error = Location::parse(url).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
        let remedies = ["give", "memory:SIZE", "write"];
        assert!(remedies.iter().any(|remedy| error.contains(remedy)), "{url}: {error}");
    }
    for (url, remedy) in [
        ("file:///a/../b", "write the path without it"),
        ("file:///a/.", "write the path without it"),
        ("s3://bucket/%2e%2E/b", "write the path without it"),
        ("s3://bucket/a//b", "write one"),
        ("s3://bucket/a@b", "write %40"),
        ("s3://bucket/a@b/c", "write %40"),
        ("file:///a@", "write %40"),
    ] {
        let error = Location::parse(url).unwrap_err().to_string();
        assert!(error.contains(remedy), "{url}: {error}");
    }
}

#[test]
fn a_snapshot_stands_behind_the_url_and_is_written_as_urls_are() {
    for (text, url, snapshot) in [
        ("s3://b/v@monday", "s3://b/v", Some("monday")),
        ("s3://b/v", "s3://b/v", None),
        ("file:///a%40b/v@50%25%20done", "file:///a%40b/v", Some("50% done")),
        ("file:///v@a%40b", "file:///v", Some("a@b")),
        ("file:///v@50%", "file:///v", Some("50%")),
    ] {
        let (location, name) = Location::parse_snapshot(text).unwrap();
        assert_eq!((location.url(), name.as_deref()), (url, snapshot));
    }
    for text in ["file:///v@", "s3://b/a@b/v", "s3://b/a@b@c", "s3://user:secret@b"] {
        let error = Location::parse_snapshot(text).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn one_place_is_known_however_its_url_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    std::fs::create_dir(root.join("v")).unwrap();
    std::os::unix::fs::symlink("v", root.join("link")).unwrap();
    let root = root.display();
    for (one, other, is_same) in [
        (format!("file://{root}/v"), format!("file://localhost{root}/v//"), true),
        (format!("file://{root}/v"), format!("file://{root}/%76"), true),
        (format!("file://{root}/v"), format!("file://{root}/link"), true),
        (format!("file://{root}/v"), format!("file://{root}/w"), false),
        ("s3://b/v".into(), "s3a://b/v/".into(), true),
        ("s3://b/v".into(), "s3://b/V".into(), false),
        ("s3://b/v".into(), "s3://c/v".into(), false),
    ] {
        let [a, b] = [&one, &other].map(|url| Location::parse(url).unwrap());
        assert_eq!(a.is_same_place(&b), is_same, "{one} {other}");
    }
}

#[test]
fn what_is_no_object_is_refused_with_what_to_give_and_secrets_are_shown_nowhere() {
    for url in [
        "",
        "disk.img",
        "file:///srv/disk.img",
        "memory:1G",
        "ftp://host/disk.img",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/disk?versionId=secret",
        "s3://user:secret@bucket/disk",
        "http://",
        "https://host",
        "https://host/",
        "https://host/?secret",
        "https:///disk.img",
        "https://user:secret@host/disk.img",
    ] {
        let error = Location::of_object(url).unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("give"), "{url}: {error}");
    }
    let signed = Location::of_object("https://host/a//disk%20.img?signature=secret#top").unwrap();
    assert_eq!(signed.to_string(), "https://host/a//disk%20.img");
    let object = Location::of_object("s3://bucket/images/caf%C3%A9.img").unwrap();
    assert_eq!(object.prefix().as_ref(), "images/café.img");
}

#[test]
fn directories_are_locations() {
    let location = Location::parse("file:///srv/volumes/caf%C3%A9%20x/").unwrap();
    assert_eq!(location.to_string(), "file:///srv/volumes/caf%C3%A9%20x");
    assert_eq!(location.prefix().as_ref(), "srv/volumes/café x");
    let below = location.at(&location.object("mail"));
    assert!(below.to_string().ends_with("/mail") && below.is_same_store(&location));
}

#[test]
fn buckets_are_locations_and_stores_differ_by_them() {
    let one = Location::parse("s3://bucket/a/b").unwrap();
    let other = Location::parse("s3://other/a/b").unwrap();
    assert_eq!(one.prefix().as_ref(), "a/b");
    assert!(!one.is_same_store(&other));
    assert!(one.is_same_store(&Location::parse("s3://bucket/c").unwrap()));
}
