//! The `ringway-wg` program: a WireGuard interface that `wg` and `wg-quick` configure.

use std::process::ExitCode;

fn main() -> ExitCode {
    let check = || {
        let parse = |words| ringway::cli::wireguard::options_of(words).map(Some);
        ringway::gateway::answer_check("ringway-wg", parse)
    };
    if let Some(done) = ringway::gateway::keep_guard(ringway::cli::wireguard::begin_guards_log).or_else(check) {
        return done;
    }
    ringway::cli::wireguard::main(ringway::gateway::run_wireguard)
}
