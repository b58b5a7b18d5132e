//! What README.md tells people to type, done by a shell.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::hosts::RINGWAY;
use crate::lab::{Lab, Namespace, wait_until};
use crate::{PATIENCE, ping_until};

/// The code blocks of a section, in their order, which has to be one of these languages.
pub(crate) fn blocks<const N: usize>(section: &str, languages: [&str; N]) -> [String; N] {
    let text = include_str!("../../README.md");
    let (_, text) = text
        .split_once(&format!("\n## {section}\n"))
        .unwrap_or_else(|| panic!("README.md has a section {section}"));
    let text = text.split("\n## ").next().expect("split gives one at least");
    let found: Vec<(&str, &str)> = text
        .split("\n```")
        .skip(1)
        .step_by(2)
        .map(|block| block.split_once('\n').expect("a fence is a line"))
        .collect();
    let tongues: Vec<&str> = found.iter().map(|(language, _)| *language).collect();
    assert_eq!(tongues, languages, "README.md: {section}");
    found
        .iter()
        .map(|(_, code)| format!("{code}\n"))
        .collect::<Vec<_>>()
        .try_into()
        .expect("as many as languages")
}

/// What all of its code blocks tell people to type, without comments, in their order.
pub(crate) fn commands() -> Vec<&'static str> {
    let blocks = include_str!("../../README.md").split("\n```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| match block.split_once('\n').expect("a fence is a line") {
        ("sh", code) => Some(code),
        ("toml" | "rust", _) => None,
        (language, _) => panic!("README.md: does one type {language:?}?"),
    });
    let lines = blocks.flat_map(str::lines).filter(|line| !line.is_empty());
    let commands = lines.map(|line| line.split(" #").next().expect("split gives one at least").trim_end());
    commands.collect()
}

/// A host with an /etc, /run and /var/lib of its own.
pub(crate) struct Machine<'a> {
    pub(crate) network: &'a Namespace,
    root: PathBuf,
    daemon: Option<Child>,
}

