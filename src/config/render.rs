//! Validated -> TOML, such that reading it again gives the same configuration.

use std::fmt::{self, Display, Write as _};

use zeroize::Zeroizing;

use super::dns::Dns;
use super::gateway::{Egress, Gateway, Masquerade, PeerToPeer};
use super::routing::{Routing, Table};
use super::types::{
    Config, Crypto, Interface, Io, Mtu, Peer, Suite, Workers, default_control_socket, default_state_dir,
};

/// The configuration as a TOML file, with its keys in it: as secret as they are. Values at their defaults are left out.
pub fn to_toml(config: &Config) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(1024 * (1 + config.peers.len())));
    // Writing to a String can't fail.
    let _ = write_interface(&mut text, &config.interface);
    if let Some(gateway) = &config.gateway {
        let _ = write_gateway(&mut text, gateway);
    }
    for peer in &config.peers {
        let _ = write_peer(&mut text, peer);
    }
    if let Some(listen) = &config.metrics {
        let _ = write!(text, "\n[metrics]\nlisten = {}\n", quoted(listen));
    }
    text
}

fn write_interface(out: &mut String, interface: &Interface) -> fmt::Result {
    writeln!(out, "[interface]")?;
    writeln!(out, "name = {}", quoted(&interface.name))?;
    write_key(out, interface)?;
    if interface.listen_port != 0 {
        writeln!(out, "listen_port = {}", interface.listen_port)?;
    }
    if !interface.addresses.is_empty() {
        writeln!(out, "addresses = {}", list(&interface.addresses))?;
    }
    if let Mtu::Bytes(bytes) = interface.mtu {
        writeln!(out, "mtu = {bytes}")?;
    }
    if let Workers::Count(count) = interface.workers {
        writeln!(out, "workers = {count}")?;
    }
    if interface.io != Io::Auto {
        writeln!(out, "io = {}", quoted(interface.io))?;
    }
    if interface.crypto != Crypto::Auto {
        writeln!(out, "crypto = {}", quoted(interface.crypto))?;
    }
    if let Some(mark) = interface.fwmark {
        writeln!(out, "fwmark = {mark}")?;
    }
    if interface.control_socket != default_control_socket(&interface.name) {
        writeln!(out, "control_socket = {}", quoted(interface.control_socket.display()))?;
    }
    if let Some(path) = &interface.latency_log {
        writeln!(out, "latency_log = {}", quoted(path.display()))?;
    }
    if let Some(path) = interface
        .state_dir
        .as_ref()
        .filter(|path| Some(*path) != default_state_dir().as_ref())
    {
        writeln!(out, "state_dir = {}", quoted(path.display()))?;
    }
    let offloads = interface.offloads;
    let switches = [
        ("udp_gso", offloads.udp_gso),
        ("udp_gro", offloads.udp_gro),
        ("tun_tso", offloads.tun_tso),
        ("tun_uso", offloads.tun_uso),
        ("sandbox", interface.sandbox),
    ];
    for (key, _) in switches.iter().filter(|(_, on)| !on) {
        writeln!(out, "{key} = false")?;
    }
    for (key, on) in [("pin", interface.pin), ("lane_ports", interface.lane_ports)] {
        if on {
            writeln!(out, "{key} = true")?;
        }
    }
    write_routing(out, &interface.routing)?;
    write_dns(out, &interface.dns)?;
    let hooks = &interface.hooks;
    let sets_key = |command: &&String| key_file_of_command(command, interface).is_some();
    let post_up = hooks.post_up.iter().filter(|command| !sets_key(command));
    let lists = [
        ("pre_up", &hooks.pre_up),
        ("post_up", &post_up.cloned().collect()),
        ("pre_down", &hooks.pre_down),
        ("post_down", &hooks.post_down),
    ];
    for (key, commands) in lists.iter().filter(|(_, commands)| !commands.is_empty()) {
        writeln!(out, "{key} = {}", list(commands))?;
    }
    if let Some(lockdown) = &interface.lockdown {
        writeln!(out, "lockdown = true")?;
        if let Some(inside) = &lockdown.inside {
            writeln!(out, "lockdown_inside = {}", list(inside))?;
        }
        if !lockdown.outside.is_empty() {
            writeln!(out, "lockdown_outside = {}", list(&lockdown.outside))?;
        }
        if lockdown.keep {
            writeln!(out, "lockdown_keep = true")?;
        }
    }
    Ok(())
}

fn write_key(out: &mut String, interface: &Interface) -> fmt::Result {
    if let Some(key) = &interface.private_key {
        let quoted = Zeroizing::new(quoted(key.to_base64().as_str()));
        return writeln!(out, "private_key = {}", *quoted);
    }
    match key_file(interface) {
        Some(file) => writeln!(out, "private_key_file = {}", quoted(file)),
        None => writeln!(
            out,
            "# There is no key yet; name the file that holds it:\n# private_key_file = {}",
            quoted(format_args!("{}.key", interface.name))
        ),
    }
}

