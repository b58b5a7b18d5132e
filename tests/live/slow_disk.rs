//! A disk that does not answer, as an upgrade and the end of a tunnel meet it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::signal::Signal;

use crate::end::{End, INTERFACE};
use crate::lab::{Lab, PREFIX, remove_directories, run, wait_until};
use crate::traffic::{connect, under_traffic};
use crate::upgrade::{unchanged, upgrade};
use crate::{PATIENCE, Pair, inner};

/// Whoever opens a file in a directory waits as long as this is there: nobody says that he may (fanotify(7)).
struct Stall {
    _group: Fanotify,
}

impl Stall {
    /// `None`, with a printed line, where the kernel has no such thing.
    fn of(folder: &Path) -> Option<Stall> {
        let directory = File::open(folder).expect("the state is in it");
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC;
        let mask = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_EVENT_ON_CHILD;
        let group = Fanotify::init(flags, EventFFlags::O_RDONLY).and_then(|group| {
            group.mark(MarkFlags::FAN_MARK_ADD, mask, &directory, None::<&Path>)?;
            Ok(group)
        });
        let group = group.inspect_err(|error| println!("skipped: no disk can be stalled here (fanotify: {error})"));
        Some(Stall { _group: group.ok()? })
    }

    /// Of an end's disk, once that has what says that the file can be written.
    fn of_state(end: &End) -> Option<Stall> {
        wait_until("the state file", PATIENCE, || end.state.exists());
        Stall::of(end.state.parent().expect("it has one"))
    }
}

/// Mounts the image `$1` at `$2`, and does what `fsfreeze` is told line by line. The end of its input is that of the test, however that came:
/// then it thaws and unmounts. It stands in the file system, so nobody's unmounting keeps it from that. A minute without a word is an
/// end too: a thread that waits for this disk keeps a killed test's process, and its side of the pipe.
const KEEPER: &str = r#"
    trap '' HUP INT TERM PIPE
    mkfs.ext4 -q "$1" && mount -o loop "$1" "$2" && cd "$2" || exit
    echo mounted
    while read -r -t 60 option; do fsfreeze "$option" . && echo done || echo failed; done
    fsfreeze --unfreeze .
    umount --lazy "$2"
"#;

/// A file system of its own. While it is frozen, who writes to it waits, and no signal ends that. It thaws with this process.
struct Disk {
    folder: PathBuf,
    keeper: Child,
    answers: BufReader<ChildStdout>,
}

impl Disk {
    /// In a directory that is ours. `None`, with a printed line, where there can be none.
    fn new(directory: &Path) -> Option<Disk> {
        let [image, folder] = ["image", "disk"].map(|name| directory.join(name));
        let file = File::create(&image).and_then(|file| file.set_len(16 << 20));
        file.expect("the directory is ours");
        fs::create_dir(&folder).expect("the directory is ours");
        // A session of its own: what ends the test's process group is not meant for it.
        let mut command = Command::new("setsid");
        command.args(["bash", "-c", KEEPER, "bash"]).args([&image, &folder]);
        let streams = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut keeper = streams.spawn().expect("util-linux is installed");
        let answers = BufReader::new(keeper.stdout.take().expect("piped"));
        let mut disk = Disk {
            folder,
            keeper,
            answers,
        };
        if disk.answer() != "mounted" {
            let mut why = String::new();
            let mut stderr = disk.keeper.stderr.take().expect("piped");
            stderr.read_to_string(&mut why).expect("text");
            println!("skipped: no disk can be frozen here: {}", why.trim_end());
            return None;
        }
        Some(disk)
    }

    /// Whether `fsfreeze OPTION` has done it.
    fn try_to(&mut self, option: &str) -> bool {
        let input = self.keeper.stdin.as_mut().expect("piped");
        writeln!(input, "{option}").expect("the keeper reads");
        self.answer() == "done"
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Ends its input first.
        let _ = self.keeper.wait();
    }
}

