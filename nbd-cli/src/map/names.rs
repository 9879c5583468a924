//! What the types of well-known metadata contexts mean, in nbdinfo's words.

use std::borrow::Cow;

/// What a type means in a context, if that is known.
pub(super) fn name(context: &str, status: u64) -> Option<Cow<'static, str>> {
    let fixed = |names: &[&'static str]| {
        let place = usize::try_from(status).ok()?;
        names.get(place).map(|name| Cow::Borrowed(*name))
    };
    if context == super::ALLOCATION {
        fixed(&["data", "hole", "zero", "hole,zero"])
    } else if context.starts_with("qemu:dirty-bitmap:") {
        fixed(&["clean", "dirty"])
    } else if context == "qemu:allocation-depth" {
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
