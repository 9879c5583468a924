//! Options of `nbd serve` that say who may connect.

use clap::Args;
use nbd_engine::net::{Access, Network};

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
    /// Which clients may connect.
    pub(super) fn access(&self) -> Result<Access, Failure> {
        let mut access = Access::new();
        for network in &self.allow {
            access = access.allow(*network);
        }
        for network in &self.deny {
            access = access.deny(*network);
        }
        for (names, option, table) in [
            (&self.allow_user, "--allow-user", "/etc/passwd"),
            (&self.allow_group, "--allow-group", "/etc/group"),
        ] {
            for name in names {
                let number = number(name, || std::fs::read_to_string(table).unwrap_or_default());
                let number = number.ok_or_else(|| {
                    Failure::usage(format!(
                        "{option} {name}: there is no such name in {table}; give one that is there, or its number"
                    ))
                })?;
                access = match option {
                    "--allow-user" => access.allow_user(number),
                    _ => access.allow_group(number),
                };
            }
        }
        Ok(access)
    }
}

/// The number of a user or a group: `name` is it, or has it in the table, in the form of `/etc/passwd`.
fn number(name: &str, table: impl FnOnce() -> String) -> Option<u32> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return name.parse().ok();
    }
    table().lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name && !name.is_empty();
        // The second one is the password.
        found.then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_or_names_of_the_table() {
        let table =
            || "root:x:0:0:root:/root:/bin/sh\nnbd:x:117:65534::/:\nbroken\n:x:1:1\n".into();
        assert_eq!(number("root", table), Some(0));
        assert_eq!(number("nbd", table), Some(117));
        assert_eq!(number("1000", table), Some(1000));
        for unknown in ["", "nobody", "x", "ro", "broken", "-1", "+1", "4294967296"] {
            assert_eq!(number(unknown, table), None, "{unknown}");
        }
    }
}
