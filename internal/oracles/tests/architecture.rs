//! `ARCHITECTURE.md` against the files that there are.

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
