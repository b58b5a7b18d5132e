//! `ringway cleanup` after daemons that were killed, beside some that run, and by files that are not root's alone.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::end::{End, INTERFACE, RINGWAY, write};
use crate::lab::{Lab, wait_until};
use crate::says::assert_says;
use crate::{PATIENCE, Pair};

/// Somebody who is not root.
const STRANGER: u32 = 64_998;

/// What a's machine says of forwarding.
fn forwarding(lab: &Lab) -> String {
    lab.a.run(&["sysctl", "-n", "net.ipv4.conf.under0.forwarding"])
}

/// A gateway that runs at a, and what forwarding was before: off, as on machines that are no routers.
fn gateway() -> Option<(Lab, End, String)> {
    let lab = Lab::new()?;
    let [mut a, b] = [0, 1].map(|me| End::new(&lab, me));
    lab.a.run(&["sysctl", "-qw", "net.ipv4.conf.under0.forwarding=0"]);
    let before = forwarding(&lab);
    a.write("", &["[gateway]\negress = [\"under0\"]\n".into(), b.as_peer_at_home()]);
    a.start(&lab.a);
    wait_until("the gateway", PATIENCE, || forwarding(&lab) != before);
    Some((lab, a, before))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("an ASCII path")
}

/// Locks the file at `path` as another process does that decides whose a name is; a daemon may be removing its own.
fn lock_as_another(path: &Path) -> fs::File {
    loop {
        let file = fs::File::create(path).expect("the directory is ours");
        file.lock().expect("the daemon keeps it for a moment only");
        let inode = file.metadata().expect("it is open").ino();
        if fs::metadata(path).is_ok_and(|found| found.ino() == inode) {
            return file;
        }
    }
}

/// `ringway cleanup FILE` in a's namespace.
fn cleanup(lab: &Lab, file: &Path) -> Result<String, String> {
    lab.a.try_run(&[RINGWAY, "cleanup", text(file)])
}

#[test]
fn cleanup_goes_by_the_file_where_that_names_another_socket() {
    let Some((lab, mut a, before)) = gateway() else { return };
    a.end_by(Signal::SIGKILL);
    wait_until("the interface to go", PATIENCE, || !lab.a.has_interface(INTERFACE));
    let file = text(&a.file);
    let removed = lab.a.run(&[RINGWAY, "cleanup", file]);
    assert_says(
        &removed,
        &[
            "removed forwarding",
            "removed the table inet ringway-gateway-rw0",
            "removed the socket",
        ],
    );
    assert!(forwarding(&lab) == before && !a.control.exists());
    assert_eq!(lab.a.run(&[RINGWAY, "cleanup", file]), "nothing is left of rw0\n");
}

