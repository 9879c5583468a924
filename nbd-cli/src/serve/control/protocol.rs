//! What travels on the control socket: a request and its answer, each a JSON object on a line of its own.
//!
//! ```json
//! {"version":1,"verb":"bitmap-start","arguments":{"name":"monday"}}
//! {"ok":null}
//! {"error":"'monday': there is a bitmap of that name"}
//! ```
//!
//! The end of the stream ends a line, too. A request may have fewer arguments than its verb has, never others: what a
//! server does not know it refuses, rather than to do half of what was asked.

use std::io::{self, ErrorKind, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of this protocol. Verbs and members of answers may be added to it.
const VERSION: u64 = 1;

/// Bytes of a request at most: enough for the longest name of a bitmap, each byte of it escaped.
pub(crate) const MAX_REQUEST: usize = 64 << 10;

/// Bytes of an answer at most: enough for the names of as many bitmaps as there can be, all escaped.
pub(crate) const MAX_ANSWER: usize = 16 << 20;

/// What a client asks for.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    version: u64,
    /// What to do.
    pub(crate) verb: String,
    /// An object; nothing at all is an empty one.
    #[serde(default = "no_arguments")]
    pub(crate) arguments: Value,
}

fn no_arguments() -> Value {
    Value::Object(serde_json::Map::new())
}

impl Request {
    /// A request with the members of `arguments`, which serializes to an object.
    pub(crate) fn new(verb: &str, arguments: &impl Serialize) -> Self {
        let arguments = serde_json::to_value(arguments).expect("arguments have string keys");
        Self { version: VERSION, verb: verb.into(), arguments }
    }

    /// Reads a line that a client sent; the error is for the client.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| format!("the request is not a JSON object on one line: {error}"))?;
        // Of another version nothing else is known.
        match &value["version"] {
            Value::Null => return Err("the request has no version".into()),
            version if *version != VERSION => {
                return Err(format!(
                    "this server speaks version {VERSION} of the control protocol, and the request is of version \
                     {version}: use the nbd command of the server's version"
                ));
            }
            _ => {}
        }
        let request: Self = serde_json::from_value(value)
            .map_err(|error| format!("the request is malformed: {error}"))?;
        if request.arguments.is_object() {
            return Ok(request);
        }
        Err("the request is malformed: its arguments are not an object".into())
    }
}

/// What a server answers. One that gives nothing back gives `null`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    /// It is done.
    Ok(Value),
    /// It is not done, and why: one line of text for people.
    Error(String),
}

impl From<Result<Value, String>> for Answer {
    fn from(result: Result<Value, String>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(text) => Self::Error(text),
        }
    }
}

impl From<Answer> for Result<Value, String> {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Ok(value) => Ok(value),
            Answer::Error(text) => Err(text),
        }
    }
}

/// Sends a message.
pub(crate) fn send(mut stream: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Receives a line, without what ends it; what follows it is lost. Empty if the peer sent nothing at all.
///
/// # Errors
/// [`ErrorKind::InvalidData`] if it has more than `max` bytes, and those of the stream.
pub(crate) fn receive(mut stream: impl Read, max: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let piece = &piece[..count];
        let end = piece.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&piece[..end.unwrap_or(count)]);
        if line.len() > max {
            let text = format!("a message of more than {max} bytes");
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        if end.is_some() {
            break;
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_and_an_answer_are_a_line_each() {
        let mut sent = Vec::new();
        let request = Request::new("bitmap-start", &json!({"name": "a\nb"}));
        send(&mut sent, &request).unwrap();
        assert_eq!(
            sent,
            b"{\"version\":1,\"verb\":\"bitmap-start\",\"arguments\":{\"name\":\"a\\nb\"}}\n"
        );
        sent.extend_from_slice(b"what follows");
        assert_eq!(Request::parse(&receive(&sent[..], MAX_REQUEST).unwrap()), Ok(request));
        for (answer, line) in [
            (Answer::Ok(Value::Null), &b"{\"ok\":null}\n"[..]),
            (Answer::Error("no".into()), b"{\"error\":\"no\"}\n"),
        ] {
            let mut sent = Vec::new();
            send(&mut sent, &answer).unwrap();
            assert_eq!(sent, line);
            assert_eq!(serde_json::from_slice::<Answer>(&sent).unwrap(), answer);
        }
    }

    #[test]
    fn malformed_requests_are_named() {
        for (line, says) in [
            (&b"list\n"[..], "not a JSON object"),
            (b"\xff", "not a JSON object"),
            (b"[]", "no version"),
            (b"{}", "no version"),
            (br#"{"verb":"x"}"#, "no version"),
            (
                br#"{"version":2,"word":[]}"#,
                "speaks version 1 of the control protocol, and the request is of version 2",
            ),
            (br#"{"version":"1","verb":"x"}"#, "version \"1\""),
            (br#"{"version":1}"#, "missing field `verb`"),
            (br#"{"version":1,"verb":7}"#, "malformed"),
            (br#"{"version":1,"verb":"x","more":1}"#, "unknown field `more`"),
            (br#"{"version":1,"verb":"x","arguments":[1]}"#, "arguments are not an object"),
        ] {
            let error = Request::parse(line).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
        let bare = Request::parse(br#"{"version":1,"verb":"x"}"#).unwrap();
        assert_eq!(bare, Request::new("x", &json!({})));
    }

    #[test]
    fn a_line_ends_with_a_line_feed_or_the_stream_however_it_is_cut() {
        /// Gives as many bytes at a time as it is told.
        struct Cut<'a>(&'a [u8], usize);
        impl Read for Cut<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = buffer.len().min(self.1);
                self.0.read(&mut buffer[..count])
            }
        }
        cases(200, |random| {
            let (length, max) = (random.below(9000) as usize, random.below(9000) as usize);
            let mut bytes = vec![b'x'; length];
            if random.below(2) == 0 {
                bytes.extend_from_slice(b"\nand more");
            }
            let cut = 1 + random.below(5000) as usize;
            match receive(Cut(&bytes, cut), max) {
                Ok(line) => assert!(length <= max && line == vec![b'x'; length]),
                Err(error) => assert!(length > max && error.kind() == ErrorKind::InvalidData),
            }
        });
    }
}
