//! `nbd bitmap`: starts, clears and stops the dirty bitmaps of a server that runs.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use nbd_engine::export::{BitmapError, Tracker};

use crate::exit::Failure;
use crate::output;
use crate::serve::{ERROR, OK, Timed};
use crate::target::is_uri;

/// As long as all that others may ask of the server at the same time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of an answer: more than the names of as many bitmaps as there can be.
const LONGEST: usize = 2 << 20;

/// Start, clear and stop dirty bitmaps while nbd serve --control runs.
///
/// A bitmap records what clients change, for incremental backups; it is the metadata context qemu:dirty-bitmap:NAME of
/// every export that can be written. When this ends well, it is done.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The socket that the server was given with --control
    #[arg(value_name = "CONTROL")]
    control: PathBuf,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write the names of the bitmaps, one a line
    #[command(display_name = crate::NAME)]
    List,
    /// Add a bitmap with nothing dirty, and record from now on
    #[command(display_name = crate::NAME)]
    Start {
        /// Its name
        name: String,
    },
    /// Forget what is dirty, and go on recording
    #[command(display_name = crate::NAME)]
    Clear {
        /// Its name
        name: String,
    },
    /// Remove a bitmap
    #[command(display_name = crate::NAME)]
    Stop {
        /// Its name
        name: String,
    },
}

/// `nbd bitmap`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (verb, name) = match &arguments.action {
        Action::List => ("list", ""),
        Action::Start { name } => ("start", name.as_str()),
        Action::Clear { name } => ("clear", name.as_str()),
        Action::Stop { name } => ("stop", name.as_str()),
    };
    let path = &arguments.control;
    check(path)?;
    nbd_engine::net::check_socket_path(path).map_err(|error| {
        Failure::failed(format!("cannot use the control socket {}: {error}", path.display()))
    })?;
    if name.len() > Tracker::LONGEST_NAME {
        return Err(Failure::failed(format!(
            "cannot {verb} the bitmap: {}",
            BitmapError::InvalidName
        )));
    }
    let answer =
        ask(path, &format!("{verb}\n{name}"), PATIENCE).map_err(|error| explain(path, &error))?;
    if let Some(text) = answer.strip_prefix(ERROR) {
        return Err(Failure::failed(format!("cannot {verb} {text}")));
    }
    let Some(text) = answer.strip_prefix(OK) else {
        let path = path.display();
        return Err(Failure::failed(format!(
            "{path} is not the control socket of nbd serve: it gave an unexpected answer"
        )));
    };
    output::write(|out| {
        for name in text.split('\0').filter(|name| !name.is_empty()) {
            writeln!(out, "{}", output::printable(name))?;
        }
        Ok(())
    })
}

/// Refuses what is clearly not a control socket.
fn check(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    match path.metadata() {
        Ok(metadata) if !metadata.file_type().is_socket() => Err(Failure::failed(format!(
            "{shown} is not a socket: give the path that nbd serve --control has"
        ))),
        Err(_) if is_uri(path.as_os_str()) => Err(Failure::usage(format!(
            "{shown} cannot be used: give the path of the --control socket, not a URI"
        ))),
        _ => Ok(()),
    }
}

/// Why there is no answer, and what to do.
fn explain(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::failed(match error.kind() {
        ErrorKind::TimedOut => format!(
            "no answer on the control socket {path} within {} s: try again when the server is less busy",
            PATIENCE.as_secs()
        ),
        ErrorKind::InvalidData => format!("cannot read what answers on {path}: {error}"),
        _ => format!(
            "no answer on the control socket {path}: {error}; start the server with --control {path}"
        ),
    })
}

/// Fails with `TimedOut` when there is no answer by then, and with `InvalidData` when it is none.
fn ask(path: &Path, request: &str, patience: Duration) -> io::Result<String> {
    let stream = UnixStream::connect(path)?;
    let mut timed = Timed::new(&stream, Instant::now() + patience);
    timed.write_all(request.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    timed.take(LONGEST as u64 + 1).read_to_end(&mut answer)?;
    let invalid = |text: &str| io::Error::new(ErrorKind::InvalidData, text);
    if answer.len() > LONGEST {
        return Err(invalid("it sent more than 2 MiB, which nbd serve --control never does"));
    }
    String::from_utf8(answer)
        .map_err(|_| invalid("it did not send UTF-8, as nbd serve --control does"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn listener() -> (tempfile::TempDir, PathBuf, UnixListener) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        (folder, path, listener)
    }

    #[test]
    fn a_server_that_does_not_answer_is_distinguished_from_none() {
        let (_folder, path, _silent) = listener();
        let error = ask(&path, "list\n", Duration::from_millis(1)).unwrap_err();
        assert!(
            matches!(explain(&path, &error), Failure::Failed(text) if text.contains("within 60 s"))
        );
    }

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let longest = [OK.as_bytes(), &[b'x'; LONGEST - OK.len()]].concat();
        let longer = [&longest[..], b"x"].concat();
        for (answer, whole) in [(&longest, true), (&longer, false), (&vec![0xff; 9], false)] {
            let (_folder, path, listener) = listener();
            let asked = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    stream.read_to_end(&mut Vec::new()).unwrap();
                    // It may have heard enough before the end.
                    let _heard = stream.write_all(answer);
                });
                ask(&path, "list\n", PATIENCE)
            });
            match asked {
                Ok(text) => assert!(whole && text.as_bytes() == answer),
                Err(error) => assert!(!whole && error.kind() == ErrorKind::InvalidData, "{error}"),
            }
        }
    }
}