#[test]
fn cleanup_waits_for_the_interface_and_does_all_that_a_killed_daemon_has_not_come_to() {
    let Some(lab) = Lab::new() else { return };
    let mut a = End::new(&lab, 0);
    let [metrics, ended] = ["metrics.sock", "ended"].map(|name| lab.directory.join(name));
    let times = || fs::read_to_string(&ended).map_or(0, |text| text.lines().count());
    a.write(
        &format!("post_down = [\"echo %i >>{}\"]\n", ended.display()),
        &[format!("[metrics]\nlisten = \"unix:{}\"\n", metrics.display())],
    );
    let mark = a.control.with_extension("sock.up");
    a.start(&lab.a);
    wait_until("what says that it is up", PATIENCE, || mark.exists());
    assert!(metrics.exists());
    a.end_by(Signal::SIGKILL);
    wait_until("the interface to go", PATIENCE, || !lab.a.has_interface(INTERFACE));
    // As where the kernel takes its time to let go of it.
    lab.a
        .ip(&["link", "add", INTERFACE, "type", "veth", "peer", "name", "other0"]);
    let mut command = lab.a.command(RINGWAY);
    command.args(["cleanup", text(&a.file)]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary under test exists");
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().expect("it is our child").is_none(), "it waits");
    assert!(a.control.exists() && times() == 0);
    lab.a.ip(&["link", "delete", INTERFACE]);
    let output = child.wait_with_output().expect("it is our child");
    assert!(output.status.success(), "{output:?}");
    let removed = String::from_utf8_lossy(&output.stdout);
    assert_says(&removed, &[text(&a.control), text(&metrics)]);
    assert!(!a.control.exists() && !metrics.exists() && times() == 1);

    // After an end in good order nothing is left, and the daemon has run its commands itself.
    let nothing = || assert_eq!(cleanup(&lab, &a.file).expect("it may"), "nothing is left of rw0\n");
    nothing();
    assert_eq!(times(), 1);
    let mut again = End::new(&lab, 0);
    again.start(&lab.a);
    wait_until("what says that it is up", PATIENCE, || mark.exists());
    again.end_by(Signal::SIGTERM);
    assert_eq!(times(), 2);
    nothing();
    assert_eq!(times(), 2);

    // One that was killed before it had come up has a socket, and nothing to end.
    let removed = || cleanup(&lab, &a.file).expect("it may");
    drop(UnixListener::bind(&a.control).expect("the name is free"));
    assert_says(&removed(), &[text(&a.control)]);
    assert_eq!(times(), 2);
    // Who was killed between the two, a guard for example, leaves what says that commands are to run.
    fs::write(&mark, "").expect("the directory is ours");
    assert_eq!(removed(), "removed the mark of a tunnel that was up\n");
    assert_eq!(times(), 3);
    nothing();
    // Where another one runs them, as a guard does while an operator is impatient, they are that one's.
    let theirs = fs::File::create(&mark).expect("the directory is ours");
    theirs.lock().expect("nobody else has it");
    nothing();
    drop(theirs);
    removed();
    assert!(times() == 4 && !mark.exists());
}

#[test]
fn the_next_daemon_runs_what_a_killed_one_has_not_come_to_before_its_own_commands() {
    let Some(lab) = Lab::new() else { return };
    let mut a = End::new(&lab, 0);
    let [words, gate] = ["words", "gate"].map(|name| lab.directory.join(name));
    let said = || fs::read_to_string(&words).unwrap_or_default();
    let say = |word: &str| format!("echo {word} >>{}", words.display());
    let pass = format!("until [ -e {} ]; do sleep 0.02; done", gate.display());
    let commands = format!(
        "pre_up = [\"{}\", \"{pass}\"]\npost_down = [\"{}\"]\n",
        say("begin"),
        say("end")
    );
    a.write(&commands, &[]);
    let mark = a.control.with_extension("sock.up");
    let open_gate = || fs::write(&gate, "").expect("the directory is ours");
    let kill = |a: &mut End| {
        wait_until("what says that it is up", PATIENCE, || mark.exists());
        a.end_by(Signal::SIGKILL);
        wait_until("the interface to go", PATIENCE, || !lab.a.has_interface(INTERFACE));
    };
    open_gate();
    a.start(&lab.a);
    kill(&mut a);
    fs::remove_file(&gate).expect("it is there");

    // As long as another process has the commands, the next daemon waits; where that one is killed, they are the daemon's.
    let theirs = fs::File::open(&mark).expect("the daemon has left it");
    theirs.lock().expect("nobody else has it");
    a.start_at_least(&lab.a);
    wait_until("it to wait", PATIENCE, || {
        a.log().contains("another process runs post_down")
    });
    assert_eq!(said(), "begin\n");
    // Nor does it go on while somebody removes what is left, however long that takes.
    let name = lock_as_another(&a.control.with_extension("sock.lock"));
    theirs.unlock().expect("it is locked");
    thread::sleep(Duration::from_secs(6));
    assert_eq!(said(), "begin\n");
    name.unlock().expect("it is locked");
    wait_until("its own commands", PATIENCE, || said() == "begin\nend\nbegin\n");
    // Whoever cleans up beside them has nothing to end.
    cleanup(&lab, &a.file).expect("it may");
    assert_eq!(said(), "begin\nend\nbegin\n");
    open_gate();
    kill(&mut a);

    // A tunnel that does not come up has none of the commands of the end, and the one before it has had its own.
    a.write(&format!("{commands}post_up = [\"false\"]\n"), &[]);
    a.start_at_least(&lab.a);
    assert!(!a.wait_for_end().success());
    assert_eq!(said(), "begin\nend\nbegin\nend\nbegin\n");
    assert!(!mark.exists());
}

