//! Files with mistakes in them, which nobody chose by hand.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// A mistake of somebody who edits a file.
#[derive(Clone, Debug)]
enum Mistake {
    /// A line is not there.
    Delete,
    /// A line is there twice.
    Repeat,
    /// A letter of a key is another one.
    Misspell(Index, char),
    /// A key has another value.
    Value(&'static str),
    /// Something is put somewhere.
    Insert(Index, String),
    /// Something is missing from here on.
    Cut(Index),
}

fn mistake() -> impl Strategy<Value = Mistake> {
    let values = vec![
        "1",
        "-1",
        "0",
        "1.5",
        "true",
        "\"\"",
        "\"x\"",
        "[]",
        "[1]",
        "{}",
        "{ a = 1 }",
        "1979-05-27",
        "99999999999999999999",
        "\"\u{0}\"",
        "'''",
        "[[1], 'a']",
        "nan",
        "=",
    ];
    prop_oneof![
        Just(Mistake::Delete),
        Just(Mistake::Repeat),
        (any::<Index>(), "[a-z-]")
            .prop_map(|(at, letter)| Mistake::Misspell(at, letter.chars().next().unwrap_or('x'))),
        select(values).prop_map(Mistake::Value),
        (any::<Index>(), "(\\PC|[\n\r\0\"'\\[\\]{}=#.]){1,4}")
            .prop_map(|(at, text)| Mistake::Insert(at, text)),
        any::<Index>().prop_map(Mistake::Cut),
    ]
}

/// Keys of tables within values: of layers, words that keys take, and one that is nothing.
const KEYS: [&str; 7] = ["a", "offset", "overlay", "off", "tokio", "try", "rate"];

/// A value of any type of TOML, with others in it.
fn value() -> impl Strategy<Value = String> {
    let plain = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        (0..3i64).prop_map(|number| number.to_string()),
        any::<u128>().prop_map(|number| number.to_string()),
        (any::<f32>()).prop_map(|number| format!("{number:?}")),
        any::<bool>().prop_map(|flag| flag.to_string()),
        "\"[a-e0-9 ]{0,60}\"",
        Just("0xff".to_owned()),
        Just("1979-05-27".to_owned()),
        Just("07:32:00".to_owned()),
    ];
    plain.prop_recursive(3, 8, 3, |inner| {
        let key = select(&KEYS);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3)
                .prop_map(|items| format!("[{}]", items.join(", "))),
            Just("{}".to_owned()),
            (key, inner).prop_map(|(key, value)| format!("{{ {key} = {value} }}")),
        ]
    })
}

