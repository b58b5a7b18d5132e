//! A tunnel on its way into another process: what it is, in one sealed file of memory, and its descriptors.
//!
//! The process stays the same and only the program in it is another one (exec), so that a service manager, whoever
//! waits for the process and the kernel's limits notice nothing. What the next program is to have is left open: queues of
//! the TUN, sockets with all that waits in them, listeners, and the file. The file is JSON in one line, with the numbers of
//! the descriptors, and after it the configuration in TOML. It has every key of the tunnel in it, is in memory only, can
//! be changed by nobody, and goes with the descriptor, which is closed once it was read.
//!
//! Where the other program can't be executed, this one goes on by the same way: from what it had written.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::guard::Guard;
use super::network;
use super::upgrade::{FORMAT, Granted};
use crate::config::{self, Config, LoadError, PrivateKey, render};
use crate::control;
use crate::control::api::{ChangeReport, ErrorCode, Response};
use crate::control::handover::RESUME_ARGUMENT as RESUME;
use crate::control::server::refusal;
use crate::firewall;
use crate::sys::{exec, inherit, memfd};

/// Why a tunnel can't go on from what another process has left.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// A descriptor is not there.
    #[error("descriptor {number} was not handed over: {error}")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The file can't be read.
    #[error("cannot read what was handed over: {0}")]
    Read(#[from] io::Error),
    /// Another version's.
    #[error("what was handed over has format {found}, and this program ({}) reads format {FORMAT}", env!("CARGO_PKG_VERSION"))]
    Format {
        /// Its format.
        found: u32,
    },
    /// It is damaged, or not what it should be.
    #[error("what was handed over is damaged: {0}")]
    Damaged(String),
    /// The configuration in it.
    #[error("what was handed over has a configuration that this program does not take: {0}")]
    Config(#[from] LoadError),
}

/// Descriptors, or their numbers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Descriptors<T> {
    /// One per worker.
    pub(super) queues: Vec<T>,
    /// In the order in which datagrams are steered: the door's, then one per worker.
    pub(super) sockets: Vec<T>,
    /// One per worker, or none.
    pub(super) lane_sockets: Vec<T>,
    /// The control socket's listener.
    pub(super) control: Option<T>,
    /// The listener of `wg`'s socket.
    pub(super) wg: Option<T>,
    /// The listener of metrics.
    pub(super) metrics: Option<T>,
    /// Whoever asked for the upgrade, and waits for an answer.
    pub(super) client: Option<T>,
    /// The line to the guard.
    pub(super) guard: Option<T>,
}

impl<T> Descriptors<T> {
    /// Each through `map`, up to the first error.
    fn try_map<U, E>(self, mut map: impl FnMut(T) -> Result<U, E>) -> Result<Descriptors<U>, E> {
        let mut list = |from: Vec<T>| from.into_iter().map(&mut map).collect::<Result<Vec<U>, E>>();
        let [queues, sockets, lane_sockets] = [self.queues, self.sockets, self.lane_sockets].map(&mut list);
        let (queues, sockets, lane_sockets) = (queues?, sockets?, lane_sockets?);
        Ok(Descriptors {
            queues,
            sockets,
            lane_sockets,
            control: self.control.map(&mut map).transpose()?,
            wg: self.wg.map(&mut map).transpose()?,
            metrics: self.metrics.map(&mut map).transpose()?,
            client: self.client.map(&mut map).transpose()?,
            guard: self.guard.map(&mut map).transpose()?,
        })
    }
}

/// What a tunnel is, beside its descriptors and its configuration.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) ifindex: u32,
    /// The guard's process.
    pub(super) guard: Option<u32>,
    pub(super) control: control::handover::State,
    /// Where the configuration came from, and is saved to; none where `wg` configures the tunnel, as with all below.
    pub(super) file: Option<PathBuf>,
    /// `SaveConfig`, which TOML has no counterpart of.
    pub(super) save: Option<PathBuf>,
    /// The configuration has no key, which came by a command; TOML can't say so.
    pub(super) keyless: bool,
    pub(super) network: Option<network::State>,
    pub(super) gateway: Option<firewall::gateway::HandedOver>,
}

