//! Every command line of the pages is one that `nbd` understands, whether or not a test can run it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;

use crate::target;

/// README and the pages.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let entries = std::fs::read_dir(root.join("docs")).unwrap();
    let pages = entries.map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> =
        pages.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    pages.extend([root.join("README.md"), root.join("nbd-cli/README.md")]);
    pages
}

/// The command lines in blocks of code, those that go on in the next line as one.
fn lines(page: &str) -> Vec<String> {
    let (mut found, mut fence, mut open) = (Vec::new(), None, None::<String>);
    for line in page.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(language.to_owned()) };
            continue;
        }
        let is_code = match &fence {
            Some(language) => matches!(language.as_str(), "" | "sh" | "console"),
            None => line.starts_with("    "),
        };
        if !is_code {
            continue;
        }
        let start = ["server$ ", "client$ ", "$ ", "# "];
        let line = line.trim_start();
        let line = start.iter().find_map(|start| line.strip_prefix(start)).unwrap_or(line);
        let whole = match open.take() {
            Some(begun) => format!("{begun} {line}"),
            None => line.to_owned(),
        };
        match whole.strip_suffix('\\') {
            Some(begun) => open = Some(begun.to_owned()),
            None => found.push(whole),
        }
    }
    found
}

/// The words of the first command of a line, as a shell splits them; none for what takes a shell to understand.
fn words(line: &str) -> Option<Vec<OsString>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(end)) if c == end => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('|' | '&' | ';' | '>' | '<' | '#', None) => break,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            ('$' | '`', None) => word.get_or_insert_default().push('x'),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    // What was redirected has a number before the sign.
    if line.contains("2>") && words.last().is_some_and(|word| word == "2") {
        words.pop();
    }
    (quote.is_none()).then(|| words.into_iter().map(OsString::from).collect())
}

/// The commands in the text of a page, such as `nbd serve --config FILE`.
fn inline(page: &str) -> Vec<String> {
    let text: String = page.split("```").step_by(2).collect();
    let spans = text.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " "));
    let is_command = |span: &str| {
        let word = span.strip_prefix("nbd ").unwrap_or_default().trim_start();
        word.starts_with(|c: char| c.is_ascii_lowercase()) && !span.contains("...")
    };
    spans.filter(|span| is_command(span)).collect()
}

/// What a word that stands for others may stand for.
fn example(word: &str) -> &str {
    match word {
        "URI" => "nbd://host/disk",
        "PORT" | "N" | "CLIENT" => "1",
        "T" => "1s",
        "SIZE" => "1M",
        "ADDR" => "127.0.0.1:9809",
        word => word,
    }
}

/// Text may leave out what a command needs besides, but has no option, command or value that there is not.
#[test]
fn every_command_in_the_text_of_the_pages_is_understood() {
    let (mut count, mut faults) = (0, Vec::new());
    for path in pages() {
        for span in inline(&std::fs::read_to_string(&path).unwrap()) {
            if span.starts_with("nbd volume") && cfg!(not(feature = "volume")) {
                continue;
            }
            let line = span.split(' ').map(example).collect::<Vec<_>>().join(" ");
            let words = words(&line).unwrap_or_default();
            count += 1;
            match crate::Cli::try_parse_from(target::arguments(words)) {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::MissingRequiredArgument
                            | ErrorKind::MissingSubcommand
                            | ErrorKind::DisplayHelp
                            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                    ) => {}
                Err(error) if error.to_string().contains("none was supplied") => {}
                Err(error) => faults.push(format!("{}: {span}\n{error}", path.display())),
            }
        }
    }
    assert!(count > 100, "{count}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_command_line_of_the_pages_is_understood() {
    let (mut count, mut faults) = (0, Vec::new());
    for path in pages() {
        let page = std::fs::read_to_string(&path).unwrap();
        for line in lines(&page) {
            let line = line.replace("cargo run -r -- ", "nbd ");
            // `...` stands for what is up to the reader.
            if !line.starts_with("nbd ") || line.contains("...") {
                continue;
            }
            if line.starts_with("nbd volume ") && cfg!(not(feature = "volume")) {
                continue;
            }
            let Some(words) = words(&line) else { continue };
            count += 1;
            if let Err(error) = crate::Cli::try_parse_from(target::arguments(words)) {
                faults.push(format!("{}: {line}\n{error}", path.display()));
            }
        }
    }
    assert!(count > 60, "{count}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
