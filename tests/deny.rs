//! The rules of deny.toml that need no network, for machines without `cargo deny`: licences, banned crates, sources.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

#[test]
fn every_dependency_has_an_allowed_licence() {
    let allowed = strings(&rules()["licenses"]["allow"]);
    let refused: Vec<String> = dependencies()
        .iter()
        .filter(|package| {
            !package["license"]
                .as_str()
                .is_some_and(|expression| permits(expression, &allowed))
        })
        .map(|package| format!("{}: {}", package["name"], package["license"]))
        .collect();
    assert!(
        refused.is_empty(),
        "not covered by deny.toml's licenses.allow:\n{}",
        refused.join("\n")
    );
}

#[test]
fn no_banned_crate_is_a_dependency() {
    let rules = rules();
    let banned: BTreeSet<&str> = rules["bans"]["deny"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ban| ban["crate"].as_str().unwrap())
        .collect();
    assert!(!banned.is_empty());
    let found: Vec<String> = dependencies()
        .iter()
        .filter(|package| banned.contains(package["name"].as_str().unwrap()))
        .map(|package| package["id"].to_string())
        .collect();
    assert!(found.is_empty(), "banned in deny.toml: {}", found.join(", "));
}

#[test]
fn every_dependency_comes_from_the_registry() {
    assert_eq!(rules()["sources"]["unknown-git"].as_str(), Some("deny"));
    let strangers: Vec<String> = dependencies()
        .iter()
        .filter(|package| {
            !package["source"]
                .as_str()
                .is_some_and(|source| source.starts_with("registry+"))
        })
        .map(|package| package["id"].to_string())
        .collect();
    assert!(
        strangers.is_empty(),
        "neither ours nor from the registry: {}",
        strangers.join(", ")
    );
}

#[test]
fn licence_expressions_are_read_as_spdx_defines_them() {
    let allowed: BTreeSet<String> = ["MIT", "ISC"].map(String::from).into();
    for yes in [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-3.0/MIT",
        "ISC AND (MIT OR GPL-3.0)",
        "GPL-3.0 AND Zlib OR MIT",
    ] {
        assert!(permits(yes, &allowed), "{yes}");
    }
    for no in [
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT OR ISC) AND GPL-3.0",
        "GPL-3.0 OR ISC AND Zlib",
        "MIT WITH x",
        "MIT OR",
    ] {
        assert!(!permits(no, &allowed), "{no}");
    }
}

fn rules() -> toml::Table {
    include_str!("../deny.toml").parse().unwrap()
}

fn strings(array: &toml::Value) -> BTreeSet<String> {
    array
        .as_array()
        .unwrap()
        .iter()
        .map(|value| value.as_str().unwrap().to_owned())
        .collect()
}

/// All packages that this platform's builds, tests and benches use, ours left out.
fn dependencies() -> Vec<Value> {
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(rustc.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--offline",
            "--locked",
            "--format-version=1",
            "--filter-platform",
            host,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        metadata.status.success(),
        "{}",
        String::from_utf8_lossy(&metadata.stderr)
    );
    let mut metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let Value::Array(mut packages) = metadata["packages"].take() else {
        panic!("cargo metadata without packages")
    };
    packages.retain(|package| !package["source"].is_null());
    assert!(packages.len() > 20);
    packages
}

/// Whether an SPDX licence expression (annex D of the SPDX specification 2.3) can be met with the `allowed` licences.
/// A slash is an old way to write OR; a licence WITH an exception counts as its own licence.
fn permits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    any_of(&mut words, allowed).is_some_and(|met| met && words.next().is_none())
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// `None`: not an expression.
fn any_of(words: &mut Words, allowed: &BTreeSet<String>) -> Option<bool> {
    let mut met = all_of(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        met |= all_of(words, allowed)?;
    }
    Some(met)
}

fn all_of(words: &mut Words, allowed: &BTreeSet<String>) -> Option<bool> {
    let mut met = term(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        met &= term(words, allowed)?;
    }
    Some(met)
}

fn term(words: &mut Words, allowed: &BTreeSet<String>) -> Option<bool> {
    match words.next()? {
        "(" => {
            let met = any_of(words, allowed)?;
            (words.next()? == ")").then_some(met)
        }
        ")" | "AND" | "OR" | "WITH" => None,
        name if words.next_if_eq(&"WITH").is_some() => {
            Some(allowed.contains(&format!("{name} WITH {}", words.next()?)))
        }
        name => Some(allowed.contains(name)),
    }
}
