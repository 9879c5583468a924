//! The texts of messages in the sources: each has to stand in a transcript, or has a reason why not.

use std::collections::BTreeSet;
use std::path::Path;

/// String literals of an expression in source text, with their escapes undone as far as texts for people need.
fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut characters = source.chars().peekable();
    while let Some(c) = characters.next() {
        if c != '"' {
            continue;
        }
        let mut text = String::new();
        while let Some(c) = characters.next() {
            match c {
                '"' => break,
                '\\' => match characters.next() {
                    Some('\n') => while characters.next_if(|c| c.is_whitespace()).is_some() {},
                    Some(escaped) => text.push(escaped),
                    None => {}
                },
                c => text.push(c),
            }
        }
        found.push(text);
    }
    found
}

/// The arguments of a call that begins there.
fn arguments(source: &str) -> &str {
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    for (index, c) in source.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted && depth == 0 => return &source[..index],
            ')' if !quoted => depth -= 1,
            _ => {}
        }
    }
    source
}

/// The longest part of a text that no value stands in.
fn longest(text: &str) -> &str {
    let parts = text.split('}').filter_map(|part| part.split('{').next());
    parts.max_by_key(|part| part.len()).unwrap_or_default().trim()
}

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            found.push((path.display().to_string(), code.to_owned()));
        }
    }
}

/// The function around a call: its source up to there.
fn function_before(code: &str, call: usize) -> &str {
    let before = &code[..call];
    &before[before.rfind("fn ").unwrap_or_default()..]
}

/// The texts of a call's arguments; those of the function above it if the arguments only name a text.
fn texts(code: &str, start: usize, call: &str) -> Vec<String> {
    let own = literals(arguments(&code[start + call.len()..]));
    match own.is_empty() {
        true => literals(function_before(code, start)),
        false => own,
    }
}

/// What was agreed on: a file of this folder.
pub(crate) fn read(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refusals");
    std::fs::read_to_string(folder.join(file)).expect("it was written")
}

/// Fails if a text of these calls is neither in `shown` nor has a part in `elsewhere`, whose second members are
/// reasons, or if a reason is of no use. `least` is how many texts there are at least.
#[track_caller]
pub(crate) fn assert_all_shown(
    calls: &[&str],
    shown: &str,
    elsewhere: &[(&str, &str)],
    least: usize,
) {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let (mut missing, mut used, mut count) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (path, code) in &files {
        for call in calls {
            for (start, _) in code.match_indices(call) {
                for text in texts(code, start, call) {
                    let part = longest(&text);
                    if part.len() < 14 || !part.contains(' ') {
                        continue;
                    }
                    count += 1;
                    let known = elsewhere.iter().position(|(known, _)| text.contains(known));
                    used.extend(known);
                    if known.is_none() && !shown.contains(part) {
                        missing.insert(format!("{path}: {part}"));
                    }
                }
            }
        }
    }
    assert!(count >= least, "{count}");
    let missing = Vec::from_iter(missing).join("\n");
    assert!(missing.is_empty(), "add a line, or say in ELSEWHERE where they are:\n{missing}");
    let unused = (0..elsewhere.len()).filter(|index| !used.contains(index));
    let unused: Vec<_> = unused.map(|index| elsewhere[index].0).collect();
    assert!(unused.is_empty(), "no source has these any more: {unused:?}");
}
