//! Upgrades that fail when the old program is gone already: what the tunnel had in the system is put back, by whoever is left.

use std::fs;
use std::path::{Path, PathBuf};

use crate::end::{End, INTERFACE, RINGWAY};
use crate::lab::{Lab, wait_until};
use crate::traffic::{connect, under_traffic};
use crate::upgrade::{program, script, unchanged, upgrade};
use crate::{PATIENCE, Pair, inner};

/// A program that takes what is handed over, lets these lines of Python change it, and goes on as `ringway`. They have
/// the bytes in `state`, and the numbers of descriptors in `numbers`.
pub(crate) fn meddler(path: &Path, lines: &str) -> String {
    let text = format!(
        "import fcntl, json, os, sys
RINGWAY = '{RINGWAY}'
if sys.argv[1] == '--resume-check':
    os.execv(RINGWAY, [RINGWAY] + sys.argv[1:])
at = sys.argv.index('--resume') + 1
state = os.pread(int(sys.argv[at]), 1 << 24, 0)
numbers = json.loads(state[:state.index(b'\\n')])['descriptors']
{lines}
sealed = os.memfd_create('meddled', os.MFD_ALLOW_SEALING)
os.write(sealed, state)
fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
os.set_inheritable(sealed, True)
sys.argv[at] = str(sealed)
os.execv(RINGWAY, [RINGWAY] + sys.argv[1:])"
    );
    // Isolated: what is installed for people stays out of it.
    program(path, "/usr/bin/python3 -ISB", &text)
}

/// An /etc of a's own for as long as the lab is there, and the line of shell that puts it in place of the machine's.
pub(crate) fn own_etc(lab: &Lab) -> (PathBuf, String) {
    let etc = lab.directory.join("etc");
    fs::create_dir(&etc).expect("a directory");
    for file in ["passwd", "group"] {
        fs::copy(format!("/etc/{file}"), etc.join(file)).expect("every system has it");
    }
    fs::write(etc.join("resolv.conf"), "nameserver 192.0.2.53\n").expect("it can be written");
    let mount = format!("mount --bind {} /etc && exec \"$@\"", etc.display());
    (etc, mount)
}

