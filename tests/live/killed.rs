//! Daemons that are killed in the middle of something: what is left is put right by the next one and by `ringway cleanup`,
//! and the kill switch holds meanwhile.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::end::{End, INTERFACE, Keys, RINGWAY, kill_process, peer, runs, write};
use crate::lab::{Lab, UNDERLAY_V4, wait_until};
use crate::upgrade::script;
use crate::upgrade_amid::{upgrade_beside, waiting};
use crate::upgrade_fails::{around, own_etc};
use crate::{PATIENCE, Pair};

/// Who puts right what a killed daemon has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heir {
    Next,
    Cleanup,
}

const HEIRS: [Heir; 2] = [Heir::Next, Heir::Cleanup];

/// a with a tunnel for all packets, name servers, metrics and a kill switch; b runs.
struct Host {
    pair: Pair,
    etc: PathBuf,
    /// What begins a's programs: with that /etc, and first with what is in `bin`.
    own_etc: String,
    bin: PathBuf,
    /// What there was before the first start.
    before: String,
}

impl Host {
    fn new() -> Option<Host> {
        let lab = Lab::new()?;
        let [mut a, mut b] = [0, 1].map(|me| End::new(&lab, me));
        let (etc, mount) = own_etc(&lab);
        let [folder, bin] = [etc.join("ringway"), lab.directory.join("bin")];
        for folder in [&folder, &bin] {
            fs::create_dir(folder).expect("a directory");
        }
        a.file = folder.join(format!("{INTERFACE}.toml"));
        b.write("", &[a.as_peer("")]);
        b.start(&lab.b);
        let mut host = Host {
            own_etc: format!("PATH={}:$PATH; {mount}", bin.display()),
            pair: Pair { a, b, lab },
            etc,
            bin,
            before: String::new(),
        };
        host.write("");
        host.before = host.around();
        Some(host)
    }

    fn lab(&self) -> &Lab {
        &self.pair.lab
    }

    /// Writes a's file: these lines of `[interface]` beside the kill switch, and `dns`.
    fn write(&self, interface: &str) {
        self.write_with(interface, &["10.99.0.2"], true);
    }

    fn write_with(&self, interface: &str, dns: &[&str], has_all: bool) {
        let a = &self.pair.a;
        a.write(
            &format!("dns = {dns:?}\nlockdown = true\n{interface}"),
            &self.peers(has_all),
        );
    }

    /// Writes a's file: with a kill switch, or with a gateway instead.
    fn write_either(&self, is_locked: bool) {
        if is_locked {
            return self.write("");
        }
        let [metrics, b] = self.peers(false);
        let gateway = "[gateway]\negress = [\"under0\"]\n".to_owned();
        self.pair.a.write("dns = [\"10.99.0.3\"]\n", &[gateway, metrics, b]);
    }

    /// What comes after `[interface]`; `has_all`: b gets all packets.
    fn peers(&self, has_all: bool) -> [String; 2] {
        let b = self.pair.b.as_peer_at_home();
        [
            format!("[metrics]\nlisten = \"unix:{}\"\n", self.metrics().display()),
            if has_all {
                b.replace("/32\"", "/32\", \"0.0.0.0/0\"")
            } else {
                b
            },
        ]
    }

    fn metrics(&self) -> PathBuf {
        self.lab().directory.join("metrics.sock")
    }

    /// All that a tunnel can have left, but for the kill switch.
    fn around(&self) -> String {
        let names = |folder: &Path, begin: &str| {
            let entries = fs::read_dir(folder).expect("it is there").flatten();
            let names = entries.map(|entry| entry.file_name().display().to_string());
            let mut names: Vec<_> = names.filter(|name| name.starts_with(begin)).collect();
            names.sort();
            names
        };
        let directory = &self.lab().directory;
        format!(
            "{}\n{:?}\n{:?}\n{:?}",
            around(self.lab(), &self.etc),
            names(&self.etc, ""),
            names(directory, "a.sock"),
            names(directory, "metrics")
        )
    }

    fn inside(&self) -> [&str; 6] {
        ["unshare", "-m", "sh", "-c", &self.own_etc, "sh"]
    }

    /// Starts a and waits for nothing.
    fn launch(&mut self) {
        let own_etc = self.own_etc.clone();
        let inside = ["unshare", "-m", "sh", "-c", &own_etc, "sh"];
        self.pair.a.start_at_least_under(&self.pair.lab.a, &inside);
    }

