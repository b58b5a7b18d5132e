//! Raw -> validated. Every rule that a value must keep stands here, and every broken one is reported at once.

use std::collections::HashMap;
use std::fmt::Display;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::host::HostPort;
use super::key::PublicKey;
use super::keyfile::KeyFileError;
use super::lockdown;
use super::metrics::{MetricsListen, RawMetrics};
use super::problem::Problem;
use super::raw::{At, NumberOrWord, Place, RawConfig, RawInterface, RawPeer, Secret};
use super::types::{
    Config, Hooks, Interface, Mtu, OffloadSwitches, Peer, Workers, default_control_socket, default_state_dir,
};
use super::values;

/// Least MTU: what every IPv4 host must be able to receive (RFC 791, section 3.2).
pub(super) const MTU_MIN: i64 = 576;
/// Least MTU of a link that carries IPv6 (RFC 8200, section 5); below it the kernel takes the addresses away.
pub(super) const MTU_MIN_IPV6: i64 = 1280;

/// Where a configuration comes from, as far as its values depend on it.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The file: names the interface where no `name` is given, and relative paths are relative to its directory.
    pub path: &'a Path,
    /// Reads a key file ([`super::keyfile::read`]).
    pub read_key_file: &'a dyn Fn(&Path) -> Result<Zeroizing<String>, KeyFileError>,
}

/// Checks `raw` and makes it a [`Config`]. What is wrong is appended to `problems`, which may hold the parser's findings
/// already; what is only unwise to `warnings`. `None` exactly when `problems` is not empty afterwards.
pub fn validate(
    raw: RawConfig,
    source: Source<'_>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Option<Config> {
    let mut validation = Validation {
        source,
        problems,
        warnings,
    };
    let interface = validation.interface(&raw.interface);
    let has_gateway = raw.gateway.is_some();
    let peers: Vec<Option<Peer>> = raw
        .peers
        .iter()
        .map(|peer| validation.peer(peer, has_gateway))
        .collect();
    let gateway = raw
        .gateway
        .as_ref()
        .map(|gateway| validation.gateway(gateway, &raw.peers));
    validation.refuse_duplicates(&raw.peers);
    if let Some(interface) = &interface {
        if let Some(key) = &interface.private_key {
            validation.refuse_self(key.public_key(), &raw.peers);
        }
        validation.check_lockdown(interface, &raw);
    }
    let metrics = raw.metrics.as_ref().and_then(|metrics| validation.metrics(metrics));
    let peers: Option<Vec<Peer>> = peers.into_iter().collect();
    if let (Some(interface), Some(peers)) = (&interface, &peers) {
        validation.check_ways(&raw.interface.routing, &raw.peers, interface, peers);
    }
    match (interface, peers) {
        (Some(interface), Some(peers)) if validation.problems.is_empty() => Some(Config {
            interface,
            gateway,
            peers,
            metrics,
        }),
        _ => None,
    }
}

pub(super) struct Validation<'a> {
    source: Source<'a>,
    pub(super) problems: &'a mut Vec<Problem>,
    pub(super) warnings: &'a mut Vec<Problem>,
}