#[test]
fn a_disk_that_never_takes_the_latency_log_keeps_nothing_from_being_put_back() {
    for io in ["uring", "syscall"] {
        let Some(lab) = Lab::new() else { return };
        let [mut a, mut b] = [0, 1].map(|me| End::new(&lab, me));
        let Some(mut disk) = Disk::new(&lab.directory) else {
            return;
        };
        let ended = lab.directory.join("ended");
        let log = disk.folder.join("rw0.hlog");
        a.write(
            &format!(
                "io = \"{io}\"\nlatency_log = \"{}\"\npost_down = [\"touch {}\"]\n",
                log.display(),
                ended.display()
            ),
            &[b.as_peer_at_home()],
        );
        b.write("", &[a.as_peer("")]);
        b.start(&lab.b);
        a.start(&lab.a);
        let text = || fs::read_to_string(&log).unwrap_or_default();
        wait_until("an interval in the log", PATIENCE, || {
            lab.a.ping(inner(1), 56) && text().contains("Tag=")
        });
        assert!(disk.try_to("--freeze"));
        let before = text();
        // Packets pass meanwhile, and intervals end.
        for _ in 0..3 {
            assert!(lab.a.answers(inner(1), 56));
            thread::sleep(Duration::from_millis(600));
        }
        assert_eq!(text(), before);
        // It comes back although no signal ends a thread that waits for such a disk.
        assert_eq!(
            a.must(&["down", &a.file.display().to_string()]),
            format!("{INTERFACE} is down")
        );
        assert!(ended.exists() && !lab.a.has_interface(INTERFACE) && !a.control.exists());
        let said = a.log();
        assert!(said.contains("the latency log is not written within 5s"), "{said}");
        assert!(disk.try_to("--unfreeze"));
        a.wait_for_end();
    }
}

#[test]
fn a_disk_that_does_not_answer_keeps_a_tunnel_from_leaving_but_not_from_its_end() {
    let Some(mut pair) = Pair::up() else { return };
    let Pair { a, lab, .. } = &pair;
    let before = unchanged(a, "b");
    let Some(stall) = Stall::of_state(a) else { return };
    under_traffic(connect(lab, inner(1)), || {
        // What the first one has begun is in the way of the next one.
        for _ in 0..2 {
            let (code, text) = a.ringway(&["upgrade", "@"]).expect_err("it is refused");
            let told =
                text.contains("the state file or the latency log is not written within 5s; try again when their disk");
            assert!(told && text.contains("; the tunnel goes on as before"), "{text}");
            assert_eq!(code, 1, "{text}");
            assert_eq!(unchanged(a, "b"), before);
        }
    });
    drop(stall);
    upgrade(a, 1);
    assert_eq!(unchanged(a, "b"), before);

    let Some(_stall) = Stall::of_state(&pair.b) else { return };
    let status = pair.b.end_by(Signal::SIGTERM);
    assert!(status.success(), "{status}");
    assert!(!pair.lab.b.has_interface(INTERFACE) && !pair.b.control.exists());
    let log = pair.b.log();
    assert!(
        log.contains("the state file or the latency log is not written within 5s"),
        "{log}"
    );
}

#[test]
fn a_frozen_disk_that_a_killed_run_has_left_is_swept_with_its_directory() {
    let Some(lab) = Lab::new() else { return };
    let mut killed = Command::new("true").spawn().expect("coreutils are installed");
    killed.wait().expect("it is our child");
    // Where nobody else sweeps.
    let directory = lab.directory.join(format!("{PREFIX}{}-0", killed.id()));
    fs::create_dir(&directory).expect("nobody else has this name");
    let disk = Disk::new(&directory);
    if let Some(mut disk) = disk {
        fs::write(disk.folder.join("file"), "something").expect("it is mounted");
        assert!(disk.try_to("--freeze"));
        remove_directories(&lab.directory);
        assert!(!directory.exists());
        assert!(!disk.try_to("--unfreeze"), "it has thawed");
    }
    wait_until("the end of its loop device", PATIENCE, || {
        let images = run(&["losetup", "--list", "--noheadings", "--output", "BACK-FILE"]);
        !images.contains(&*directory.to_string_lossy())
    });
    let _ = fs::remove_dir_all(&directory);
}
