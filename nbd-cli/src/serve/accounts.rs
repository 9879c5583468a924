//! Users and groups, by the names and numbers that the system's tables have.

/// Where the system has the numbers of users and of groups.
pub(super) const USERS: &str = "/etc/passwd";
pub(super) const GROUPS: &str = "/etc/group";

/// The names and numbers of a table; lines that have none are left out.
fn entries(table: &str) -> impl Iterator<Item = (&str, u32)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        // The password lies in between.
        Some((name, fields.nth(1)?.parse().ok()?))
    })
}

/// The number of a name.
pub(super) fn number(name: &str, table: &str) -> Option<u32> {
    entries(table).find(|entry| entry.0 == name).map(|entry| entry.1)
}

/// The name of a number.
pub(super) fn name(number: u32, table: &str) -> Option<&str> {
    entries(table).find(|entry| entry.1 == number).map(|entry| entry.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_names_and_names_their_numbers() {
        let table = "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:7:7\n_nbd:x:117:65534::/:\n";
        for (user, id) in [("root", 0), ("_nbd", 117)] {
            assert_eq!((name(id, table), number(user, table)), (Some(user), Some(id)));
        }
        assert_eq!((name(7, table), name(65534, table)), (None, None));
        assert_eq!(
            (number("", table), number("broken", table), number("ro", table)),
            (None, None, None)
        );
    }
}
