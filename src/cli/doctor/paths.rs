//! The ways to the peers: port, names, routes, MTU, and whether anybody answers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::process::Command;

use super::Finding;
use super::subject::{Remote, Subject};
use crate::config::{Dns, Host};
use crate::control::api::{PeerReport, StatusReport};
use crate::dns::{self, Backend};
use crate::link::{self, Lookup};
use crate::sys::udp;
use crate::wire::message::DATA_OVERHEAD;

const UDP_HEADER_LEN: u32 = 8;
const ICMP_HEADER_LEN: u32 = 8;
/// What every path carries: IPv6's least MTU, and more than IPv4's.
const MTU_LEAST: u32 = 1280;
/// How long a look-up of a name may take.
const RESOLVE_TIME_MAX: Duration = Duration::from_secs(5);
/// Sessions are renewed every two minutes while there is traffic, and end after three.
const SESSION_AGE_MAX_S: u64 = 180;
/// Peers whose paths are looked at.
const REMOTES_MAX: usize = 16;

pub(super) async fn findings(subject: &Subject) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(config) = &subject.config {
        findings.extend(name_servers(&config.interface.dns, dns::backend().await));
    }
    if subject.status.is_none()
        && let Some(config) = &subject.config
    {
        findings.push(port(config.interface.listen_port));
        findings.extend(interface(&config.interface.name).await);
    }
    let remotes = subject.remotes();
    for remote in remotes.iter().take(REMOTES_MAX) {
        findings.extend(path(subject, remote).await);
    }
    if let Some(status) = &subject.status {
        let now_unix_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        findings.extend(status.peers.iter().map(|peer| session(peer, now_unix_s)));
        findings.extend(drops(status));
    }
    findings
}

/// How the tunnel's own name servers come to be used.
fn name_servers(dns: &Dns, backend: Backend) -> Option<Finding> {
    let about = "name servers";
    if dns.servers.is_empty() {
        return None;
    }
    Some(match backend {
        Backend::Resolved => Finding::ok(about, "are set by systemd-resolved"),
        _ if !dns.domains.is_empty() => Finding::problem(
            about,
            format!("dns_domains needs systemd-resolved, and names are looked up by {backend} here"),
            "run systemd-resolved, or remove dns_domains to ask the tunnel's servers for all names",
        ),
        _ => Finding::ok(about, format!("are set by {backend}")),
    })
}

/// Whether the daemon could have the port.
fn port(port: u16) -> Finding {
    let about = "port";
    if port == 0 {
        return Finding::ok(about, "the kernel chooses one");
    }
    let tries = [
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)),
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)),
    ];
    match tries.iter().find_map(|tried| {
        tried
            .as_ref()
            .err()
            .filter(|error| error.kind() == io::ErrorKind::AddrInUse)
    }) {
        // The second try meets the first one's own socket, which is dual-stack.
        Some(_) if tries[0].is_ok() => Finding::ok(about, format!("UDP {port} is free")),
        Some(_) => Finding::problem(
            about,
            format!("UDP {port} is taken by another program"),
            format!("see which: ss -ulpn 'sport = :{port}'; end it, or choose another listen_port"),
        ),
        None => match tries.into_iter().find_map(Result::ok) {
            Some(_) => Finding::ok(about, format!("UDP {port} is free")),
            None => Finding::problem(
                about,
                format!("UDP {port} can't be bound"),
                "ports below 1024 need root",
            ),
        },
    }
}

/// A leftover, or another program's.
async fn interface(name: &str) -> Option<Finding> {
    let exists = link::exists(name).await.unwrap_or(false);
    exists.then(|| {
        Finding::problem(
            "interface",
            format!("{name} exists, and no daemon of ringway's answers for it"),
            format!("choose another name, or remove it: ip link del {name}"),
        )
    })
}

/// Name, route and MTU of one endpoint.
async fn path(subject: &Subject, remote: &Remote) -> Vec<Finding> {
    let about = format!("peer {}", remote.peer);
    let address = match resolve(remote).await {
        Ok(address) => address,
        Err(error) => {
            return vec![Finding::problem(
                &about,
                format!("the endpoint {} has no address: {error}", remote.endpoint),
                "check the name and the DNS servers, or write an address",
            )];
        }
    };
    let lookup = Lookup {
        destination: address.ip(),
        source: None,
        from: None,
        bound_to: subject.bound_to(),
        protocol: Some(17),
        port: Some(address.port()),
        mark: subject.mark(),
    };
    match link::route(&lookup).await {
        Err(error) => vec![Finding::problem(
            &about,
            format!("no way to {address}: {error}"),
            "check the machine's network and default route: ip route get",
        )],
        Ok(route) if route.interface.as_deref() == subject.name() => vec![Finding::problem(
            &about,
            format!("the tunnel's own packets to {address} are routed into the tunnel"),
            format!(
                "add a route to {} by the real interface, or take it out of allowed_ips",
                address.ip()
            ),
        )],
        Ok(route) => {
            let mut findings = vec![Finding::ok(&about, format!("{address} is {route}"))];
            findings.push(mtu(subject, &about, address).await);
            findings
        }
    }
}

