//! systemd-resolved, over D-Bus (org.freedesktop.resolve1(5)). What is set belongs to the link, and goes with it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::dbus::{Body, Bus, Call, CallError};
use crate::config::Dns;

const NAME: &str = "org.freedesktop.resolve1";
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// A connection to a resolver that runs.
pub(super) struct Resolved {
    bus: Bus,
}

impl Resolved {
    /// `None`: it does not run, or nobody here asks it.
    pub(super) async fn connect() -> Option<Resolved> {
        if !is_consulted(Path::new("/etc")) {
            return None;
        }
        let mut bus = Bus::connect(&system_bus()).await.ok()?;
        bus.has_owner(NAME).await.ok()?.then_some(Resolved { bus })
    }

    /// Names are asked for at `dns.servers` through the link `index`.
    pub(super) async fn set(&mut self, index: u32, dns: &Dns) -> Result<(), CallError> {
        let mut servers = link(index);
        let octets: Vec<(i32, Vec<u8>)> = dns.servers.iter().map(octets).collect();
        servers.addresses(octets.iter().map(|(family, octets)| (*family, &octets[..])));
        self.call("SetLinkDNS", &servers).await?;

        let mut domains = link(index);
        let search = dns.search.iter().map(|domain| (domain.as_str(), false));
        let routed = dns.domains.iter().map(|domain| (domain.as_str(), true));
        // The root: this link's servers are preferred for every name.
        let all = dns.domains.is_empty().then_some((".", true));
        domains.flagged_texts(search.chain(routed).chain(all));
        self.call("SetLinkDomains", &domains).await?;

        let mut default = link(index);
        default.flag(dns.domains.is_empty());
        match self.call("SetLinkDefaultRoute", &default).await {
            // Before version 240, where domains alone decide.
            Err(CallError::Refused { name, .. }) if name == "org.freedesktop.DBus.Error.UnknownMethod" => Ok(()),
            result => result,
        }
    }

    /// Forgets all that was set for the link.
    pub(super) async fn revert(&mut self, index: u32) -> Result<(), CallError> {
        match self.call("RevertLink", &link(index)).await {
            // The link is gone, and with it what was set.
            Err(CallError::Refused { name, .. }) if name == "org.freedesktop.resolve1.NoSuchLink" => Ok(()),
            result => result,
        }
    }

    async fn call(&mut self, member: &str, body: &Body) -> Result<(), CallError> {
        let call = Call {
            destination: NAME,
            path: "/org/freedesktop/resolve1",
            interface: "org.freedesktop.resolve1.Manager",
            member,
        };
        self.bus.call(call, body).await.map(drop)
    }
}

/// The bus of the system, or where the environment says that it is.
fn system_bus() -> PathBuf {
    let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
    socket_of(&address).unwrap_or(SYSTEM_BUS).into()
}

/// The first Unix socket with a path in a list of D-Bus addresses.
fn socket_of(addresses: &str) -> Option<&str> {
    addresses.split(';').find_map(|address| {
        let parameters = address.strip_prefix("unix:")?;
        parameters
            .split(',')
            .find_map(|parameter| parameter.strip_prefix("path="))
    })
}

/// Whether programs here ask systemd-resolved for names: by its stub (127.0.0.53 or .54), through its files, or by
/// nss-resolve. One that runs unasked would be set up in vain, and names would go outside.
fn is_consulted(etc: &Path) -> bool {
    let file = etc.join("resolv.conf");
    let links_there =
        std::fs::read_link(&file).is_ok_and(|target| target.to_string_lossy().contains("systemd/resolve/"));
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let has_stub = text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && matches!(words.next(), Some("127.0.0.53" | "127.0.0.54"))
    });
    let switch = std::fs::read_to_string(etc.join("nsswitch.conf")).unwrap_or_default();
    let asks_first = switch.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("hosts:") && words.take_while(|word| *word != "dns").any(|word| word == "resolve")
    });
    links_there || has_stub || asks_first
}

fn link(index: u32) -> Body {
    let mut body = Body::default();
    // Indices are positive ints to the kernel.
    body.int(index.cast_signed());
    body
}

fn octets(address: &IpAddr) -> (i32, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_where_the_environment_says() {
        assert_eq!(socket_of("unix:abstract=x;unix:path=/run/bus,guid=1"), Some("/run/bus"));
        assert_eq!(socket_of(""), None);
    }
}
