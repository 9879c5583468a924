//! What is written of a layer: `NAME[:[VALUE][,KEY=VALUE...]]`, or a table with a key of that name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::words;

/// A layer as it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Layer {
    ReadOnly,
    Offset {
        offset: u64,
        length: Option<u64>,
    },
    Partition(u32),
    /// In that file, or in memory.
    Overlay(Option<PathBuf>),
    Rate(words::Rate),
    Delay(words::Delay, words::Chance),
    Error(words::Errno, words::Chance),
    /// To that file, or to the log of the server.
    Log(Option<PathBuf>),
}

/// The names, and the further keys of each.
const LAYERS: [(&str, &[&str]); 8] = [
    ("read-only", &[]),
    ("offset", &["length"]),
    ("partition", &[]),
    ("overlay", &[]),
    ("rate", &["requests", "client", "client-requests", "burst"]),
    ("delay", &["commands", "probability", "seed"]),
    ("error", &["commands", "probability", "seed"]),
    ("log", &[]),
];

/// What a command line can begin a layer with, and what the layer does.
pub(crate) fn beginnings() -> impl Iterator<Item = (String, &'static str)> {
    LAYERS.iter().map(|(name, _)| {
        let needs_value = matches!(*name, "offset" | "partition" | "rate" | "delay" | "error");
        let help = match *name {
            "read-only" => "refuses writes",
            "offset" => "a part of the disk: offset:OFFSET,length=LENGTH",
            "partition" => "a partition of the disk: partition:N",
            "overlay" => "keeps what is written in memory, or in a file: overlay:FILE",
            "rate" => "bounds what is carried out in a second: rate:BYTES,requests=N",
            "delay" => "delays requests: delay:TIME or delay:TIME-TIME",
            "error" => "fails requests, by an error such as EIO: error:ERRNO",
            _ => "a line for each request, in the log or in a file: log:FILE",
        };
        (format!("{name}{}", if needs_value { ":" } else { "" }), help)
    })
}

/// The values of a layer by key; that of the layer's own name comes first.
#[derive(Debug, Default)]
struct Values(Vec<(String, String)>);

impl Values {
    /// Takes a value out and reads it.
    fn take<T>(
        &mut self,
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let Some(index) = self.0.iter().position(|(known, _)| known == key) else {
            return Ok(None);
        };
        let (_, value) = self.0.remove(index);
        read(&value).map(Some).map_err(|error| format!("{key}: {error}"))
    }

    fn chance(&mut self) -> Result<words::Chance, String> {
        Ok(words::Chance {
            commands: self.take("commands", words::commands)?.unwrap_or_default(),
            probability: self.take("probability", words::probability)?.unwrap_or(1.0),
            seed: self.take("seed", words::seed)?.unwrap_or(0),
        })
    }
}

impl Layer {
    /// The layer of a name with its values.
    fn new(name: &str, values: Vec<(String, String)>) -> Result<Self, String> {
        let Some((name, keys)) = LAYERS.iter().find(|(known, _)| *known == name) else {
            let names: Vec<_> = LAYERS.iter().map(|(name, _)| *name).collect();
            return Err(format!("'{name}' is not a layer; there are {}", names.join(", ")));
        };
        for (index, (key, _)) in values.iter().enumerate() {
            if key != name && !keys.contains(&key.as_str()) {
                return Err(match keys {
                    [] => format!("the layer {name} has no key '{key}'"),
                    keys => format!(
                        "the layer {name} has no key '{key}'; there are {name}, {}",
                        keys.join(", ")
                    ),
                });
            }
            if values[..index].iter().any(|(earlier, _)| earlier == key) {
                return Err(format!("{key} is given twice for the layer {name}"));
            }
        }
        let mut values = Values(values);
        let missing = |what: &str| format!("the layer {name} needs {what}");
        let layer = match *name {
            "read-only" => match values.0.first() {
                Some(_) => return Err("the layer read-only takes no value".into()),
                None => Self::ReadOnly,
            },
            "offset" => {
                let offset = values.take("offset", words::size)?;
                let length = values.take("length", words::bytes)?;
                let offset = offset.ok_or_else(|| missing("an offset, such as offset:1M"))?;
                Self::Offset { offset, length }
            }
            "partition" => {
                let number = values.take("partition", words::partition)?;
                Self::Partition(number.ok_or_else(|| missing("a number, such as partition:1"))?)
            }
            "overlay" => Self::Overlay(values.take("overlay", words::path)?),
            "log" => Self::Log(values.take("log", words::path)?),
            "rate" => {
                let rate = words::Rate {
                    bytes: values.take("rate", words::bytes)?.unwrap_or(0),
                    requests: values.take("requests", words::count)?.unwrap_or(0),
                    client_bytes: values.take("client", words::bytes)?.unwrap_or(0),
                    client_requests: values.take("client-requests", words::count)?.unwrap_or(0),
                    burst: values.take("burst", words::burst)?,
                };
                if !rate.is_bounded() {
                    return Err(missing(
                        "a bound: bytes a second, such as rate:10M, or requests=1000",
                    ));
                }
                Self::Rate(rate)
            }
            "delay" => {
                let delay = values.take("delay", words::delay)?;
                let delay =
                    delay.ok_or_else(|| missing("a time, such as delay:10ms or delay:5ms-20ms"))?;
                Self::Delay(delay, values.chance()?)
            }
            _ => {
                let errno = values.take("error", words::errno)?;
                let errno = errno.ok_or_else(|| missing("an error, such as error:EIO"))?;
                Self::Error(errno, values.chance()?)
            }
        };
        Ok(layer)
    }

