//! Layers around an export: `--layer` and `layers = [...]`.

mod spec;
mod stack;
mod words;

pub(crate) use spec::{Layer, beginnings};
pub(super) use stack::{Base, check_files, has_overlay, put_around};

use crate::exit::Failure;

/// What `--layer` was given, in that order.
pub(super) fn of_words(words: &[String]) -> Result<Vec<Layer>, Failure> {
    let parse = |word: &String| {
        word.parse().map_err(|error| Failure::usage(format!("--layer '{word}': {error}")))
    };
    words.iter().map(parse).collect()
}
