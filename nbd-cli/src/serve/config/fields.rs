//! The keys of each table, from the types themselves, and what to do about one that there is not.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::export::Export;
use super::model::{Access, Config, Listen, Server, Tls};
use crate::spelling;

/// The tables, and the keys of each. The outermost has no name.
pub(super) fn tables() -> [(&'static str, &'static [&'static str]); 6] {
    [
        ("", fields::<Config>()),
        ("server", fields::<Server>()),
        ("listen", fields::<Listen>()),
        ("access", fields::<Access>()),
        ("tls", fields::<Tls>()),
        ("export", fields::<Export>()),
    ]
}

/// The keys that a type's derived `Deserialize` knows.
fn fields<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    match T::deserialize(Asked) {
        Err(Fields(fields)) => fields,
        Ok(_) => &[],
    }
}

/// A deserializer that has no value, but fails with the names of the fields that it is asked for.
struct Asked;

/// These names.
#[derive(Debug)]
struct Fields(&'static [&'static str]);

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

impl core::error::Error for Fields {}

impl de::Error for Fields {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for Asked {
    type Error = Fields;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fields> {
        Err(Fields(&[]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fields> {
        Err(Fields(fields))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// What to do about a key that a table does not have.
pub(super) fn remedy(table: &str, key: &str) -> String {
    let tables = tables();
    let known = tables.iter().find(|(name, _)| *name == table).map_or(&[][..], |(_, keys)| *keys);
    if let Some(nearest) = spelling::nearest(key, known.iter().copied()).first() {
        return format!("did you mean '{nearest}'?");
    }
    // A table's name without its brackets is no key of another one.
    let elsewhere = tables.iter().filter(|(name, _)| !name.is_empty() && *name != table);
    for (other, keys) in elsewhere {
        if keys.contains(&key) {
            return format!("it is a key of {}", brackets(other));
        }
    }
    match known {
        [] => "there is none here".into(),
        known => format!("there are {}", known.join(", ")),
    }
}

/// Whether there can be several tables of that name.
pub(super) fn is_repeated(table: &str) -> bool {
    ["listen", "export"].contains(&table)
}

/// The name of a table as a file writes it.
pub(super) fn brackets(table: &str) -> String {
    if is_repeated(table) { format!("[[{table}]]") } else { format!("[{table}]") }
}
