//! The command line.

use std::process::Command;

use nbd_testkit::process::run;

use super::{LIMIT, refuses, serve};

fn nbd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nbd"));
    command.args(arguments);
    command
}

#[test]
fn help_goes_to_standard_output_and_succeeds() {
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &["help", "--help"],
        &["help", "-h"],
        &["serve", "--help"],
        &["serve", "-h"],
    ] {
        let finished = run(&mut nbd(arguments), LIMIT);
        assert_eq!(finished.status.code(), Some(0), "{arguments:?}");
        assert!(finished.stdout.contains("Usage: nbd"), "{arguments:?}: {}", finished.stdout);
        assert_eq!(finished.stderr, "", "{arguments:?}");
    }
}

#[test]
fn help_names_the_defaults() {
    let help = run(&mut serve(["--help"]), LIMIT).success();
    for text in [
        "127.0.0.1:10809",
        "1 GiB",
        "[default: memory:1G]",
        "[default: 127.0.0.1]",
        "--idle-timeout <T>",
        "[default: 60s, but never with --max-connections 1]",
        "--stall-timeout <T>",
        "less than 16 KiB/s",
        "Exit status: 0 after an orderly end, 3 if requests were cut off",
    ] {
        assert!(help.contains(text), "{text:?} is not in: {help}");
    }
}

#[test]
fn the_version_is_printed() {
    for subcommand in ["", "serve", "info", "list", "map", "copy", "resize", "bitmap"] {
        for flag in ["--version", "-V"] {
            let words: Vec<&str> =
                [subcommand, flag].into_iter().filter(|w| !w.is_empty()).collect();
            let version = run(&mut nbd(&words), LIMIT).success();
            assert_eq!(version, format!("nbd {}\n", env!("CARGO_PKG_VERSION")), "{subcommand}");
        }
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_exit_code_64() {
    for arguments in [
        &[][..],
        &["sevre"],
        &["serve", "--colour"],
        &["serve", "--port"],
        &["serve", "--port", "http"],
        &["serve", "--port", "65536"],
        &["serve", "--port", "-1"],
        &["serve", "--ip-addr"],
        &["serve", "--runtime", "cobol"],
        &["serve", "--max-connections", "0"],
        &["serve", "--max-connections", "many"],
        &["serve", "--drain-timeout", "soon"],
        &["serve", "--idle-timeout", "soon"],
        &["serve", "--stall-timeout", "0"],
    ] {
        let finished = refuses(&mut nbd(arguments), 64, &[]);
        assert!(!finished.stderr.is_empty(), "{arguments:?}");
        // The word at fault is named.
        if let [_, .., word] = arguments {
            assert!(finished.stderr.contains(word), "{word:?} is not in: {}", finished.stderr);
        }
    }
}

#[test]
fn what_would_make_no_difference_is_refused() {
    let ignored = serve(["--port", "0", "--read-only", "--track", "b0", "memory:1M"]);
    refuses(&mut { ignored }, 64, &["--read-only", "--track"]);
    refuses(&mut serve(["--unix", "", "memory:1M"]), 64, &["--unix"]);
}

#[test]
fn a_bad_size_is_named_with_what_would_do() {
    for size in ["", "big", "1X", "1.5G", "-1", "0x", "0xg", "12 k"] {
        let backend = format!("memory:{size}");
        let named = format!("'{size}' is not a size");
        refuses(&mut serve(["--port", "0", &backend]), 64, &[&named, "4k", "1G"]);
    }
    for size in ["8E", "9223372036854775808"] {
        let backend = format!("memory:{size}");
        refuses(&mut serve(["--port", "0", &backend]), 64, &[size, "too large", "2^63 - 1"]);
    }
}

#[test]
fn exports_of_the_same_name_are_refused_with_a_remedy() {
    let two = serve(["--port", "0", "memory:1M", "memory:2M"]);
    refuses(&mut { two }, 64, &["two exports are called ''", "first=memory:2M"]);
    let named = serve(["--port", "0", "a=memory:1M", "a=memory:2M"]);
    refuses(&mut { named }, 64, &["two exports are called 'a'"]);
    let both = serve(["--port", "0", "--export-name", "a", "memory:1M", "memory:2M"]);
    refuses(&mut { both }, 64, &["two exports are called 'a'"]);
}

#[test]
fn names_and_descriptions_that_do_not_fit_are_refused() {
    let long = "x".repeat(4097);
    refuses(&mut serve(["--port", "0", "--export-name", &long]), 64, &["export name", "4096"]);
    refuses(&mut serve(["--port", "0", "--description", &long]), 64, &["description", "4096"]);
    refuses(&mut serve(["--port", "0", &format!("{long}=memory:1M")]), 64, &["export name"]);
}

#[test]
fn a_backend_without_a_name_of_anything_is_refused() {
    for backend in ["", "file:", "name="] {
        refuses(&mut serve(["--port", "0", backend]), 64, &["nothing to serve", "memory:SIZE"]);
    }
}