async fn resolve(remote: &Remote) -> io::Result<SocketAddr> {
    match &remote.endpoint.host {
        Host::Address(address) => Ok((*address, remote.endpoint.port).into()),
        Host::Name(name) => {
            let addresses = tokio::net::lookup_host((name.as_str(), remote.endpoint.port));
            let found = tokio::time::timeout(RESOLVE_TIME_MAX, addresses)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the DNS servers do not answer"))??;
            found.into_iter().next().ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }
}

/// What the path carries: what the kernel knows, then what pings that must not be fragmented say.
async fn mtu(subject: &Subject, about: &str, address: SocketAddr) -> Finding {
    let outer = match udp::path_mtu(address, subject.udp_options()) {
        Ok(outer) => outer,
        Err(error) => {
            return Finding::warning(about, format!("path MTU unknown: {error}"), "see \"ip route get\"");
        }
    };
    let ip_header_len = if address.is_ipv4() { 20 } else { 40 };
    let overhead = ip_header_len + UDP_HEADER_LEN + DATA_OVERHEAD as u32;
    let carries = |outer: u32| outer.saturating_sub(overhead);
    if subject.mtu().is_some_and(|mtu| mtu > carries(outer)) {
        return Finding::warning(
            about,
            format!("the path carries {outer} bytes, so full packets of this tunnel travel in fragments"),
            format!("set mtu = {} or mtu = \"auto\" in [interface]", carries(outer)),
        );
    }
    let headers = ip_header_len + ICMP_HEADER_LEN;
    let passes = async |packet_len: u32| ping(subject, address.ip(), packet_len.saturating_sub(headers)).await;
    match passes(outer).await {
        None => Finding::ok(
            about,
            format!("path MTU {outer} by the kernel's routes (ping is not installed)"),
        ),
        Some(true) => Finding::ok(about, format!("path MTU {outer}, measured by ping")),
        Some(false) if passes(MTU_LEAST.min(outer)).await != Some(true) => Finding::ok(
            about,
            format!("path MTU {outer} by the kernel's routes; it does not answer pings, so it can't be measured"),
        ),
        Some(false) => {
            let (mut good, mut bad) = (MTU_LEAST, outer);
            while bad - good > 1 {
                let middle = good.midpoint(bad);
                match passes(middle).await {
                    Some(true) => good = middle,
                    _ => bad = middle,
                }
            }
            Finding::problem(
                about,
                format!(
                    "packets of {outer} bytes vanish on the way, those of {good} arrive: a router drops without a word"
                ),
                format!("set mtu = {} in [interface] on both sides", carries(good)),
            )
        }
    }
}

/// Whether one of three pings with so many bytes of data is answered without being fragmented; `None` where there is no ping.
async fn ping(subject: &Subject, address: IpAddr, data_len: u32) -> Option<bool> {
    let mut command = Command::new("ping");
    command.args([
        "-n",
        "-q",
        "-c",
        "3",
        "-i",
        "0.2",
        "-W",
        "1",
        "-M",
        "do",
        "-s",
        &data_len.to_string(),
    ]);
    if let Some(mark) = subject.mark() {
        command.args(["-m", &mark.to_string()]);
    }
    if let Some(name) = subject.bound_to() {
        command.args(["-I", name]);
    }
    command.arg(address.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Some(command.status().await.ok()?.success())
}

/// Whether the peer has answered.
fn session(peer: &PeerReport, now_unix_s: u64) -> Finding {
    let about = format!(
        "peer {}",
        peer.name.clone().unwrap_or_else(|| peer.public_key.to_string())
    );
    let age = peer.latest_handshake_unix_s.map(|at| now_unix_s.saturating_sub(at));
    match (age, peer.endpoint) {
        (Some(age), _) if age <= SESSION_AGE_MAX_S => Finding::ok(&about, format!("handshake {age} s ago")),
        (Some(age), _) if peer.persistent_keepalive_s.is_some() => Finding::problem(
            &about,
            format!("the last handshake is {age} s ago, although keepalives are on: it answers no more"),
            "check that the peer runs, its endpoint, and the firewalls on the way",
        ),
        (Some(age), _) => Finding::ok(&about, format!("idle; the last handshake is {age} s ago")),
        (None, None) => Finding::ok(&about, "has no endpoint and has not called yet"),
        (None, Some(endpoint)) if peer.tx_bytes > 0 => Finding::problem(
            &about,
            format!(
                "{} bytes of handshakes went to {endpoint}, and nothing came back",
                peer.tx_bytes
            ),
            "check the endpoint and port, the firewalls on the way, and that each side has the other's public key and the \
             same preshared key",
        ),
        (None, Some(_)) => Finding::ok(&about, "no handshake yet, because nothing was sent"),
    }
}

/// Reasons that no healthy tunnel has many of.
fn drops(status: &StatusReport) -> Option<Finding> {
    const SUSPICIOUS: [&str; 6] = [
        "routing_loop",
        "bad_source",
        "forged",
        "bad_inner",
        "tun_write_failed",
        "send_failed",
    ];
    let of_workers = status.workers.iter().flat_map(|worker| &worker.drops);
    let found: Vec<String> = SUSPICIOUS
        .iter()
        .filter_map(|reason| {
            let of_reason = of_workers.clone().filter(|(name, _)| name == reason);
            let count: u64 = of_reason.map(|(_, count)| count).sum();
            (count > 0).then(|| format!("{count} {reason}"))
        })
        .collect();
    (!found.is_empty()).then(|| {
        Finding::warning(
            "drops",
            format!("packets were dropped that should not be: {}", found.join(", ")),
            format!("see \"ringway drops {}\"", status.name),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_taken_port_is_a_problem_and_a_free_one_is_none() {
        let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
        let number = taken.local_addr().expect("bound").port();
        assert_eq!(port(number).level, Level::Problem);
        drop(taken);
        assert_eq!(port(number).level, Level::Ok);
        assert_eq!(port(0).level, Level::Ok);
    }

    #[test]
    fn name_servers_for_some_domains_only_need_systemd_resolved() {
        let mut dns = Dns::default();
        assert_eq!(name_servers(&dns, Backend::File), None);
        dns.servers.push(Ipv4Addr::LOCALHOST.into());
        let level = |dns: &Dns, backend| name_servers(dns, backend).map(|finding| finding.level);
        assert_eq!(level(&dns, Backend::File), Some(Level::Ok));
        dns.domains.push("example.com".into());
        assert_eq!(level(&dns, Backend::Resolvconf), Some(Level::Problem));
        assert_eq!(level(&dns, Backend::Resolved), Some(Level::Ok));
    }

    #[test]
    fn who_sets_the_name_servers_is_said_by_its_name() {
        let mut dns = Dns::default();
        dns.servers.push(Ipv4Addr::LOCALHOST.into());
        let text = |dns: &Dns, backend| name_servers(dns, backend).expect("there are some").text;
        assert_eq!(text(&dns, Backend::File), "are set by /etc/resolv.conf");
        assert_eq!(text(&dns, Backend::Resolvconf), "are set by resolvconf");
        assert_eq!(text(&dns, Backend::Resolved), "are set by systemd-resolved");
        dns.domains.push("example.com".into());
        assert_eq!(text(&dns, Backend::Resolved), "are set by systemd-resolved");
        let unfit = "dns_domains needs systemd-resolved, and names are looked up by resolvconf here";
        assert_eq!(text(&dns, Backend::Resolvconf), unfit);
    }

    #[test]
    fn a_peer_that_never_answered_is_told_from_one_that_was_never_asked() {
        let peer = |handshake: Option<u64>, tx_bytes, keepalive: Option<u16>| {
            let mut peer: PeerReport = serde_json::from_str(
                r#"{"public_key":"9CpHjHOQvfmaXyBtCusPakSONhE9vHCE9+BIqrGtTxc=","endpoint":"192.0.2.1:1","allowed_ips":[],
                "tx_packets":0,"tx_bytes":0,"rx_packets":0,"rx_bytes":0}"#,
            )
            .expect("a report");
            peer.latest_handshake_unix_s = handshake;
            peer.tx_bytes = tx_bytes;
            peer.persistent_keepalive_s = keepalive;
            peer
        };
        assert_eq!(session(&peer(Some(900), 1, None), 1000).level, Level::Ok);
        assert_eq!(session(&peer(Some(100), 1, Some(25)), 1000).level, Level::Problem);
        assert_eq!(session(&peer(Some(100), 1, None), 1000).level, Level::Ok);
        assert_eq!(session(&peer(None, 148, None), 1000).level, Level::Problem);
        assert_eq!(session(&peer(None, 0, None), 1000).level, Level::Ok);
    }
}