impl<'a> Machine<'a> {
    /// `directory`: where the test's files are.
    pub(crate) fn new(network: &'a Namespace, directory: &Path, name: &str) -> Machine<'a> {
        let root = directory.join(name);
        for folder in ["etc", "run/ringway", "lib"] {
            fs::create_dir_all(root.join(folder)).expect("it can be made");
        }
        for file in ["passwd", "group"] {
            fs::copy(Path::new("/etc").join(file), root.join("etc").join(file)).expect("every system has it");
        }
        fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n").expect("it can be written");
        fs::write(root.join("etc/resolv.conf"), "nameserver 192.0.2.53\n").expect("it can be written");
        Machine {
            network,
            root,
            daemon: None,
        }
    }

    fn shell(&self, script: &str) -> Command {
        let binaries = Path::new(RINGWAY).parent().expect("a directory").display();
        let root = self.root.display();
        let whole = format!(
            "set -e\nmount --bind {root}/etc /etc\nmount --bind {root}/lib /var/lib\nmount --bind {root}/run /run\n\
             PATH={binaries}:$PATH\ncd /etc/ringway 2>/dev/null || cd /\n{script}"
        );
        let mut command = self.network.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &whole]);
        command
    }

    /// Runs a script to its end: its standard output, or all that it said where it failed.
    pub(crate) fn run(&self, script: &str) -> Result<String, String> {
        let output = self.shell(script).output().expect("setpriv is installed");
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        if output.status.success() {
            Ok(out)
        } else {
            Err(format!("{}\n{err}{out}", output.status))
        }
    }

    /// Makes a key as the section on gateways has it: the public one.
    pub(crate) fn make_key(&self) -> String {
        let [script, ..] = blocks("A gateway in five minutes", ["sh", "toml", "sh"]);
        self.run(&script).expect("a key").trim().to_owned()
    }

    pub(crate) fn write_config(&self, text: &str) {
        self.write("rw0.toml", text);
    }

    /// Writes a file in /etc/ringway, or beside it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.root.join("etc/ringway").join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
        fs::write(path, text).expect("it can be written");
    }

    /// A file in /etc/ringway, or beside it.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root.join("etc/ringway").join(name)).expect("it is there")
    }

    /// Runs a daemon's script, until it is ended.
    pub(crate) fn start(&mut self, script: &str) {
        self.daemon = Some(self.spawn(script));
    }

    /// Starts a script; what it says goes to the machine's log.
    pub(crate) fn spawn(&self, script: &str) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.root.with_extension("log"));
        let log = log.expect("the log can be written");
        let mut command = self.shell(script);
        command.process_group(0);
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        command.spawn().expect("setpriv is installed")
    }

    /// Sends a signal to all that the script started.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.daemon.as_ref().expect("it runs").id();
        // It may have ended by itself, after an earlier signal.
        let _ = killpg(
            Pid::from_raw(id.try_into().expect("process ids are positive i32")),
            signal,
        );
    }

    /// As [`Machine::signal`], and waits for the end and for the interface to go.
    pub(crate) fn end(&mut self, signal: Signal) {
        self.signal(signal);
        let mut daemon = self.daemon.take().expect("it runs");
        daemon.wait().expect("it is our child");
        wait_until("the interface to go", PATIENCE, || !self.network.has_interface("rw0"));
        let socket = self.root.join("run/ringway/rw0.sock");
        if signal == Signal::SIGTERM {
            wait_until("the daemon to go", PATIENCE, || !socket.exists());
        }
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root.with_extension("log")).unwrap_or_default()
    }

    /// All of the system that a tunnel may change.
    pub(crate) fn system(&self) -> String {
        self.run(
            "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset\n\
             cat /etc/resolv.conf; ls -A /etc /etc/ringway /run/ringway; cd /proc/sys/net\n\
             grep . ipv4/conf/*/forwarding ipv4/conf/*/src_valid_mark ipv6/conf/*/forwarding ipv6/conf/*/accept_ra",
        )
        .expect("all of it can be read")
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.signal(Signal::SIGKILL);
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
    }
}

#[test]
fn two_sites_are_joined_by_the_files_and_commands_of_the_readme() {
    let Some(lab) = Lab::new() else { return };
    let id = lab.a.name.trim_end_matches("-a");
    let hosts = ["host-a", "host-b"].map(|host| Namespace::new(format!("{id}-{host}")));
    for (i, (site, host)) in [&lab.a, &lab.b].into_iter().zip(&hosts).enumerate() {
        let veth = ["link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns"];
        site.ip(&[&veth[..], &[&host.name]].concat());
        let [ours, theirs] = [1, 2].map(|last| format!("10.{}.0.{last}/24", 1 + i));
        site.ip(&["address", "add", &ours, "dev", "lan0"]);
        site.ip(&["link", "set", "lan0", "up"]);
        host.ip(&["address", "add", &theirs, "dev", "eth0"]);
        host.ip(&["link", "set", "eth0", "up"]);
    }
    hosts[1].ip(&["route", "add", "default", "via", "10.2.0.1"]);

    let [.., run] = blocks("A gateway in five minutes", ["sh", "toml", "sh"]);
    let [a, b, way] = blocks("Site to site", ["toml", "toml", "sh"]);
    let mut sites = [(&lab.a, "a"), (&lab.b, "b")].map(|(site, name)| Machine::new(site, &lab.directory, name));
    let keys = sites.each_ref().map(Machine::make_key);
    sites[0].write_config(&a.replace("b's public key", &keys[1]));
    sites[1].write_config(&b.replace("a's public key", &keys[0]));
    for site in &mut sites {
        site.start(&run);
    }
    let host = Machine::new(&hosts[0], &lab.directory, "host");
    let (route, ping) = way.split_once('\n').expect("two lines");
    host.run(route).expect("the route");
    wait_until("the sites to be joined", PATIENCE * 2, || host.run(ping).is_ok());
    ping_until(&hosts[1], "10.1.0.2");
}
