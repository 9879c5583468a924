//! Asking the control socket of a server that runs.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exit::Failure;
use crate::serve::{Answer, MAX_ANSWER, Request, Timed, receive, send};
use crate::target::is_uri;
use crate::waiting;

/// How long nothing may come from the server. While it works on a request it shows that it is alive.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the server at that path; what it refuses is the error inside.
pub(crate) fn ask<T: DeserializeOwned>(
    path: &Path,
    verb: &str,
    arguments: &impl Serialize,
) -> Result<Result<T, String>, Failure> {
    let stream = connect(path)?;
    waiting::start(true);
    let shown = path.display().to_string();
    let _watched = waiting::on(move |seconds| {
        format!("waiting for the server of {shown}: no answer for {seconds} s")
    });
    let answer = exchange(&stream, &Request::new(verb, arguments), PATIENCE)
        .map_err(|error| explain(path, &error))?;
    Result::from(answer).map(|value| serde_json::from_value(value)).map_or_else(
        |refused| Ok(Err(refused)),
        |value| value.map(Ok).map_err(|_| unexpected(path)),
    )
}

/// Connects, unless that is clearly not a control socket.
pub(crate) fn connect(path: &Path) -> Result<UnixStream, Failure> {
    let shown = path.display();
    match path.metadata() {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Failure::failed(format!(
                "{shown} is not a socket: give the path that nbd serve --control has"
            )));
        }
        Err(_) if is_uri(path.as_os_str()) => {
            return Err(Failure::usage(format!(
                "{shown} cannot be used: give the path of the --control socket, not a URI"
            )));
        }
        _ => {}
    }
    nbd_engine::net::check_socket_path(path).map_err(|error| {
        Failure::failed(format!("cannot use the control socket {shown}: {error}"))
    })?;
    UnixStream::connect(path).map_err(|error| explain(path, &error))
}

/// What comes from a server, which may take as long as it likes, but not without a sign of life.
struct Patient<'a> {
    stream: &'a UnixStream,
    patience: Duration,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Timed::new(self.stream, Instant::now() + self.patience).read(buffer)
    }
}

/// Sends the only request of a connection, and receives the answer.
///
/// # Errors
/// `TimedOut` when nothing comes for so long, `UnexpectedEof` when the server closes the connection before it answers, and
/// `InvalidData` when that is no answer.
fn exchange(stream: &UnixStream, request: &Request, patience: Duration) -> io::Result<Answer> {
    let mut timed = Timed::new(stream, Instant::now() + patience);
    send(&mut timed, request)?;
    stream.shutdown(Shutdown::Write)?;
    let line = receive(Patient { stream, patience }, MAX_ANSWER)?;
    if line.trim_ascii().is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&line).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// Why there is no answer, and what to do.
fn explain(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display();
    Failure::failed(match error.kind() {
        ErrorKind::TimedOut => format!(
            "no answer on the control socket {shown} within {} s: try again when the server is less busy",
            PATIENCE.as_secs()
        ),
        ErrorKind::InvalidData => return unexpected(path),
        ErrorKind::PermissionDenied => format!(
            "this user may not use the control socket {shown}: run this as the user of the server, or as root"
        ),
        ErrorKind::UnexpectedEof => format!(
            "{shown} closed the connection without an answer: the server has ended, as its log says, or it is not the control \
             socket of nbd serve"
        ),
        _ => format!(
            "no answer on the control socket {shown}: {error}; start the server with --control {shown}"
        ),
    })
}

fn unexpected(path: &Path) -> Failure {
    let path = path.display();
    Failure::failed(format!(
        "{path} is not the control socket of nbd serve, or of another version: it gave an unexpected answer"
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::json;

    use super::*;

    fn request() -> Request {
        Request::new("bitmap-list", &json!({}))
    }

    #[test]
    fn a_server_that_does_not_answer_is_distinguished_from_none() {
        let (client, _silent) = UnixStream::pair().unwrap();
        let error = exchange(&client, &request(), Duration::from_millis(1)).unwrap_err();
        let explained = explain(Path::new("control"), &error);
        assert!(matches!(explained, Failure::Failed(text) if text.contains("within 60 s")));
        let gone = explain(Path::new("control"), &ErrorKind::UnexpectedEof.into());
        assert!(matches!(gone, Failure::Failed(text) if text.contains("without an answer")));
    }

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let quoted = |length: usize| [&b"{\"ok\":\""[..], &vec![b'x'; length - 9], b"\"}"].concat();
        for (answer, whole) in [
            (quoted(MAX_ANSWER), true),
            (quoted(MAX_ANSWER + 1), false),
            (vec![0xff; 9], false),
            (b"NBDMAGICIHAVEOPT".to_vec(), false),
            (Vec::new(), false),
            (b"  ".to_vec(), false),
        ] {
            let (client, mut server) = UnixStream::pair().unwrap();
            let asked = std::thread::scope(|scope| {
                scope.spawn(move || {
                    server.read_to_end(&mut Vec::new()).unwrap();
                    // The client may have received enough before the end.
                    let _received = server.write_all(&answer);
                });
                let asked = exchange(&client, &request(), PATIENCE);
                drop(client);
                asked
            });
            match asked {
                Ok(answer) => assert!(whole, "{answer:?}"),
                Err(error) => {
                    let kinds = [ErrorKind::InvalidData, ErrorKind::UnexpectedEof];
                    assert!(!whole && kinds.contains(&error.kind()), "{error}");
                }
            }
        }
    }

    /// Waiting for long is no failure as long as there are signs of life, which are part of the answer.
    #[test]
    fn signs_of_life_come_before_an_answer() {
        let (client, mut server) = UnixStream::pair().unwrap();
        let answer = std::thread::scope(|scope| {
            scope.spawn(move || {
                server.read_to_end(&mut Vec::new()).unwrap();
                server.write_all(b"  ").unwrap();
                server.write_all(b" {\"ok\":7}\n").unwrap();
            });
            exchange(&client, &request(), PATIENCE).unwrap()
        });
        assert_eq!(answer, Answer::Ok(json!(7)));
    }
}
