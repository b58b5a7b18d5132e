//! Commands of the configuration that run when the tunnel comes up and goes down, each by `sh -c`.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;

use super::service;

/// How long a command may take when the tunnel goes down, where nobody can be asked any more whether to wait.
const DOWN_TIME_MAX: Duration = Duration::from_secs(30);
/// What a service manager grants beyond that, for what comes between two commands.
const MARGIN: Duration = Duration::from_secs(10);

/// A command that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It ended with an error.
    #[error("{hook}: \"{command}\" failed ({status})")]
    Failed {
        /// Which list it is of.
        hook: &'static str,
        /// What was run.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// There is no shell.
    #[error("{hook}: cannot run \"{command}\": {error}")]
    NotRun {
        /// Which list it is of.
        hook: &'static str,
        /// What was to be run.
        command: String,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
}

/// Runs `commands` one after the other, up to the first that fails. They end with the future.
pub(super) async fn run(hook: &'static str, commands: &[String], interface: &str) -> Result<(), HookError> {
    for command in commands {
        let command = command.replace("%i", interface);
        tracing::info!("{hook}: {command}");
        let shell = |program: &str| {
            let mut shell = Command::new(program);
            shell.args(["-c", &command]).stdin(Stdio::null()).kill_on_drop(true);
            shell.status()
        };
        // wg-quick is a script of bash, and so are commands for it.
        let status = match shell("bash").await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => shell("sh").await,
            status => status,
        };
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(HookError::Failed { hook, command, status }),
            Err(error) => return Err(HookError::NotRun { hook, command, error }),
        }
    }
    Ok(())
}

/// Runs every one of `commands`, whatever becomes of the others, each for a limited time: wg-quick leaves the tunnel up when
/// one fails before it is down, but who is told to end can't stay.
pub(super) async fn run_down(hook: &'static str, commands: &[String], interface: &str) {
    for command in commands {
        service::takes(DOWN_TIME_MAX + MARGIN);
        let one = run(hook, std::slice::from_ref(command), interface);
        match tokio::time::timeout(DOWN_TIME_MAX, one).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("{error}"),
            Err(_) => tracing::warn!("{hook}: \"{command}\" takes longer than {DOWN_TIME_MAX:?}; it was ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(future)
    }

    fn commands(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn commands_run_in_order_with_the_interfaces_name_up_to_the_first_that_fails() {
        let file = std::env::temp_dir().join(format!("ringway-hooks-{}", std::process::id()));
        let path = file.display();
        let append = |text: &str| format!("echo {text} >> {path}");
        let list = [append("a %i"), append("b %i-%i"), "exit 3".into(), append("c")];
        let error = block_on(run("post_up", &list, "rw0")).expect_err("the third fails");
        assert_eq!(error.to_string(), "post_up: \"exit 3\" failed (exit status: 3)");
        assert_eq!(std::fs::read_to_string(&file).expect("written"), "a rw0\nb rw0-rw0\n");
        block_on(run_down("post_down", &list[2..], "rw0"));
        assert_eq!(
            std::fs::read_to_string(&file).expect("written"),
            "a rw0\nb rw0-rw0\nc\n"
        );
        std::fs::remove_file(&file).expect("it is there");
    }

    #[test]
    fn no_commands_are_no_failure() {
        assert!(block_on(run("pre_up", &commands(&[]), "rw0")).is_ok());
    }
}
