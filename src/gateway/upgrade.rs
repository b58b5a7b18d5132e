//! Which program may go on with a tunnel: one that was asked before anything is given away, and that says it can.
//!
//! It is asked in a process of its own, with the very limits that it would have (the sandbox is inherited), and with what it
//! would get at this moment, but for keys of sessions: that it starts at all, takes the command line, passes its
//! self-tests, reads what is handed over, takes the configuration, makes the peers with their sessions from it, and keeps the
//! capabilities. A program that is broken or too old is refused so, and nothing has happened. The tunnel is served meanwhile.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::handover::{HandoverError, own_arguments, read_rehearsal};
use super::{parts, wireguard};
use crate::config::WireGuard;
use crate::control::api::{ErrorCode, Request, Response};
use crate::control::server::{Asked, refusal};
use crate::sys::poll;

/// The layout of what is handed over. Another number for every change that an older or newer program would get wrong.
pub(super) const FORMAT: u32 = 2;
/// The first argument of a program that is asked whether it could go on; those of the daemon follow.
const CHECK: &str = "--resume-check";

/// How long a program may take to answer: it does little more than its self-tests.
const CHECK_TIME_MAX: Duration = Duration::from_secs(20);
/// How long all programs together may take that are asked because of one request: whoever makes it waits for a minute, in which the
/// tunnel is also to leave and to come up again.
const EXAMINATIONS_TIME_MAX: Duration = Duration::from_secs(40);
/// Bytes that a program may say, and complain: an answer is a line.
const SAID_LEN_MAX: usize = 64 << 10;
/// Between two looks whether whoever asks is still there.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Why nobody wants an upgrade any more.
pub(super) const HUNG_UP: &str = "whoever asked for it has hung up";

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

impl Granted {
    /// It does not happen after all.
    pub(super) fn refuse(self, why: &str) {
        tracing::error!("no upgrade: {why}");
        // A client that hung up loses its own answer only.
        let _ = self.reply.send(refusal(ErrorCode::Failed, why.into()));
    }

    /// Nobody waits for it any more.
    pub(super) fn is_forsaken(&self) -> bool {
        is_forsaken(self.client.as_ref())
    }

    /// As it was asked for, to be looked at again.
    pub(super) fn ask_again(self) -> Asked {
        Asked {
            request: Request::Upgrade {
                binary: Some(self.program),
            },
            reply: self.reply,
            client: self.client,
        }
    }
}

