//! The `ringway-wg` program: a WireGuard interface that `wg` and `wg-quick` configure.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringway::cli::wireguard::main(ringway::gateway::run_wireguard)
}
