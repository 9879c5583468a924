//! As much of HTTP/1.1 as a store needs.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};

/// What a body may have: more is no object of a test.
const MAX_BODY: u64 = 1 << 30;

/// A request, with its body.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// The path and the query as they came.
    pub(super) target: String,
    /// The path, decoded, without the slash at its beginning.
    pub(super) path: String,
    /// The query, decoded; what has no value has an empty one.
    pub(super) query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The next request of a connection; none when the client has closed it.
    pub(super) fn read(input: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            input.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok());
        let mut body = Vec::new();
        input.by_ref().take(length.unwrap_or(0).min(MAX_BODY)).read_to_end(&mut body)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Ok(Some(Self {
            method: method.to_owned(),
            target: target.to_owned(),
            path: decoded(path.trim_start_matches('/')),
            query: pairs.map(|(name, value)| (decoded(name), decoded(value))).collect(),
            headers,
            body,
        }))
    }

    /// A header by its name in lower case; empty if there is none.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(super) fn remove_header(&mut self, name: &str) {
        self.headers.remove(name);
    }

    /// The range of bytes that is asked for, from an object of that length. None for all of it.
    pub(super) fn range(&self, length: usize) -> Option<core::ops::Range<usize>> {
        let (start, end) = self.header("range").strip_prefix("bytes=")?.split_once('-')?;
        if start.is_empty() {
            return Some(length.saturating_sub(end.parse().ok()?)..length);
        }
        let end = end.parse().map_or(length, |last: usize| last.saturating_add(1).min(length));
        Some(start.parse().ok()?..end)
    }
}

/// What `%` and two hexadecimal digits stand for.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let code = core::str::from_utf8(after.get(..2).unwrap_or_default());
        let code = code.ok().and_then(|code| u8::from_str_radix(code, 16).ok());
        match (byte, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &after[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

impl Response {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sends it with a body that goes on until the client closes the connection, and fails then.
    pub(super) fn write_endless(&self, output: &mut impl Write) -> io::Result<()> {
        /// So much that no test receives all of it.
        const LENGTH: u64 = 1 << 40;
        self.write_head(output, LENGTH)?;
        output.write_all(&self.body)?;
        loop {
            output.write_all(&[b'x'; 1 << 16])?;
        }
    }

    fn write_head(&self, output: &mut impl Write, length: u64) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} -\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !matches!(self.status, 204 | 304) {
            head.push_str(&format!("content-length: {length}\r\n"));
        }
        head.push_str("\r\n");
        output.write_all(head.as_bytes())
    }

    /// Sends it, without its body if only its headers were asked for. Fails behind so many bytes of a body.
    pub(super) fn write(
        &self,
        output: &mut impl Write,
        headers_only: bool,
        cut_after: Option<usize>,
    ) -> io::Result<()> {
        self.write_head(output, self.body.len() as u64)?;
        if !headers_only && !matches!(self.status, 204 | 304) {
            let sent = cut_after.map_or(self.body.len(), |cut| cut.min(self.body.len()));
            output.write_all(&self.body[..sent])?;
            if sent < self.body.len() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        output.flush()
    }
}
