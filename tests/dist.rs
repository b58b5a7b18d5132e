//! What packages ship is what the programs say of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
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

/// A shell's standard output; `None`, with a printed line, where it is not installed. `arguments`: the program's file of
/// completions, and more.
fn say(shell: &[&str], script: &str, file: &str, arguments: &[&str]) -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("dist/completions")
        .join(file);
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).args(["-c", script]).arg(path).args(arguments);
    let Ok(output) = command.env("LC_ALL", "C").stdin(Stdio::null()).output() else {
        println!("skipped: {} is not installed", shell[0]);
        return None;
    };
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success() && err.is_empty(), "{shell:?}: {err}{out}");
    Some(out)
}

/// The subcommands of `command` whose names begin with `begin`.
fn subcommands(command: &clap::Command, begin: &str) -> BTreeSet<String> {
    let mut command = command.clone();
    // Which adds "help".
    command.build();
    let names = command.get_subcommands().map(|command| command.get_name().to_owned());
    names.filter(|name| name.starts_with(begin)).collect()
}

#[test]
fn shells_offer_the_subcommands_in_place_of_the_last_word() {
    // As bash does, which knows the function by its registration.
    let bash = "source \"$0\" && COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1)) && way=$(complete -p \"$1\") && way=${way##*-F } \
                && \"${way%% *}\" \"$1\" \"${COMP_WORDS[-1]}\" \"${COMP_WORDS[-2]}\" && printf '%s\\n' \"${COMPREPLY[@]}\"";
    let fish = "source $argv[1]; complete -C \"$argv[2..-1]\"";
    let ringway = ringway::cli::command();
    let peer = ringway.find_subcommand("peer").expect("there is one");
    for (shell, script, file) in [
        (&["bash", "--norc", "--noprofile"][..], bash, "ringway.bash"),
        (&["fish", "--no-config"], fish, "ringway.fish"),
    ] {
        for (words, expected) in [
            (&["ringway", ""][..], subcommands(&ringway, "")),
            (&["ringway", "pe"], ["peer".to_owned()].into()),
            (&["ringway", "peer", ""], subcommands(peer, "")),
            (&["ringway", "peer", "re"], ["remove".to_owned()].into()),
        ] {
            let Some(said) = say(shell, script, file, words) else {
                break;
            };
            // Options are offered too; fish has descriptions behind a tab.
            let offers = said.lines().filter_map(|line| line.split('\t').next());
            let offers = offers.filter(|offer| !offer.starts_with('-')).map(str::to_owned);
            assert_eq!(offers.collect::<BTreeSet<_>>(), expected, "{shell:?} {words:?}");
        }
    }
}

#[test]
fn zsh_completes_a_subcommand_that_begins_like_no_other() {
    // Completion is the line editor's, which wants a terminal. The command that was typed tells what it was given.
    let script = "zmodload zsh/zpty && zpty shell zsh -f -i
        zpty -w shell \"TMOUT=60; fpath=(${(q)0:h} \\$fpath); autoload -Uz compinit; compinit -D -u; $1() { print -r -- \\\"<\\$*>\\\" }\"
        zpty -w shell \"$*\"$'\\t'
        zpty -w shell exit
        while zpty -r shell text; do print -rn -- $text; done
        true";
    for (words, expected) in [
        (&["ringway", "pe"][..], "<peer>"),
        (&["ringway", "peer", "re"], "<peer remove>"),
        (&["ringway-wg", "--sui"], "<--suite>"),
    ] {
        let Some(said) = say(&["zsh", "-f"], script, "_ringway", words) else {
            return;
        };
        assert!(said.contains(expected), "{words:?}: {said}");
    }
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
