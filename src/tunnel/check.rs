//! What can't be in a description, as files of a configuration are checked.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::builder::Builder;
use super::error::Error;
use super::peer::Peer;
use crate::config::{dns, values};

/// Bytes of an interface's alias: IFALIASZ (linux/if.h) without the terminating zero.
const SESSION_LEN_MAX: usize = 255;
/// As in configuration files: what IPv4 hosts must take, and what a packet's length field holds.
const MTU_MIN: u16 = 576;

/// What both kinds of tunnels have. Puts networks and domains into their usual forms.
pub(super) fn common(builder: &mut Builder) -> Result<(), Error> {
    values::check_interface_name(&builder.name).map_err(|right| Error::argument("new", &builder.name, right))?;
    if let Some(session) = &builder.session
        && (session.is_empty() || session.len() > SESSION_LEN_MAX || session.contains('\0'))
    {
        let right = format!("a session's name has 1 to {SESSION_LEN_MAX} bytes, none of them zero");
        return Err(Error::argument("session", session, right));
    }
    for address in &builder.addresses {
        values::check_interface_address(*address).map_err(|right| Error::argument("address", address, right))?;
    }
    for network in &builder.routing.exclude {
        if network.prefix_len() == 0 {
            let right = "this leaves nothing in the tunnel; name the networks that are to stay outside";
            return Err(Error::argument("exclude", network, right));
        }
    }
    if let Some(mtu) = builder.mtu {
        check_mtu("mtu", mtu)?;
    }
    for server in &builder.dns.servers {
        dns::check_server(*server).map_err(|right| Error::argument("dns", server, right))?;
    }
    for domain in &mut builder.dns.search {
        *domain = dns::parse_domain(domain).map_err(|right| Error::argument("search_domain", &*domain, right))?;
    }
    if let Some(domain) = builder.dns.search.first().filter(|_| builder.dns.servers.is_empty()) {
        let right = "there is no name server to ask; name one with dns()";
        return Err(Error::argument("search_domain", domain, right));
    }
    if let Some(bound) = &builder.routing.bind_interface {
        values::check_interface_name(bound).map_err(|right| Error::argument("bind_interface", bound, right))?;
        if *bound == builder.name {
            let right = "this is the tunnel itself; name the interface that leads outside";
            return Err(Error::argument("bind_interface", bound, right));
        }
    }
    remove_duplicates(&mut builder.addresses);
    remove_duplicates(&mut builder.routes);
    remove_duplicates(&mut builder.routing.exclude);
    remove_duplicates(&mut builder.dns.servers);
    remove_duplicates(&mut builder.dns.search);
    Ok(())
}

pub(super) fn check_mtu(method: &'static str, mtu: u16) -> Result<(), Error> {
    if mtu < MTU_MIN {
        return Err(Error::argument(
            method,
            mtu,
            format!("an MTU is {MTU_MIN} to {}", u16::MAX),
        ));
    }
    Ok(())
}

/// What a device has no use for, and would silently not do.
pub(super) fn device(builder: &Builder) -> Result<(), Error> {
    let right =
        "establish() leaves packets to the program, so keys, peers, ports and workers mean nothing; use connect()";
    let refuse = |method, value: &str| Err(Error::argument(method, value, right));
    if builder.private_key.is_some() {
        return refuse("private_key", "(hidden)");
    }
    if let Some(peer) = builder.peers.first() {
        return refuse("peer", &peer.0.public_key.to_string());
    }
    if builder.listen_port != 0 {
        return refuse("listen_port", &builder.listen_port.to_string());
    }
    if let Some(count) = builder.workers {
        return refuse("workers", &count.to_string());
    }
    Ok(())
}

/// One peer by itself.
pub(super) fn peer(peer: &Peer) -> Result<(), Error> {
    if let Some(name) = &peer.0.name {
        values::check_peer_name(name).map_err(|right| Error::argument("name", name, right))?;
    }
    if let Some(interval) = peer.0.persistent_keepalive
        && (interval.subsec_nanos() != 0 || !(1..=65535).contains(&interval.as_secs()))
    {
        let right = "a keepalive interval is 1 s to 65535 s, in whole seconds";
        return Err(Error::argument("persistent_keepalive", Seconds(interval), right));
    }
    Ok(())
}

