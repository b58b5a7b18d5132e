//! Writes what packages ship of the command lines: man pages and shell completions.
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
    Ok(())
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
