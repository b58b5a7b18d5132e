//! Validated -> wg-quick's file format, as `wg-quick save` writes it: what [`super::wgquick`] reads back as the same, but
//! for what that format has no keys for.

use std::fmt::{self, Display, Write as _};

use zeroize::Zeroizing;

use super::dns::Dns;
use super::routing::Table;
use super::types::{Config, Interface, Mtu, Peer};

/// The configuration as a file of wg-quick's, with its keys in it: as secret as they are.
pub fn to_wg_quick(config: &Config) -> Zeroizing<String> {
    // Room for everything from the start: a growing String would leave copies of keys behind.
    let hooks = &config.interface.hooks;
    let commands = [&hooks.pre_up, &hooks.post_up, &hooks.pre_down, &hooks.post_down];
    let hooks_len: usize = commands.into_iter().flatten().map(|command| command.len() + 16).sum();
    let lists: usize = config.peers.iter().map(|peer| peer.allowed_ips.len() * 48 + 512).sum();
    let mut text = Zeroizing::new(String::with_capacity(4096 + hooks_len + lists));
    // Writing to a String can't fail.
    let _ = write_interface(&mut text, &config.interface);
    for peer in &config.peers {
        let _ = write_peer(&mut text, peer);
    }
    text
}

fn write_interface(out: &mut String, interface: &Interface) -> fmt::Result {
    writeln!(out, "[Interface]")?;
    for address in &interface.addresses {
        writeln!(out, "Address = {address}")?;
    }
    write_dns(out, &interface.dns)?;
    if let Mtu::Bytes(bytes) = interface.mtu {
        writeln!(out, "MTU = {bytes}")?;
    }
    match interface.routing.table {
        Table::Auto => {}
        Table::Off => writeln!(out, "Table = off")?,
        Table::Number(number) => writeln!(out, "Table = {number}")?,
    }
    if interface.save.is_some() {
        writeln!(out, "SaveConfig = true")?;
    }
    let hooks = &interface.hooks;
    let lists = [
        ("PreUp", &hooks.pre_up),
        ("PostUp", &hooks.post_up),
        ("PreDown", &hooks.pre_down),
        ("PostDown", &hooks.post_down),
    ];
    for (key, commands) in lists {
        for command in commands {
            writeln!(out, "{key} = {command}")?;
        }
    }
    if interface.listen_port != 0 {
        writeln!(out, "ListenPort = {}", interface.listen_port)?;
    }
    if let Some(mark) = interface.fwmark {
        writeln!(out, "FwMark = {mark:#x}")?;
    }
    match &interface.private_key {
        Some(key) => writeln!(out, "PrivateKey = {}", key.to_base64().as_str()),
        None => Ok(()),
    }
}

fn write_dns(out: &mut String, dns: &Dns) -> fmt::Result {
    for server in &dns.servers {
        writeln!(out, "DNS = {server}")?;
    }
    for domain in &dns.search {
        writeln!(out, "DNS = {domain}")?;
    }
    for domain in &dns.domains {
        writeln!(out, "DNS = ~{domain}")?;
    }
    Ok(())
}

fn write_peer(out: &mut String, peer: &Peer) -> fmt::Result {
    writeln!(out, "\n[Peer]\nPublicKey = {}", peer.public_key)?;
    if let Some(key) = &peer.preshared_key {
        writeln!(out, "PresharedKey = {}", key.to_base64().as_str())?;
    }
    if !peer.allowed_ips.is_empty() {
        writeln!(out, "AllowedIPs = {}", list(&peer.allowed_ips))?;
    }
    if let Some(endpoint) = &peer.endpoint {
        writeln!(out, "Endpoint = {endpoint}")?;
    }
    if let Some(interval) = peer.persistent_keepalive {
        writeln!(out, "PersistentKeepalive = {}", interval.as_secs())?;
    }
    Ok(())
}

fn list(items: &[impl Display]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::validate::{Source, validate};
    use crate::config::wgquick;

    fn read(text: &str) -> Config {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let source = Source {
            path: Path::new("/etc/wireguard/wg0.conf"),
            read_key_file: &|_| unreachable!("this format has no key files"),
        };
        let raw = wgquick::parse(text, &mut problems);
        let config = raw.and_then(|raw| validate(raw, source, &mut problems, &mut warnings));
        config.unwrap_or_else(|| panic!("{problems:?}"))
    }

    #[test]
    fn what_is_written_reads_back_as_the_same() {
        let key = "cEN0raABhctV+PdHYvWsSx+vwxsx10yu75a7WH3e+m0=";
        let text = format!(
            "[Interface]\nAddress = 10.0.0.1/24\nAddress = fd00::1/64\nDNS = 10.0.0.53\nDNS = corp.example\n\
             DNS = ~lab.example\nMTU = 1380\nTable = 51820\nSaveConfig = true\nPreUp = a\nPostUp = b %i; c\nPostUp = d\n\
             PreDown = e\nPostDown = f=g\nListenPort = 51820\nFwMark = 0xca6c\nPrivateKey = {key}\n\n\
             [Peer]\nPublicKey = HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=\nPresharedKey = {key}\n\
             AllowedIPs = 10.0.0.2/32, fd00::2/128\nEndpoint = [2001:db8::1]:51820\nPersistentKeepalive = 25\n\n\
             [Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nEndpoint = vpn.example.com:1\n"
        );
        let config = read(&text);
        assert_eq!(
            config.interface.save.as_deref(),
            Some(Path::new("/etc/wireguard/wg0.conf"))
        );
        assert_eq!(*to_wg_quick(&config), text);
        let least = format!("[Interface]\nPrivateKey = {key}\n");
        assert_eq!(*to_wg_quick(&read(&least)), least);
        let without_key = "[Interface]\nPostUp = wg set %i private-key /k\n";
        assert_eq!(*to_wg_quick(&read(without_key)), without_key);
    }
}
