//! The `ringway` program: daemon and tools.

use std::process::ExitCode;

use ringway::cli;

fn main() -> ExitCode {
    if let Some(answered) = ringway::gateway::answer_check("ringway") {
        return answered;
    }
    let run = |config, file: &_| ringway::gateway::run(config, file, cli::report_up);
    let resume = |number| ringway::gateway::resume(number, cli::report_up);
    cli::main(run, resume, ringway::gateway::cleanup)
}