impl Validation<'_> {
    fn interface(&mut self, raw: &RawInterface) -> Option<Interface> {
        let name = self.interface_name(raw);
        let private_key = self.secret(
            ("private_key", raw.private_key.as_ref()),
            ("private_key_file", raw.private_key_file.as_ref()),
        );
        let has_key = raw.private_key.is_some() || raw.private_key_file.is_some();
        if raw.key_may_come_later {
            if !has_key {
                self.warn_of_no_key(raw);
            }
        } else if private_key.is_none() {
            self.missing(
                &raw.place,
                &["private_key", "private_key_file"],
                "private_key_file",
                "no private key is given; make one with \"(umask 077; ringway genkey > rw0.key)\" and write \
                 private_key_file = \"rw0.key\"",
            );
        }
        let addresses = self.addresses(&raw.addresses);
        let has_ipv6 = addresses.iter().any(|address| address.addr().is_ipv6());
        let mtu = self.mtu(raw.mtu.as_ref(), has_ipv6);
        let control_socket = self.control_socket(raw.control_socket.as_ref());
        let latency_log = raw
            .latency_log
            .as_ref()
            .and_then(|at| self.path(at, "write the path of the log, for example \"/var/log/rw0.hlog\""));
        let listen_port = self.number(
            raw.listen_port.as_ref(),
            0..=0xffff,
            "a port is 1 to 65535, or 0 for any",
        );
        let workers = self.workers(raw.workers.as_ref());
        let io = self.word(raw.io.as_ref());
        let crypto = self.word(raw.crypto.as_ref());
        let fwmark = self.number(
            raw.fwmark.as_ref(),
            0..=0xffff_ffff,
            "a mark is 1 to 4294967295, or 0 for none",
        );
        let routing = self.routing(&raw.routing);
        let dns = self.dns(&raw.dns);
        let hooks = Hooks {
            pre_up: self.commands(&raw.pre_up),
            post_up: self.commands(&raw.post_up),
            pre_down: self.commands(&raw.pre_down),
            post_down: self.commands(&raw.post_down),
        };
        let state_dir = match &raw.state_dir {
            Some(at) => self.path(at, "write the path of a directory, for example \"/var/lib/ringway\""),
            None => default_state_dir(),
        };
        let lockdown = self.lockdown(&raw.lockdown);
        let flag = |raw: &Option<At<bool>>| raw.as_ref().is_none_or(|at| at.value);

        let name = name?;
        Some(Interface {
            private_key: match private_key {
                None if has_key || !raw.key_may_come_later => return None,
                key => key,
            },
            listen_port: listen_port.unwrap_or(0),
            addresses,
            mtu,
            workers,
            io,
            crypto,
            fwmark: lockdown::mark(fwmark.and_then(NonZeroU32::new), lockdown.as_ref()),
            control_socket: control_socket.unwrap_or_else(|| default_control_socket(&name)),
            latency_log,
            offloads: OffloadSwitches {
                udp_gso: flag(&raw.udp_gso),
                udp_gro: flag(&raw.udp_gro),
                tun_tso: flag(&raw.tun_tso),
                tun_uso: flag(&raw.tun_uso),
            },
            pin: raw.pin.as_ref().is_some_and(|at| at.value),
            sandbox: flag(&raw.sandbox),
            lane_ports: raw.lane_ports.as_ref().is_some_and(|at| at.value),
            routing,
            dns,
            save: raw.save_config.then(|| self.source.path.to_owned()),
            hooks,
            state_dir,
            lockdown,
            name,
        })
    }

    /// A file without a key is right where a command brings one.
    fn warn_of_no_key(&mut self, raw: &RawInterface) {
        let mut commands = raw.pre_up.iter().chain(&raw.post_up);
        if !commands.any(|command| command.value.contains("private-key")) {
            let text = "no PrivateKey is given: peers are not spoken to before one comes, for example by PostUp = wg set %i \
                        private-key /etc/wireguard/%i.key";
            self.warnings.push(raw.place.problem(None, text));
        }
    }

    fn peer(&mut self, raw: &RawPeer, has_gateway: bool) -> Option<Peer> {
        let name = raw
            .name
            .as_ref()
            .map(|at| self.check(at, values::check_peer_name(&at.value)));
        let public_key = match &raw.public_key {
            Some(at) => self.read(at, PublicKey::from_str),
            None => {
                self.missing(
                    &raw.place,
                    &["public_key"],
                    "public_key",
                    "no public key is given; it tells who the peer is",
                );
                None
            }
        };
        let preshared_key = self.secret(
            ("preshared_key", raw.preshared_key.as_ref()),
            ("preshared_key_file", raw.preshared_key_file.as_ref()),
        );
        let endpoint = raw.endpoint.as_ref().and_then(|at| self.read(at, HostPort::from_str));
        let mut allowed_ips: Vec<IpNet> = Vec::with_capacity(raw.allowed_ips.len());
        for at in &raw.allowed_ips {
            match self.read(at, values::parse_allowed_ip) {
                // Twice the same for one peer says nothing new.
                Some(network) if !allowed_ips.contains(&network) => allowed_ips.push(network),
                _ => {}
            }
        }
        let persistent_keepalive = self.number(
            raw.persistent_keepalive.as_ref(),
            0..=0xffff,
            "an interval is 1 to 65535 seconds, or 0 for no keepalives",
        );
        let suite = self.word(raw.suite.as_ref());
        let policy = self.policy(&raw.policy, has_gateway);
        Some(Peer {
            name: name.flatten(),
            public_key: public_key?,
            preshared_key,
            endpoint,
            allowed_ips,
            persistent_keepalive: persistent_keepalive
                .filter(|&s: &u16| s > 0)
                .map(|s| Duration::from_secs(s.into())),
            suite,
            policy,
        })
    }

    /// As given, or the file's name without its extension, as wg-quick has it.
    fn interface_name(&mut self, raw: &RawInterface) -> Option<String> {
        if let Some(at) = &raw.name {
            return self.check(at, values::check_interface_name(&at.value));
        }
        let stem = self.source.path.file_stem().unwrap_or_default().to_string_lossy();
        if values::check_interface_name(&stem).is_ok() {
            return Some(stem.into_owned());
        }
        self.missing(
            &raw.place,
            &["name"],
            "name",
            "no name is given, and that of the file is none; write name = \"rw0\"",
        );
        None
    }

    fn addresses(&mut self, raw: &[At<String>]) -> Vec<IpNet> {
        let mut addresses: Vec<IpNet> = Vec::with_capacity(raw.len());
        for at in raw {
            let Some(address) = self.read(at, values::parse_interface_address) else {
                continue;
            };
            if addresses.iter().any(|other| other.addr() == address.addr()) {
                self.refuse(at, "this address stands in the list already");
            } else {
                addresses.push(address);
            }
        }
        addresses
    }

    fn mtu(&mut self, raw: Option<&At<NumberOrWord>>, has_ipv6: bool) -> Mtu {
        let Some(at) = raw else { return Mtu::Auto };
        match &at.value {
            NumberOrWord::Word(word) if word == "auto" => return Mtu::Auto,
            &NumberOrWord::Number(bytes @ MTU_MIN..MTU_MIN_IPV6) if has_ipv6 => self.refuse(
                at,
                format!("IPv6 needs an MTU of at least {MTU_MIN_IPV6}, and {bytes} is less; raise it or remove the IPv6 addresses"),
            ),
            // The range fits: MTU_MIN is positive.
            &NumberOrWord::Number(bytes @ MTU_MIN..=0xffff) => return Mtu::Bytes(bytes as u16),
            _ => self.refuse(at, format!("an MTU is \"auto\", or {MTU_MIN} to 65535 without quotes")),
        }
        Mtu::Auto
    }

    fn workers(&mut self, raw: Option<&At<NumberOrWord>>) -> Workers {
        let Some(at) = raw else { return Workers::Auto };
        match &at.value {
            NumberOrWord::Word(word) if word == "auto" => Workers::Auto,
            &NumberOrWord::Number(count @ 1..=255) => Workers::Count(count as u8),
            _ => {
                self.refuse(
                    at,
                    "the workers are \"auto\" (one per core), or 1 to 255 without quotes",
                );
                Workers::Auto
            }
        }
    }

    fn commands(&mut self, raw: &[At<String>]) -> Vec<String> {
        for at in raw
            .iter()
            .filter(|at| at.value.trim().is_empty() || at.value.contains('\0'))
        {
            self.refuse(at, "write a command for the shell");
        }
        raw.iter().map(|at| at.value.clone()).collect()
    }

    fn control_socket(&mut self, raw: Option<&At<String>>) -> Option<PathBuf> {
        let at = raw?;
        let path = self.beside_file(&at.value);
        let len = path.as_os_str().len();
        if at.value.is_empty() || at.value.contains('\0') {
            self.refuse(
                at,
                "write the path of the socket, for example \"/run/ringway/rw0.sock\"",
            );
        } else if len > values::SOCKET_PATH_LEN_MAX {
            let max = values::SOCKET_PATH_LEN_MAX;
            self.refuse(
                at,
                format!("a socket's path has at most {max} bytes, this one has {len}"),
            );
        }
        Some(path)
    }

    /// `right`: what would be right where it is no path.
    fn path(&mut self, at: &At<String>, right: &str) -> Option<PathBuf> {
        if at.value.is_empty() || at.value.contains('\0') {
            self.refuse(at, right);
            return None;
        }
        Some(self.beside_file(&at.value))
    }

    fn metrics(&mut self, raw: &RawMetrics) -> Option<MetricsListen> {
        let Some(at) = &raw.listen else {
            let text = "no address is given; write listen = \"127.0.0.1:9586\"";
            self.missing(&raw.place, &["listen"], "listen", text);
            return None;
        };
        let directory = self.source.path.parent().unwrap_or(Path::new(""));
        let listen = self.read(at, |text| MetricsListen::parse(text, directory))?;
        if let Some(warning) = listen.warning() {
            self.warnings.push(at.place.problem(Some(at.value.shown()), warning));
        }
        Some(listen)
    }

    /// A secret that stands in the file or in a file of its own.
    fn secret<K>(&mut self, inline: (&str, Option<&At<Secret>>), file: (&str, Option<&At<String>>)) -> Option<K>
    where
        K: FromStr<Err: Display>,
    {
        match (inline.1, file.1) {
            (Some(_), Some(at)) => {
                self.refuse(at, format!("{} is given too; write only one of both", inline.0));
                None
            }
            (Some(at), None) => match at.value.parse() {
                Ok(key) => Some(key),
                Err(error) => {
                    self.problems.push(at.place.problem(None, error.to_string()));
                    None
                }
            },
            (None, Some(at)) => {
                let path = self.beside_file(&at.value);
                let read = (self.source.read_key_file)(&path).map_err(|error| error.to_string());
                match read.and_then(|text| text.parse().map_err(|error: K::Err| error.to_string())) {
                    Ok(key) => Some(key),
                    Err(error) => {
                        self.refuse(at, error);
                        None
                    }
                }
            }
            (None, None) => None,
        }
    }

    /// Between peers: public keys, names and allowed IPs belong to one each.
    fn refuse_duplicates(&mut self, peers: &[RawPeer]) {
        let mut keys: HashMap<PublicKey, &Place> = HashMap::new();
        let mut names: HashMap<&str, &Place> = HashMap::new();
        let mut networks: HashMap<IpNet, (usize, &Place)> = HashMap::new();
        for (i, peer) in peers.iter().enumerate() {
            if let Some(at) = &peer.public_key
                && let Ok(key) = at.value.parse()
                && let Some(first) = keys.insert(key, &at.place)
            {
                self.refuse(
                    at,
                    format!("this is the key of {} in line {} too", parent(&first.key), first.line),
                );
                keys.insert(key, first);
            }
            if let Some(at) = &peer.name
                && let Some(first) = names.insert(&at.value, &at.place)
            {
                self.refuse(
                    at,
                    format!("this is the name of {} in line {} too", parent(&first.key), first.line),
                );
                names.insert(&at.value, first);
            }
            for at in &peer.allowed_ips {
                let Ok(network) = values::parse_allowed_ip(&at.value) else {
                    continue;
                };
                match networks.get(&network) {
                    Some((owner, first)) if *owner != i => {
                        let owner = parent(&first.key);
                        let line = first.line;
                        self.refuse(
                            at,
                            format!("{network} belongs to {owner} in line {line} already; only one peer can have it"),
                        );
                    }
                    Some(_) => {}
                    None => {
                        networks.insert(network, (i, &at.place));
                    }
                }
            }
        }
    }

    fn refuse_self(&mut self, own: PublicKey, peers: &[RawPeer]) {
        for at in peers.iter().filter_map(|peer| peer.public_key.as_ref()) {
            if at.value.parse() == Ok(own) {
                self.refuse(
                    at,
                    "this is the public key of the interface itself; write that of the other side",
                );
            }
        }
    }

    /// A relative path of the file is relative to the file.
    fn beside_file(&self, path: &str) -> PathBuf {
        self.source.path.parent().unwrap_or(Path::new("")).join(path)
    }

    pub(super) fn read<T, E: Display>(
        &mut self,
        at: &At<String>,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match read(&at.value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(at, error.to_string());
                None
            }
        }
    }

    pub(super) fn check(&mut self, at: &At<String>, checked: Result<(), String>) -> Option<String> {
        self.read(at, |text| checked.map(|()| text.to_owned()))
    }

    /// A word of an enum; its default when not given or wrong (then reported).
    pub(super) fn word<T: FromStr<Err: Display> + Default>(&mut self, raw: Option<&At<String>>) -> T {
        raw.and_then(|at| self.read(at, T::from_str)).unwrap_or_default()
    }

    pub(super) fn number<T: TryFrom<i64>>(
        &mut self,
        raw: Option<&At<i64>>,
        range: RangeInclusive<i64>,
        right: &str,
    ) -> Option<T> {
        let at = raw?;
        let number = Some(at.value)
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            self.refuse(at, right);
        }
        number
    }

    pub(super) fn refuse<T: Shown>(&mut self, at: &At<T>, text: impl Into<String>) {
        self.problems.push(at.place.problem(Some(at.value.shown()), text));
    }

    pub(super) fn warn<T: Shown>(&mut self, at: &At<T>, text: impl Into<String>) {
        self.warnings.push(at.place.problem(Some(at.value.shown()), text));
    }

    /// Reports that `key` is missing, unless something is wrong with one of `alternatives` or the whole section, which
    /// then is the better report.
    fn missing(&mut self, section: &Place, alternatives: &[&str], key: &str, text: &str) {
        let is_reported = |problem: &Problem| {
            problem.key == section.key
                || alternatives
                    .iter()
                    .any(|alternative| problem.key == format!("{}.{alternative}", section.key))
        };
        if !self.problems.iter().any(is_reported) {
            let place = Place {
                line: section.line,
                key: format!("{}.{key}", section.key),
            };
            self.problems.push(place.problem(None, text));
        }
    }
}

/// The section of a key: `peer[2]` of `peer[2].allowed_ips[0]`.
fn parent(key: &str) -> &str {
    key.rsplit_once('.').map_or(key, |(parent, _)| parent)
}

/// How a value is shown in a problem. Secrets have no such form.
pub(super) trait Shown {
    fn shown(&self) -> String;
}

impl Shown for String {
    fn shown(&self) -> String {
        format!("{self:?}")
    }
}

impl Shown for bool {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for i64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for NumberOrWord {
    fn shown(&self) -> String {
        match self {
            NumberOrWord::Number(number) => number.shown(),
            NumberOrWord::Word(word) => word.shown(),
        }
    }
}
