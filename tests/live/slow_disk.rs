//! A disk that does not answer, as an upgrade and the end of a tunnel meet it.

use std::fs::File;
use std::path::Path;

use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::signal::Signal;

use crate::end::{End, INTERFACE};
use crate::lab::wait_until;
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
