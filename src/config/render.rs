//! Validated -> TOML, such that reading it again gives the same configuration.

use std::fmt::{self, Display, Write as _};

use zeroize::Zeroizing;

use super::types::{
    Config, Crypto, Interface, Io, Mtu, Peer, Suite, Table, Workers, default_control_socket, default_state_dir,
};

/// The configuration as a TOML file, with its keys in it: as secret as they are. Values at their defaults are left out.
pub fn to_toml(config: &Config) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(1024 * (1 + config.peers.len())));
    // Writing to a String can't fail.
    let _ = write_interface(&mut text, &config.interface);
    for peer in &config.peers {
        let _ = write_peer(&mut text, peer);
    }
    text
}

fn write_interface(out: &mut String, interface: &Interface) -> fmt::Result {
    writeln!(out, "[interface]")?;
    writeln!(out, "name = {}", quoted(&interface.name))?;
    writeln!(
        out,
        "private_key = {}",
        *Zeroizing::new(quoted(interface.private_key.to_base64().as_str()))
    )?;
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
        ("pin", interface.pin),
        ("sandbox", interface.sandbox),
    ];
    for (key, _) in switches.iter().filter(|(_, on)| !on) {
        writeln!(out, "{key} = false")?;
    }
    if interface.lane_ports {
        writeln!(out, "lane_ports = true")?;
    }
    if interface.table != Table::Auto {
        writeln!(out, "table = {}", quoted(interface.table))?;
    }
    let hooks = &interface.hooks;
    let lists = [
        ("pre_up", &hooks.pre_up),
        ("post_up", &hooks.post_up),
        ("pre_down", &hooks.pre_down),
        ("post_down", &hooks.post_down),
    ];
    for (key, commands) in lists.iter().filter(|(_, commands)| !commands.is_empty()) {
        writeln!(out, "{key} = {}", list(commands))?;
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