/// The first line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Head<T> {
    format: u32,
    /// Of the program that wrote it.
    version: String,
    descriptors: Descriptors<RawFd>,
    /// Bytes after the line.
    config_len: usize,
    tunnel: T,
}

/// What of the line stays the same in all versions.
#[derive(Deserialize)]
struct AnyHead {
    format: u32,
}

/// A tunnel between two processes. Nobody moves its packets: they wait in the kernel.
pub(super) struct Handover {
    pub(super) state: State,
    /// In TOML.
    pub(super) config: Option<Zeroizing<String>>,
    pub(super) descriptors: Descriptors<OwnedFd>,
    /// What whoever asked is told.
    pub(super) outcome: Response,
    /// Keeps the conversation with whoever asked from being answered by this process too.
    _reply: Option<oneshot::Sender<Response>>,
}

impl Handover {
    /// A tunnel that leaves this process.
    pub(super) fn new(
        mut state: State,
        config: Option<Zeroizing<String>>,
        mut descriptors: Descriptors<OwnedFd>,
        guard: Guard,
        granted: Granted,
    ) -> (Handover, PathBuf) {
        descriptors.client = granted.client;
        state.guard = Some(guard.pid);
        descriptors.guard = Some(guard.line);
        let handover = Handover {
            state,
            config,
            descriptors,
            outcome: upgraded(env!("CARGO_PKG_VERSION")),
            _reply: Some(granted.reply),
        };
        (handover, granted.program)
    }

    /// Who puts things right unless this tunnel runs again.
    pub(super) fn guard(&mut self) -> Option<Guard> {
        let (line, pid) = self.descriptors.guard.take().zip(self.state.guard.take())?;
        Some(Guard { line, pid })
    }

    /// Executes `program` in the place of this one, to go on with the tunnel. Comes back only where that can't be done.
    ///
    /// # Errors
    /// Descriptors are lost, which no kernel does.
    pub(super) fn go_on_in(mut self, program: &Path) -> Result<Handover, HandoverError> {
        tracing::info!(program = %program.display(), "handing the tunnel over");
        let error = match self.file() {
            Ok(file) => {
                let Handover { descriptors, .. } = self;
                let lost = |error| HandoverError::Read(error);
                let numbers = descriptors.try_map(inherit::pass_on).map_err(lost)?;
                let file = inherit::pass_on(file).map_err(lost)?;
                let Err(error) = exec::exec(program, &arguments(std::env::args_os(), file));
                drop(take(file)?);
                self.descriptors = numbers.try_map(take)?;
                error
            }
            Err(error) => error,
        };
        tracing::error!(program = %program.display(), %error, "cannot execute it; the tunnel goes on in this process");
        let text = format!(
            "cannot execute {}: {error}; the tunnel goes on as before",
            program.display()
        );
        self.outcome = refusal(ErrorCode::Failed, text);
        Ok(self)
    }

    /// The file.
    fn file(&self) -> io::Result<OwnedFd> {
        let numbers = |fd: &OwnedFd| fd.as_raw_fd();
        let Descriptors {
            queues,
            sockets,
            lane_sockets,
            control,
            wg,
            metrics,
            client,
            guard,
        } = &self.descriptors;
        write(
            Descriptors {
                queues: queues.iter().map(numbers).collect(),
                sockets: sockets.iter().map(numbers).collect(),
                lane_sockets: lane_sockets.iter().map(numbers).collect(),
                control: control.as_ref().map(numbers),
                wg: wg.as_ref().map(numbers),
                metrics: metrics.as_ref().map(numbers),
                client: client.as_ref().map(numbers),
                guard: guard.as_ref().map(numbers),
            },
            &self.state,
            self.config.as_ref(),
        )
    }

    /// A tunnel that comes into this process, by the file that was passed on as `number`.
    ///
    /// # Errors
    /// See [`HandoverError`].
    pub(super) fn take(number: RawFd) -> Result<Handover, HandoverError> {
        let bytes = memfd::read(take(number)?)?;
        let (head, config) = parse(&bytes)?;
        let Head {
            version,
            descriptors,
            tunnel,
            ..
        } = head;
        let mut state: State = tunnel;
        state.control.count_upgrade();
        Ok(Handover {
            state,
            config: config.map(Zeroizing::new),
            descriptors: descriptors.try_map(take)?,
            outcome: upgraded(&version),
            _reply: None,
        })
    }

