//! Writes what packages ship beside the programs: man pages and shell completions, from the command lines and, for the
//! configuration file, from the tables of its keys in README.md.
//!
//! `cargo run --example dist` writes dist/man and dist/completions, which are part of the repository;
//! `cargo run --example dist -- DIR` writes them elsewhere. tests/dist.rs compares the two.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, Parser};
use clap_complete::Shell;

/// Where to write to
#[derive(Parser)]
struct Arguments {
    /// A directory; man/ and completions/ are made in it
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/dist"))]
    directory: PathBuf,
}

fn main() -> io::Result<()> {
    write(&Arguments::parse().directory)
}

/// Writes everything into `directory`.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    let commands = [ringway::cli::command(), ringway::cli::wireguard::command()];
    for command in commands {
        man_pages(&command, &directory.join("man"))?;
        completions(command, &directory.join("completions"))?;
    }
    fs::write(
        directory.join("man/ringway.toml.5"),
        configuration_page(include_str!("../README.md")),
    )
}

/// ringway.toml(5): every table of `readme` whose head is a section's name becomes a section of the page.
fn configuration_page(readme: &str) -> String {
    let mut page = format!(
        ".TH ringway.toml 5 \"\" \"ringway {}\"\n\
         .SH NAME\nringway.toml \\- configuration of a ringway tunnel\n\
         .SH DESCRIPTION\n\
         One file describes one interface and its peers, in TOML. \\fBringway check\\fR tells everything that is wrong with \
         it, and \\fBringway convert\\fR makes one of a wg\\-quick(8) file, which \\fBringway run\\fR takes too. \
         Relative paths are relative to the file. Secrets belong in files that only their owner can read.\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut in_section = false;
    for line in readme.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", head, _, last, ""] if head.starts_with("`[") => {
                in_section = true;
                let default = if last == "default" { "" } else { last };
                page.push_str(&format!(".SH {} {default}\n", roff(head)));
            }
            ["", rule, _, _, ""] if in_section && rule.starts_with("---") => {}
            ["", keys, meaning, default, ""] if in_section => {
                page.push_str(&format!(".TP\n{}\n{}\n", roff(keys), roff(meaning)));
                if !default.is_empty() {
                    page.push_str(&format!(".br\nDefault: {}\n", roff(default)));
                }
            }
            _ => in_section = false,
        }
    }
    page + ".SH FILES\n\
            .TP\n\\fI/etc/ringway/NAME.toml\\fR\nWhat \\fBringway@NAME.service\\fR runs.\n\
            .TP\n\\fI/run/ringway/NAME.sock\\fR\nThe control socket of the interface NAME.\n\
            .TP\n\\fI/var/lib/ringway/NAME.state\\fR\nTimestamps of handshakes, which keep old ones from being replayed.\n\
            .SH SEE ALSO\nringway(1), ringway\\-wg(1), wg(8), wg\\-quick(8)\n"
}

/// Markdown's code spans in bold, and nothing that roff takes for its own.
fn roff(markdown: &str) -> String {
    let mut text = String::new();
    for (number, part) in markdown.split('`').enumerate() {
        let part = part.replace('\\', "\\e").replace('-', "\\-");
        if number % 2 == 1 {
            text.push_str(&format!("\\fB{part}\\fR"));
        } else {
            text.push_str(&part);
        }
    }
    text
}

/// One page per program, and one per subcommand.
fn man_pages(command: &Command, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command.clone(), directory)
}

fn completions(mut command: Command, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, &name, directory)?;
    }
    Ok(())
}
