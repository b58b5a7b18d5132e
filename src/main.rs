//! The `ringway` program: daemon and tools.

use std::process::ExitCode;

fn main() -> ExitCode {
    let run = |config, file: &_| {
        ringway::gateway::run(config, file, |facts| {
            tracing::info!(name = facts.name, port = facts.listen_port, mtu = facts.mtu, "up");
        })
    };
    ringway::cli::main(run, ringway::gateway::cleanup)
}
