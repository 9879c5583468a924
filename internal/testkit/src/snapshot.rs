//! Texts that were agreed on, in files beside the tests.

use std::fmt::{Display, Write as _};
use std::path::Path;

/// Compares a text with a file line by line; with `NBD_WRITE_REFERENCE` in the environment it writes the file instead.
#[track_caller]
pub fn check(path: impl AsRef<Path>, text: &str) {
    let path = path.as_ref();
    if std::env::var_os("NBD_WRITE_REFERENCE").is_some() {
        std::fs::write(path, text).expect("the folder of the tests can be written");
    }
    let agreed = std::fs::read_to_string(path).unwrap_or_default();
    let shown = path.display();
    let renew = "to renew it, run this test with NBD_WRITE_REFERENCE=1, and look at the difference";
    for (index, (is, was)) in text.lines().zip(agreed.lines()).enumerate() {
        assert_eq!(is, was, "line {} of {shown}; {renew}", index + 1);
    }
    assert_eq!(text.lines().count(), agreed.lines().count(), "lines of {shown}; {renew}");
}

/// A section of a snapshot: the texts of values of one type, one a line.
pub fn section(text: &mut String, name: &str, values: impl IntoIterator<Item = impl Display>) {
    let _a_string_takes_everything = writeln!(text, "===== {name}\n");
    for value in values {
        let _a_string_takes_everything = writeln!(text, "{value}");
    }
    text.push('\n');
}

/// A value of each variant of an enumeration, behind the variant's pattern. A variant that is missing is a compile error; a
/// value that is another variant than its pattern says, a panic. `without` names variants that can't be made here.
#[macro_export]
macro_rules! each_variant {
    (
        $type:ty { $($(#[$attribute:meta])* $pattern:pat => $value:expr),+ $(,)? }
        $(without { $($absent:pat),+ })?
    ) => {{
        // Compiles only if no variant is missing.
        #[deny(unreachable_patterns)]
        fn exhaustive(value: &$type) {
            match value {
                $($(#[$attribute])* $pattern => {})+
                $($($absent => {})+)?
            }
        }
        let mut values = Vec::new();
        $(
            $(#[$attribute])*
            {
                let value: $type = $value;
                assert!(matches!(value, $pattern), "another variant: {value:?}");
                exhaustive(&value);
                values.push(value);
            }
        )+
        values
    }};
}