    /// The name, and the values that are not the defaults, by key.
    fn written(&self) -> (&'static str, Vec<(&'static str, String)>) {
        fn given<T: PartialEq>(
            values: &mut Vec<(&'static str, String)>,
            key: &'static str,
            value: &T,
            default: &T,
            shown: impl Fn(&T) -> String,
        ) {
            if value != default {
                values.push((key, shown(value)));
            }
        }
        let mut values = Vec::new();
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let name = match self {
            Self::ReadOnly => "read-only",
            Self::Offset { offset, length } => {
                values.push(("offset", offset.to_string()));
                values.extend(length.map(|length| ("length", length.to_string())));
                "offset"
            }
            Self::Partition(number) => {
                values.push(("partition", number.to_string()));
                "partition"
            }
            Self::Overlay(file) => {
                values.extend(path(file).map(|path| ("overlay", path)));
                "overlay"
            }
            Self::Log(file) => {
                values.extend(path(file).map(|path| ("log", path)));
                "log"
            }
            Self::Rate(rate) => {
                given(&mut values, "rate", &rate.bytes, &0, u64::to_string);
                given(&mut values, "requests", &rate.requests, &0, u64::to_string);
                given(&mut values, "client", &rate.client_bytes, &0, u64::to_string);
                given(&mut values, "client-requests", &rate.client_requests, &0, u64::to_string);
                values.extend(rate.burst.map(|burst| ("burst", words::shown(burst))));
                "rate"
            }
            Self::Delay(delay, chance) => {
                values.push(("delay", delay.to_string()));
                chance.written(&mut values);
                "delay"
            }
            Self::Error(errno, chance) => {
                values.push(("error", errno.to_string()));
                chance.written(&mut values);
                "error"
            }
        };
        (name, values)
    }

    /// The path in it.
    pub(in crate::serve) fn path(&self) -> Option<&Path> {
        match self {
            Self::Overlay(path) | Self::Log(path) => path.as_deref(),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Overlay(path) | Self::Log(path) => path.as_mut(),
            _ => None,
        }
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        // What an empty variable leaves behind is no wish for a file in memory.
        if rest.is_empty() && text.ends_with(':') {
            return Err(format!(
                "the layer {name} has no value behind the colon: give one, or leave out the colon"
            ));
        }
        let keys =
            LAYERS.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, keys)| *keys);
        let mut values = Vec::new();
        for (index, item) in rest.split(',').filter(|item| !item.is_empty()).enumerate() {
            let pair = item.split_once('=').filter(|(key, _)| {
                // The first may be a path with a `=` in it.
                index > 0 || *key == name || keys.contains(key)
            });
            match pair {
                Some((key, value)) => values.push((key.to_owned(), value.to_owned())),
                None if index == 0 => values.push((name.to_owned(), item.to_owned())),
                None => return Err(format!("'{item}' is no KEY=VALUE of the layer {name}")),
            }
        }
        Self::new(name, values)
    }
}

/// As the command line has it. A path with a comma can't be written so.
impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, values) = self.written();
        f.write_str(name)?;
        for (index, (key, value)) in values.iter().enumerate() {
            f.write_str(if index == 0 { ":" } else { "," })?;
            if index > 0 || *key != name {
                write!(f, "{key}=")?;
            }
            f.write_str(value)?;
        }
        Ok(())
    }
}