    /// The configuration, and where it came from.
    ///
    /// # Errors
    /// It is none that this program takes.
    pub(super) fn config(&self) -> Result<(Config, PathBuf), HandoverError> {
        let (Some(text), Some(file)) = (&self.config, &self.state.file) else {
            return Err(HandoverError::Damaged("it is of a tunnel that wg configures".into()));
        };
        Ok((self.state.config(text)?, file.clone()))
    }

    /// Tells whoever asked what became of it. That they hung up is their own affair.
    pub(super) fn answer(client: Option<OwnedFd>, outcome: &Response) {
        let Some(client) = client else { return };
        if let Ok(mut line) = serde_json::to_vec(outcome) {
            line.push(b'\n');
            let _ = UnixStream::from(client).write_all(&line);
        }
    }
}

impl State {
    /// Of a tunnel that `wg` configures.
    pub(super) fn of_wireguard(ifindex: u32, control: control::handover::State) -> State {
        State {
            ifindex,
            guard: None,
            control,
            file: None,
            save: None,
            keyless: false,
            network: None,
            gateway: None,
        }
    }

    /// The configuration, from `text`.
    fn config(&self, text: &str) -> Result<Config, LoadError> {
        let mut config = check_config(text)?;
        config.interface.save.clone_from(&self.save);
        if self.keyless {
            config.interface.private_key = None;
        }
        Ok(config)
    }
}

/// The file that a program gets which is asked whether it could go on: as the one that is handed over, but for the numbers of
/// descriptors, of which only how many there are means anything.
pub(super) fn rehearsal(state: &State, config: Option<&Zeroizing<String>>) -> io::Result<OwnedFd> {
    let workers = state.control.workers();
    let descriptors = Descriptors {
        queues: vec![0; workers],
        sockets: vec![0; workers + 1],
        lane_sockets: Vec::new(),
        control: None,
        wg: None,
        metrics: None,
        client: None,
        guard: None,
    };
    write(descriptors, state, config)
}

/// Reads what [`rehearsal`] wrote; no configuration where `wg` has it.
///
/// # Errors
/// See [`HandoverError`].
pub(super) fn read_rehearsal(file: OwnedFd) -> Result<(State, Option<Config>), HandoverError> {
    let bytes = memfd::read(file)?;
    let (head, config) = parse(&bytes)?;
    let text = config.map(Zeroizing::new);
    let config = text.map(|text| head.tunnel.config(&text)).transpose()?;
    Ok((head.tunnel, config))
}

fn write(descriptors: Descriptors<RawFd>, state: &State, config: Option<&Zeroizing<String>>) -> io::Result<OwnedFd> {
    let config = config.map_or(&[][..], |config| config.as_bytes());
    let head = Head {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        descriptors,
        config_len: config.len(),
        tunnel: state,
    };
    memfd::sealed(|out| {
        serde_json::to_writer(&mut *out, &head)?;
        out.write_all(b"\n")?;
        out.write_all(config)
    })
}

/// The configuration of a tunnel that runs as [`check_config`] reads it. One without a key gets one that nobody knows.
pub(super) fn config_text(config: &Config) -> Zeroizing<String> {
    let mut config = config.clone();
    let key = &mut config.interface.private_key;
    key.get_or_insert_with(|| PrivateKey::generate(control::random));
    render::to_toml(&config)
}

/// The configuration of a tunnel that runs, from text. Paths in it are what they are in this process.
pub(super) fn check_config(text: &str) -> Result<Config, LoadError> {
    let here = std::env::current_dir().unwrap_or_default();
    // Only its folder counts.
    Ok(config::check(&here.join("handed-over.toml"), text, 0)?.config)
}

