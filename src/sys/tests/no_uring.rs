//! Where io_uring is refused: why, and that everything is left for the other engine.

use super::lab::{Station, in_namespace};
use crate::sys::plain::Plain;
use crate::sys::probe::{self, Refusal};
use crate::sys::tun::{self, Offloads, TunQueue};
use crate::sys::udp::{self, UdpOptions};
use crate::sys::uring::Uring;
use crate::sys::wake;
use std::fs::File;

/// What Docker's default profile does, to the calling thread: EPERM for io_uring_setup.
fn forbid_io_uring() {
    const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let instruction = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let mut filter = [
        // seccomp_data begins with the number of the system call.
        instruction(LOAD_WORD, 0, 0),
        instruction(JUMP_EQUAL, 1, setup),
        instruction(RETURN, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()),
        instruction(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: takes integers only.
    let restricted = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(restricted, 0);
    // SAFETY: the program and its filter outlive the call, which copies them; it concerns the calling thread only.
    let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(filtered, 0);
}

#[test]
fn a_seccomp_filter_is_named_and_leaves_everything_for_the_plain_engine() {
    if std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|value| value.trim() != "0") {
        eprintln!("skipped: io_uring is disabled by sysctl, which explains itself first");
        return;
    }
    in_namespace(|| {
        let mut device = tun::create("rwt%d", 1, Offloads::ALL).unwrap();
        let mut group = udp::bind_group(0, 1, UdpOptions::default()).unwrap();
        let (waker, wake) = wake::pair().unwrap();
        forbid_io_uring();
        assert!(matches!(probe::io_uring(), Err(Refusal::Forbidden)));
        let refused = Uring::new(device.queues.remove(0), group.sockets.remove(0), wake)
            .err()
            .unwrap();
        assert!(refused.reason.to_string().contains("seccomp"), "{}", refused.reason);
        let engine = Box::new(Plain::new(refused.tun, refused.udp, refused.wake).unwrap());
        let mut station = Station {
            engine,
            port: group.port,
            waker,
            device: device.name,
        };
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"hello", ("127.0.0.1", station.port)).unwrap();
        station.turn_until(&mut Vec::new(), |events| !events.is_empty());
    });
}

#[test]
fn a_tun_that_io_uring_cannot_read_is_handed_back() {
    if let Err(refusal) = probe::io_uring() {
        eprintln!("skipped: {refusal}");
        return;
    }
    // Can't be polled, which multishot reads take.
    let tun = TunQueue::of_file(File::open("/dev/zero").unwrap());
    let mut group = udp::bind_group(0, 1, UdpOptions::default()).unwrap();
    let (waker, wake) = wake::pair().unwrap();
    let refused = Uring::new(tun, group.sockets.remove(0), wake).err().unwrap();
    assert!(matches!(refused.reason, Refusal::Tun(_)), "{}", refused.reason);
    waker.wake();
    assert!(refused.wake.is_rung());
}
