//! The values of layers.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use nbd_engine::export::{ErrorCode, Injection};
use nbd_engine::proto::wire::CommandType;

use crate::quantity;

/// Bounds of what passes in a second; 0 for none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    pub(super) bytes: u64,
    pub(super) requests: u64,
    pub(super) client_bytes: u64,
    pub(super) client_requests: u64,
    pub(super) burst: Option<Duration>,
}

impl Rate {
    pub(super) const fn is_bounded(self) -> bool {
        self.bytes | self.requests | self.client_bytes | self.client_requests != 0
    }
}

/// Which requests meet with something.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chance {
    /// Empty for all.
    pub(super) commands: Vec<CommandType>,
    pub(super) probability: f64,
    pub(super) seed: u64,
}

impl Chance {
    /// Chooses these.
    pub(super) fn injection(&self) -> Injection {
        let injection = Injection::new(self.seed).probability(self.probability);
        match self.commands.as_slice() {
            [] => injection,
            commands => injection.commands(commands.iter().copied()),
        }
    }

    pub(super) fn written(&self, values: &mut Vec<(&'static str, String)>) {
        if !self.commands.is_empty() {
            let name = |command: &CommandType| {
                COMMANDS.iter().find(|(_, known)| known == command).map_or("", |(name, _)| *name)
            };
            let names: Vec<_> = self.commands.iter().map(name).collect();
            values.push(("commands", names.join("+")));
        }
        if self.probability < 1.0 {
            values.push(("probability", self.probability.to_string()));
        }
        if self.seed != 0 {
            values.push(("seed", self.seed.to_string()));
        }
    }
}

/// From the shortest to the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delay(pub(super) Duration, pub(super) Duration);

impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(self.0))?;
        if self.0 == self.1 { Ok(()) } else { write!(f, "-{}", shown(self.1)) }
    }
}

/// A duration as it is read again.
pub(super) fn shown(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// An error of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(super) ErrorCode);

const ERRORS: [(&str, ErrorCode); 8] = [
    ("EPERM", ErrorCode::EPERM),
    ("EIO", ErrorCode::EIO),
    ("ENOMEM", ErrorCode::ENOMEM),
    ("EINVAL", ErrorCode::EINVAL),
    ("ENOSPC", ErrorCode::ENOSPC),
    ("EOVERFLOW", ErrorCode::EOVERFLOW),
    ("ENOTSUP", ErrorCode::ENOTSUP),
    ("ESHUTDOWN", ErrorCode::ESHUTDOWN),
];

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = ERRORS.iter().find(|(_, code)| *code == self.0);
        f.write_str(known.map_or("EIO", |(name, _)| *name))
    }
}

const COMMANDS: [(&str, CommandType); 8] = [
    ("read", CommandType::READ),
    ("write", CommandType::WRITE),
    ("flush", CommandType::FLUSH),
    ("trim", CommandType::TRIM),
    ("cache", CommandType::CACHE),
    ("write-zeroes", CommandType::WRITE_ZEROES),
    ("block-status", CommandType::BLOCK_STATUS),
    ("resize", CommandType::RESIZE),
];

/// The value of a name.
fn of_name<T: Copy>(table: &[(&str, T)], name: &str, what: &str) -> Result<T, String> {
    let found = table.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = table.iter().map(|(name, _)| *name).collect();
        format!("'{name}' is not {what}; there are {}", names.join(", "))
    })
}

pub(super) fn errno(text: &str) -> Result<Errno, String> {
    of_name(&ERRORS, text, "an error that can be injected").map(Errno)
}

/// Names with a `+` between them.
pub(super) fn commands(text: &str) -> Result<Vec<CommandType>, String> {
    text.split('+').map(|name| of_name(&COMMANDS, name, "a command")).collect()
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    quantity::size(text)
}

/// What something is bounded to, in bytes: a bound of 0 would not be none, as it seems, but the end of everything.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    bound(quantity::size(text)?, "size")
}

/// The same, a number.
pub(super) fn count(text: &str) -> Result<u64, String> {
    bound(number(text)?, "number")
}

fn bound(number: u64, what: &str) -> Result<u64, String> {
    match number {
        0 => Err(format!("give a {what} of at least 1, or leave it out")),
        number => Ok(number),
    }
}

pub(super) fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("'{text}' is not a number"))
}

pub(super) fn seed(text: &str) -> Result<u64, String> {
    number(text)
}

fn duration(text: &str) -> Result<Duration, String> {
    quantity::duration(text)
}

/// The time for which a rate may be saved up: without any, nothing would pass.
pub(super) fn burst(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("give at least 1ms, or leave it out".into()),
        burst => Ok(burst),
    }
}

pub(super) fn partition(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("'{text}' is not the number of a partition: give one from 1 on"))
}

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("give a path".into()) } else { Ok(text.into()) }
}

pub(super) fn probability(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| format!("'{text}' is not a probability: give a number from 0 to 1"))
}

/// One duration, or two with a `-` between them.
pub(super) fn delay(text: &str) -> Result<Delay, String> {
    let (shortest, longest) = text.split_once('-').unwrap_or((text, text));
    let (shortest, longest) = (duration(shortest)?, duration(longest)?);
    if shortest > longest {
        return Err(format!("'{text}' begins after its end"));
    }
    if longest.is_zero() {
        return Err("give at least 1ms, or leave the layer out".into());
    }
    Ok(Delay(shortest, longest))
}
