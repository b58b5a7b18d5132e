//! The `ringway` program: daemon and tools.

use std::process::ExitCode;

use ringway::control::Facts;

fn main() -> ExitCode {
    let check = || ringway::gateway::answer_check("ringway", |words| ringway::cli::understands(words).map(|()| None));
    if let Some(done) = ringway::gateway::keep_guard().or_else(check) {
        return done;
    }
    let up = |facts: &Facts| tracing::info!(name = facts.name, port = facts.listen_port, mtu = facts.mtu, "up");
    let run = |config, file: &_| ringway::gateway::run(config, file, up);
    let resume = |number| ringway::gateway::resume(number, up);
    ringway::cli::main(run, resume, ringway::gateway::cleanup)
}