/// Between peers: public keys, names and allowed IPs belong to one each.
pub(super) fn peers(builder: &Builder) -> Result<(), Error> {
    let own = builder.private_key.as_ref().map(|key| key.public_key());
    let mut keys = HashSet::new();
    let mut names = HashSet::new();
    let mut owners = HashMap::new();
    for peer in &builder.peers {
        self::peer(peer)?;
        let peer = &peer.0;
        if own == Some(peer.public_key) {
            let right = "this is our own public key; name that of the other side";
            return Err(Error::argument("peer", peer.public_key, right));
        }
        if !keys.insert(peer.public_key) {
            return Err(Error::argument(
                "peer",
                peer.public_key,
                "there is a peer with this key already",
            ));
        }
        if let Some(name) = &peer.name
            && !names.insert(name)
        {
            return Err(Error::argument("name", name, "there is a peer of this name already"));
        }
        for network in &peer.allowed_ips {
            let owner = *owners.entry(network).or_insert(peer.public_key);
            if owner != peer.public_key {
                let right = format!("this network is the peer {owner}'s already; only one peer can have it");
                return Err(Error::argument("allowed_ip", network, right));
            }
        }
    }
    Ok(())
}

pub(super) fn remove_duplicates<T: PartialEq>(items: &mut Vec<T>) {
    let mut kept: Vec<T> = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    *items = kept;
}

/// A time for people.
struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PrivateKey, PublicKey};

    fn net(text: &str) -> ipnet::IpNet {
        text.parse().expect(text)
    }

    fn refused(builder: Builder) -> String {
        builder
            .establish()
            .expect_err("refused before anything is made")
            .to_string()
    }

    #[test]
    fn what_can_not_be_is_refused_with_the_method_and_what_would_be_right() {
        let new = || Builder::new("rw0");
        for (builder, method) in [
            (Builder::new("rw 0"), "new(rw 0): a name has"),
            (new().session("x".repeat(256)), "session(x"),
            (new().address(net("0.0.0.0/0")), "address(0.0.0.0/0): "),
            (new().exclude(net("::/0")), "exclude(::/0): "),
            (new().mtu(575), "mtu(575): an MTU is 576 to 65535"),
            (new().dns([0, 0, 0, 0].into()), "dns(0.0.0.0): "),
            (
                new().search_domain("corp.example"),
                "search_domain(corp.example): there is no name server",
            ),
            (
                new().dns([10, 0, 0, 1].into()).search_domain("a b"),
                "search_domain(a b): ",
            ),
            (
                new().bind_interface("rw0"),
                "bind_interface(rw0): this is the tunnel itself",
            ),
            (new().listen_port(1), "listen_port(1): establish() leaves"),
            (new().peer(Peer::new(PublicKey([1; 32]))), "peer("),
            (new().workers(1), "workers(1): "),
        ] {
            let error = refused(builder);
            assert!(error.starts_with(method), "{error}");
        }
        let secret = PrivateKey::generate(|bytes| bytes.fill(7));
        let error = refused(new().private_key(secret.clone()));
        assert!(!error.contains(&**secret.to_base64()), "{error}");
    }

    #[test]
    fn peers_share_nothing() {
        let key = PrivateKey::generate(|bytes| bytes.fill(7));
        let peer = |byte| Peer::new(PublicKey([byte; 32]));
        let builder = || Builder::new("rw0").private_key(key.clone());
        let ten = net("10.0.0.0/8");
        for (builder, words) in [
            (builder().peer(Peer::new(key.public_key())), "our own public key"),
            (builder().peer(peer(1)).peer(peer(1)), "with this key already"),
            (
                builder().peer(peer(1).name("a")).peer(peer(2).name("a")),
                "of this name already",
            ),
            (
                builder().peer(peer(1).allowed_ip(ten)).peer(peer(2).allowed_ip(ten)),
                "only one peer can have it",
            ),
            (
                builder().peer(peer(1).persistent_keepalive(Duration::ZERO)),
                "1 s to 65535 s",
            ),
        ] {
            let error = peers(&builder).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
        peers(
            &builder()
                .peer(peer(1).allowed_ip(ten))
                .peer(peer(2).allowed_ip(net("10.1.0.0/16"))),
        )
        .unwrap();
    }
}