/// All that a tunnel has in the system of a, but for its kill switch.
pub(crate) fn around(lab: &Lab, etc: &Path) -> String {
    let tables = lab.a.run(&["nft", "list", "tables"]);
    let tables: Vec<&str> = tables.lines().filter(|table| !table.contains("lockdown")).collect();
    let ip: [&[&str]; 4] = [
        &["rule"],
        &["-6", "rule"],
        &["route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
    ];
    // The underlay gets an address of the kernel's making at some time.
    let lines = ip.map(|arguments| {
        let text = lab.a.ip(arguments);
        let lines = text
            .lines()
            .filter(|line| !line.contains("fe80") && !line.contains("multicast"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    });
    let forwarding = lab.a.run(&["sysctl", "net.ipv4.conf.under0.forwarding"]);
    let names = fs::read_to_string(etc.join("resolv.conf")).expect("there is always one");
    let interface = lab.a.has_interface(INTERFACE);
    format!("{tables:?}\n{lines:#?}\n{forwarding}{names}{interface}")
}

#[test]
fn a_tunnel_that_cannot_leave_goes_on_as_before() {
    let Some(pair) = Pair::up() else { return };
    let Pair { a, lab, .. } = &pair;
    let before = unchanged(a, "b");
    // Once it was asked there is no descriptor left for anything.
    let starving = script(
        &lab.directory.join("starving"),
        &format!("[ \"$1\" = --resume-check ] && prlimit --pid $PPID --nofile=4:; exec {RINGWAY} \"$@\""),
    );
    let connection = connect(lab, inner(1));
    under_traffic(connection, || {
        let (code, text) = a
            .ringway(&["upgrade", "@", "--binary", &starving])
            .expect_err("it is refused");
        let expected =
            "cannot take the listeners along: Too many open files (os error 24); the tunnel goes on as before";
        assert!(code == 1 && text.contains(expected), "{text}");
        a.run_on_it("prlimit", &["--nofile=1024:", "--pid"]);
        assert_eq!(unchanged(a, "b"), before);
    });
    upgrade(a, 1);
    assert_eq!(unchanged(a, "b"), before);
}

#[test]
fn a_program_that_fails_once_the_old_one_is_gone_leaves_nothing_but_the_kill_switch() {
    let Some(lab) = Lab::new() else { return };
    let [a, mut b] = [0, 1].map(|me| End::new(&lab, me));
    let (etc, mount) = own_etc(&lab);
    b.write("", &[a.as_peer("")]);
    b.start(&lab.b);
    let all = b.as_peer_at_home().replace("/32\"", "/32\", \"0.0.0.0/0\"");
    let gateway = format!("[gateway]\negress = [\"under0\"]\n{all}");
    // As machines are that are no routers.
    lab.a.run(&["sysctl", "-qw", "net.ipv4.conf.under0.forwarding=0"]);
    let before = around(&lab, &etc);
    let mut pair = Pair { a, b, lab };
    let down = pair.lab.directory.join("down");
    let keys = "exclude = [\"10.96.0.0/16\"]\ndns = [\"10.99.0.2\"]\n";
    let with_commands = format!(
        "{keys}post_down = [\"grep SigBlk /proc/self/status >{}\", \"exit 3\"]\n",
        down.display()
    );
    let locked = format!("{keys}lockdown = true\n");
    let at = |name: &str| pair.lab.directory.join(name);
    let dying = script(
        &at("dying"),
        &format!("[ \"$1\" = --resume-check ] && exec {RINGWAY} \"$@\"; exit 7"),
    );
    let cutting = meddler(&at("cutting"), "state = state[:len(state) // 2]");
    let renaming = meddler(&at("renaming"), "state = state.replace(b'exclude = ', b'exclvde = ')");
    let stealing = meddler(
        &at("stealing"),
        "os.dup2(os.open('/dev/null', os.O_RDWR), numbers['sockets'][1])",
    );
    for (number, (program, interface, code, said)) in [
        (
            &dying,
            &locked,
            7,
            "the program that was to go on with the tunnel has not",
        ),
        (&cutting, &with_commands, 1, "what was handed over is damaged"),
        (
            &renaming,
            &locked,
            1,
            "has a configuration that this program does not take",
        ),
        (
            &stealing,
            &with_commands,
            1,
            "removed the table inet ringway-gateway-rw0",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        // One or the other: a gateway would let its peers' packets out.
        let is_locked = interface.contains("lockdown");
        let (peer, table) = match is_locked {
            true => (&all, "ringway-route-rw0"),
            false => (&gateway, "ringway-gateway-rw0"),
        };
        pair.a.write(interface, std::slice::from_ref(peer));
        pair.a
            .start_under(&pair.lab.a, &["unshare", "-m", "sh", "-c", &mount, "sh"]);
        pair.wait_until_packets_pass();
        let tables = |lab: &Lab| lab.a.run(&["nft", "list", "tables"]);
        assert!(around(&pair.lab, &etc).contains(table));
        let (refused, text) = pair
            .a
            .ringway(&["upgrade", "@", "--binary", program])
            .expect_err("it fails");
        assert!(
            refused == 1 && text.contains("the daemon ended before"),
            "{program}: {text}"
        );
        let status = pair.a.wait_for_end();
        assert_eq!(status.code(), Some(code), "{program}");
        let log = || pair.a.log();
        // Where the new program has read what it got, all is put right before it ends.
        if number < 2 {
            wait_until("all to be put back", PATIENCE, || {
                around(&pair.lab, &etc) == before && !pair.a.control.exists()
            });
        }
        assert_eq!(around(&pair.lab, &etc), before, "{program}: {}", log());
        assert!(!pair.a.control.exists(), "{program}: the socket is gone");
        wait_until(said, PATIENCE, || log().contains(said));
        if is_locked {
            assert!(log().contains("the kill switch holds; lift it with: ringway unblock rw0"));
            assert!(tables(&pair.lab).contains("ringway-lockdown-rw0"), "{program}");
            pair.lab.a.run(&[RINGWAY, "unblock", INTERFACE]);
        } else {
            wait_until("the commands of the end", PATIENCE, || down.exists());
            // Also of those that fail the log tells, and whoever wants to end one can.
            let failed = "post_down: \"exit 3\" failed";
            wait_until(failed, PATIENCE, || log().contains(failed));
            let held = fs::read_to_string(&down).expect("it is there");
            assert!(held.ends_with("\t0000000000000000\n"), "{held}");
            fs::remove_file(&down).expect("it is there");
        }
    }
    // Nothing of it stands in the way of the next one.
    pair.a.write("", &[pair.b.as_peer_at_home()]);
    pair.a.start(&pair.lab.a);
    assert!(pair.lab.a.answers(inner(1), 56));
}
