//! Images, plans and reports; the copies themselves are the business of `nbd copy`'s own tests.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use tempfile::TempDir;

use super::run::available;
use super::{CopyPlan, Image, Line, Place, Standing, Took, cases, json, make, run, same, text};
use crate::args::{Cli, Command};
use crate::compare::State;

const SIZE: u64 = 4 << 20;

fn plan(args: &[&str]) -> Result<CopyPlan, String> {
    let line = ["nbd-bench", "copy"].iter().chain(args);
    match Cli::try_parse_from(line).map_err(|error| error.to_string())?.command {
        Command::Copy(args) => args.plan(Path::new("/bin/nbd-bench")),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn images_have_the_holes_that_their_names_tell_of() -> std::io::Result<()> {
    let folder = TempDir::new()?;
    let (dense, sparse) = (folder.path().join("dense"), folder.path().join("sparse"));
    make(&dense, Image::Dense, SIZE)?;
    make(&sparse, Image::HalfSparse, SIZE)?;
    assert_eq!(fs::metadata(&dense)?.len(), SIZE);
    assert_eq!(fs::metadata(&sparse)?.len(), SIZE);
    assert!(fs::metadata(&sparse)?.blocks() < fs::metadata(&dense)?.blocks());
    let (mut data, mut hole) = ([0; 4096], [1; 4096]);
    File::open(&sparse)?.read_exact_at(&mut data, 2 << 20)?;
    File::open(&sparse)?.read_exact_at(&mut hole, 1 << 20)?;
    assert!(data.iter().any(|byte| *byte != 0) && hole == [0; 4096]);
    // Each piece of a dense image is another one.
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    File::open(&dense)?.read_exact_at(&mut one, 1 << 20)?;
    File::open(&dense)?.read_exact_at(&mut other, 2 << 20)?;
    assert_ne!(one, other);
    Ok(())
}

#[test]
fn files_are_the_same_if_all_of_their_bytes_are() -> std::io::Result<()> {
    let folder = TempDir::new()?;
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    make(&one, Image::HalfSparse, SIZE)?;
    fs::copy(&one, &other)?;
    assert!(same(&one, &other)?);
    File::options().write(true).open(&other)?.write_all_at(&[1], SIZE - 1)?;
    assert!(!same(&one, &other)?);
    fs::write(&other, b"short")?;
    assert!(!same(&one, &other)?);
    Ok(())
}

#[test]
fn copies_are_chosen_by_name_and_sizes_are_whole() {
    let all = plan(&[]).expect("a plan");
    assert_eq!(all.cases, cases());
    assert_eq!(all.size, 2 << 30);
    let chosen = plan(&["--only", "dense-nbdkit-to-null,sparse-file-to-nbd"]).expect("a plan");
    assert_eq!(chosen.cases[0].from, Place::Nbdkit);
    assert_eq!((chosen.cases[1].image, chosen.cases[1].to), (Image::HalfSparse, Place::Nbd));
    let no_holes =
        cases().iter().all(|case| case.from != Place::NbdkitPattern || case.image == Image::Dense);
    assert!(no_holes);
    plan(&["--only", "dense"]).expect_err("no such copy");
    plan(&["--size", "1M"]).expect_err("not a multiple of 2M");
    plan(&["--size", "0"]).expect_err("nothing to copy");
}

#[test]
fn without_nbdcopy_nothing_is_measured_and_it_is_said_so() {
    let args = ["--nbdcopy", "/nonexistent/nbdcopy", "--only", "dense-nbd-to-null"];
    let plan = plan(&args).expect("a plan");
    let standing = run(&plan, &AtomicBool::new(false)).expect("nothing to do");
    assert!(!standing.is_complete());
    let text = text(&plan, &standing);
    assert!(text.contains("nbdcopy is MISSING") && text.contains("libnbd-bin"), "{text}");
}

#[test]
fn a_server_that_is_not_there_is_missing_and_too_little_room_is_an_error() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().to_str().expect("a path of text");
    // Any program will do for nbdcopy, since it is not run without a server.
    let args = ["--nbdcopy", "true", "--nbd", "/nonexistent/nbd", "--folder", path];
    let small = [&args[..], &["--only", "dense-nbd-to-null", "--size", "2M"]].concat();
    let small = plan(&small).expect("a plan");
    let standing = run(&small, &AtomicBool::new(false)).expect("room");
    assert_eq!(standing.lines[0].state, State::Missing);
    assert!(text(&small, &standing).contains("its server is MISSING"));
    let large = plan(&[&args[..], &["--size", "9000000G"]].concat()).expect("a plan");
    let error = run(&large, &AtomicBool::new(false)).expect_err("no machine has so much");
    assert!(error.to_string().contains("--size"), "{error}");
}

#[test]
fn ratios_are_those_within_the_rounds() {
    let plan = plan(&["--only", "dense-nbd-to-null,dense-nbd-to-file"]).expect("a plan");
    let took = |elapsed| Took { elapsed, cpu: elapsed / 2.0, server_cpu: 1.0 };
    let rounds = vec![[took(2.0), took(1.0)], [took(20.0), took(12.0)], [took(2.0), took(1.5)]];
    let failed = Line { state: State::Failed("no such luck".into()), rounds: Vec::new() };
    let standing = Standing {
        nbdcopy: Some("nbdcopy 1".into()),
        lines: vec![Line { state: State::Ran, rounds }, failed],
    };
    assert!(!standing.is_complete());
    assert_eq!(json(&plan, &standing)["copies"][0]["time_ratio"], 0.6);
    let text = text(&plan, &standing);
    assert!(text.contains("0.60") && text.contains("no such luck"), "{text}");
}

#[test]
fn available_memory_is_read_from_meminfo() {
    let text = "MemTotal:  200 kB\nMemAvailable:     100 kB\n";
    assert_eq!(available(text), Some(102400));
    assert_eq!(available("MemTotal: 1 kB"), None);
}
