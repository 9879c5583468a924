//! `ARCHITECTURE.md` against the files that there are, and the tiers against the manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn is_path(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    word.chars().all(plain) && (word.contains('/') || word.ends_with(".rs"))
}

/// A path is whole, or continues the folder of the one before it.
#[test]
fn each_path_that_it_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("it is there");
    let (mut folder, mut missing, mut found) = (PathBuf::new(), Vec::new(), 0);
    // Odd pieces stand between backticks.
    for word in text.split('`').skip(1).step_by(2).filter(|word| is_path(word)) {
        if root.join(word).exists() {
            folder = Path::new(word).parent().expect("it is no root").to_owned();
            found += 1;
        } else if root.join(&folder).join(word).exists() {
            found += 1;
        } else {
            missing.push(format!("{word} (after {})", folder.display()));
        }
    }
    assert_eq!(missing, Vec::<String>::new());
    assert!(found > 50, "only {found} paths were recognized");
}

/// The names of the workspace's crates that a manifest depends on, for tests or not.
fn dependencies(manifest: &str, for_tests: bool) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_section = false;
    for line in manifest.lines() {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            is_section = section == "dependencies" || for_tests && section == "dev-dependencies";
        } else if is_section && line.starts_with("nbd-") {
            let end = line.find(['.', ' ', '=']).expect("a dependency has a version");
            names.push(line[..end].to_owned());
        }
    }
    names
}

/// No crate's tests need a crate that needs that crate: such tests belong to a crate above both.
#[test]
fn no_crate_depends_on_itself_by_way_of_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let workspace = fs::read_to_string(root.join("Cargo.toml")).expect("it is there");
    let members = workspace.split("members = [").nth(1).and_then(|rest| rest.split(']').next());
    let manifests: BTreeMap<String, String> = members
        .expect("there are members")
        .split('"')
        .skip(1)
        .step_by(2)
        .map(|member| {
            let text = fs::read_to_string(root.join(member).join("Cargo.toml"));
            let text = text.expect("each member has one");
            let name = text.split("name = \"").nth(1).and_then(|rest| rest.split('"').next());
            (name.expect("it has a name").to_owned(), text)
        })
        .collect();
    assert!(manifests.len() > 10, "only {} members were recognized", manifests.len());
    let mut checked = 0;
    for (name, manifest) in &manifests {
        let mut seen = BTreeSet::new();
        let mut next = dependencies(manifest, true);
        while let Some(needed) = next.pop() {
            assert_ne!(&needed, name, "the tests of {name} need {name} through {seen:?}");
            if seen.insert(needed.clone()) {
                next.extend(dependencies(&manifests[&needed], false));
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "only {checked} dependencies were recognized");
}

/// Documentation names sections of the specification: its readers don't know the ids of the requirements.
#[test]
fn documentation_names_no_requirement_ids() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let is_id = |word: &str| {
        let mut parts = word.split('-');
        let role = matches!(parts.next(), Some("S" | "C"));
        let number = parts.next_back().is_some_and(|part| part.bytes().all(|c| c.is_ascii_digit()));
        let mut sections = parts.peekable();
        role && number && sections.peek().is_some() && sections.all(|part| !part.is_empty())
    };
    let (mut found, mut checked) = (Vec::new(), 0);
    let mut folders: Vec<PathBuf> = fs::read_dir(&root)
        .expect("it is there")
        .map(|entry| entry.expect("it can be listed").path().join("src"))
        .filter(|path| path.is_dir())
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("it can be listed") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("it is text");
                let lines = text.lines().map(str::trim_start);
                for line in lines.filter(|line| line.starts_with("///") || line.starts_with("//!"))
                {
                    checked += 1;
                    let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
                    if words.any(is_id) {
                        found.push(format!("{}: {line}", path.display()));
                    }
                }
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
    assert!(checked > 5000, "only {checked} lines were recognized");
}
