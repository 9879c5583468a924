//! Recorded sessions as text.
//!
//! A transcript has header lines `name: value` that tell where it comes from, an empty line, and then what was sent:
//! `C:` from the client, `S:` from the server, in the order in which a proxy between both saw it. Bytes are in
//! hexadecimal; `xx*n` is the byte `xx` repeated `n` times. Lines that begin with `#` are remarks.

use std::fmt;

/// Who sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The server.
    Server,
}

/// A recorded session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// Header lines: names and values.
    pub header: Vec<(String, String)>,
    /// What was sent, in order; neighbours are of different sides.
    pub bursts: Vec<(Side, Vec<u8>)>,
}

/// Runs of one byte are written as such from this length on.
const RUN: usize = 8;

/// Bytes in a line, runs counted as three.
const LINE: usize = 40;

impl Transcript {
    /// Adds bytes to the end.
    pub fn push(&mut self, side: Side, bytes: &[u8]) {
        match self.bursts.last_mut() {
            Some((last, burst)) if *last == side => burst.extend_from_slice(bytes),
            _ => self.bursts.push((side, bytes.to_vec())),
        }
    }

    /// The value of a header line; empty if there is none.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        self.header.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// All that one side sent.
    #[must_use]
    pub fn stream(&self, side: Side) -> Vec<u8> {
        let bursts = self.bursts.iter().filter(|(from, _)| *from == side);
        bursts.flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }

    /// Reads a transcript. The error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut transcript = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let place = || format!("line {}: {line:?}", number + 1);
            let (name, value) = line.split_once(':').ok_or_else(place)?;
            let side = match name {
                "C" => Side::Client,
                "S" => Side::Server,
                _ if transcript.bursts.is_empty() => {
                    transcript.header.push((name.to_owned(), value.trim().to_owned()));
                    continue;
                }
                _ => return Err(place()),
            };
            for token in value.split_whitespace() {
                transcript.push(side, &bytes(token).ok_or_else(place)?);
            }
        }
        Ok(transcript)
    }
}

/// The bytes of a token: hexadecimal digits, or a run.
fn bytes(token: &str) -> Option<Vec<u8>> {
    if let Some((byte, count)) = token.split_once('*') {
        let byte = u8::from_str_radix(byte, 16).ok()?;
        return Some(vec![byte; count.parse().ok()?]);
    }
    let pairs = token.as_bytes().as_chunks::<2>();
    if !pairs.1.is_empty() {
        return None;
    }
    let pair = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.0.iter().map(pair).collect()
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.header {
            writeln!(f, "{name}: {value}")?;
        }
        for (side, bytes) in &self.bursts {
            writeln!(f)?;
            write_bytes(f, if *side == Side::Client { "C:" } else { "S:" }, bytes)?;
        }
        Ok(())
    }
}

fn write_bytes(f: &mut fmt::Formatter<'_>, prefix: &str, mut rest: &[u8]) -> fmt::Result {
    let mut room = 0;
    let mut in_run = true;
    let mut first = true;
    while let Some(byte) = rest.first() {
        let run = rest.iter().take_while(|other| *other == byte).count();
        let (count, cost) = if run >= RUN { (run, 3) } else { (1, 1) };
        if room < cost {
            write!(f, "{}{prefix}", if first { "" } else { "\n" })?;
            (room, in_run, first) = (LINE, true, false);
        }
        if run >= RUN {
            write!(f, " {byte:02x}*{run}")?;
        } else {
            write!(f, "{}{byte:02x}", if in_run { " " } else { "" })?;
        }
        in_run = run >= RUN;
        room -= cost;
        rest = &rest[count..];
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_survives_printing_and_reading() {
        let mut transcript = Transcript::default();
        transcript.header.push(("server".into(), "a server 1.0: really".into()));
        transcript.push(Side::Server, b"NBDMAGICIHAVEOPT\0\x03");
        transcript.push(Side::Client, &[0, 0, 0, 3]);
        transcript.push(Side::Client, &[0; 300]);
        let pattern: Vec<u8> = (0..=255).collect();
        transcript.push(Side::Server, &[&pattern[..], &[7; 8], &pattern].concat());
        assert_eq!(transcript.bursts.len(), 3);
        let text = transcript.to_string();
        assert_eq!(Transcript::parse(&text), Ok(transcript), "{text}");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for text in ["C: 0", "C: zz", "C: 00*", "C", "C: 00\nname: value"] {
            assert!(Transcript::parse(text).unwrap_err().starts_with("line"), "{text}");
        }
    }
}
