//! What a key takes, in words for those who write files, from the types themselves.

use core::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, Deserialize, Deserializer, Expected, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use toml::de::DeValue;

use super::export::Export;
use super::model::{Access, Listen, Server, Tls};
use crate::output;

/// Characters of a text that are shown in a message.
const SHOWN: usize = 40;

/// What a key takes.
#[derive(Debug)]
pub(super) enum Kind {
    Flag,
    Number,
    Text,
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    List(Box<Self>),
    /// What the type that reads it says that it expects.
    Word(String),
}

/// What a key of a table takes; `None` if there is no such key.
pub(super) fn of(table: &str, key: &str) -> Option<Kind> {
    match table {
        "server" => kind::<Server>(key),
        "listen" => kind::<Listen>(key),
        "access" => kind::<Access>(key),
        "tls" => kind::<Tls>(key),
        "export" => kind::<Export>(key),
        _ => None,
    }
}

impl Kind {
    /// What takes only values that [`DeValue`] itself tells from others.
    pub(super) const fn is_plain(&self) -> bool {
        !matches!(self, Self::List(_) | Self::Word(_))
    }

    /// What to give in place of a value that it does not take.
    pub(super) fn remedy(&self, value: &DeValue<'_>) -> String {
        match self {
            Self::Flag => "give true or false, without quotes".into(),
            Self::Number => match value {
                DeValue::Integer(number) if number.as_str().starts_with('-') => {
                    "give a number of at least 1".into()
                }
                DeValue::Integer(_) => format!("give a number of at most {}", usize::MAX),
                _ => "give a whole number, without quotes".into(),
            },
            Self::Text => "give a text in quotes".into(),
            Self::Path => "give a path in quotes".into(),
            Self::Choice(words) => {
                let quoted = Vec::from_iter(words.iter().map(|word| format!("\"{word}\"")));
                match quoted.split_last() {
                    Some((last, [])) => format!("give {last}"),
                    Some((last, words)) => format!("give {} or {last}", words.join(", ")),
                    None => "leave it out".into(),
                }
            }
            Self::List(item) => match &**item {
                Self::Word(expected) => format!("give a list in brackets, each item {expected}"),
                _ => "give a list in brackets, such as [\"one\", \"two\"]".into(),
            },
            Self::Word(expected) => format!("give {expected}"),
        }
    }
}

/// A value as a message names it.
pub(super) fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => {
            let dots = if text.chars().nth(SHOWN).is_some() { "..." } else { "" };
            let text: String = text.chars().take(SHOWN).collect();
            format!("\"{}{dots}\"", output::printable(&text))
        }
        // What has a base in front would need it here, too.
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
        DeValue::Integer(_) => "a number".into(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date or a time".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// What the field of that name asks a deserializer for.
fn kind<'de, T: Deserialize<'de>>(key: &'de str) -> Option<Kind> {
    match T::deserialize(MapDeserializer::new(core::iter::once((key, Asked)))) {
        Err(Answer(kind)) => kind,
        Ok(_) => None,
    }
}

/// A deserializer that has no value, but fails with what it is asked for.
struct Asked;

/// What it was asked for.
#[derive(Debug)]
struct Answer(Option<Kind>);

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl core::error::Error for Answer {}

impl de::Error for Answer {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(None)
    }
}

impl IntoDeserializer<'_, Answer> for Asked {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Asked {
    type Error = Answer;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Answer> {
        let expected: &dyn Expected = &visitor;
        Err(Answer(Some(Kind::Word(expected.to_string()))))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Answer> {
        Err(Answer(Some(Kind::Flag)))
    }

    fn deserialize_u64<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Answer> {
        Err(Answer(Some(Kind::Number)))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Answer> {
        let expected: &dyn Expected = &visitor;
        // serde's own words for a `PathBuf`.
        let is_path = expected.to_string() == "path string";
        Err(Answer(Some(if is_path { Kind::Path } else { Kind::Text })))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Answer> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Answer> {
        let items = SeqDeserializer::new(core::iter::once(Self));
        visitor.visit_seq(items).map_err(|Answer(item)| Answer(item.map(Box::new).map(Kind::List)))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Answer> {
        Err(Answer(Some(Kind::Choice(variants))))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 f64 char str bytes byte_buf unit unit_struct newtype_struct tuple
        tuple_struct map struct identifier ignored_any
    }
}