    fn start(&mut self) {
        self.launch();
        self.wait_until_up();
    }

    fn wait_until_up(&self) {
        self.pair.wait_until_packets_pass();
        // Packets pass before it says that it is up.
        let mark = self.pair.a.control.with_extension("sock.up");
        wait_until("what says that it is up", PATIENCE, || mark.exists());
    }

    /// Nothing leaves beside the tunnel.
    fn is_locked(&self) -> bool {
        let tables = self.lab().a.run(&["nft", "list", "tables"]);
        let underlay = UNDERLAY_V4[1].parse().expect("an address");
        tables.contains(&format!("ringway-lockdown-{INTERFACE}")) && !self.lab().a.ping(underlay, 56)
    }

    fn is_unlocked(&self) -> bool {
        let underlay = UNDERLAY_V4[1].parse().expect("an address");
        self.lab().a.answers(underlay, 56)
    }

    /// Kills a; the switch holds from then on.
    fn kill(&mut self) {
        self.pair.a.end_by(Signal::SIGKILL);
        assert!(self.is_locked());
    }

    /// After a kill at the moment `when`, once nothing that the daemon has started is at work any more.
    fn is_put_right_by(&mut self, heir: Heir, when: &str) {
        let was_locked = self.is_locked();
        let before = self.before.clone();
        match heir {
            Heir::Cleanup => {
                let cleanup = [&self.inside()[..], &[RINGWAY, "cleanup", INTERFACE]].concat();
                let said = self.lab().a.run(&cleanup);
                assert_eq!(self.around(), before, "{when}: {said}");
                let again = self.lab().a.run(&cleanup);
                assert_eq!(again, format!("nothing is left of {INTERFACE}\n"), "{when}");
                assert_eq!(self.is_locked(), was_locked, "{when}");
                if was_locked {
                    self.lab().a.run(&[RINGWAY, "unblock", INTERFACE]);
                }
            }
            Heir::Next => {
                self.launch();
                self.comes_up_and_ends(when);
            }
        }
        assert!(self.is_unlocked(), "{when}");
    }

    /// What was launched puts right what was left, and leaves nothing.
    fn comes_up_and_ends(&mut self, when: &str) {
        self.wait_until_up();
        assert!(self.is_locked(), "{when}");
        let status = self.pair.a.end_by(Signal::SIGTERM);
        assert!(status.success(), "{when}: {status}");
        assert_eq!(self.around(), self.before, "{when}");
    }
}

/// An nft in the place of a's that keeps one of its calls waiting.
struct SlowNft {
    folder: PathBuf,
}

impl SlowNft {
    fn new(host: &Host) -> SlowNft {
        let folder = host.lab().directory.clone();
        let path = env::var("PATH").expect("it is set");
        let lines = format!(
            "PATH={path}:/usr/sbin:/sbin
cd {} || exit
[ -e turn ] || exec nft \"$@\"
echo >>calls
[ $(wc -l <calls) -eq $(cat turn) ] || exec nft \"$@\"
echo >reached
until [ -e go ]; do sleep 0.02; done
nft \"$@\"
code=$?
echo >done
exit $code",
            folder.display()
        );
        script(&host.bin.join("nft"), &lines);
        SlowNft { folder }
    }

    /// The call of this number from now on, counted from 1, is to wait.
    fn hold(&self, number: usize) {
        for name in ["calls", "reached", "go", "done"] {
            let _ = fs::remove_file(self.folder.join(name));
        }
        fs::write(self.folder.join("calls"), "").expect("the directory is ours");
        fs::write(self.folder.join("turn"), number.to_string()).expect("the directory is ours");
    }

    fn is_reached(&self) -> bool {
        self.folder.join("reached").exists()
    }

    /// Lets the call go on, and all others from now on; waits until it has ended.
    fn let_go(&self) {
        let was_reached = self.is_reached();
        fs::remove_file(self.folder.join("turn")).expect("it is there");
        fs::write(self.folder.join("go"), "").expect("the directory is ours");
        wait_until("nft's end", PATIENCE, || {
            !was_reached || self.folder.join("done").exists()
        });
    }
}

