//! The `ringway` program: daemon and tools.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringway::cli::main(|_config| Err(std::io::Error::from(std::io::ErrorKind::Unsupported)))
}
