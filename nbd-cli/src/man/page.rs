//! From a command's declaration to a page.

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use super::sections::{self, Section};

/// The heading of every page.
const MANUAL: &str = "Network block devices";

/// The name and the text of each page.
pub(super) fn all(mut command: Command) -> Vec<(String, Vec<u8>)> {
    command = command.disable_help_subcommand(true);
    command.build();
    let top = crate::NAME;
    let commands: Vec<Command> = command.get_subcommands().cloned().collect();
    let names: Vec<String> =
        commands.iter().map(|one| format!("{top}-{}", one.get_name())).collect();
    let mut pages = vec![(format!("{top}.1"), page(&command, top, top, &names))];
    for (one, name) in commands.iter().zip(&names) {
        let others: Vec<String> = [top.to_owned()]
            .into_iter()
            .chain(names.iter().filter(|n| *n != name).cloned())
            .collect();
        let text = page(one, name, &format!("{top} {}", one.get_name()), &others);
        pages.push((format!("{name}.1"), text));
    }
    pages
}

/// The page `name`(1) of a command that people call as `called`.
fn page(command: &Command, name: &str, called: &str, others: &[String]) -> Vec<u8> {
    let short = command.get_name().to_owned();
    // The examples of the help have a section of their own.
    let shown = nested(command.clone().display_name(name).bin_name(called))
        .after_help(None::<&str>)
        .disable_version_flag(true);
    let man = Man::new(shown.clone());
    // Without a date, which would be that of the build.
    let version = env!("CARGO_PKG_VERSION");
    let title =
        format!(".TH \"{}\" \"1\" \"\" \"nbd {version}\" \"{MANUAL}\"\n", name.to_uppercase());
    let mut text = title.into_bytes();
    let mut write = |part: fn(&Man, &mut dyn std::io::Write) -> std::io::Result<()>| {
        part(&man, &mut text).expect("a vector takes everything");
    };
    write(Man::render_name_section);
    write(Man::render_synopsis_section);
    write(Man::render_description_section);
    write(Man::render_options_section);
    let mut rest = Roff::new();
    subcommands(&mut rest, &shown, name == crate::NAME);
    for Section { heading, entries } in [sections::exit_status(), sections::environment()] {
        rest.control("SH", [heading]);
        for (word, meaning) in entries {
            rest.control("TP", []);
            rest.text([bold(*word)]);
            rest.text([roman(*meaning)]);
        }
    }
    rest.control("SH", ["EXAMPLES"]);
    for (index, (does, line)) in sections::examples(&short).iter().enumerate() {
        if index > 0 {
            rest.control("PP", []);
        }
        rest.text([roman(*does)]);
        rest.control("PP", []);
        rest.control("RS", ["4"]);
        rest.control("nf", []);
        rest.text([bold(*line)]);
        rest.control("fi", []);
        rest.control("RE", []);
    }
    rest.control("SH", ["SEE ALSO"]);
    let others = others.iter().map(|page| (page.as_str(), "1"));
    let mut line: Vec<Inline> = Vec::new();
    for (page, section) in others.chain(sections::SEE_ALSO.iter().copied()) {
        let comma = if line.is_empty() { "" } else { ", " };
        line.extend([roman(comma), bold(page), roman(format!("({section})"))]);
    }
    rest.text(line);
    text.extend_from_slice(rest.render().as_bytes());
    paragraphs(&String::from_utf8_lossy(&text)).into_bytes()
}

/// A command without what is said of its own commands in places where there is no room for it.
fn nested(command: Command) -> Command {
    let names: Vec<String> =
        command.get_subcommands().map(|one| one.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(&name, |one| one.display_name(name.clone()))
    })
}

/// The commands: those of `nbd` have a page each; those of a command are described with it, and their arguments with them.
fn subcommands(roff: &mut Roff, command: &Command, pages: bool) {
    if command.get_subcommands().next().is_none() {
        return;
    }
    roff.control("SH", ["COMMANDS"]);
    for one in command.get_subcommands() {
        roff.control("TP", []);
        if pages {
            roff.text([bold(format!("{}-{}", crate::NAME, one.get_name())), roman("(1)")]);
        } else {
            let mut line = vec![bold(one.get_name())];
            for argument in one.get_positionals() {
                line.extend([roman(" "), italic(argument.get_id().as_str().to_uppercase())]);
            }
            roff.text(line);
        }
        let about = one.get_about().map(ToString::to_string).unwrap_or_default();
        roff.text([roman(about)]);
        if !pages {
            options(roff, one);
        }
    }
}

/// The options of a command that has no page.
fn options(roff: &mut Roff, command: &Command) {
    let is_told = |argument: &&Arg| {
        !argument.is_positional()
            && !argument.is_hide_set()
            && !matches!(argument.get_id().as_str(), "help" | "version")
    };
    if !command.get_arguments().any(|argument| is_told(&argument)) {
        return;
    }
    roff.control("RS", []);
    for option in command.get_arguments().filter(is_told) {
        let short = option.get_short().map(|short| format!("-{short}"));
        let long = option.get_long().map(|long| format!("--{long}"));
        let names: Vec<String> = short.into_iter().chain(long).collect();
        let mut line = vec![bold(names.join(", "))];
        if option.get_action().takes_values() {
            for value in option.get_value_names().unwrap_or_default() {
                line.extend([roman(" "), italic(value.as_str())]);
            }
        }
        roff.control("TP", []);
        roff.text(line);
        roff.text([roman(option.get_help().map(ToString::to_string).unwrap_or_default())]);
    }
    roff.control("RE", []);
}

/// Empty lines as roff's paragraphs, which need no break beside them.
fn paragraphs(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines() {
        let line = if line.trim().is_empty() { ".sp" } else { line.trim_end() };
        match (lines.last(), line) {
            (Some(&".sp"), ".br" | ".sp") => continue,
            (Some(&".br"), ".sp") => drop(lines.pop()),
            _ => {}
        }
        lines.push(line);
    }
    lines.join("\n") + "\n"
}
