//! The rules of `deny.toml`, on every machine: `cargo deny` takes minutes to install. Of the packages that this machine builds
//! each has a licence that is allowed, comes from the registry, and is there once, or is listed with a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All packages of the workspace and those that they need here.
fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--locked", "--offline", "--all-features", "--format-version", "1"]);
    command.args(["--filter-platform", &host()]).current_dir(root());
    let output = command.output().expect("cargo is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let Value::Array(packages) = metadata["packages"].take() else { panic!("no packages") };
    assert!(packages.len() > 50, "only {} packages", packages.len());
    packages
}

/// What the packages are built for.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc is there");
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

/// The texts between quotes in a list of `deny.toml`. In an entry that is a table, that is what stands behind `crate`.
fn list(name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("deny.toml")).expect("it is there");
    let start = format!("\n{name} = [");
    let (_, rest) = text.split_once(&start).unwrap_or_else(|| panic!("{name} is not there"));
    let (body, _) = rest.split_once("\n]").unwrap_or_else(|| panic!("{name} has no end"));
    let lines = body.lines().map(str::trim).filter(|line| !line.is_empty());
    let entries = lines.filter_map(|line| line.split('"').nth(1));
    entries.map(str::to_owned).collect()
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package[key].as_str().unwrap_or_default()
}

fn is_ours(package: &Value) -> bool {
    package["source"].is_null()
}

/// Whether a licence expression of SPDX is satisfied by these licences. `None` for what is no expression.
fn allows(expression: &str, allowed: &BTreeSet<String>) -> Option<bool> {
    // Before there were operators, a slash stood for OR.
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let satisfied = any(&mut words, allowed)?;
    words.next().is_none().then_some(satisfied)
}

type Words<'a, 'b> = &'a mut std::iter::Peekable<std::str::SplitWhitespace<'b>>;

fn any(words: Words<'_, '_>, allowed: &BTreeSet<String>) -> Option<bool> {
    let mut satisfied = all(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        satisfied |= all(words, allowed)?;
    }
    Some(satisfied)
}

fn all(words: Words<'_, '_>, allowed: &BTreeSet<String>) -> Option<bool> {
    let mut satisfied = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        satisfied &= one(words, allowed)?;
    }
    Some(satisfied)
}

fn one(words: Words<'_, '_>, allowed: &BTreeSet<String>) -> Option<bool> {
    if words.next_if_eq(&"(").is_some() {
        let satisfied = any(words, allowed)?;
        return (words.next()? == ")").then_some(satisfied);
    }
    let mut name =
        words.next().filter(|word| !["OR", "AND", "WITH", ")"].contains(word))?.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        name = format!("{name} WITH {}", words.next()?);
    }
    Some(allowed.contains(&name))
}

#[test]
fn every_licence_is_allowed() {
    let allowed = list("allow");
    assert!(allowed.contains("MIT"), "{allowed:?}");
    let mut refused = Vec::new();
    for package in packages() {
        let licence = text(&package, "license");
        if allows(licence, &allowed) != Some(true) {
            let (name, version) = (text(&package, "name"), text(&package, "version"));
            refused.push(format!("{name} {version}: {licence}"));
        }
    }
    assert!(refused.is_empty(), "not among those that deny.toml allows: {refused:#?}");
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = BTreeSet::from(["A".to_owned(), "B".into(), "C WITH e".into()]);
    for (expression, expected) in [
        ("A", Some(true)),
        ("X", Some(false)),
        ("X OR A", Some(true)),
        ("X/A", Some(true)),
        ("X AND A", Some(false)),
        ("A AND B", Some(true)),
        ("A OR X AND Y", Some(true)),
        ("(A OR X) AND Y", Some(false)),
        ("(A OR X) AND B", Some(true)),
        ("C", Some(false)),
        ("C WITH e", Some(true)),
        ("X OR C WITH e", Some(true)),
        ("", None),
        ("A OR", None),
        ("(A", None),
        ("A B", None),
    ] {
        assert_eq!(allows(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn every_dependency_comes_from_the_registry() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("it is there");
    let sources = lock.lines().filter_map(|line| line.strip_prefix("source = "));
    let other: Vec<&str> = sources
        .filter(|source| *source != "\"registry+https://github.com/rust-lang/crates.io-index\"")
        .collect();
    assert!(other.is_empty(), "{other:#?}");
    // What the registry gives is what was locked.
    let (entries, sums) =
        (lock.matches("\nsource = ").count(), lock.matches("\nchecksum = ").count());
    assert_eq!(entries, sums);
    // A path without a version could not be published.
    for package in packages().iter().filter(|package| is_ours(package)) {
        let publishes =
            package["publish"].as_array().is_none_or(|registries| !registries.is_empty());
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let development = text(dependency, "kind") == "dev";
            let (name, needs) = (text(package, "name"), text(dependency, "name"));
            let any = text(dependency, "req") == "*";
            assert!(!publishes || development || !any, "{name} needs any version of {needs}");
        }
    }
}

#[test]
fn a_dependency_in_several_versions_has_a_reason() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let version = text(&package, "version").to_owned();
        versions.entry(text(&package, "name").to_owned()).or_default().insert(version);
    }
    let several = versions.into_iter().filter(|(_, versions)| versions.len() > 1);
    let skipped = list("skip");
    let mut unexplained = Vec::new();
    for (name, versions) in several {
        let explained = |version: &String| skipped.contains(&format!("{name}@{version}"));
        // One of them needs no reason.
        if versions.iter().filter(|version| !explained(version)).count() > 1 {
            unexplained.push(format!("{name}: {versions:?}"));
        }
    }
    assert!(
        unexplained.is_empty(),
        "give a reason in deny.toml, or update what needs the older one (cargo tree -i NAME@VERSION): {unexplained:#?}"
    );
}

/// The packages that are built, each with its version and features, by way of these kinds of dependencies.
fn with_features(kinds: &str) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["tree", "--workspace", "--all-features", "--locked", "--offline"]);
    command.args(["--prefix", "none", "--no-dedupe", "--format", "{p} [{f}]", "--edges", kinds]);
    let output = command.current_dir(root()).output().expect("cargo is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn what_tests_need_changes_no_features_of_what_is_built_without_them() {
    let plain = with_features("normal,build");
    let with_tests = with_features("normal,build,dev");
    let others: Vec<_> = plain.difference(&with_tests).collect();
    assert!(
        others.is_empty(),
        "built twice, with all that needs them, since a dev-dependency has a feature more: give the feature to a \
         dependency of a package in internal/ as well: {others:#?}"
    );
}
