//! `--json`: what commands write for programs. [The page](../../docs/json.md) has the members of each document.

use std::io::{self, Write};

use serde::Serialize;

/// Writes a document, and ends its last line.
pub(crate) fn write(out: &mut impl Write, document: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    /// The commands that have no `--json`, and why.
    const WITHOUT: &[(&str, &str)] = &[
        ("nbd serve", "a URI a line; nbd status --json has the rest, and --print-config is TOML"),
        ("nbd copy", "no output but what is copied; --progress=FD is for programs"),
        ("nbd bitmap start", "no output"),
        ("nbd bitmap clear", "no output"),
        ("nbd bitmap stop", "no output"),
        ("nbd export add", "no output"),
        ("nbd export remove", "no output"),
        ("nbd overlay discard", "no output"),
        ("nbd disconnect", "no output"),
        #[cfg(target_os = "linux")]
        ("nbd detach", "no output"),
        #[cfg(feature = "tls")]
        ("nbd psk", "no output"),
        #[cfg(feature = "volume")]
        ("nbd volume create", "no output"),
        #[cfg(feature = "volume")]
        ("nbd volume resize", "no output"),
        #[cfg(feature = "volume")]
        ("nbd volume snapshot", "no output"),
        #[cfg(feature = "volume")]
        ("nbd volume clone", "no output"),
        #[cfg(feature = "volume")]
        ("nbd volume delete", "no output"),
        ("nbd completion", "a script for a shell"),
        ("nbd man", "pages for man(1)"),
    ];

    /// The commands that do something themselves, each with whether it has `--json`.
    fn leaves(command: &Command, path: &str, found: &mut Vec<(String, bool)>) {
        let path = format!("{path} {}", command.get_name()).trim_start().to_owned();
        if command.has_subcommands() {
            command.get_subcommands().for_each(|one| leaves(one, &path, found));
            return;
        }
        let has = command.get_arguments().any(|argument| argument.get_long() == Some("json"));
        found.push((path, has));
    }

    /// The lines of the page that name a command in their heading.
    fn is_on_the_page(page: &str, name: &str) -> bool {
        page.lines().any(|line| line.starts_with('#') && line.contains(&format!("`{name}`")))
    }

    #[test]
    fn every_command_has_json_or_a_reason_and_the_page_has_its_members() {
        let mut found = Vec::new();
        leaves(&crate::Cli::command(), "", &mut found);
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/json.md");
        let page = std::fs::read_to_string(page).unwrap();
        for (name, has) in &found {
            let excused = WITHOUT.iter().any(|(without, _)| without == name);
            assert_ne!(*has, excused, "{name}: either --json or a reason");
            assert_eq!(*has, is_on_the_page(&page, name), "docs/json.md, {name}");
        }
        for (name, _) in WITHOUT {
            assert!(found.iter().any(|(command, _)| command == name), "there is no {name}");
        }
    }
}
