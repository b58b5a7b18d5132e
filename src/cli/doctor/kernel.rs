//! What the kernel has: its version, io_uring, the TUN device and offloads.

use std::fs::{self, OpenOptions};
use std::io;

use super::Finding;
use super::subject::Subject;
use crate::sys::udp::{self, UdpOptions};
use crate::sys::{probe, tun};

/// CAP_NET_ADMIN (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
/// The first kernel whose io_uring reads a TUN by multishot.
const URING_SINCE: (u32, u32) = (6, 7);
/// The first kernel whose UDP_GRO is trustworthy.
const GRO_SINCE: (u32, u32) = (5, 12);
/// An interface that exists for a moment, to see which offloads it gets.
const TRIAL_INTERFACE: &str = "rwdoctor";

pub(super) fn findings(subject: &Subject) -> Vec<Finding> {
    let mut findings = vec![privileges(), version(&release()), io_uring(), tun_device()];
    findings.extend(offloads(subject));
    findings
}

/// Whether this process may configure networks.
pub(super) fn is_net_admin() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> CAP_NET_ADMIN & 1 == 1)
}

fn privileges() -> Finding {
    match is_net_admin() {
        true => Finding::ok("privileges", "CAP_NET_ADMIN is there"),
        false => Finding::warning(
            "privileges",
            "this process lacks CAP_NET_ADMIN, which a daemon needs",
            "run doctor as the daemon's user or as root to see what it sees",
        ),
    }
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn version(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let text = format!("Linux {release}");
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= URING_SINCE => Finding::ok("kernel", text),
        (Some(major), Some(minor)) if (major, minor) >= GRO_SINCE => Finding::warning(
            "kernel",
            format!("{text}: too old for the io_uring engine; plain system calls carry the packets"),
            "Linux 6.7 or newer is faster",
        ),
        (Some(_), Some(_)) => Finding::warning(
            "kernel",
            format!("{text}: its UDP_GRO is not trustworthy"),
            "set udp_gro = false in [interface], or use Linux 5.12 or newer (6.7 or newer for io_uring)",
        ),
        _ => Finding::warning(
            "kernel",
            format!("unknown version {release:?}"),
            "Linux 6.7 or newer is best",
        ),
    }
}

fn io_uring() -> Finding {
    match probe::io_uring() {
        Ok(()) => Finding::ok("io_uring", "can be used"),
        Err(refusal) => Finding::warning(
            "io_uring",
            refusal.to_string(),
            "without it plain system calls carry the packets, a little slower; io = \"syscall\" says so on purpose",
        ),
    }
}

fn tun_device() -> Finding {
    const DEVICE: &str = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => Finding::ok("tun", format!("{DEVICE} can be opened")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::problem(
            "tun",
            format!("{DEVICE} does not exist"),
            "load the module (modprobe tun), or give the container the device (--device /dev/net/tun)",
        ),
        Err(error) => Finding::problem(
            "tun",
            format!("{DEVICE}: {error}"),
            "run as root, or give the container the device and CAP_NET_ADMIN",
        ),
    }
}

/// Those of the daemon, if it runs; else what the kernel grants on trial.
fn offloads(subject: &Subject) -> Vec<Finding> {
    let (udp, tun) = match &subject.status {
        Some(status) => {
            let offloads = status.offloads;
            (
                Some((offloads.udp_gso, offloads.udp_gro)),
                Some((offloads.tun_tso, offloads.tun_uso)),
            )
        }
        None => {
            let group = udp::bind_group(0, 1, UdpOptions::default()).ok();
            let trial = tun::create(TRIAL_INTERFACE, 1, tun::Offloads::ALL).ok();
            (
                group.map(|group| (group.gso, group.gro)),
                trial.map(|trial| (trial.offloads.tso, trial.offloads.uso)),
            )
        }
    };
    let switches = "look at udp_gso, udp_gro, tun_tso and tun_uso in [interface], and at the kernel's version";
    let finding = |about: &str, names: [&str; 2], granted: (bool, bool)| {
        let missing: Vec<&str> = names
            .into_iter()
            .zip([granted.0, granted.1])
            .filter(|(_, granted)| !granted)
            .map(|(name, _)| name)
            .collect();
        match &missing[..] {
            [] => Finding::ok(about, format!("{} and {} are on", names[0], names[1])),
            missing => Finding::warning(
                about,
                format!("off: {}; packets cross the kernel one by one there", missing.join(", ")),
                switches,
            ),
        }
    };
    let udp = udp.map(|granted| finding("udp offloads", ["udp_gso", "udp_gro"], granted));
    let tun = tun.map(|granted| finding("tun offloads", ["tun_tso", "tun_uso"], granted));
    udp.into_iter().chain(tun).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn old_kernels_are_warned_of() {
        let level = |release: &str| version(release).level;
        for good in ["6.7.0", "6.18.44-fc-v657", "7.0-rc1", "10.1.2"] {
            assert_eq!(level(good), Level::Ok, "{good}");
        }
        for old in ["6.6.30-1-lts", "5.15.0", "5.4.0-generic", "4.19", "strange"] {
            assert_eq!(level(old), Level::Warning, "{old}");
        }
    }
}
