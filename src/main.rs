//! The `ringway` program: daemon and tools.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringway::cli::main(|config| {
        ringway::gateway::run(config, |facts| {
            tracing::info!(name = facts.name, port = facts.listen_port, mtu = facts.mtu, "up");
        })
    })
}
