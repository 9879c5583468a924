//! What the published crates show of themselves on a site for documentation, and where their examples are listed.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folders of the crates that are published.
fn crates() -> Vec<PathBuf> {
    let entries = fs::read_dir(root()).expect("the workspace is there");
    let folders = entries.map(|entry| entry.expect("it can be read").path());
    let published = |folder: &PathBuf| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
        name.starts_with("nbd-") && !manifest.contains("\npublish = false")
    };
    let crates: Vec<_> = folders.filter(published).collect();
    assert!(crates.len() >= 6, "{crates:?}");
    crates
}

#[test]
fn every_crate_is_documented_with_all_features_and_their_labels() {
    for folder in crates() {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("it is there");
        let table = "[package.metadata.docs.rs]\nall-features = true\nrustdoc-args = [\"--cfg\", \"docsrs\"]\n";
        assert!(manifest.contains(table), "{}", folder.display());
        let Ok(front) = fs::read_to_string(folder.join("src/lib.rs")) else { continue };
        let labels = "#![cfg_attr(docsrs, feature(doc_cfg))]";
        assert!(front.contains(labels), "{}", folder.display());
    }
}

/// A reader of any crate who has a loop of their own finds the one that is ready made.
#[test]
fn every_front_page_leads_to_the_core() {
    for folder in crates() {
        let Ok(front) = fs::read_to_string(folder.join("src/lib.rs")) else { continue };
        let page: String = front.lines().filter(|line| line.starts_with("//!")).collect();
        let leads = page.contains("poll_loop") || page.contains("guide") && page.contains("proto");
        assert!(leads, "{}", folder.display());
    }
}

#[test]
fn every_example_is_in_the_index() {
    let index = fs::read_to_string(root().join("docs/library.md")).expect("it is there");
    let mut count = 0;
    for folder in crates() {
        let Ok(examples) = fs::read_dir(folder.join("examples")) else { continue };
        for example in examples {
            let path = example.expect("it can be read").path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let group = name.starts_with("async_std_") && index.contains("[`async_std_*`]");
            assert!(group || index.contains(&format!("[`{name}`]")), "{}", path.display());
            count += 1;
        }
    }
    assert!(count > 10, "{count}");
}

/// Pages whose blocks show parts of what is elsewhere: each says where.
const EXCERPTS: [&str; 1] = ["write-an-adapter.md"];

/// What a page shows of a program is compiled by `cargo test`, as it stands there.
#[test]
fn every_rust_block_of_a_page_is_compiled() {
    let internal = fs::read_dir(root().join("internal")).expect("it is there");
    let internal = internal.map(|entry| entry.expect("it can be read").path());
    let front = |folder: &Path| fs::read_to_string(folder.join("src/lib.rs")).ok();
    let fronts: String =
        crates().into_iter().chain(internal).filter_map(|folder| front(&folder)).collect();
    // A page with indented commands, which would count as Rust, has a copy of its block there.
    let copies = fronts.replace("    /// ", "").replace("    ///\n", "\n");
    let mut count = 0;
    for page in fs::read_dir(root().join("docs")).expect("it is there") {
        let page = page.expect("it can be read").path();
        let name = page.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.ends_with(".md") || EXCERPTS.contains(&&*name) {
            continue;
        }
        let text = fs::read_to_string(&page).expect("it can be read");
        let included = fronts.contains(&format!("docs/{name}\")]"));
        for block in text.split("\n```rust").skip(1) {
            let (kind, code) = block.split_once('\n').expect("the block begins");
            let code = code.split("```").next().unwrap_or_default();
            let left_out = ["ignore", "compile_fail"].iter().any(|word| kind.contains(word));
            assert!(!left_out && (included || copies.contains(code)), "{name}: {code}");
            count += 1;
        }
    }
    assert!(count > 5, "{count}");
}

/// The entries of a manifest's table of features: their names, and what they turn on.
fn features(folder: &Path) -> Vec<(String, String)> {
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("it is there");
    let Some((_, table)) = manifest.split_once("\n[features]\n") else { return Vec::new() };
    let (table, _) = table.split_once("\n[").unwrap_or((table, ""));
    let entries = table.lines().filter(|line| !line.starts_with('#'));
    let entries = entries.filter_map(|line| line.split_once(" = "));
    entries.map(|(name, on)| (name.to_owned(), on.to_owned())).collect()
}

/// `./test` checks features of the same name together: then one that doesn't reach the engine would not be noticed.
#[test]
fn features_reach_the_engine() {
    let engine = features(&root().join("nbd-engine"));
    assert!(engine.len() >= 3, "{engine:?}");
    let mut count = 0;
    for folder in crates() {
        if folder.ends_with("nbd-engine") {
            continue;
        }
        for (name, on) in features(&folder) {
            if engine.iter().any(|(other, _)| *other == name) {
                let expected = format!("\"nbd-engine/{name}\"");
                assert!(on.contains(&expected), "{}: {name} = {on}", folder.display());
                count += 1;
            }
        }
    }
    assert!(count >= 12, "{count}");
}
