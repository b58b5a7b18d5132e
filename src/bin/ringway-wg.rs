//! The `ringway-wg` program: a WireGuard interface that `wg` and `wg-quick` configure.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(answered) = ringway::gateway::answer_check("ringway-wg") {
        return answered;
    }
    ringway::cli::wireguard::main(ringway::gateway::run_wireguard)
}
