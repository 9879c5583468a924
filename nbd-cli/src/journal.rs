//! Standard error that systemd connected to its journal: there each line begins with its priority, and has no time of its
//! own, as the journal records both. Then `journalctl -p warning` finds what `--verbose` would not hide.

use core::fmt;
use std::sync::OnceLock;

use rustix::fs::fstat;
use rustix::stdio;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// The variable in which systemd names the stream, by device and inode.
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// What a line is, as `sd-daemon(3)` and `syslog(3)` number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

impl From<&Level> for Priority {
    fn from(level: &Level) -> Self {
        match *level {
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warning,
            Level::INFO => Self::Info,
            _ => Self::Debug,
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", *self as u8)
    }
}

/// Whether standard error is the journal's. It was not redirected since systemd started this process, or its ancestor.
pub(crate) fn is_stderr() -> bool {
    static IS_STDERR: OnceLock<bool> = OnceLock::new();
    *IS_STDERR.get_or_init(|| {
        let named = std::env::var(JOURNAL_STREAM).ok();
        let stat = fstat(stdio::stderr()).ok();
        named.zip(stat).is_some_and(|(named, stat)| is(&named, stat.st_dev, stat.st_ino))
    })
}

/// Whether the variable names the file with that device and inode.
fn is(named: &str, device: u64, inode: u64) -> bool {
    named.split_once(':').is_some_and(|(of_device, of_inode)| {
        of_device.parse() == Ok(device) && of_inode.parse() == Ok(inode)
    })
}

/// A text of whole lines as standard error takes it: each with its priority if that is the journal's.
pub(crate) fn lines(priority: Priority, text: &str) -> String {
    match is_stderr() {
        true => with_priority(priority, text),
        false => text.to_owned(),
    }
}

fn with_priority(priority: Priority, text: &str) -> String {
    text.lines().map(|line| format!("{priority}{line}\n")).collect()
}

/// Writes the event's priority before what another format writes of it.
pub(crate) struct Prioritized<F>(pub(crate) F);

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "{}", Priority::from(event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stream_that_the_variable_names_is_the_journals() {
        assert!(is("8:12345", 8, 12345));
        for named in ["", ":", "8", "8:", "8:12346", "9:12345", "8:12345:", " 8:12345", "8:0x3039"]
        {
            assert!(!is(named, 8, 12345), "{named:?}");
        }
    }

    #[test]
    fn each_line_of_a_text_has_the_priority() {
        assert_eq!(with_priority(Priority::Error, "a\n  |\nb\n"), "<3>a\n<3>  |\n<3>b\n");
        assert_eq!(with_priority(Priority::Warning, ""), "");
    }

    #[test]
    fn every_level_of_the_log_has_a_priority_of_syslog() {
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        let numbers = levels.map(|level| Priority::from(&level).to_string());
        assert_eq!(numbers, ["<3>", "<4>", "<6>", "<7>", "<7>"]);
    }
}
