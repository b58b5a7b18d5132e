//! What packages ship is what the programs say of themselves.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
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
        let (made, kept) = (files(&scratch.join(directory)), files(&own.join(directory)));
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

#[test]
fn the_debian_package_finds_what_it_takes_and_the_unit_what_it_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("text");
    let manifest: toml::Table = manifest.parse().expect("TOML");
    let deb = &manifest["package"]["metadata"]["deb"];
    let assets = deb["assets"].as_array().expect("a list").iter();
    let assets: Vec<[&str; 2]> = assets
        .map(|asset| [0, 1].map(|at| asset[at].as_str().expect("text")))
        .collect();
    let programs: Vec<&str> = assets
        .iter()
        .filter_map(|[from, _]| from.strip_prefix("target/release/"))
        .collect();
    assert_eq!(programs, ["ringway", "ringway-wg"]);
    for [from, _] in assets.iter().filter(|[from, _]| !from.starts_with("target/")) {
        let path = root.join(from);
        let (folder, name) = (path.parent().expect("a file"), path.file_name().expect("a file"));
        let there = match name.to_string_lossy().strip_prefix('*') {
            Some(end) => files(folder).keys().any(|name| name.ends_with(end)),
            None => path.is_file(),
        };
        assert!(there, "{from}");
    }
    // Templates keep their name, or nobody finds them.
    assert!(assets.contains(&["dist/systemd/ringway@.service", "usr/lib/systemd/system/"]));
    let unit = fs::read_to_string(root.join("dist/systemd/ringway@.service")).expect("text");
    assert!(unit.contains("\nExecStart=/usr/bin/ringway run /etc/ringway/%i.toml\n"));
    let scripts = root.join(deb["maintainer-scripts"].as_str().expect("a folder"));
    for script in ["postinst", "prerm", "postrm"] {
        let checked = Command::new("sh").arg("-n").arg(scripts.join(script)).status();
        assert!(checked.expect("every system has sh").success(), "{script}");
    }
}