#[test]
fn a_signal_before_an_earlier_tunnel_is_put_right_leaves_its_commands_and_the_kill_switch() {
    let Some(lab) = Lab::new() else { return };
    let mut a = End::new(&lab, 0);
    let words = lab.directory.join("words");
    let said = || fs::read_to_string(&words).unwrap_or_default();
    a.write(
        &format!("lockdown = true\npost_down = [\"echo end >>{}\"]\n", words.display()),
        &[],
    );
    let mark = a.control.with_extension("sock.up");
    let is_locked = || {
        let table = format!("ringway-lockdown-{INTERFACE}");
        lab.a.try_run(&["nft", "list", "table", "inet", &table]).is_ok()
    };
    a.start(&lab.a);
    wait_until("what says that it is up", PATIENCE, || mark.exists());
    a.end_by(Signal::SIGKILL);

    let theirs = fs::File::open(&mark).expect("the daemon has left it");
    theirs.lock().expect("nobody else has it");
    a.start_at_least(&lab.a);
    wait_until("it to wait", PATIENCE, || {
        a.log().contains("another process runs post_down")
    });
    assert_eq!(a.end_by(Signal::SIGTERM).code(), Some(1));
    assert_says(
        &a.log(),
        &[
            "ended by a signal before what an earlier tunnel may have left was removed; see: ringway cleanup",
            "the kill switch holds; lift it with: ringway unblock",
        ],
    );
    assert!(is_locked() && mark.exists());
    theirs.unlock().expect("it is locked");

    a.start_at_least(&lab.a);
    wait_until("the next tunnel", PATIENCE, || {
        a.log().matches(" up name=").count() == 2
    });
    assert_eq!(said(), "end\n");
    assert!(a.end_by(Signal::SIGTERM).success());
    assert_eq!(said(), "end\nend\n");
    assert!(!is_locked() && !mark.exists());
}