/// Why a program does not go on with the tunnel.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{}: write an absolute path, the daemon does not know where you are", .0.display())]
    RelativePath(PathBuf),
    #[error("cannot tell which program this one is: {0}; name it with --binary")]
    Unknown(#[source] io::Error),
    #[error("cannot write down what would be handed over: {0}; nothing was changed")]
    NoRehearsal(#[source] io::Error),
    #[error("{}: cannot be executed: {}; nothing was changed", .0.display(), .1)]
    NotExecuted(PathBuf, #[source] io::Error),
    #[error("{}: does not say whether it can go on with a tunnel ({}); nothing was changed", .0.display(), .1)]
    NoAnswer(PathBuf, String),
    #[error("{}: {}; nothing was changed", .0.display(), .1)]
    Unfit(PathBuf, String),
    #[error("{HUNG_UP}; nothing was changed")]
    HungUp,
}

/// When all programs have to have answered that are asked because of a request that has just come.
pub(super) fn deadline() -> Instant {
    Instant::now() + EXAMINATIONS_TIME_MAX
}

/// Looks at the program that `asked` wants to go on with the tunnel of the program `ours`; `None`, with a refusal on its
/// way, where that can't be by the `deadline` or nobody wants it any more. `rehearsal`: what it would get.
pub(super) async fn examine(
    ours: &str,
    asked: Asked,
    rehearsal: impl Future<Output = io::Result<OwnedFd>>,
    deadline: Instant,
) -> Option<Granted> {
    let Asked { request, reply, client } = asked;
    let Request::Upgrade { binary } = request else {
        // A client that hung up loses its own answer only.
        let _ = reply.send(refusal(ErrorCode::Internal, "this is no request for an upgrade".into()));
        return None;
    };
    let examined = tokio::select! {
        result = fit_program(ours, binary, rehearsal, deadline) => result,
        () = forsaken(client.as_ref()) => Err(Refused::HungUp),
    };
    match examined {
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

/// Waits until nobody waits for an answer any more.
async fn forsaken(client: Option<&OwnedFd>) {
    while !is_forsaken(client) {
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn is_forsaken(client: Option<&OwnedFd>) -> bool {
    client.is_some_and(|client| poll::has_hung_up(client.as_fd()))
}

async fn fit_program(
    ours: &str,
    binary: Option<PathBuf>,
    rehearsal: impl Future<Output = io::Result<OwnedFd>>,
    deadline: Instant,
) -> Result<PathBuf, Refused> {
    let program = match binary {
        Some(path) if path.is_absolute() => path,
        Some(path) => return Err(Refused::RelativePath(path)),
        None => own_program().map_err(Refused::Unknown)?,
    };
    let rehearsal = rehearsal.await.map_err(Refused::NoRehearsal)?;
    let answer = ask(&program, rehearsal, deadline).await?;
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

async fn ask(program: &Path, rehearsal: OwnedFd, deadline: Instant) -> Result<Answer, Refused> {
    let failed = |error| Refused::NotExecuted(program.to_owned(), error);
    let silent = |why: String| Refused::NoAnswer(program.to_owned(), why);
    let mut command = Command::new(program);
    command
        .arg(CHECK)
        .args(own_arguments(std::env::args_os().skip(1)))
        .stdin(Stdio::from(rehearsal))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let patience = CHECK_TIME_MAX.min(deadline - Instant::now());
    let mut child = command.spawn().map_err(failed)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let answered = async {
        let (answer, complaint) = tokio::try_join!(hear(out), hear(err))?;
        io::Result::Ok((answer, complaint, child.wait().await?))
    };
    let (answer, complaint, status) = match tokio::time::timeout(patience, answered).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Err(silent(format!("it says more than {SAID_LEN_MAX} bytes")));
        }
        Ok(answered) => answered.map_err(failed)?,
        Err(_) => return Err(silent(format!("no answer within {} s", patience.as_secs()))),
    };
    serde_json::from_slice(&answer).map_err(|_| {
        let complaint = String::from_utf8_lossy(&complaint);
        let complaint = complaint.lines().next().unwrap_or_default();
        silent(format!("{status}: {complaint}"))
    })
}

/// All that is said there, if it is no more than [`SAID_LEN_MAX`] bytes: else `FileTooLarge`, and nobody listens any more.
async fn hear(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    if let Some(stream) = stream {
        stream.take(SAID_LEN_MAX as u64 + 1).read_to_end(&mut said).await?;
    }
    match said.len() {
        0..=SAID_LEN_MAX => Ok(said),
        _ => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

/// Where this program was started from: what is there by now is another one, after an upgrade of a package.
fn own_program() -> io::Result<PathBuf> {
    let link = std::fs::read_link("/proc/self/exe")?;
    // As the kernel calls what has no name any more (proc_pid_exe(5)).
    let text = link.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or(link.clone(), PathBuf::from))
}

/// The program's answer to `PROGRAM --resume-check ARGUMENTS...`, where that is what it was called with. Standard input has
/// what would be handed over. `parse` says what is wrong with a command line, or what it means for `ringway-wg`.
pub fn answer_check(
    program: &str,
    parse: impl FnOnce(Vec<OsString>) -> Result<Option<WireGuard>, String>,
) -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next()?;
    if arguments.next()? != CHECK {
        return None;
    }
    let options = parse([name].into_iter().chain(arguments).collect());
    let file = io::stdin().as_fd().try_clone_to_owned();
    let problem = match (options, file) {
        (Err(error), _) => Err(format!("does not take the command line: {error}")),
        (_, Err(error)) => Err(format!("has no standard input: {error}")),
        (Ok(options), Ok(file)) => rehearse(file, options.as_ref()),
    };
    let answer = Answer {
        program: program.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        formats: vec![FORMAT],
        capabilities: capabilities().unwrap_or(0),
        problem: problem.err(),
    };
    let written = serde_json::to_vec(&answer).map(|line| io::stdout().write_all(&line));
    Some(match written {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Tries whether a tunnel could go on in this program, which is `ringway-wg` where there are `options`; why not.
fn rehearse(file: OwnedFd, options: Option<&WireGuard>) -> Result<(), String> {
    let (state, config) = read_rehearsal(file).map_err(|error| match error {
        HandoverError::Config(error) => format!("does not take the configuration that runs: {error}"),
        error => error.to_string(),
    })?;
    let interface = match (config, options) {
        (Some(config), None) => config.interface,
        (None, Some(options)) => wireguard::interface(options),
        _ => return Err("what would be handed over is of the other program".into()),
    };
    parts::try_engine(&interface).map_err(|error| error.to_string())?;
    state.control.rehearse(interface.crypto)
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
    fn this_process_knows_its_program_and_its_capabilities() {
        assert!(own_program().is_ok_and(|path| path.is_file()));
        assert!(capabilities().is_some());
    }

    /// What is made of what the shell says to these words, `--resume-check` being the name that it is called by.
    fn refused(name: &str, lines: &str, deadline: Instant) -> String {
        let script = std::env::temp_dir().join(format!("ringway-asked-{}-{name}", std::process::id()));
        // By another process: children that other tests begin at this moment would hold it open for writing, and it could not be
        // executed (ETXTBSY, execve(2)).
        let mut writer = std::process::Command::new("sh");
        writer.args(["-c", "printf '#!/bin/sh\n%s\n' \"$1\" >\"$0\" && chmod 755 \"$0\""]);
        let written = writer
            .arg(&script)
            .arg(lines)
            .status()
            .expect("every machine has a shell");
        assert!(written.success());
        let nothing = OwnedFd::from(std::fs::File::open("/dev/null").expect("every machine has it"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let answer = runtime.expect("a runtime").block_on(async {
            // Not to hang; less than the program takes.
            let patience = CHECK_TIME_MAX.mul_f64(0.9);
            tokio::time::timeout(patience, ask(&script, nothing, deadline)).await
        });
        std::fs::remove_file(&script).expect("it is there");
        let refused = answer.expect("it is not waited for").expect_err("it is no answer");
        refused.to_string()
    }

    #[test]
    fn who_talks_without_end_is_not_listened_to() {
        for stream in ["", " >&2"] {
            let refused = refused("talks", &format!("exec yes{stream}"), deadline());
            assert!(refused.contains("it says more than 65536 bytes"), "{refused}");
        }
    }

    #[test]
    fn all_programs_together_have_one_deadline() {
        let refused = refused("sleeps", "exec sleep 60", Instant::now());
        assert!(refused.contains("no answer within 0 s"), "{refused}");
    }
}