/// Where a tunnel without a key gets it from: the file of the `wg set %i private-key FILE` among its commands.
pub fn key_file(interface: &Interface) -> Option<String> {
    let mut commands = interface.hooks.post_up.iter();
    commands.find_map(|command| key_file_of_command(command, interface))
}

/// The file, where the command is that one and nothing else: no word in it is the shell's to change.
fn key_file_of_command(command: &str, interface: &Interface) -> Option<String> {
    let words: Vec<&str> = command.split_ascii_whitespace().collect();
    let ["wg", "set", name, "private-key", file] = words[..] else {
        return None;
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%=".contains(&byte);
    let is_ours = interface.private_key.is_none() && (name == "%i" || name == interface.name);
    (is_ours && file.starts_with('/') && file.bytes().all(is_plain)).then(|| file.replace("%i", &interface.name))
}

fn write_gateway(out: &mut String, gateway: &Gateway) -> fmt::Result {
    writeln!(out, "\n[gateway]")?;
    if let Egress::Interfaces(names) = &gateway.egress {
        writeln!(out, "egress = {}", list(names))?;
    }
    if gateway.masquerade != Masquerade::default() {
        writeln!(out, "masquerade = {}", quoted(gateway.masquerade))?;
    }
    if gateway.inbound != (gateway.masquerade == Masquerade::Off) {
        writeln!(out, "inbound = {}", gateway.inbound)?;
    }
    if !gateway.mss_clamp {
        writeln!(out, "mss_clamp = false")?;
    }
    match &gateway.peer_to_peer {
        PeerToPeer::Off => Ok(()),
        PeerToPeer::On => writeln!(out, "peer_to_peer = true"),
        PeerToPeer::Groups(groups) => {
            let groups: Vec<String> = groups.iter().map(|group| list(group)).collect();
            writeln!(out, "peer_to_peer = [{}]", groups.join(", "))
        }
    }
}

fn write_routing(out: &mut String, routing: &Routing) -> fmt::Result {
    if routing.table != Table::Auto {
        writeln!(out, "table = {}", routing.table)?;
    }
    if let Some(metric) = routing.metric {
        writeln!(out, "metric = {metric}")?;
    }
    if !routing.exclude.is_empty() {
        writeln!(out, "exclude = {}", list(&routing.exclude))?;
    }
    if let Some(interface) = &routing.bind_interface {
        writeln!(out, "bind_interface = {}", quoted(interface))?;
    }
    Ok(())
}

fn write_dns(out: &mut String, dns: &Dns) -> fmt::Result {
    if !dns.servers.is_empty() {
        writeln!(out, "dns = {}", list(&dns.servers))?;
    }
    for (key, domains) in [("dns_search", &dns.search), ("dns_domains", &dns.domains)] {
        if !domains.is_empty() {
            writeln!(out, "{key} = {}", list(domains))?;
        }
    }
    Ok(())
}

fn write_peer(out: &mut String, peer: &Peer) -> fmt::Result {
    writeln!(out, "\n[[peer]]")?;
    if let Some(name) = &peer.name {
        writeln!(out, "name = {}", quoted(name))?;
    }
    writeln!(out, "public_key = {}", quoted(peer.public_key))?;
    if let Some(key) = &peer.preshared_key {
        writeln!(
            out,
            "preshared_key = {}",
            *Zeroizing::new(quoted(key.to_base64().as_str()))
        )?;
    }
    if let Some(endpoint) = &peer.endpoint {
        writeln!(out, "endpoint = {}", quoted(endpoint))?;
    }
    if !peer.allowed_ips.is_empty() {
        writeln!(out, "allowed_ips = {}", list(&peer.allowed_ips))?;
    }
    if let Some(interval) = peer.persistent_keepalive {
        writeln!(out, "persistent_keepalive = {}", interval.as_secs())?;
    }
    if peer.suite != Suite::Auto {
        writeln!(out, "suite = {}", quoted(peer.suite))?;
    }
    if !peer.policy.internet {
        writeln!(out, "internet = false")?;
    }
    if let Some(allow) = &peer.policy.allow {
        writeln!(out, "allow = {}", list(allow))?;
    }
    if !peer.policy.deny.is_empty() {
        writeln!(out, "deny = {}", list(&peer.policy.deny))?;
    }
    Ok(())
}

fn list(items: &[impl Display]) -> String {
    let items: Vec<String> = items.iter().map(quoted).collect();
    format!("[{}]", items.join(", "))
}

/// A TOML basic string.
fn quoted(value: impl Display) -> String {
    let mut out = String::from("\"");
    for c in value.to_string().chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // Writing to a String can't fail.
            c if c.is_control() => drop(write!(out, "\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
