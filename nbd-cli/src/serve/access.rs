//! Which clients may connect: the options, and users and groups by their names.

use std::io;
use std::path::Path;

use clap::Args;
use nbd_engine::net::{self, Network};

use super::accounts::{self, GROUPS, USERS};
use super::config::{Access, Cidr, Source};
use crate::exit::Failure;

/// Options of `nbd serve`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct AccessArguments {
    /// Refuse TCP clients of other addresses than this one or this network, such as 10.0.0.0/8 or fd00::/8; can be given
    /// several times
    ///
    /// Clients are disconnected before they are sent a byte. IPv4 clients of an IPv6 socket count as IPv4 clients.
    #[arg(long, value_name = "CIDR", help_heading = "Access")]
    allow: Vec<Network>,

    /// Refuse TCP clients of this address or network, even if --allow has it; can be given several times
    #[arg(long, value_name = "CIDR", help_heading = "Access")]
    deny: Vec<Network>,

    /// Refuse clients of Unix sockets that are of another user than this one, by its name in /etc/passwd or its number,
    /// and of none of the groups of --allow-group; can be given several times
    #[arg(long, value_name = "USER", help_heading = "Access")]
    allow_user: Vec<String>,

    /// The same by effective group, by its name in /etc/group or its number
    #[arg(long, value_name = "GROUP", help_heading = "Access")]
    allow_group: Vec<String>,
}

impl AccessArguments {
    /// What the command line says of access.
    pub(super) fn access(&self) -> Access {
        let networks = |list: &[Network]| list.iter().copied().map(Cidr).collect();
        Access {
            allow: networks(&self.allow),
            deny: networks(&self.deny),
            allow_user: self.allow_user.clone(),
            allow_group: self.allow_group.clone(),
        }
    }
}

/// The files in which names are looked up, if there are any.
pub(super) fn tables(access: &Access) -> impl Iterator<Item = &'static Path> {
    let of = |names: &[String], table| names.iter().any(|name| !is_number(name)).then_some(table);
    let tables = [of(&access.allow_user, USERS), of(&access.allow_group, GROUPS)];
    tables.into_iter().flatten().map(Path::new)
}

/// The rules, with users and groups as their numbers.
///
/// # Errors
/// When there is no user or group of a name.
pub(super) fn rules(access: &Access, source: &Source) -> Result<net::Access, Failure> {
    let mut rules = net::Access::new();
    for network in &access.allow {
        rules = rules.allow(network.0);
    }
    for network in &access.deny {
        rules = rules.deny(network.0);
    }
    let numbers = |names: &[String], option: &str, key: &str, table: &str| {
        let one = |(index, name): (usize, &String)| {
            let number = number(name, || std::fs::read_to_string(table));
            number.map_err(|why| {
                let word = source.word(option, key);
                let failure =
                    Failure::usage(format!("{word} '{name}': {why} {table}; give a number"));
                source.blame(&format!("access.{key}.{index}"), failure)
            })
        };
        names.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()
    };
    let users = numbers(&access.allow_user, "--allow-user", "allow-user", USERS)?;
    let groups = numbers(&access.allow_group, "--allow-group", "allow-group", GROUPS)?;
    rules = users.into_iter().fold(rules, net::Access::allow_user);
    Ok(groups.into_iter().fold(rules, net::Access::allow_group))
}

fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}

/// The number of a user or a group: `name` is it, or has it in the table, in the form of `/etc/passwd`. An error is a text
/// that the table's path follows.
fn number(name: &str, table: impl FnOnce() -> io::Result<String>) -> Result<u32, String> {
    if is_number(name) {
        return name.parse().map_err(|_| "this number is too large, and is no name in".into());
    }
    let table = table().map_err(|error| format!("{error}: cannot look the name up in"))?;
    accounts::number(name, &table).ok_or_else(|| "there is no such name in".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_or_names_of_the_table() {
        let table =
            || Ok("root:x:0:0:root:/root:/bin/sh\nnbd:x:117:65534::/:\nbroken\n:x:1:1\n".into());
        assert_eq!(number("root", table), Ok(0));
        assert_eq!(number("nbd", table), Ok(117));
        assert_eq!(number("1000", table), Ok(1000));
        for unknown in ["", "nobody", "x", "ro", "broken", "-1", "+1", "4294967296"] {
            assert!(number(unknown, table).is_err(), "{unknown}");
        }
        // A sandbox may have taken the table away.
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(number("117", denied), Ok(117));
        let error = number("nbd", denied).unwrap_err();
        assert_eq!(error, "permission denied: cannot look the name up in");
    }
}