impl Serialize for Layer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, values) = self.written();
        let in_a_word = values.iter().all(|(_, value)| !value.contains([',', '=']));
        if in_a_word {
            return serializer.collect_str(self);
        }
        // Only paths have these, and then there is a value of that name.
        let mut map = serializer.serialize_map(Some(values.len()))?;
        debug_assert!(values.iter().any(|(key, _)| *key == name));
        values.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Layer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LayerVisitor)
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Layer {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "layer".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "title": "layer" })
    }
}

struct LayerVisitor;

impl<'de> Visitor<'de> for LayerVisitor {
    type Value = Layer;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a layer, such as \"read-only\", \"offset:1M\" or { offset = \"1M\", length = \"10M\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Layer, E> {
        text.parse().map_err(E::custom)
    }

    /// The key that is the name of a layer says which one it is.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Layer, A::Error> {
        let mut values = Vec::new();
        while let Some((key, Scalar(value))) = map.next_entry::<String, Scalar>()? {
            values.push((key, value));
        }
        let is_name = |key: &str| LAYERS.iter().any(|(name, _)| *name == key);
        // `requests` alone is a bound of the rate.
        let name = values.iter().map(|(key, _)| key.as_str()).find(|key| is_name(key));
        let rate = values.iter().any(|(key, _)| LAYERS[4].1.contains(&key.as_str()));
        let name = name.or(rate.then_some("rate")).map(str::to_owned);
        let name = name.ok_or_else(|| {
            let names: Vec<_> = LAYERS.iter().map(|(name, _)| *name).collect();
            let keys: Vec<_> = values.iter().map(|(key, _)| format!("'{key}'")).collect();
            let what = match keys.as_slice() {
                [] => "a layer has no name".into(),
                [one] => format!("{one} is no layer"),
                several => format!("none of {} is a layer", several.join(", ")),
            };
            de::Error::custom(format!("{what}; there are {}", names.join(", ")))
        })?;
        // Of a layer without a value there is nothing but the name.
        if matches!(name.as_str(), "read-only" | "overlay" | "log") {
            values.retain(|(key, value)| *key != name || value != "true");
        }
        Layer::new(&name, values).map_err(de::Error::custom)
    }
}

