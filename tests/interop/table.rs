//! docs/INTEROP.md must say what is here.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::peers::{self, version};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/INTEROP.md");

/// Tests about other implementations; the others are not for this document.
const MODULES: [(&str, &str); 3] = [
    ("wireguard-go", "wireguard_go"),
    ("boringtun", "boringtun"),
    ("gotatun", "gotatun"),
];

#[test]
fn the_document_names_every_test_and_no_other() {
    let document = fs::read_to_string(DOCUMENT).expect("it is part of the repository");
    let rows: Vec<Vec<&str>> = document.lines().filter_map(cells).collect();
    let heads = rows.iter().find(|row| row.len() == 2 + MODULES.len());
    let heads = &heads.expect("a column for each implementation")[2..];
    let mut named = BTreeSet::new();
    for row in &rows {
        let test = row[0].strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
        let Some(test) = test else { continue };
        match row.len() {
            2 => named.extend([test.to_owned()]),
            _ => named.extend(MODULES.map(|(_, module)| format!("{module}::{test}"))),
        }
    }
    let tests = Command::new(std::env::current_exe().expect("it runs"))
        .arg("--list")
        .output();
    let tests = String::from_utf8(tests.expect("it lists its tests").stdout).expect("text");
    let tests = tests.lines().filter_map(|line| line.strip_suffix(": test"));
    let tests: BTreeSet<&str> = tests.filter(|test| !test.starts_with("table::")).collect();
    assert_eq!(named.iter().map(String::as_str).collect::<BTreeSet<_>>(), tests);

    for (head, (implementation, (name, _))) in heads.iter().zip(peers::ALL.iter().zip(MODULES)) {
        assert_eq!(implementation.name, name);
        assert!(head.contains(name), "the column of {name} is headed {head:?}");
        // Another machine's version is no mistake in the document.
        if let Some(program) = implementation
            .find()
            .filter(|program| !head.contains(&version(program)))
        {
            println!("docs/INTEROP.md has no results of {name} {}", version(&program));
        }
    }
}

/// The cells of a table's row.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inside = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inside.split('|').map(str::trim).collect())
}