#[test]
fn a_daemon_that_is_killed_while_commands_of_its_start_run_has_its_end_by_whoever_comes() {
    let Some(mut host) = Host::new() else { return };
    assert!(host.is_unlocked());
    let [reached, gate, down] = ["reached", "gate", "down"].map(|name| host.lab().directory.join(name));
    let ends = || fs::read_to_string(&down).map_or(0, |text| text.lines().count());
    let command = format!(
        "touch {}; until [ -e {} ]; do sleep 0.02; done",
        reached.display(),
        gate.display()
    );
    for list in ["pre_up", "post_up"] {
        for heir in HEIRS {
            host.write(&format!(
                "{list} = [\"{command}\"]\npost_down = [\"echo >>{}\"]\n",
                down.display()
            ));
            host.launch();
            wait_until("the command", PATIENCE, || reached.exists());
            host.kill();
            fs::write(&gate, "").expect("the directory is ours");
            host.is_put_right_by(heir, &format!("{list}, then {heir:?}"));
            let of_killed = usize::from(list == "post_up");
            assert_eq!(ends(), of_killed + usize::from(heir == Heir::Next), "{list}, {heir:?}");
            for file in [&reached, &gate, &down] {
                let _ = fs::remove_file(file);
            }
        }
    }
}

#[test]
fn a_daemon_that_is_killed_at_any_of_its_starts_packet_filters_leaves_nothing_that_stays() {
    let Some(mut host) = Host::new() else { return };
    let nft = SlowNft::new(&host);
    let mark = host.pair.a.control.with_extension("sock.up");
    for heir in HEIRS {
        for number in 1.. {
            nft.hold(number);
            host.launch();
            wait_until("the moment", PATIENCE, || nft.is_reached() || mark.exists());
            let is_amid = nft.is_reached();
            host.pair.a.end_by(Signal::SIGKILL);
            nft.let_go();
            // The first call asks whether another one holds, the second one raises it.
            assert_eq!(host.is_locked(), number > 1);
            host.is_put_right_by(heir, &format!("call {number}, then {heir:?}"));
            if !is_amid {
                assert!(number > 3, "more than the kill switch");
                break;
            }
        }
    }
}

/// Two configurations that have nothing in common but what every one of these has.
fn write_in_turn(host: &Host, is_full: bool) {
    match is_full {
        true => host.write_with(
            "mtu = 1300\nexclude = [\"10.96.0.0/16\"]\nlockdown_outside = [\"198.51.100.0/24\"]\naddresses = \
             [\"10.99.0.1/24\", \"10.97.0.1/24\"]\n",
            &["10.99.0.2", "10.99.0.3"],
            true,
        ),
        false => host.write_with("", &["10.99.0.2"], false),
    }
}

#[test]
fn a_daemon_that_is_killed_amid_a_reload_is_followed_by_what_the_file_says() {
    let Some(mut host) = Host::new() else { return };
    let nft = SlowNft::new(&host);
    let reloads = |host: &Host| host.pair.a.log().matches(" reloaded: ").count();
    let follow = |host: &mut Host, number: usize, when: &str| {
        let heir = HEIRS[number % 2];
        host.is_put_right_by(heir, &format!("{when}, then {heir:?}"));
    };
    for is_full in [true, false] {
        // At each moment at which packet filters are about to change.
        for number in 1.. {
            write_in_turn(&host, !is_full);
            host.start();
            write_in_turn(&host, is_full);
            let before = reloads(&host);
            nft.hold(number);
            host.pair.a.signal(Signal::SIGHUP);
            wait_until("the moment", PATIENCE, || nft.is_reached() || reloads(&host) > before);
            let is_amid = nft.is_reached();
            host.kill();
            nft.let_go();
            follow(&mut host, number, &format!("to full: {is_full}, call {number}"));
            if !is_amid {
                assert!(number > 2, "the kill switch and the table of the routes");
                break;
            }
        }
        // Wherever it is then.
        for pause in 0..8 {
            write_in_turn(&host, !is_full);
            host.start();
            write_in_turn(&host, is_full);
            host.pair.a.signal(Signal::SIGHUP);
            thread::sleep(Duration::from_millis(4 * pause));
            host.kill();
            // What it has begun.
            thread::sleep(Duration::from_millis(200));
            follow(
                &mut host,
                pause as usize,
                &format!("to full: {is_full}, after {} ms", 4 * pause),
            );
        }
    }
}