/// A text, a number, or a truth value.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar(text.to_owned()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar(number.to_string()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Scalar, E> {
        Ok(Scalar(number.to_string()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Scalar, E> {
        Ok(Scalar(number.to_string()))
    }

    fn visit_bool<E: de::Error>(self, yes: bool) -> Result<Scalar, E> {
        Ok(Scalar(yes.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn layers_are_read_as_they_are_written() {
        for text in [
            "read-only",
            "offset:1048576",
            "offset:0,length=4096",
            "partition:3",
            "overlay",
            "overlay:/srv/over lay",
            "rate:10000000",
            "rate:1,requests=2,client=3,client-requests=4,burst=50ms",
            "rate:client-requests=4",
            "delay:10ms",
            "delay:5ms-20ms,commands=read+write,probability=0.25,seed=7",
            "error:EIO",
            "error:ENOSPC,commands=trim+write-zeroes,probability=0.001",
            "log",
            "log:requests.log",
        ] {
            let layer: Layer = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(layer.to_string(), text);
        }
        let same = |one: &str, other: &str| {
            assert_eq!(one.parse::<Layer>().unwrap(), other.parse().unwrap());
        };
        same("offset:1M,length=1k", "offset:offset=1048576,length=1024");
        same("overlay:a=b", "overlay:overlay=a=b");
        same("error:error=EIO", "error:EIO");
    }

    #[test]
    fn what_is_no_layer_is_refused_with_what_there_is() {
        for (text, says) in [
            ("", "'' is not a layer; there are read-only, offset"),
            ("readonly", "'readonly' is not a layer"),
            ("read-only:yes", "takes no value"),
            ("offset", "needs an offset"),
            ("offset:x", "'x' is not a size"),
            ("offset:1,size=2", "no key 'size'; there are offset, length"),
            ("offset:1,length=2,length=3", "length is given twice"),
            ("offset:1,2", "'2' is no KEY=VALUE"),
            ("partition", "needs a number"),
            ("partition:0", "from 1 on"),
            ("rate", "needs a bound"),
            ("rate:0", "rate: give a size of at least 1"),
            ("rate:burst=1s", "needs a bound"),
            ("rate:1,requests=0", "requests: give a number of at least 1, or leave it out"),
            ("rate:1,client=0", "client: give a size of at least 1"),
            ("rate:1,client-requests=0", "client-requests: give a number of at least 1"),
            ("rate:1,burst=0", "burst: give at least 1ms, or leave it out"),
            ("offset:0,length=0", "length: give a size of at least 1"),
            ("delay:0", "delay: give at least 1ms, or leave the layer out"),
            ("delay:0ms-0s", "give at least 1ms"),
            ("delay", "needs a time"),
            ("error", "needs an error, such as error:EIO"),
            ("error:commands=read", "needs an error"),
            ("delay:20ms-5ms", "begins after its end"),
            ("delay:1s,probability=2", "from 0 to 1"),
            ("delay:1s,commands=reed", "'reed' is not a command"),
            ("error:EGREGIOUS", "'EGREGIOUS' is not an error"),
            ("log:a,b=c", "no key 'b'"),
        ] {
            let error = text.parse::<Layer>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn no_text_whatever_is_in_it_panics_and_what_is_read_is_written_alike() {
        cases(2000, |random| {
            let parts = [
                "offset",
                "rate",
                "delay",
                "error",
                "overlay",
                "log",
                ":",
                ",",
                "=",
                "1M",
                "5ms-9ms",
                "0.5",
                "requests",
                "commands",
                "read+trim",
                "EPERM",
                "length",
                "seed",
                "é",
                "-",
                "",
            ];
            let text: String = (0..random.below(9)).map(|_| random.of(&parts)).collect();
            if let Ok(layer) = text.parse::<Layer>() {
                assert_eq!(layer.to_string().parse::<Layer>().as_ref(), Ok(&layer), "{text}");
                let json = serde_json::to_string(&layer).unwrap();
                assert_eq!(serde_json::from_str::<Layer>(&json).unwrap(), layer, "{json}");
            }
        });
    }

    /// A layer that is read does something: a value that is 0 is one that may be.
    #[test]
    fn a_zero_that_makes_a_layer_useless_is_refused_wherever_it_is() {
        cases(1000, |random| {
            let zero = random.of(&["0", "0x0", "0k", "00"]);
            let (name, keys) = random.of(&LAYERS);
            let own = match name {
                "offset" | "rate" => "1M",
                "delay" => "1ms",
                "error" => "EIO",
                "partition" => "1",
                _ => return,
            };
            let mut others: Vec<_> = keys.iter().map(|key| (*key, "1")).collect();
            others.retain(|(key, _)| !matches!(*key, "commands" | "probability"));
            let zeroed = random.below(others.len() as u64 + 1);
            let mut text = format!("{name}:{}", if zeroed == 0 { zero } else { own });
            for (index, (key, value)) in (1..).zip(&others) {
                let value = if index == zeroed { zero } else { value };
                text.push_str(&format!(",{key}={value}"));
            }
            let key = match zeroed {
                0 => name,
                index => others[usize::try_from(index).unwrap() - 1].0,
            };
            // A part begins at 0, and a seed is any number.
            let may_be = matches!(key, "offset" | "seed");
            match text.parse::<Layer>() {
                Ok(layer) => assert!(may_be, "{text} is {layer}"),
                Err(error) => assert!(error.starts_with(&format!("{key}: ")), "{text}: {error}"),
            }
        });
    }

    #[test]
    fn a_table_is_the_layer_whose_name_is_one_of_its_keys() {
        for (json, text) in [
            (r#"{"offset": "1M", "length": 4096}"#, "offset:1M,length=4k"),
            (r#"{"partition": 2}"#, "partition:2"),
            (r#"{"requests": 100}"#, "rate:requests=100"),
            (r#"{"overlay": true}"#, "overlay"),
            (r#"{"delay": "5ms", "probability": 0.5}"#, "delay:5ms,probability=0.5"),
        ] {
            let layer: Layer = serde_json::from_str(json).unwrap();
            assert_eq!(layer, text.parse().unwrap(), "{json}");
        }
        let path = r#"{"overlay":"a,b=c"}"#;
        let layer: Layer = serde_json::from_str(path).unwrap();
        assert_eq!(serde_json::to_string(&layer).unwrap(), path);
        for json in [r#"{"length": 1}"#, "{}", "7", r#"{"offset": "1M", "seed": 3}"#] {
            serde_json::from_str::<Layer>(json).unwrap_err();
        }
    }
}