/// The text with the mistake in one of its lines.
fn make(text: &str, line: Index, mistake: &Mistake) -> String {
    let mut lines = Vec::from_iter(text.lines().map(String::from));
    if lines.is_empty() {
        return text.to_owned();
    }
    let index = line.index(lines.len());
    let line = lines[index].clone();
    let somewhere = |at: Index| {
        let places =
            Vec::from_iter(line.char_indices().map(|(place, _)| place).chain([line.len()]));
        places[at.index(places.len())]
    };
    match mistake {
        Mistake::Delete => drop(lines.remove(index)),
        Mistake::Repeat => lines.insert(index, line),
        Mistake::Misspell(at, letter) => {
            let Some((key, value)) = line.split_once(" = ") else { return text.to_owned() };
            let mut key = Vec::from_iter(key.chars());
            let changed = at.index(key.len());
            key[changed] = *letter;
            lines[index] = format!("{} = {value}", String::from_iter(key));
        }
        Mistake::Value(value) => {
            let Some((key, _)) = line.split_once(" = ") else { return text.to_owned() };
            lines[index] = format!("{key} = {value}");
        }
        Mistake::Insert(at, text) => lines[index].insert_str(somewhere(*at), text),
        Mistake::Cut(at) => {
            let cut = somewhere(*at);
            lines.truncate(index + 1);
            lines[index].truncate(cut);
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_text_that_nobody_meant_is_refused_at_a_place_in_it_or_is_another_configuration(
        mistakes in proptest::collection::vec((any::<Index>(), mistake()), 1..4),
    ) {
        let mut text = FULL.to_owned();
        for (line, mistake) in &mistakes {
            text = make(&text, *line, mistake);
        }
        let found = match read(&text) {
            Ok(config) => match check(&config) {
                Ok(()) => return Ok(()),
                Err(Failure::Config(faults)) => faults,
                Err(other) => panic!("{other:?}"),
            },
            Err(faults) => faults,
        };
        prop_assert!(!found.is_empty());
        for fault in found {
            let (line, column) = position(&fault.heading);
            let lines = Vec::from_iter(text.split('\n'));
            prop_assert!((1..=lines.len()).contains(&line), "{}", fault.heading);
            let length = lines[line - 1].chars().count();
            prop_assert!((1..=length + 1).contains(&column), "{}", fault.heading);
            prop_assert_eq!(fault.excerpt.len(), 3);
        }
    }

    #[test]
    fn a_misspelt_key_is_named_and_a_value_of_another_type_is_found(
        line in any::<Index>(),
        letter in any::<Index>(),
        replacement in "[a-z]",
    ) {
        let replacement = replacement.chars().next().unwrap();
        let text = make(FULL, line, &Mistake::Misspell(letter, replacement));
        if text != FULL.trim_end() && text != FULL {
            let number = text.lines().zip(FULL.lines()).position(|(a, b)| a != b).unwrap() + 1;
            let key = text.lines().nth(number - 1).unwrap().split(' ').next().unwrap().to_owned();
            let faults = faults(&text);
            let says = format!("{number}:1: unknown key '{key}'");
            prop_assert!(faults.iter().any(|fault| fault.starts_with(&says)), "{:?}", faults);
        }
        let text = make(FULL, line, &Mistake::Value("1979-05-27"));
        if text != FULL {
            let number = text.lines().zip(FULL.lines()).position(|(a, b)| a != b).unwrap() + 1;
            let faults = faults(&text);
            prop_assert_eq!(faults.len(), 1, "{:?}", &faults);
            prop_assert_eq!(position(&faults[0]).0, number, "{:?}", &faults);
        }
    }

    #[test]
    fn a_value_of_another_type_is_named_with_its_key_in_words_that_are_no_types_of_rust(
        line in any::<Index>(),
        value in value(),
    ) {
        let lines = FULL.lines().enumerate().filter(|(_, line)| line.contains(" = "));
        let lines = Vec::from_iter(lines);
        let (index, key) = lines[line.index(lines.len())];
        let key = key.split_once(" = ").unwrap().0;
        let mut text = Vec::from_iter(FULL.lines());
        let changed = format!("{key} = {value}");
        text[index] = &changed;
        let text = text.join("\n");
        let is_taken = read(&text).is_ok();
        for fault in faults(&text) {
            let (place, said) = fault.split_once(": ").unwrap();
            // What is wrong with a text in itself is said in words of its own.
            let (what, says) = said.split_once(" cannot be ").unwrap_or(("", said));
            // A value that its key takes may not go with what stands on another line.
            prop_assert!(is_taken || position(place).0 == index + 1, "{}", &fault);
            let of_a_layer = key == "layers" && KEYS.contains(&what);
            let names = ["", key].contains(&what) || what == format!("an item of {key}");
            prop_assert!(names || of_a_layer, "{}", &fault);
            for word in [
                "usize", "u64", "u32", "i64", "i128", "f64", "boolean", "integer", "floating point", "string", "sequence",
                "map", "variant", "wanted", "expected", "invalid type", "invalid value", "`",
            ] {
                // The value itself may have such a word.
                prop_assert!(!says.contains(word), "{}", &fault);
            }
            // A path of Rust goes on with a name, and a network such as fd00::/8 does not.
            let goes_on = |rest: &str| rest.starts_with(|c: char| c.is_alphabetic());
            prop_assert!(!says.split("::").skip(1).any(goes_on), "{}", &fault);
        }
    }

    #[test]
    fn no_text_at_all_makes_it_panic(text in "(\\PC|[\n\r\0\"'\\[\\]{}=#.]|server|export|listen|tls|true|=|\n){0,40}") {
        let _either = read(&text).map(|config| check(&config).is_ok());
    }
}
