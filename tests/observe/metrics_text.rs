//! The rules of the Prometheus text format and of OpenMetrics, as far as metrics of ringway's can break them.

use std::collections::{BTreeMap, BTreeSet};

/// What was read.
pub(crate) struct Metrics {
    /// Samples that may only grow, by their whole series: name and labels.
    pub(crate) counters: BTreeMap<String, f64>,
}

/// Reads `text`, and panics where it breaks a rule: every family has its help and type once and before its samples, samples
/// of a family stand together, no series comes twice, names and labels are well-formed, counters end in _total, buckets
/// are cumulative and end with +Inf, which is the count; OpenMetrics ends with # EOF.
pub(crate) fn check(text: &str, is_open: bool) -> Metrics {
    assert!(text.ends_with('\n'), "the last line ends with a line feed");
    assert_eq!(text.ends_with("# EOF\n"), is_open);
    let (mut types, mut helped, mut closed) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let (mut series, mut counters) = (BTreeMap::new(), BTreeMap::new());
    let mut current = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "EOF"] => {}
            ["#", "HELP", name, help] => {
                assert!(helped.insert(name.to_owned()), "help twice: {line}");
                assert!(!help.is_empty());
                closed.insert(std::mem::replace(&mut current, name.to_owned()));
                assert!(!closed.contains(name), "its samples stand apart: {line}");
            }
            ["#", "TYPE", name, kind] => {
                assert_eq!(name, current, "the type belongs to the help before it");
                assert!(
                    types.insert(name.to_owned(), kind.to_owned()).is_none(),
                    "type twice: {line}"
                );
            }
            _ => {
                let (name, labels, value) = sample(line);
                let kind = types[&current].as_str();
                let suffix = name
                    .strip_prefix(current.as_str())
                    .unwrap_or_else(|| panic!("of another family: {line}"));
                let allowed: &[&str] = match (kind, is_open) {
                    ("counter", true) => &["_total"],
                    ("histogram", _) => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(allowed.contains(&suffix), "{kind} with {suffix:?}: {line}");
                assert!(kind != "counter" || name.ends_with("_total"), "{line}");
                let whole = line.rsplit_once(' ').expect("a value").0.to_owned();
                if kind == "counter" || suffix == "_bucket" || suffix == "_count" {
                    assert!(value >= 0.0, "{line}");
                    counters.insert(whole.clone(), value);
                }
                assert!(series.insert(whole, (name, labels, value)).is_none(), "twice: {line}");
            }
        }
    }
    assert!(types.len() > 10, "there are many families: {types:?}");
    check_buckets(&series);
    Metrics { counters }
}

type Labels = Vec<(String, String)>;

/// Per histogram: counts never fall with the bound, and the last is the count.
fn check_buckets(series: &BTreeMap<String, (String, Labels, f64)>) {
    let mut histograms: BTreeMap<(String, Labels), Vec<(f64, f64)>> = BTreeMap::new();
    for (name, labels, value) in series.values() {
        let Some(family) = name.strip_suffix("_bucket") else {
            continue;
        };
        let (bound, others): (Labels, Labels) = labels.iter().cloned().partition(|(name, _)| name == "le");
        let bound: f64 = bound[0].1.parse().expect("a bound is a number");
        histograms
            .entry((family.to_owned(), others))
            .or_default()
            .push((bound, *value));
    }
    assert!(!histograms.is_empty());
    for ((family, labels), mut buckets) in histograms {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(
            buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
            "{family} {labels:?}: {buckets:?}"
        );
        let last = buckets.last().expect("not empty");
        assert_eq!(last.0, f64::INFINITY);
        let count = series
            .values()
            .find(|(name, others, _)| *name == format!("{family}_count") && *others == labels);
        assert_eq!(count.map(|(_, _, count)| *count), Some(last.1), "{family} {labels:?}");
    }
}

/// Name, labels and value of a line.
fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, behind) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            assert!(is_name(label) && !label.contains(':'), "{line}");
            let (value, behind) = quoted(behind).unwrap_or_else(|| panic!("no end of the label: {line}"));
            labels.push((label.to_owned(), value));
            rest = behind.strip_prefix(',').unwrap_or(behind);
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no value: {line}"));
    (
        name.to_owned(),
        labels,
        value.parse().unwrap_or_else(|_| panic!("no number: {line}")),
    )
}

/// The text up to the closing quote, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                c @ ('\\' | '"') => out.push(c),
                _ => return None,
            },
            c => out.push(c),
        }
    }
    None
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}
