//! The `ringway` program: daemon and tools.

use std::process::ExitCode;

use ringway::cli;

fn main() -> ExitCode {
    let check = || ringway::gateway::answer_check("ringway", |words| cli::understands(words).map(|()| None));
    if let Some(done) = ringway::gateway::keep_guard(cli::begin_guards_log).or_else(check) {
        return done;
    }
    let run = |config, file: &_| ringway::gateway::run(config, file, cli::report_up);
    let resume = |number| ringway::gateway::resume(number, cli::report_up);
    cli::main(run, resume, ringway::gateway::cleanup)
}
