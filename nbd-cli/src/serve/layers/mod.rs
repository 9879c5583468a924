//! Layers around an export: `--layer` and `layers = [...]`.

mod spec;
mod stack;
mod words;

pub(crate) use spec::Layer;
pub(super) use stack::{Base, has_overlay, put_around};
