//! A strict reader of Prometheus' text format, version 0.0.4, and the rules that `promtool check metrics` has.
//!
//! Written from the format's description, not shared with what writes metrics here.

use std::collections::{BTreeMap, BTreeSet};

/// Labels with their values, in the order of their names.
pub type Labels = BTreeMap<String, String>;

/// A metric with its samples.
#[derive(Clone, Debug, Default)]
pub struct Metric {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// What it means.
    pub help: String,
    /// Its samples by their name (that of the metric, or with `_bucket`, `_sum` or `_count`) and their labels.
    pub samples: BTreeMap<(String, Labels), f64>,
}

impl Metric {
    /// The sum of the samples whose name has that ending, and whose labels include these.
    pub fn sum(&self, ending: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |found: &Labels| {
            labels.iter().all(|(name, value)| found.get(*name).is_some_and(|it| it == value))
        };
        let samples = self.samples.iter();
        samples
            .filter(|((name, found), _)| name.ends_with(ending) && fits(found))
            .map(|(_, value)| value)
            .sum()
    }
}

/// Reads a text.
///
/// # Panics
/// When it breaks a rule of the format or of naming, with the line.
#[track_caller]
pub fn parse(text: &str) -> BTreeMap<String, Metric> {
    assert!(text.is_empty() || text.ends_with('\n'), "the last line ends with a line feed");
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        assert!(!line.contains('\r') && line.trim() == line, "stray space: {line:?}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            assert!(!metrics.contains_key(name), "{name} is described twice, or in two parts");
            name.clone_into(&mut current);
            metrics.entry(current.clone()).or_default().help = help.into();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
            assert_eq!(name, current, "the type follows the help: {line}");
            let metric = metrics.get_mut(name).expect("it was just added");
            assert!(metric.kind.is_empty() && metric.samples.is_empty(), "too late: {line}");
            kind.clone_into(&mut metric.kind);
        } else {
            let (name, labels, value) = sample(line);
            let metric = metrics.get_mut(&current).unwrap_or_else(|| panic!("no type: {line}"));
            let ending = name.strip_prefix(current.as_str());
            let allowed = match metric.kind.as_str() {
                "histogram" => ["_bucket", "_sum", "_count"].map(Some).contains(&ending),
                _ => ending == Some(""),
            };
            assert!(allowed, "{line} is not a sample of {current}");
            let earlier = metric.samples.insert((name, labels), value);
            assert!(earlier.is_none(), "{line} is there twice");
        }
    }
    metrics.iter().for_each(|(name, metric)| check(name, metric));
    metrics
}

fn is_name(name: &str, colon: bool) -> bool {
    let mut chars = name.chars();
    let starts = |c: char| c.is_ascii_alphabetic() || c == '_' || colon && c == ':';
    chars.next().is_some_and(starts) && chars.all(|c| starts(c) || c.is_ascii_digit())
}