#[test]
fn root_puts_no_socket_and_no_log_where_others_can_have_put_a_file_first() {
    let Some(lab) = Lab::new() else { return };
    let mut a = End::new(&lab, 0);
    let open = lab.directory.join("open");
    fs::create_dir(&open).expect("the directory is ours");
    let victim = lab.directory.join("victim");
    fs::write(&victim, "all of it").expect("the directory is ours");
    let run = |a: &End, command: &str| {
        a.ringway(&[command, text(&a.file)])
            .map(drop)
            .expect_err("it is refused")
            .1
    };
    let set_mode = |mode| fs::set_permissions(&open, fs::Permissions::from_mode(mode)).expect("it is ours");
    set_mode(0o777);
    let open_to_others = format!(
        "others can write to {0} (mode 0777); run: chmod go-w {0}",
        open.display()
    );

    let log = open.join("rw.hlog");
    symlink(&victim, &log).expect("a link");
    let logging = format!("latency_log = \"{}\"\n", log.display());
    a.write(&logging, &[]);
    let told = run(&a, "run");
    assert!(told.contains(text(&log)) && told.contains(&open_to_others), "{told}");
    // In a directory like /tmp the link itself is what is in the way.
    set_mode(0o1777);
    let told = run(&a, "run");
    assert!(
        told.contains(&format!("{}: is in the way and is no file", log.display())),
        "{told}"
    );
    fs::remove_file(&log).expect("it is there");
    a.start(&lab.a);
    a.end_by(Signal::SIGTERM);
    assert!(log.exists());

    set_mode(0o777);
    a.write("", &[]);
    let own = fs::read_to_string(&a.file).expect("it was written");
    let socket = open.join("rw.sock");
    symlink(&victim, socket.with_extension("sock.log")).expect("a link");
    write(&a.file, &own.replace(text(&a.control), text(&socket)));
    for (command, place) in [("run", socket.clone()), ("up", socket.with_extension("sock.log"))] {
        let told = run(&a, command);
        assert!(told.contains(text(&place)) && told.contains(&open_to_others), "{told}");
    }
    // Nor may it be a second name of another file.
    set_mode(0o1777);
    let log = socket.with_extension("sock.log");
    fs::remove_file(&log).expect("it is there");
    fs::hard_link(&victim, &log).expect("root may");
    let told = run(&a, "up");
    let names = format!("{}: the file has other names too", log.display());
    assert!(told.contains(&names), "{told}");
    set_mode(0o777);
    let metrics = open.join("metrics.sock");
    write(
        &a.file,
        &format!("{own}[metrics]\nlisten = \"unix:{}\"\n", metrics.display()),
    );
    let told = run(&a, "run");
    assert!(
        told.contains(text(&metrics)) && told.contains(&open_to_others),
        "{told}"
    );
    // In a directory like /tmp anybody can put a mark, and keep its lock: nobody waits for that, nor runs commands because of it.
    set_mode(0o1777);
    let own_place = own.replace(text(&a.control), text(&socket));
    let ran = lab.directory.join("ran");
    let commands = format!("post_down = [\"touch {}\"]\n", ran.display());
    a.write(&commands, &[]);
    let with_commands = fs::read_to_string(&a.file).expect("it was written");
    write(&a.file, &with_commands.replace(text(&a.control), text(&socket)));
    let mark = socket.with_extension("sock.up");
    let theirs = fs::File::create(&mark).expect("it is ours");
    theirs.lock().expect("nobody else has it");
    chown(&mark, Some(STRANGER), None).expect("root may");
    // Nor is a switch set as they say that it was.
    let before = forwarding(&lab);
    let (is, was) = if before.trim() == "0" { ("0", "1") } else { ("1", "0") };
    let switches = socket.with_extension("sock.sysctl");
    let planted = format!("[{{\"key\":\"net/ipv4/conf/under0/forwarding\",\"was\":\"{was}\",\"is\":\"{is}\"}}]");
    fs::write(&switches, planted).expect("it is ours");
    chown(&switches, Some(STRANGER), None).expect("root may");
    a.start_at_least(&lab.a);
    wait_until("the control socket", PATIENCE, || socket.exists());
    let log = a.log();
    let strange = format!("{} belongs to the user {STRANGER}", mark.display());
    assert!(
        log.contains(&strange) && log.contains("post_down does not run"),
        "{log}"
    );
    assert!(!ran.exists());
    a.end_by(Signal::SIGTERM);
    assert!(ran.exists(), "those of its own end");
    assert_eq!(forwarding(&lab), before);
    // Nor is their lock waited for.
    let lock = socket.with_extension("sock.lock");
    let theirs = lock_as_another(&lock);
    chown(&lock, Some(STRANGER), None).expect("root may");
    write(&a.file, &own_place);
    let told = run(&a, "run");
    let strange = format!("{} belongs to the user {STRANGER}", lock.display());
    assert!(told.contains(&strange), "{told}");
    drop(theirs);
    fs::remove_file(&lock).expect("it is there");
    set_mode(0o777);
    // For want of its state no tunnel stays down.
    let state = open.join("rw0.state");
    write(
        &a.file,
        &own.replace(text(a.state.parent().expect("it has one")), text(&open)),
    );
    a.start(&lab.a);
    a.end_by(Signal::SIGTERM);
    let log = a.log();
    assert!(log.contains(text(&state)) && log.contains(&open_to_others), "{log}");
    assert!(!state.exists());
    assert_eq!(fs::read_to_string(&victim).expect("it is there"), "all of it");
}

