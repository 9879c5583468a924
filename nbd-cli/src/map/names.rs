//! What the types of well-known metadata contexts mean, in nbdinfo's words.

use std::borrow::Cow;

use crate::colour::Style;

const DEPTH: &str = "qemu:allocation-depth";

/// Whether a context is a dirty bitmap's.
fn is_bitmap(context: &str) -> bool {
    context.starts_with("qemu:dirty-bitmap:")
}

/// How a type looks: data before holes, changes before the rest, what the export has itself before what it borrows.
pub(super) fn look(context: &str, status: u64) -> Style {
    match (context, status) {
        (super::ALLOCATION, 0) | (DEPTH, 1) => Style::Main,
        (DEPTH, 2..) => Style::Minor,
        (_, 0) if is_bitmap(context) => Style::Good,
        (_, 1) if is_bitmap(context) => Style::Bad,
        _ => Style::Plain,
    }
}

/// The type on which the others stand out in a picture.
pub(super) fn ground(context: &str) -> u64 {
    if context == super::ALLOCATION { 3 } else { 0 }
}

/// What a type means in a context, if that is known.
pub(super) fn name(context: &str, status: u64) -> Option<Cow<'static, str>> {
    let fixed = |names: &[&'static str]| {
        let index = usize::try_from(status).ok()?;
        names.get(index).map(|name| Cow::Borrowed(*name))
    };
    if context == super::ALLOCATION {
        fixed(&["data", "hole", "zero", "hole,zero"])
    } else if is_bitmap(context) {
        fixed(&["clean", "dirty"])
    } else if context == DEPTH {
        fixed(&["absent", "local"]).or_else(|| Some(format!("backing depth {status}").into()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn well_known_types_have_names() {
        for (context, status, known) in [
            ("base:allocation", 0, Some("data")),
            ("base:allocation", 3, Some("hole,zero")),
            ("base:allocation", 4, None),
            ("qemu:dirty-bitmap:x", 1, Some("dirty")),
            ("qemu:dirty-bitmap:x", 2, None),
            ("qemu:allocation-depth", 0, Some("absent")),
            ("qemu:allocation-depth", 7, Some("backing depth 7")),
            ("other:context", 0, None),
        ] {
            assert_eq!(name(context, status).as_deref(), known, "{context} {status}");
        }
    }
}
