//! smol and async-std have the same names, so that a program moves from one to the other by its `use` lines.

use std::collections::BTreeSet;

const ROOT: &str = include_str!("../src/lib.rs");
const CLIENT: &str = include_str!("../src/client.rs");
const SMOL: &str = include_str!("../src/smol.rs");
const ASYNC_STD: &str = include_str!("../src/async_std.rs");

/// The public names of a module: what it re-exports, its types and its modules, but not what is in those.
fn names(module: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut lines = module.lines();
    while let Some(line) = lines.next() {
        if let Some(path) = line.strip_prefix("pub use ") {
            let mut path = path.to_owned();
            while !path.ends_with(';') {
                path += lines.next().expect("the list ends");
            }
            let path = path.trim_end_matches(';');
            let listed = path.split_once('{').map(|(_, list)| list.trim_end_matches('}'));
            let listed = listed.unwrap_or_else(|| path.rsplit("::").next().expect("a name"));
            let listed = listed.split(',').map(str::trim).filter(|name| !name.is_empty());
            found.extend(listed.map(|name| name.rsplit(' ').next().expect("a name").to_owned()));
        }
        let kinds = ["pub type ", "pub struct ", "pub mod "];
        for rest in kinds.iter().filter_map(|kind| line.strip_prefix(kind)) {
            let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
            found.insert(rest[..end.expect("more follows")].to_owned());
        }
    }
    found
}

/// What is between the braces of a module `client`.
fn inner_client(module: &str) -> String {
    let (_, inner) = module.split_once("mod client {\n").expect("there is one");
    let (inner, _) = inner.split_once("\n}\n").expect("it ends");
    inner.lines().map(|line| line.strip_prefix("    ").unwrap_or(line).to_owned() + "\n").collect()
}

#[test]
fn clients_have_the_same_names_on_both_runtimes() {
    let here = names(&inner_client(SMOL));
    assert!(here.contains("Client") && here.contains("Reconnect") && here.len() > 30, "{here:?}");
    assert_eq!(here, names(CLIENT));
    // Those that differ by the runtime are made in the same way.
    let own = names(&inner_client(ASYNC_STD));
    assert!(own.is_subset(&here) && own.len() == 4, "{own:?}");
}

#[test]
fn what_there_is_on_smol_is_in_the_root_for_async_std() {
    let root = names(ROOT);
    for name in names(SMOL) {
        let theirs = if name == "Smol" { "AsyncStd" } else { &name };
        assert!(root.contains(theirs), "{name} of smol has no {theirs} in {root:?}");
    }
}

/// [The guide](nbd_async_std::guide) sends readers to that of nbd-tokio.
#[test]
fn clients_have_the_names_that_those_on_tokio_have() {
    let tokio = names(include_str!("../../nbd-tokio/src/client.rs"));
    let missing: Vec<_> = tokio.difference(&names(CLIENT)).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
}
