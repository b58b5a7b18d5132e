//! What a daemon that runs has given up, and what it does not offer unasked.

use std::fs;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::end::{End, write};
use crate::lab::Lab;
use crate::{PATIENCE, Pair, wait_until};

/// What seccomp(2) and prctl(2) hold a thread to, as proc_pid_status(5) has it: `NoNewPrivs`, `Seccomp`, `Seccomp_filters`.
type Limits = [u32; 3];

fn limits(status: &str) -> Limits {
    ["NoNewPrivs:", "Seccomp:", "Seccomp_filters:"].map(|field| {
        let value = status.lines().find_map(|line| line.strip_prefix(field));
        value.expect("since Linux 5.9").trim().parse().expect("a number")
    })
}

/// Names and limits of a daemon's threads; the control thread's name is "control" here. No request is answered before it has
/// its limits.
fn threads(end: &End) -> Vec<(String, Limits)> {
    let pid = end.status()["pid"].to_string();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let thread = |task: fs::DirEntry| {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).ok();
        let name = match task.file_name().to_str() == Some(&pid) {
            true => "control".to_owned(),
            false => read("comm")?.trim_end().to_owned(),
        };
        Some((name, limits(&read("status")?)))
    };
    // One that has ended meanwhile has none.
    tasks.flatten().filter_map(thread).collect()
}

#[test]
fn every_thread_of_a_daemon_is_confined_on_both_engines_and_after_upgrades_unless_the_file_says_otherwise() {
    let Some(lab) = Lab::new() else { return };
    let mut a = End::new(&lab, 0);
    // Of whoever runs the test: not all machines leave that unlimited.
    let own = limits(&fs::read_to_string("/proc/thread-self/status").expect("proc is mounted"));
    let confined = [1, 2, own[2] + 1];
    // What commands need nobody knows.
    for (keys, of_control, of_others) in [
        ("", confined, confined),
        ("post_down = [\"true\"]\n", own, confined),
        ("sandbox = false\n", own, own),
    ] {
        for io in ["uring", "syscall"] {
            a.write(&format!("io = \"{io}\"\n{keys}"), &[]);
            let text = fs::read_to_string(&a.file).expect("it was written");
            write(&a.file, &text.replace("workers = 1", "workers = 2"));
            a.start(&lab.a);
            for upgrades in 0..3 {
                // Threads have the limits of the thread that began them; the control thread's are no more each time.
                let inherited = if upgrades == 0 { 0 } else { of_control[2] - own[2] };
                let of_others = [of_others[0], of_others[1], of_others[2] + inherited];
                let mut found = Vec::new();
                // What looked at the disk before the control thread had its limits ends soon.
                let what = format!("{io}, {keys:?}, {upgrades} upgrades");
                let is_expected = |(name, limits): &(String, Limits)| {
                    *limits == if name == "control" { of_control } else { of_others }
                };
                let deadline = Instant::now() + PATIENCE;
                while Instant::now() < deadline && (found.is_empty() || !found.iter().all(is_expected)) {
                    found = threads(&a);
                }
                assert!(found.iter().all(is_expected), "{what}: {found:?}");
                for name in ["control", "door", "worker-0", "worker-1"] {
                    let count = found.iter().filter(|thread| thread.0 == name).count();
                    assert_eq!(count, 1, "{what}, {name}: {found:?}");
                }
                a.must(&["upgrade", "@"]);
            }
            a.end_by(Signal::SIGTERM);
        }
    }
}

/// What is listened on in a's namespace: lines of /proc/net/tcp and tcp6, and names of Unix sockets.
fn listeners(lab: &Lab) -> (Vec<String>, Vec<String>) {
    let table = |name: &str| {
        let path = format!("/proc/thread-self/net/{name}");
        let text = lab.a.enter(|| fs::read_to_string(path).expect("proc is mounted"));
        let lines = text.lines().skip(1);
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let column = |line: &str, number: usize| line.split_whitespace().nth(number).map(str::to_owned);
    // TCP_LISTEN of net/tcp_states.h, __SO_ACCEPTCON of linux/net.h.
    let tcp = ["tcp", "tcp6"].map(table).concat().into_iter();
    let tcp = tcp.filter(|line| column(line, 3).as_deref() == Some("0A"));
    let unix = table("unix").into_iter();
    let unix = unix.filter(|line| column(line, 3).as_deref() == Some("00010000"));
    (tcp.collect(), unix.filter_map(|line| column(&line, 7)).collect())
}

#[test]
fn a_daemon_serves_metrics_nowhere_unless_the_file_says_where() {
    let Some(mut pair) = Pair::up() else { return };
    let control = pair.a.control.display().to_string();
    assert_eq!(listeners(&pair.lab), (Vec::new(), vec![control.clone()]));
    let socket = pair.lab.directory.join("metrics.sock").display().to_string();
    for (place, tcp_count, mut unix) in [
        ("127.0.0.1:9586", 1, vec![control.clone()]),
        ("[::1]:9586", 1, vec![control.clone()]),
        (&format!("unix:{socket}"), 0, vec![control.clone(), socket.clone()]),
    ] {
        pair.a.end_by(Signal::SIGTERM);
        pair.a.write("", &[format!("[metrics]\nlisten = \"{place}\"\n")]);
        pair.a.start(&pair.lab.a);
        unix.sort();
        wait_until(place, PATIENCE, || {
            let (tcp, mut found) = listeners(&pair.lab);
            found.sort();
            (tcp.len(), &found) == (tcp_count, &unix)
        });
    }
}