fn upgraded(from: &str) -> Response {
    let to = env!("CARGO_PKG_VERSION");
    Response::Changed(ChangeReport {
        changes: vec![format!("upgraded from {from} to {to}")],
        ..ChangeReport::default()
    })
}

fn take(number: RawFd) -> Result<OwnedFd, HandoverError> {
    inherit::take(number).map_err(|error| HandoverError::Descriptor { number, error })
}

/// The command line of this process, with the file's number in it: behind the word of `ringway` that runs tunnels, so that
/// what it ends with stays the same.
fn arguments(own: impl Iterator<Item = OsString>, file: RawFd) -> Vec<OsString> {
    let mut arguments = own_arguments(own);
    let word = arguments.iter().position(|argument| argument == "run").unwrap_or(0);
    let place = arguments.len().min(word + 1);
    arguments.splice(place..place, [RESUME.into(), file.to_string().into()]);
    arguments
}

/// A command line without the traces of earlier upgrades.
pub(super) fn own_arguments(mut own: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = Vec::new();
    while let Some(argument) = own.next() {
        if argument == RESUME {
            own.next();
        } else {
            arguments.push(argument);
        }
    }
    arguments
}

/// The file's two parts.
fn parse(bytes: &[u8]) -> Result<(Head<State>, Option<String>), HandoverError> {
    let damaged = |what: &str| HandoverError::Damaged(what.into());
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| damaged("it has no end"))?;
    // Errors of JSON name places and types, and no values that are keys: those are read by `proto::hex`.
    let not_json = |error: serde_json::Error| HandoverError::Damaged(error.to_string());
    let AnyHead { format } = serde_json::from_slice(&bytes[..end]).map_err(not_json)?;
    if format != FORMAT {
        return Err(HandoverError::Format { found: format });
    }
    let head: Head<State> = serde_json::from_slice(&bytes[..end]).map_err(not_json)?;
    let rest = &bytes[end + 1..];
    if rest.len() != head.config_len {
        return Err(damaged("the configuration is cut off"));
    }
    let Descriptors {
        queues,
        sockets,
        lane_sockets,
        ..
    } = &head.descriptors;
    let workers = queues.len();
    if !(1..=255).contains(&workers) || sockets.len() != workers + 1 {
        return Err(damaged("it has not one socket for each queue"));
    }
    if !lane_sockets.is_empty() && lane_sockets.len() != workers {
        return Err(damaged("some lanes have ports and some have not"));
    }
    let config = String::from_utf8(rest.to_vec()).map_err(|_| damaged("the configuration is no text"))?;
    let has_config = head.tunnel.file.is_some();
    Ok((head, has_config.then_some(config)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NUMBERS: &str = r#"{"queues":[5,6],"sockets":[4,7,8],"lane_sockets":[],"control":9,"wg":null,"metrics":null,"client":10,"guard":11}"#;
    const CONFIG: &str = "[interface]\nname = \"rw0\"\n";

    fn tunnel() -> String {
        let control = r#"{"name":"rw0","listen_port":51820,"mark":0,"offloads":OFFLOADS,"private_key":null,"addresses":["10.0.0.1/24"],"mtu":1420,
            "started":{"secs_since_epoch":1700000000,"nanos_since_epoch":1},"upgrades":0,"latency_log_begin":null,
            "drops":{"bad_mac1":3},"door_socket_drops":0,"baseline":{"since":{"secs_since_epoch":1,"nanos_since_epoch":0},"control_drops":{},
            "workers":[],"peers":{}},"workers":[],"peers":[]}"#;
        let offloads = r#"{"udp_gso":true,"udp_gro":true,"tun_tso":true,"tun_uso":true,"tun_csum":true}"#;
        let text = format!(
            r#"{{"ifindex":3,"guard":null,"control":{control},
            "file":"/etc/ringway/rw0.toml","save":null,"keyless":false,"network":null,"gateway":null}}"#
        );
        text.replace('\n', " ").replace("OFFLOADS", offloads)
    }

    fn file(format: u32, numbers: &str, config: &str, config_len: usize) -> Vec<u8> {
        let tunnel = tunnel();
        format!(
            r#"{{"format":{format},"version":"0.0.9","descriptors":{numbers},"config_len":{config_len},"tunnel":{tunnel}}}
{config}"#
        )
        .into_bytes()
    }

    fn whole() -> Vec<u8> {
        file(FORMAT, NUMBERS, CONFIG, CONFIG.len())
    }

    #[test]
    fn the_file_is_read_with_its_configuration() {
        let (head, config) = parse(&whole()).unwrap();
        assert_eq!((head.version.as_str(), head.descriptors.client), ("0.0.9", Some(10)));
        assert_eq!(head.descriptors.sockets, [4, 7, 8]);
        assert_eq!(config.as_deref(), Some(CONFIG));
        // What one program writes the next one reads.
        let written = serde_json::to_string(&head).unwrap() + "\n" + CONFIG;
        assert!(parse(written.as_bytes()).is_ok());
    }

    #[test]
    fn what_is_wrong_with_the_file_is_told() {
        let one_socket = NUMBERS.replace("[4,7,8]", "[4,7]");
        let one_lane = NUMBERS.replace(r#""lane_sockets":[]"#, r#""lane_sockets":[11]"#);
        let none = NUMBERS.replace("[4,7,8]", "[4]").replace("[5,6]", "[]");
        for (bytes, expected) in [
            (Vec::new(), "no end"),
            (b"{\n".to_vec(), "damaged"),
            (b"[]\n".to_vec(), "damaged"),
            (file(FORMAT + 1, "null", CONFIG, 0), "has format 3"),
            (file(FORMAT, "null", CONFIG, 0), "damaged"),
            (file(FORMAT, NUMBERS, CONFIG, CONFIG.len() + 1), "cut off"),
            (file(FORMAT, NUMBERS, CONFIG, CONFIG.len() - 1), "cut off"),
            (
                file(FORMAT, &one_socket, CONFIG, CONFIG.len()),
                "one socket for each queue",
            ),
            (file(FORMAT, &none, CONFIG, CONFIG.len()), "one socket for each queue"),
            (file(FORMAT, &one_lane, CONFIG, CONFIG.len()), "some lanes"),
        ] {
            let text = parse(&bytes).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
        assert!(Handover::take(1 << 30).is_err_and(|error| error.to_string().contains("descriptor")));
    }

    #[test]
    fn a_configuration_comes_through_as_it_runs() {
        let mut config = check_config(
            "[interface]\nname = \"rw0\"\nprivate_key = \"4Lq2ZZbmyVxKbGvzm1nxRBRgzZK3XdQbP0JUMwZbtWQ=\"\npost_down = [\"true\"]\n",
        )
        .unwrap();
        assert_eq!(check_config(&config_text(&config)).unwrap(), config);
        config.interface.private_key = None;
        let read = check_config(&config_text(&config)).unwrap();
        assert!(read.interface.private_key.is_some());
        assert_eq!(read.interface.hooks, config.interface.hooks);
    }

    proptest! {
        #[test]
        fn a_file_that_is_cut_off_or_changed_is_refused_or_read_but_never_a_panic(
            at in any::<prop::sample::Index>(), byte: u8,
        ) {
            let mut bytes = whole();
            let at = at.index(bytes.len());
            prop_assert!(parse(&bytes[..at]).is_err());
            bytes[at] = byte;
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn the_command_line_keeps_its_options_and_names_the_file_once() {
        let with = |own: &[&str]| arguments(own.iter().map(OsString::from), 7);
        assert_eq!(
            with(&["ringway", "-v", "run", "x.toml"]),
            ["ringway", "-v", "run", "--resume", "7", "x.toml"]
        );
        assert_eq!(
            with(&["ringway", "run", "--resume", "5", "x.toml"]),
            ["ringway", "run", "--resume", "7", "x.toml"]
        );
        assert_eq!(
            with(&["ringway-wg", "-f", "wg0"]),
            ["ringway-wg", "--resume", "7", "-f", "wg0"]
        );
        assert_eq!(
            with(&["ringway-wg", "--resume", "5", "wg0"]),
            ["ringway-wg", "--resume", "7", "wg0"]
        );
        assert_eq!(with(&[]), ["--resume", "7"]);
    }
}
