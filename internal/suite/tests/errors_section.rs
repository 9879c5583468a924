//! Each public item whose future can fail has a section `# Errors`: clippy looks at functions that return a `Result`, and not
//! at methods of traits that return a future of one.

use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 6] =
    ["nbd-proto", "nbd-engine", "nbd-tokio", "nbd-blocking", "nbd-async-std", "nbd-volume"];

/// The Rust files below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The methods of public traits in a file that return a future of a `Result`, and whether each says how it fails.
fn fallible(text: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let (mut within, mut says) = (false, false);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        match line {
            _ if line.starts_with("pub trait ") => within = true,
            "}" => within = false,
            // What is hidden from readers has to say nothing.
            _ if ["/// # Errors", "#[doc(hidden)]"].contains(&line.trim()) => says = true,
            _ if within && (line.starts_with("    fn ") || line.starts_with("    async fn ")) => {
                let mut signature = line.to_owned();
                while !signature.ends_with(['{', ';']) {
                    signature += lines.next().expect("the signature ends");
                }
                let is_future = signature.contains("Future<Output = ") || line.contains("async fn");
                let result = signature.split("->").last().unwrap_or_default();
                if is_future && result.contains("Result<") {
                    found.push((line.trim().to_owned(), says));
                }
                says = false;
            }
            // Attributes and comments belong to what follows.
            _ if line.trim_start().starts_with(['/', '#']) => {}
            _ => says = false,
        }
    }
    found
}

#[test]
fn methods_whose_future_can_fail_say_how() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for name in CRATES {
        sources(&root.join(name).join("src"), &mut files);
    }
    let (mut count, mut missing) = (0, Vec::new());
    for file in files {
        for (method, says) in fallible(&fs::read_to_string(&file).unwrap()) {
            count += 1;
            if !says {
                missing.push(format!("{}: {method}", file.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(count > 10, "{count}");
}
