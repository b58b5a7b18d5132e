//! What packages ship is what the programs say of themselves.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

#[path = "../dist/generate.rs"]
#[expect(dead_code, reason = "its main is for `cargo run --example dist`")]
mod generate;

fn files(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(path).expect("text"))
        })
        .collect()
}

#[test]
fn man_pages_and_completions_are_those_of_the_command_lines() {
    let scratch = env::temp_dir().join(format!("ringway-dist-{}", std::process::id()));
    generate::write(&scratch).expect("a scratch directory");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist");
    let mut stale = Vec::new();
    for directory in ["man", "completions"] {
        let (made, mut kept) = (files(&scratch.join(directory)), files(&own.join(directory)));
        // Written by hand.
        kept.retain(|name, _| !name.ends_with(".5"));
        let names: Vec<_> = made.keys().chain(kept.keys()).cloned().collect();
        stale.extend(names.into_iter().filter(|name| made.get(name) != kept.get(name)));
    }
    let _ = fs::remove_dir_all(&scratch);
    stale.sort();
    stale.dedup();
    assert!(
        stale.is_empty(),
        "out of date: {stale:?}; run: cargo run --example dist"
    );
}
