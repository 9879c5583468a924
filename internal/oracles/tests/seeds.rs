//! The fuzz oracles over the committed seeds, and over pieces and garbled copies of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nbd_oracles::choices::Whims;
use nbd_oracles::oracle;
use nbd_oracles::seeds::{Seed, seeds};
use nbd_oracles::transcript::Transcript;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files of a folder, by name, in order.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.expect("the folder can be read"))
        .map(|entry| (entry.file_name().into_string().expect("names are text"), entry.path()))
        .map(|(name, path)| (name, fs::read(path).expect("the file can be read")))
        .collect();
    files.sort();
    files
}

fn cut() -> Vec<Seed> {
    let mut transcripts = BTreeMap::new();
    for (name, bytes) in files(&repository().join("internal/oracles/transcripts")) {
        if let Some(name) = name.strip_suffix(".txt") {
            let text = String::from_utf8(bytes).expect("transcripts are text");
            transcripts.insert(name.to_owned(), Transcript::parse(&text).expect("it is valid"));
        }
    }
    seeds(&transcripts).expect("the transcripts can be decoded")
}

/// With `NBD_WRITE_SEEDS` in the environment it writes them.
#[test]
fn the_seeds_are_those_that_the_transcripts_give() {
    let folder = repository().join("fuzz/seeds");
    let write = std::env::var_os("NBD_WRITE_SEEDS").is_some();
    for Seed { target, name, bytes } in cut() {
        let path = folder.join(target).join(&name);
        if write {
            fs::create_dir_all(folder.join(target)).expect("the folder can be made");
            fs::write(&path, &bytes).expect("the seed can be written");
        }
        let found = fs::read(&path).unwrap_or_default();
        assert!(found == bytes, "{target}/{name} is out of date: run this with NBD_WRITE_SEEDS=1");
    }
}

#[test]
fn each_oracle_accepts_its_seeds() {
    for (target, oracle) in oracle::ALL {
        let seeds = files(&repository().join("fuzz/seeds").join(target));
        assert!(!seeds.is_empty(), "{target}");
        for (name, seed) in seeds {
            // Shown if the oracle panics.
            println!("{target}/{name}");
            oracle(&seed);
        }
    }
}

/// What a fuzzer does first: streams that end early, other setups, other bytes.
#[test]
fn each_oracle_accepts_garbled_seeds() {
    let mut whims = Whims::new(0);
    for (target, oracle) in oracle::ALL {
        for (name, seed) in files(&repository().join("fuzz/seeds").join(target)) {
            println!("{target}/{name}");
            for _ in 0..20 {
                let number =
                    |whims: &mut Whims| usize::from(whims.next()) << 8 | usize::from(whims.next());
                let mut garbled = seed.clone();
                match whims.next() % 4 {
                    0 => garbled.truncate(number(&mut whims) % (seed.len() + 1)),
                    1 => {
                        let at = number(&mut whims) % garbled.len().clamp(1, 9);
                        garbled.splice(at..(at + 1).min(seed.len()), [whims.next()]);
                    }
                    _ => {
                        for _ in 0..1 + whims.next() % 4 {
                            let at = number(&mut whims) % garbled.len().max(1);
                            garbled.splice(at..(at + 1).min(seed.len()), [whims.next()]);
                        }
                    }
                }
                oracle(&garbled);
            }
        }
    }
}