#[test]
fn a_daemon_that_is_ended_amid_a_reload_leaves_nothing() {
    let Some(mut host) = Host::new() else { return };
    let nft = SlowNft::new(&host);
    let reloads = |host: &Host| host.pair.a.log().matches(" reloaded: ").count();
    for is_locked in [true, false] {
        for number in 1.. {
            host.write_either(!is_locked);
            host.start();
            host.write_either(is_locked);
            let before = reloads(&host);
            nft.hold(number);
            host.pair.a.signal(Signal::SIGHUP);
            wait_until("the moment", PATIENCE, || nft.is_reached() || reloads(&host) > before);
            let is_amid = nft.is_reached();
            if !is_amid {
                nft.let_go();
            }
            let status = host.pair.a.end_by(Signal::SIGTERM);
            let when = format!("to a kill switch: {is_locked}, call {number}");
            assert!(status.success(), "{when}: {status}");
            assert_eq!(host.around(), host.before, "{when}");
            assert!(host.is_unlocked(), "{when}");
            if !is_amid {
                assert!(number > 3, "the kill switch, the gateway and the table of the routes");
                break;
            }
        }
    }
}

#[test]
fn a_start_that_is_refused_leaves_the_kill_switch_of_the_daemon_that_runs() {
    let Some(mut host) = Host::new() else { return };
    for is_locked in [true, false] {
        host.write_either(is_locked);
        host.start();
        host.write_either(!is_locked);
        let mut second = host.lab().a.command(RINGWAY);
        let output = second
            .arg("run")
            .arg(&host.pair.a.file)
            .output()
            .expect("it can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(!said.contains("ringway unblock"), "{said}");
        assert_eq!(host.is_locked(), is_locked, "{said}");
        assert_eq!(host.is_unlocked(), !is_locked, "{said}");
        host.pair.a.end_by(Signal::SIGTERM);
        assert_eq!(host.around(), host.before);
    }
}

#[test]
fn the_next_daemon_has_its_own_kill_switch_whatever_the_one_that_is_ending_leaves() {
    let Some(mut host) = Host::new() else { return };
    for keep in [true, false] {
        host.write(&format!(
            "lockdown_keep = {keep}\nfwmark = 4660\npost_down = [\"sleep 0.5\"]\n"
        ));
        let ups = |host: &Host| host.pair.a.log().matches(" up name=").count();
        let before = ups(&host);
        host.start();
        wait_until("what says so", PATIENCE, || ups(&host) > before);
        host.pair.a.signal(Signal::SIGTERM);
        host.write("fwmark = 22136\n");
        host.launch();
        wait_until("the next daemon", PATIENCE, || ups(&host) > before + 1);
        let table = format!("ringway-lockdown-{INTERFACE}");
        let rules = host.lab().a.run(&["nft", "list", "table", "inet", &table]);
        assert!(rules.contains("0x00005678") && !rules.contains("0x00001234"), "{rules}");
        host.comes_up_and_ends("the next daemon");
    }
}

#[test]
fn what_was_on_trial_when_the_daemon_was_killed_is_not_tried_again() {
    let Some(mut host) = Host::new() else { return };
    for heir in HEIRS {
        write_in_turn(&host, true);
        let trial = host.lab().directory.join("trial.toml");
        let guest = peer(&Keys::new().public, "guest", "10.95.0.0/24", "");
        let text = fs::read_to_string(&host.pair.a.file).expect("it was written");
        write(&trial, &(text + &guest));
        write_in_turn(&host, false);
        let file = fs::read_to_string(&host.pair.a.file).expect("it was written");
        host.start();
        let running = |host: &Host| (host.pair.a.must(&["peer", "list", "@"]), host.around());
        let before = running(&host);
        let trial = trial.to_str().expect("ASCII");
        let answer = host.pair.a.must(&["apply", trial, "@", "--confirm", "10m"]);
        assert!(answer.contains("ringway confirm"), "{answer}");
        let tried = running(&host);
        assert!(tried.0.contains("guest") && tried.1.contains("10.95.0.0/24") && tried.1 != before.1);
        host.kill();
        assert_eq!(fs::read_to_string(&host.pair.a.file).expect("it is there"), file);
        if heir == Heir::Next {
            assert!(host.is_locked());
            host.start();
            assert_eq!(running(&host), before);
            let refused = host.pair.a.ringway(&["confirm", "@"]).expect_err("nothing is on trial");
            assert!(refused.1.contains("no change waits"), "{refused:?}");
            host.kill();
        }
        host.is_put_right_by(heir, &format!("{heir:?}"));
        assert_eq!(fs::read_to_string(&host.pair.a.file).expect("it is there"), file);
    }
}

#[test]
fn a_daemon_that_is_killed_while_the_next_program_is_asked_is_as_one_that_was_killed_at_any_time() {
    let Some(mut host) = Host::new() else { return };
    for heir in HEIRS {
        host.write("sandbox = false\n");
        host.start();
        let (program, asked, open) = waiting(host.lab(), true);
        let before = asked();
        let child = upgrade_beside(&host.pair.a, &program);
        wait_until("the question", PATIENCE, || asked() > before);
        host.kill();
        let output = child.wait_with_output().expect("it is our child");
        assert!(!output.status.success(), "{output:?}");
        // It has its answer while nobody waits for that.
        open();
        host.is_put_right_by(heir, &format!("{heir:?}"));
        fs::remove_file(host.lab().directory.join("asked.gate")).expect("it is there");
    }
}

#[test]
fn a_program_that_is_killed_before_it_goes_on_with_a_tunnel_is_followed_by_the_guard_and_by_whoever_comes() {
    let Some(mut host) = Host::new() else { return };
    let [down, gate] = ["down", "gate"].map(|name| host.lab().directory.join(name));
    let ends = || fs::read_to_string(&down).map_or(0, |text| text.lines().count());
    // Left to the guard; a daemon comes while it is at work; it is killed itself.
    for (is_awaited, guard_dies, heir) in [
        (true, false, Heir::Next),
        (true, false, Heir::Cleanup),
        (false, false, Heir::Next),
        (false, true, Heir::Next),
        (false, true, Heir::Cleanup),
    ] {
        let when = format!("awaited: {is_awaited}, killed: {guard_dies}, then {heir:?}");
        let comes_amid = !is_awaited && !guard_dies;
        if !comes_amid {
            fs::write(&gate, "").expect("the directory is ours");
        }
        host.write(&format!(
            "post_down = [\"echo >>{}\", \"until [ -e {} ]; do sleep 0.02; done\"]\n",
            down.display(),
            gate.display()
        ));
        host.start();
        let pid = host.pair.a.status()["pid"].as_i64().expect("a number");
        let (program, executed, _) = waiting(host.lab(), false);
        let before = executed();
        let child = upgrade_beside(&host.pair.a, &program);
        wait_until("the next program", PATIENCE, || executed() > before);
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
        let [guard] = children.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{when}: the guard alone: {children}")
        };
        let guard: i64 = guard.parse().expect("a number");
        assert!(runs(guard));
        if guard_dies {
            kill_process(guard);
            wait_until("its end", PATIENCE, || !runs(guard));
        }
        host.kill();
        let output = child.wait_with_output().expect("it is our child");
        assert!(!output.status.success(), "{output:?}");
        if is_awaited {
            wait_until("the guard's end", PATIENCE, || !runs(guard));
            assert_eq!(host.around(), host.before, "{when}");
            assert_eq!(ends(), 1, "{when}");
            if heir == Heir::Cleanup {
                assert!(host.is_locked(), "{when}");
                let nothing = host
                    .lab()
                    .a
                    .run(&[RINGWAY, "cleanup", host.pair.a.file.to_str().expect("ASCII")]);
                assert_eq!(nothing, format!("nothing is left of {INTERFACE}\n"), "{when}");
            }
        }
        if comes_amid {
            wait_until("the guard's commands", PATIENCE, || ends() == 1);
            host.launch();
            wait_until("the next daemon to wait", PATIENCE, || {
                host.pair.a.log().contains("another process runs post_down")
            });
            assert!(runs(guard), "{when}");
            fs::write(&gate, "").expect("the directory is ours");
            host.comes_up_and_ends(&when);
        } else {
            host.is_put_right_by(heir, &when);
        }
        wait_until("the guard's end", PATIENCE, || !runs(guard));
        assert_eq!(host.around(), host.before, "{when}");
        assert_eq!(ends(), 1 + usize::from(heir == Heir::Next), "{when}");
        for file in [&down, &gate] {
            fs::remove_file(file).expect("it is there");
        }
    }
}
