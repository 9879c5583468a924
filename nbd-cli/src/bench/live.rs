//! The line on a terminal's standard error while a run is on.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nbd_engine::age;

use super::run::{Progress, Run};
use crate::{units, waiting};

/// A line that is drawn again and again. It hides itself where there is no terminal.
#[derive(Debug)]
pub(super) struct Line {
    bar: ProgressBar,
    before: Option<Progress>,
}

impl Line {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        waiting::beside(Some(bar.clone()));
        Self { bar, before: None }
    }

    /// Draws the rate since it was drawn last.
    pub(super) fn draw(&mut self, run: &Run, now: Progress) {
        let before = self.before.replace(now);
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_message(text(run, before, now));
    }

    /// Removes the line.
    pub(super) fn end(self) {
        waiting::beside(None);
        self.bar.finish_and_clear();
    }
}

fn text(run: &Run, before: Option<Progress>, now: Progress) -> String {
    let start = Progress { elapsed: core::time::Duration::ZERO, succeeded: 0, failed: 0 };
    let before = before.unwrap_or(start);
    let seconds = now.elapsed.saturating_sub(before.elapsed).as_secs_f64();
    let rate = (now.succeeded - before.succeeded) as f64 / seconds.max(f64::MIN_POSITIVE);
    let bytes = units::bytes((rate * run.plan.block as f64).round() as u64);
    let mut text = format!(
        "{}: {rate:.0} requests/s, {bytes}/s, {} of {}",
        run.plan.pattern.name(),
        age(now.elapsed),
        age(run.time())
    );
    if now.failed > 0 {
        text.push_str(&format!(", {} failed", now.failed));
    }
    text
}