#[track_caller]
fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name, true), "{name:?} is no name: {line}");
    let mut labels = Labels::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            let (label, after) = inside.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(label, false) && !label.starts_with("__"), "{label:?}: {line}");
            let (value, after) = quoted(after).unwrap_or_else(|| panic!("quotes: {line}"));
            assert!(labels.insert(label.into(), value).is_none(), "{label} is there twice: {line}");
            match after.strip_prefix(',') {
                Some(next) => inside = next,
                None => {
                    rest = after.strip_prefix('}').unwrap_or_else(|| panic!("no brace: {line}"));
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no space: {line}"));
    let value = match value {
        "+Inf" => f64::INFINITY,
        _ => value.parse().unwrap_or_else(|_| panic!("{value:?} is no number: {line}")),
    };
    (name.into(), labels, value)
}

/// A label's value, and what follows its closing quotes.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}

#[track_caller]
fn check(name: &str, metric: &Metric) {
    assert!(is_name(name, false) && name == name.to_lowercase(), "{name}");
    assert!(!metric.help.is_empty() && metric.help.ends_with('.'), "{name}: {:?}", metric.help);
    let units = ["_milliseconds", "_ms", "_kilobytes", "_kb", "_minutes"];
    assert!(!units.iter().any(|unit| name.contains(unit)), "{name} is not in a base unit");
    let reserved = ["_bucket", "_sum", "_count"];
    assert!(
        !reserved.iter().any(|ending| name.ends_with(ending)),
        "{name} ends like a histogram's"
    );
    match metric.kind.as_str() {
        "counter" => {
            assert!(name.ends_with("_total"), "the counter {name} does not end with _total");
            let values = metric.samples.values();
            assert!(values.clone().all(|value| *value >= 0.0), "{name} is below 0");
        }
        "gauge" => assert!(!name.ends_with("_total"), "the gauge {name} ends with _total"),
        "histogram" => {
            assert!(!name.ends_with("_total"), "{name}");
            check_histogram(name, metric);
        }
        other => panic!("{name} is of type {other:?}"),
    }
    let labels: BTreeSet<Vec<&String>> = metric
        .samples
        .keys()
        .map(|(_, labels)| labels.keys().filter(|it| *it != "le").collect())
        .collect();
    assert!(labels.len() <= 1, "{name} has samples of different labels: {labels:?}");
}

#[track_caller]
fn check_histogram(name: &str, metric: &Metric) {
    let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for ((sample, labels), value) in &metric.samples {
        let mut labels = labels.clone();
        if let Some(bound) = labels.remove("le") {
            assert!(sample.ends_with("_bucket"), "{sample} has a bound");
            let bound =
                if bound == "+Inf" { f64::INFINITY } else { bound.parse().expect("a bound") };
            series.entry(labels).or_default().push((bound, *value));
        } else {
            assert!(!sample.ends_with("_bucket"), "{sample} has no bound");
        }
    }
    for (labels, mut buckets) in series {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name}{labels:?} shrinks");
        let (bound, all) = *buckets.last().expect("there is one");
        assert!(bound.is_infinite(), "{name}{labels:?} has no bucket for all");
        let of = |ending: &str| metric.samples.get(&(format!("{name}{ending}"), labels.clone()));
        assert_eq!(of("_count"), Some(&all), "{name}{labels:?}: the count is that of all buckets");
        assert!(of("_sum").is_some_and(|sum| *sum >= 0.0), "{name}{labels:?} has a sum");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_total A thing.\n# TYPE a_total counter\na_total{x=\"a\\\\b\\n\\\"\"} 1\n\
        # HELP b_seconds Another.\n# TYPE b_seconds histogram\nb_seconds_bucket{le=\"1\"} 1\n\
        b_seconds_bucket{le=\"+Inf\"} 2\nb_seconds_sum 1.5\nb_seconds_count 2\n";

    #[test]
    fn a_good_text_is_read() {
        let metrics = parse(GOOD);
        assert_eq!(metrics.len(), 2);
        assert_eq!(metrics["a_total"].sum("", &[("x", "a\\b\n\"")]), 1.0);
        assert_eq!(metrics["b_seconds"].sum("_count", &[]), 2.0);
    }

    #[test]
    fn each_rule_is_noticed() {
        for (from, to) in [
            ("a_total", "a"),
            ("# TYPE a_total counter\n", ""),
            ("# HELP b", "# HELP a_total A.\n# HELP b"),
            ("} 1\n#", "} 1\na_total{x=\"a\\\\b\\n\\\"\"} 2\n#"),
            ("} 1\n#", "} one\n#"),
            ("\\\\b", "\\b"),
            ("le=\"1\"} 1", "le=\"1\"} 3"),
            ("seconds_count 2", "seconds_count 3"),
            ("b_seconds_sum 1.5\n", ""),
            ("{le=\"+Inf\"}", "{le=\"2\"}"),
            ("counter", "gauge"),
            ("A thing.", "A thing"),
            ("count 2\n", "count 2"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let bad = GOOD.replace(from, to);
            std::panic::catch_unwind(|| parse(&bad)).expect_err(to);
        }
    }
}
