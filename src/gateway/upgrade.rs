//! Which program may go on with a tunnel: one that was asked before anything is given away, and that says it can.
//!
//! It is asked in a process of its own, with the very limits that it would have (the sandbox is inherited): that it starts
//! at all, passes its self-tests, reads the format of what is handed over, takes the configuration, and keeps the
//! capabilities. A program that is broken or too old is refused so, and nothing has happened.

use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::handover::check_config;
use crate::control::api::{ErrorCode, Request, Response};
use crate::control::server::{Asked, refusal};
use crate::crypto;

/// The layout of what is handed over. Another number for every change that an older or newer program would get wrong.
pub(super) const FORMAT: u32 = 1;
/// The one argument of a program that is asked whether it could go on.
const CHECK: &str = "--resume-check";

/// How long a program may take to answer: it does little more than its self-tests.
const CHECK_TIME_MAX: Duration = Duration::from_secs(20);

/// What a program says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// "ringway" or "ringway-wg".
    program: String,
    version: String,
    /// What it can read.
    formats: Vec<u32>,
    /// Its effective capabilities, a mask (capabilities(7)).
    capabilities: u64,
    /// Why it could not go on all the same.
    problem: Option<String>,
}

/// An upgrade that is about to happen.
pub(super) struct Granted {
    pub(super) program: PathBuf,
    pub(super) client: Option<OwnedFd>,
    pub(super) reply: oneshot::Sender<Response>,
}

/// Why a program does not go on with the tunnel.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{}: write an absolute path, the daemon does not know where you are", .0.display())]
    RelativePath(PathBuf),
    #[error("cannot tell which program this one is: {0}; name it with --binary")]
    Unknown(#[source] io::Error),
    #[error("{}: cannot be executed: {}; nothing was changed", .0.display(), .1)]
    NotExecuted(PathBuf, #[source] io::Error),
    #[error("{}: does not say whether it can go on with a tunnel ({}); nothing was changed", .0.display(), .1)]
    NoAnswer(PathBuf, String),
    #[error("{}: {}; nothing was changed", .0.display(), .1)]
    Unfit(PathBuf, String),
}

/// Looks at the program that `asked` wants to go on with the tunnel of the program `ours`; `None`, with a refusal on its
/// way, where that can't be. `config`: what runs.
pub(super) async fn examine(ours: &str, asked: Asked, config: Option<&Zeroizing<String>>) -> Option<Granted> {
    let Asked { request, reply, client } = asked;
    let Request::Upgrade { binary } = request else {
        // A client that hung up loses its own answer only.
        let _ = reply.send(refusal(ErrorCode::Internal, "this is no request for an upgrade".into()));
        return None;
    };
    match fit_program(ours, binary, config).await {
        Ok(program) => Some(Granted { program, client, reply }),
        Err(error) => {
            tracing::warn!("no upgrade: {error}");
            let code = match error {
                Refused::RelativePath(_) => ErrorCode::BadRequest,
                _ => ErrorCode::Failed,
            };
            let _ = reply.send(refusal(code, error.to_string()));
            None
        }
    }
}

async fn fit_program(
    ours: &str,
    binary: Option<PathBuf>,
    config: Option<&Zeroizing<String>>,
) -> Result<PathBuf, Refused> {
    let program = match binary {
        Some(path) if path.is_absolute() => path,
        Some(path) => return Err(Refused::RelativePath(path)),
        None => own_program().map_err(Refused::Unknown)?,
    };
    let answer = ask(&program, config).await?;
    let unfit = |why| Err(Refused::Unfit(program.clone(), why));
    let lacking = capabilities().unwrap_or(0) & !answer.capabilities;
    match answer {
        Answer { program, .. } if program != ours => unfit(format!("is {program}, and this tunnel is of {ours}")),
        Answer { formats, version, .. } if !formats.contains(&FORMAT) => unfit(format!(
            "version {version} does not read what version {} hands over; restart the tunnel instead",
            env!("CARGO_PKG_VERSION")
        )),
        Answer {
            problem: Some(problem), ..
        } => unfit(problem),
        _ if lacking != 0 => unfit(format!("it would lose capabilities (mask {lacking:x})")),
        _ => Ok(program),
    }
}

async fn ask(program: &Path, config: Option<&Zeroizing<String>>) -> Result<Answer, Refused> {
    let failed = |error| Refused::NotExecuted(program.to_owned(), error);
    let silent = |why: String| Refused::NoAnswer(program.to_owned(), why);
    let mut command = Command::new(program);
    command
        .arg(CHECK)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let exchange = async {
        if let Some(mut input) = child.stdin.take() {
            // A program that knows nothing of this may end before it has read anything.
            let _ = input.write_all(config.map_or(&[], |config| config.as_bytes())).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(CHECK_TIME_MAX, exchange).await {
        Ok(output) => output.map_err(failed)?,
        Err(_) => return Err(silent(format!("no answer within {CHECK_TIME_MAX:?}"))),
    };
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or_default();
        silent(format!("{}: {said}", output.status))
    })
}

/// Where this program was started from: what is there by now is another one, after an upgrade of a package.
fn own_program() -> io::Result<PathBuf> {
    let link = std::fs::read_link("/proc/self/exe")?;
    // As the kernel calls what has no name any more (proc_pid_exe(5)).
    let text = link.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or(link.clone(), PathBuf::from))
}

/// The program's answer to `PROGRAM --resume-check`, where that is what it was called with. Standard input has the
/// configuration that would be handed over, or nothing.
pub fn answer_check(program: &str) -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != CHECK || arguments.next().is_some() {
        return None;
    }
    let answer = Answer {
        program: program.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        formats: vec![FORMAT],
        capabilities: capabilities().unwrap_or(0),
        problem: problem(io::stdin()),
    };
    let written = serde_json::to_vec(&answer).map(|line| io::stdout().write_all(&line));
    Some(match written {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Why a tunnel with the configuration that is read from `input` could not go on in this program.
fn problem(mut input: impl io::Read) -> Option<String> {
    let mut text = Zeroizing::new(String::new());
    if let Err(error) = input.read_to_string(&mut text) {
        return Some(format!("cannot read the configuration: {error}"));
    }
    let mut choice = crypto::Choice::Auto;
    if !text.is_empty() {
        match check_config(&text) {
            Ok(config) => choice = config.interface.crypto,
            Err(error) => return Some(format!("does not take the configuration that runs: {error}")),
        }
    }
    crypto::self_test(choice).err().map(|error| error.to_string())
}

/// The effective capabilities of this process.
fn capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_this_program_does_not_take_is_a_problem() {
        assert_eq!(problem(io::empty()), None);
        let good = "[interface]\nname = \"rw0\"\nprivate_key = \"4Lq2ZZbmyVxKbGvzm1nxRBRgzZK3XdQbP0JUMwZbtWQ=\"\n";
        assert_eq!(problem(good.as_bytes()), None);
        let future = format!("{good}warp = true\n");
        assert!(problem(future.as_bytes()).is_some_and(|problem| problem.contains("warp")));
    }

    #[test]
    fn this_process_knows_its_program_and_its_capabilities() {
        assert!(own_program().is_ok_and(|path| path.is_file()));
        assert!(capabilities().is_some());
    }
}
