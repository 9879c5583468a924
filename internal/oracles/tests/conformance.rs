//! `docs/conformance.md` against the requirements and against the tests that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A test as found in the sources.
#[derive(Debug, Default)]
struct Found {
    ignored: bool,
    /// Requirements that its documentation names.
    cites: Vec<String>,
}

/// All tests, by the path of their file and their name: `folder/file.rs::name`.
fn tests() -> BTreeMap<String, Found> {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let mut tests = BTreeMap::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("sources are text");
        let name = path.strip_prefix(root()).expect("it lies in there");
        let name = name.to_str().expect("paths are text").replace('\\', "/");
        // A list of tests may stand in the file that includes the others of its folder.
        let folders = path.ancestors().skip(1).take(2);
        let outer = folders.map(|folder| fs::read_to_string(folder.join("mod.rs")));
        let texts = outer.filter_map(Result::ok).chain([text.clone()]);
        let listed: BTreeSet<String> = texts.flat_map(|text| listed(&text)).collect();
        functions(&name, &text, &listed, &mut tests);
    }
    tests
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, files);
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}

/// Names in the macros that make tests of functions.
fn listed(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let starts = ["matrix! {", "\nscenarios! {", "\nclient_scenarios! {", "\nhostile_scenarios! {"];
    for start in starts {
        for block in text.split(start).skip(1) {
            let end = block.find("\n}").or_else(|| block.find("\n        }"));
            let block = &block[..end.unwrap_or(block.len())];
            let words = block.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            names.extend(words.filter(|word| word.contains('_')).map(str::to_owned));
        }
    }
    names
}

fn functions(
    file: &str,
    text: &str,
    listed: &BTreeSet<String>,
    tests: &mut BTreeMap<String, Found>,
) {
    let mut cites: Vec<String> = Vec::new();
    let mut attributes = String::new();
    let mut golden = false;
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            cites.extend(identifiers(comment));
        } else if line.starts_with("#[") {
            attributes.push_str(line);
        } else if line.starts_with("golden! {") {
            golden = true;
        } else if let (true, Some((name, _))) = (golden, line.split_once(" = \"")) {
            for role in ["as_client", "as_server"] {
                tests.insert(format!("{file}::{name}::{role}"), Found::default());
            }
        } else if !line.is_empty() && !line.starts_with("//") {
            if let Some(name) = function(line) {
                let is_test = attributes.contains("test]") || attributes.contains("test(");
                if is_test || listed.contains(name) {
                    let ignored = attributes.contains("ignore");
                    let cites = std::mem::take(&mut cites);
                    tests.insert(format!("{file}::{name}"), Found { ignored, cites });
                }
            }
            golden &= line != "}";
            cites.clear();
            attributes.clear();
        }
    }
}

/// The name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let line =
        line.strip_prefix("pub(crate) ").or_else(|| line.strip_prefix("pub ")).unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    let rest = line.strip_prefix("fn ")?;
    rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next()
}

/// Requirements that a text names.
fn identifiers(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| is_identifier(word)).map(str::to_owned)
}

/// A letter for the side, the group, and a number of two digits.
fn is_identifier(word: &str) -> bool {
    let mut parts: Vec<&str> = word.split('-').collect();
    let number = parts.pop().unwrap_or_default();
    let side = parts.first().copied().unwrap_or_default();
    number.len() == 2
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && ["S", "C", "B"].contains(&side)
        && parts.len() > 1
        && parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_uppercase()))
}

/// A row of the table.
#[derive(Debug)]
struct Row {
    id: String,
    state: String,
    tests: Vec<String>,
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(root().join("docs/conformance.md")).expect("it is there");
    let mut rows = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, id, _, state, tests, _] = cells[..] else { continue };
        if is_identifier(id) {
            let tests = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            rows.push(Row { id: id.to_owned(), state: state.to_owned(), tests });
        }
    }
    rows
}

fn requirements() -> Vec<String> {
    include_str!("../requirement-ids.txt").lines().map(str::to_owned).collect()
}

#[test]
fn each_requirement_has_its_row_and_no_other() {
    let rows: Vec<String> = rows().into_iter().map(|row| row.id).collect();
    let known = requirements();
    let missing: Vec<_> = known.iter().filter(|id| !rows.contains(id)).collect();
    let unknown: Vec<_> = rows.iter().filter(|id| !known.contains(id)).collect();
    assert!(missing.is_empty(), "no row: {missing:?}");
    assert!(unknown.is_empty(), "no such requirement: {unknown:?}");
    assert_eq!(rows, known, "a row is there twice, or out of order");
}

#[test]
fn each_test_in_the_table_exists_and_is_run() {
    let tests = tests();
    assert!(tests.len() > 300, "the sources are not understood any more");
    let mut faults = Vec::new();
    for Row { id, tests: named, .. } in rows() {
        for name in named {
            match tests.get(&name) {
                None => faults.push(format!("{id}: there is no test {name}")),
                Some(Found { ignored: true, .. }) => {
                    faults.push(format!("{id}: {name} is ignored"))
                }
                Some(_) => {}
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What is supported is shown by a test, or says why there is none. The failure names tests that would do.
#[test]
fn each_supported_requirement_is_shown() {
    let tests = tests();
    let citing = |id: &String| -> Vec<&str> {
        let cite = tests.iter().filter(|(_, found)| found.cites.contains(id));
        cite.map(|(name, _)| &name[..]).collect()
    };
    let mut faults = Vec::new();
    for Row { id, state, tests } in rows() {
        let (word, reason) = state.split_once([':', ',']).unwrap_or((&state, ""));
        if !["supported", "partly", "not supported", "not used"].contains(&word) {
            faults.push(format!("{id}: {word:?} is no state"));
        } else if word != "supported" && reason.is_empty() {
            faults.push(format!("{id}: a reason is missing"));
        } else if word == "supported" && reason.is_empty() && tests.is_empty() {
            faults.push(format!("{id}: no test; these name it: {:?}", citing(&id)));
        } else if tests.is_empty() && !citing(&id).is_empty() {
            faults.push(format!("{id}: these tests name it: {:?}", citing(&id)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Tests that name a requirement mean one that there is.
#[test]
fn each_requirement_that_a_test_names_exists() {
    let known = requirements();
    for (name, found) in tests() {
        for id in found.cites {
            assert!(known.contains(&id), "{name} names {id}");
        }
    }
}