#[test]
fn cleanup_by_a_file_that_names_another_interface_by_now_leaves_a_tunnel_that_runs_alone() {
    let Some((lab, mut a, before)) = gateway() else { return };
    let edited = fs::read_to_string(&a.file).expect("it was written");
    write(&a.file, &edited.replace("name = \"rw0\"", "name = \"rw1\""));
    let told = cleanup(&lab, &a.file).expect_err("it runs");
    assert!(
        told.contains(&format!("{}: a daemon answers on this socket", text(&a.control))),
        "{told}"
    );
    assert_ne!(forwarding(&lab), before);
    assert!(a.control.with_extension("sock.sysctl").exists());
    a.end_by(Signal::SIGTERM);
    assert_eq!(forwarding(&lab), before);
}

#[test]
fn root_runs_no_commands_and_removes_no_sockets_on_the_word_of_others() {
    let Some(mut pair) = Pair::up() else { return };
    let give_away = |path: &Path| chown(path, Some(STRANGER), None);
    if let Err(error) = give_away(&pair.a.file) {
        println!("skipped: this root gives away no files: {error}");
        return;
    }
    let marker = pair.lab.directory.join("ran");
    let file = pair.a.file.clone();
    let touch = |hook: &str| format!("{hook} = [\"touch {}\"]\n", marker.display());
    let refusal = |hook: &str| {
        let file = text(&file);
        format!(
            "{file}: root runs no commands ({hook}) that others can have written: {file} belongs to the user {STRANGER}; \
             run: chown root {file}"
        )
    };
    // What has none may be anybody's.
    pair.a.must(&["reload", "@"]);
    pair.a.write(&touch("post_down"), &[pair.b.as_peer_at_home()]);
    let (code, told) = pair.a.ringway(&["reload", "@"]).expect_err("it has commands");
    assert!(code == 3 && told.contains(&refusal("post_down")), "{told}");
    pair.a.end_by(Signal::SIGKILL);
    // The rest is done: root has made this socket.
    let told = cleanup(&pair.lab, &file).expect_err("it has commands");
    assert!(told.contains(&refusal("post_down")), "{told}");
    assert!(told.contains("removed the socket") && !pair.a.control.exists());
    pair.a.write(&touch("pre_up"), &[]);
    for command in ["run", "up"] {
        let (code, told) = pair.a.ringway(&[command, text(&file)]).expect_err("it has commands");
        assert!(code == 3 && told.contains(&refusal("pre_up")), "{told}");
    }

    // A socket that they have made, and what forwarding was before, as they say.
    let theirs = pair.lab.directory.join("theirs.sock");
    let switches = theirs.with_extension("sock.sysctl");
    drop(UnixListener::bind(&theirs).expect("a socket"));
    let mark = theirs.with_extension("sock.up");
    fs::write(&mark, "").expect("the directory is ours");
    fs::write(&switches, "[]").expect("the directory is ours");
    give_away(&theirs).expect("root may");
    let own = fs::read_to_string(&file).expect("it was written");
    write(
        &file,
        &own.replace(text(&pair.a.control), text(&theirs))
            .replace("pre_up", "post_down"),
    );
    let told = cleanup(&pair.lab, &file).expect_err("it names such a socket");
    let expected = format!(
        "root removes nothing at a place that others can have chosen ({})",
        theirs.display()
    );
    assert!(told.contains(&expected), "{told}");
    assert!(theirs.exists() && switches.exists() && mark.exists() && !marker.exists());

    // Where they are root by sudo, it is done as the file says.
    let by_sudo = |user: u32| {
        let user = format!("SUDO_UID={user}");
        pair.lab.a.try_run(&["env", &user, RINGWAY, "cleanup", text(&file)])
    };
    by_sudo(STRANGER + 1).expect_err("it is not theirs");
    assert!(theirs.exists() && !marker.exists());
    let removed = by_sudo(STRANGER).expect("it is theirs");
    assert_says(&removed, &["removed forwarding", text(&theirs)]);
    assert!(!theirs.exists() && !switches.exists() && marker.exists());
}
