//! How the system is set: buffers, reverse path filter, forwarding, clock, DNS.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Finding;
use super::kernel::is_net_admin;
use super::subject::Subject;
use crate::sys::clock;

/// What the daemon asks for each socket buffer.
const BUFFER_BYTES: u64 = 16 << 20;
/// 2025-01-01, before which no version of this program existed.
const CLOCK_MIN_UNIX_S: u64 = 1_735_689_600;

pub(super) fn findings(subject: &Subject) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(buffers(
        is_net_admin(),
        &["rmem_max", "wmem_max"].map(|name| (name, sysctl(&format!("net/core/{name}")))),
    ));
    findings.extend(reverse_path_filter(subject));
    findings.extend(forwarding());
    let unix_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    findings.push(clock_finding(unix_s, clock::is_synchronized()));
    findings.push(dns(
        fs::read_to_string("/etc/resolv.conf").ok().as_deref(),
        fs::canonicalize("/etc/resolv.conf").is_ok_and(|path| path.starts_with("/run/systemd/resolve")),
    ));
    findings
}

fn sysctl(path: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{path}"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The forced buffer sizes need CAP_NET_ADMIN and heed no limit.
fn buffers(is_net_admin: bool, limits: &[(&str, Option<u64>)]) -> Vec<Finding> {
    let about = "socket buffers";
    if is_net_admin {
        return vec![Finding::ok(
            about,
            "16 MiB each, whatever net.core.rmem_max and wmem_max say",
        )];
    }
    let small = limits.iter().filter_map(|(name, limit)| Some((*name, (*limit)?)));
    small
        .filter(|(_, limit)| *limit < BUFFER_BYTES)
        .map(|(name, limit)| {
            Finding::warning(
                about,
                format!(
                    "net.core.{name} is {limit}: without CAP_NET_ADMIN buffers are no larger, and bursts are dropped"
                ),
                format!("sysctl -w net.core.{name}={BUFFER_BYTES}"),
            )
        })
        .collect()
}

/// The kernel takes the stricter one of "all" and the interface's.
fn reverse_path_filter(subject: &Subject) -> Option<Finding> {
    let of = |name: &str| sysctl(&format!("net/ipv4/conf/{name}/rp_filter"));
    let name = subject.name().unwrap_or("default");
    let filter = of("all")?.max(of(name).or_else(|| of("default"))?);
    let about = "rp_filter";
    let routes_everything = subject.config.iter().flat_map(|config| &config.peers).any(|peer| {
        let mut allowed_ips = peer.allowed_ips.iter();
        allowed_ips.any(|prefix| prefix.prefix_len() == 0)
    });
    Some(match filter {
        1 if routes_everything => Finding::warning(
            about,
            format!("strict for {name}, and a default route leads into the tunnel: answers may be dropped"),
            format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{name}.rp_filter=2"),
        ),
        1 => Finding::ok(
            about,
            format!("strict for {name}: sources must be routed back to where they came from"),
        ),
        2 => Finding::ok(about, format!("loose for {name}")),
        _ => Finding::ok(about, format!("off for {name}")),
    })
}

fn forwarding() -> Option<Finding> {
    let v4 = sysctl("net/ipv4/ip_forward")?;
    let v6 = sysctl("net/ipv6/conf/all/forwarding").unwrap_or(0);
    let word = |on: u64| if on == 0 { "off" } else { "on" };
    Some(Finding::ok(
        "forwarding",
        format!(
            "IPv4 {}, IPv6 {}; only a gateway or a site-to-site tunnel needs it",
            word(v4),
            word(v6)
        ),
    ))
}

/// Handshakes carry the time; a peer refuses one that is not newer than the last.
fn clock_finding(unix_s: u64, is_synchronized: Option<bool>) -> Finding {
    let about = "clock";
    if unix_s < CLOCK_MIN_UNIX_S {
        return Finding::problem(
            about,
            "is set to a time long past: peers that have seen a later time refuse our handshakes",
            "set it: timedatectl set-ntp true, or date -s",
        );
    }
    match is_synchronized {
        Some(false) => Finding::warning(
            about,
            "is not synchronised, as far as the kernel knows: a step back makes peers refuse handshakes",
            "run an NTP client: timedatectl set-ntp true",
        ),
        Some(true) => Finding::ok(about, "is synchronised"),
        None => Finding::ok(about, "shows a plausible time"),
    }
}

fn dns(resolv_conf: Option<&str>, is_resolved: bool) -> Finding {
    let about = "dns";
    let servers: Vec<&str> = resolv_conf
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .map(str::trim)
        .collect();
    match (resolv_conf, &servers[..]) {
        (None, _) => Finding::warning(
            about,
            "/etc/resolv.conf can't be read: names of endpoints are not found",
            "write endpoints as addresses, or set up a resolver",
        ),
        (Some(_), []) => Finding::warning(
            about,
            "/etc/resolv.conf names no server",
            "write endpoints as addresses, or add a nameserver line",
        ),
        (Some(_), servers) => {
            let manager = if is_resolved { ", by systemd-resolved" } else { "" };
            Finding::ok(about, format!("servers: {}{manager}", servers.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn small_buffers_matter_only_without_privileges() {
        let limits = [
            ("rmem_max", Some(212_992)),
            ("wmem_max", Some(BUFFER_BYTES)),
            ("gone", None),
        ];
        let found = buffers(false, &limits);
        let [finding] = &found[..] else { panic!("{found:?}") };
        assert!(finding.text.contains("net.core.rmem_max is 212992"));
        assert_eq!(buffers(true, &limits)[0].level, Level::Ok);
    }

    #[test]
    fn clocks_that_are_wrong_or_drift_are_told_apart() {
        assert_eq!(clock_finding(1_000_000, Some(true)).level, Level::Problem);
        assert_eq!(clock_finding(1_800_000_000, Some(false)).level, Level::Warning);
        assert_eq!(clock_finding(1_800_000_000, Some(true)).level, Level::Ok);
        assert_eq!(clock_finding(1_800_000_000, None).level, Level::Ok);
    }

    #[test]
    fn resolvers_are_named() {
        let text = "# x\nnameserver 192.0.2.53\nsearch example.com\nnameserver 2001:db8::53\n";
        assert_eq!(
            dns(Some(text), true).text,
            "servers: 192.0.2.53, 2001:db8::53, by systemd-resolved"
        );
        assert_eq!(dns(Some("search x\n"), false).level, Level::Warning);
        assert_eq!(dns(None, false).level, Level::Warning);
    }
}
