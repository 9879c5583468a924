//! How far the copy is: a bar on a terminal's standard error, and nowhere else.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shared by all threads of a copy.
#[derive(Debug)]
pub(super) struct Progress(Option<ProgressBar>);

/// With the rate and the time left.
const KNOWN: &str = "{prefix} {bar:30} {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left";

/// A stream tells nobody when it will end.
const UNKNOWN: &str = "{prefix} {binary_bytes} {binary_bytes_per_sec}";

impl Progress {
    /// A bar if it is wanted; it hides itself where there is no terminal.
    pub(super) fn start(wanted: bool, what: &'static str, size: Option<u64>) -> Self {
        if !wanted {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
        let template = if size.is_some() { KNOWN } else { UNKNOWN };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what);
        Self(Some(bar))
    }

    /// So many bytes more are where they belong.
    pub(super) fn add(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    /// Leaves the bar as it is.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.abandon();
        }
    }
}
