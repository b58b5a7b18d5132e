//! wg-quick's file format (wg-quick(8), wg(8)) -> raw. Knows keys and their shapes; what the values may be is
//! [`super::validate`]'s to say.
//!
//! As there, sections and keys are recognised in upper and lower case, everything behind a `#` is a comment, and lists
//! are separated by commas or spread over several lines.

use std::collections::HashSet;
use std::path::Path;

use zeroize::Zeroizing;

use super::problem::{Problem, nearest};
use super::raw::{At, NumberOrWord, Place, RawConfig, RawDns, RawInterface, RawPeer, Secret};
use super::values::parse_allowed_ip;

/// Whether a file is in this format rather than TOML: its name ends in `.conf`, or it has a section as only this format
/// writes it.
pub fn is_meant(path: &Path, text: &str) -> bool {
    path.extension().is_some_and(|extension| extension == "conf")
        || text.lines().any(|line| matches!(line.trim(), "[Interface]" | "[Peer]"))
}

/// Reads `source`, appending everything that is wrong to `problems`. The result holds what could be read, so that
/// validation can report on it too; `None` when there is no `[Interface]`, where any further finding would be noise.
pub fn parse(source: &str, problems: &mut Vec<Problem>) -> Option<RawConfig> {
    let mut reader = Reader {
        problems,
        interface: None,
        peers: Vec::new(),
        section: Section::None,
        seen: Vec::new(),
    };
    for (number, line) in (1..).zip(source.lines()) {
        reader.line(number, line);
    }
    let Reader {
        interface, mut peers, ..
    } = reader;
    last_peer_has_it(&mut peers);
    let Some(interface) = interface else {
        problems.push(Problem {
            line: 1,
            key: "Interface".into(),
            value: None,
            text: "the section [Interface] is missing".into(),
        });
        return None;
    };
    let has = |problems: &[Problem], key: String| problems.iter().any(|problem| problem.key == key);
    for peer in peers.iter().filter(|peer| peer.public_key.is_none()) {
        if !has(problems, format!("{}.PublicKey", peer.place.key)) {
            let text = "PublicKey is missing; it tells who the peer is";
            problems.push(peer.place.problem(None, text));
        }
    }
    Some(RawConfig {
        interface,
        gateway: None,
        peers,
        metrics: None,
    })
}

/// The keys of `[Interface]`.
const INTERFACE_KEYS: &[&str] = &[
    "Address",
    "DNS",
    "FwMark",
    "ListenPort",
    "MTU",
    "PostDown",
    "PostUp",
    "PreDown",
    "PreUp",
    "PrivateKey",
    "SaveConfig",
    "Table",
];

/// The keys of `[Peer]`.
const PEER_KEYS: &[&str] = &[
    "AllowedIPs",
    "Endpoint",
    "PersistentKeepalive",
    "PresharedKey",
    "PublicKey",
];

/// Keys that may stand several times; each line adds to the one before.
const LISTS: &[&str] = &["Address", "AllowedIPs", "DNS", "PostDown", "PostUp", "PreDown", "PreUp"];

struct Reader<'a> {
    problems: &'a mut Vec<Problem>,
    interface: Option<RawInterface>,
    peers: Vec<RawPeer>,
    section: Section,
    /// Keys of the section so far, and their lines.
    seen: Vec<(&'static str, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    /// Before the first one, or in one that is wrong and was reported.
    None,
    Unknown,
    Interface,
    Peer,
}

impl Reader<'_> {
    fn line(&mut self, number: u32, line: &str) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            return;
        }
        if line.starts_with('[') {
            return self.begin_section(number, line);
        }
        let (key, value) = match line.split_once('=') {
            Some((key, value)) => (key.trim(), value.trim()),
            None => {
                // Not the line itself: it may be a key that lost its name.
                return self.refuse_line(number, String::new(), "this is neither a [Section] nor Key = value");
            }
        };
        let known = match self.section {
            Section::Unknown => return,
            Section::None => {
                let text = "this key stands before the first section; write [Interface] above it";
                return self.refuse_line(number, key.to_owned(), text);
            }
            Section::Interface => INTERFACE_KEYS,
            Section::Peer => PEER_KEYS,
        };
        let Some(key) = known.iter().copied().find(|known| known.eq_ignore_ascii_case(key)) else {
            return self.refuse_key(number, key, known);
        };
        let place = Place {
            line: number,
            key: format!("{}.{key}", self.section_key()),
        };
        let first = self.seen.iter().find(|(seen, _)| *seen == key);
        if let Some((_, first)) = first.filter(|_| !LISTS.contains(&key)) {
            let text = format!("{key} stands in line {first} already; write it once");
            return self.problems.push(place.problem(None, text));
        }
        self.seen.push((key, number));
        match self.section {
            Section::Interface => self.interface_key(key, value, place),
            _ => self.peer_key(key, value, place),
        }
    }

    fn begin_section(&mut self, number: u32, line: &str) {
        self.seen.clear();
        self.section = if line.eq_ignore_ascii_case("[Interface]") {
            Section::Interface
        } else if line.eq_ignore_ascii_case("[Peer]") {
            Section::Peer
        } else {
            Section::Unknown
        };
        let place = |key: String| Place { line: number, key };
        match (self.section, &self.interface) {
            (Section::Interface, None) => {
                self.interface = Some(RawInterface {
                    place: place("Interface".into()),
                    key_may_come_later: true,
                    ..RawInterface::default()
                });
            }
            (Section::Interface, Some(first)) => {
                let text = format!(
                    "there is one [Interface], in line {}; [Peer] begins each peer",
                    first.place.line
                );
                self.section = Section::Unknown;
                self.refuse_line(number, "Interface".into(), &text);
            }
            (Section::Peer, _) => self.peers.push(RawPeer {
                place: place(format!("Peer[{}]", self.peers.len())),
                ..RawPeer::default()
            }),
            _ => self.refuse_line(number, String::new(), "the sections are [Interface] and [Peer]"),
        }
    }

    fn interface_key(&mut self, key: &str, value: &str, place: Place) {
        let number = match key {
            "ListenPort" => self.number(value, &place, "a port is 1 to 65535, or 0 for any"),
            "SaveConfig" if !matches!(value, "true" | "false") => {
                return self.refuse(place, value, "write true or false");
            }
            "FwMark" => self.number_or_off(value, &place, "a mark is a number, also as 0x..., or off"),
            _ => None,
        };
        // interface_key is called in this section only, which made it.
        let Some(interface) = &mut self.interface else { return };
        match key {
            // wg-quick's own keys may be separated by spaces too.
            "Address" => interface
                .addresses
                .extend(words(value).map(|word| text(word, place.clone()))),
            "FwMark" => interface.fwmark = number,
            "ListenPort" => interface.listen_port = number,
            "DNS" => name_servers(value, &place, &mut interface.dns),
            "MTU" => interface.mtu = Some(number_or_word(value, place)),
            "PrivateKey" => interface.private_key = Some(secret(value, place)),
            "SaveConfig" => interface.save_config = value == "true",
            "Table" => interface.routing.table = Some(number_or_word(value, place)),
            "PreUp" => interface.pre_up.push(text(value, place)),
            "PostUp" => interface.post_up.push(text(value, place)),
            "PreDown" => interface.pre_down.push(text(value, place)),
            "PostDown" => interface.post_down.push(text(value, place)),
            _ => {}
        }
    }

    fn peer_key(&mut self, key: &str, value: &str, place: Place) {
        let number = match key {
            "PersistentKeepalive" => self.number_or_off(
                value,
                &place,
                "an interval is 1 to 65535 seconds, or off for no keepalives",
            ),
            _ => None,
        };
        let Some(peer) = self.peers.last_mut() else { return };
        match key {
            "AllowedIPs" => peer.allowed_ips.extend(list(value, &place)),
            "Endpoint" => peer.endpoint = Some(text(value, place)),
            "PersistentKeepalive" => peer.persistent_keepalive = number,
            "PresharedKey" => peer.preshared_key = Some(secret(value, place)),
            "PublicKey" => peer.public_key = Some(text(value, place)),
            _ => {}
        }
    }

    fn number_or_off(&mut self, value: &str, place: &Place, right: &str) -> Option<At<i64>> {
        let value = if value.eq_ignore_ascii_case("off") { "0" } else { value };
        self.number(value, place, right)
    }

    fn number(&mut self, value: &str, place: &Place, right: &str) -> Option<At<i64>> {
        let number = match value.strip_prefix("0x") {
            Some(digits) => i64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        match number {
            Ok(value) => Some(At {
                value,
                place: place.clone(),
            }),
            Err(_) => {
                self.refuse(place.clone(), value, right);
                None
            }
        }
    }

    fn refuse_key(&mut self, number: u32, key: &str, known: &[&str]) {
        let (elsewhere, their_keys) = match self.section {
            Section::Interface => ("[Peer]", PEER_KEYS),
            _ => ("[Interface]", INTERFACE_KEYS),
        };
        let text = if their_keys.iter().any(|theirs| theirs.eq_ignore_ascii_case(key)) {
            format!("this key belongs in {elsewhere}")
        } else if let Some(nearest) = nearest(key, known) {
            format!("unknown key; did you mean {nearest}?")
        } else {
            format!("unknown key; the keys here are {}", known.join(", "))
        };
        let key = format!("{}.{key}", self.section_key());
        self.refuse_line(number, key, &text);
    }

    fn section_key(&self) -> String {
        match self.section {
            Section::Peer => format!("Peer[{}]", self.peers.len().saturating_sub(1)),
            _ => "Interface".into(),
        }
    }

    fn refuse(&mut self, place: Place, value: &str, text: &str) {
        self.problems.push(place.problem(Some(value.to_owned()), text));
    }

    fn refuse_line(&mut self, line: u32, key: String, text: &str) {
        self.problems.push(Place { line, key }.problem(None, text));
    }
}

/// As with `wg setconf`, a network that several peers are given is the last one's.
fn last_peer_has_it(peers: &mut [RawPeer]) {
    let mut taken = HashSet::new();
    for peer in peers.iter_mut().rev() {
        let mut own = HashSet::new();
        peer.allowed_ips.retain(|allowed| {
            // What is none is said elsewhere.
            let Ok(network) = parse_allowed_ip(&allowed.value) else {
                return true;
            };
            !taken.contains(&network) && own.insert(network)
        });
        taken.extend(own);
    }
}

/// The parts of a list. An empty one is a list of nothing.
fn list<'a>(value: &'a str, place: &'a Place) -> impl Iterator<Item = At<String>> + 'a {
    let parts = value.split(',').map(str::trim);
    parts
        .filter(move |_| !value.is_empty())
        .map(|part| text(part, place.clone()))
}

fn words(value: &str) -> impl Iterator<Item = &str> {
    value.split([',', ' ', '\t']).filter(|word| !word.is_empty())
}

/// As wg-quick tells them apart: what looks like an address is a server, all else a domain to search. A domain behind a
/// `~` is one that only these servers are asked for, and `~.` means all (as resolvectl has it).
fn name_servers(value: &str, place: &Place, dns: &mut RawDns) {
    for word in words(value) {
        let is_server = word.contains(':') || word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        match word.strip_prefix('~') {
            Some(".") => {}
            Some(domain) => dns.domains.push(text(domain, place.clone())),
            None if is_server => dns.servers.push(text(word, place.clone())),
            None => dns.search.push(text(word, place.clone())),
        }
    }
}

fn number_or_word(value: &str, place: Place) -> At<NumberOrWord> {
    let value = value
        .parse()
        .map_or_else(|_| NumberOrWord::Word(value.to_owned()), NumberOrWord::Number);
    At { value, place }
}

fn text(value: &str, place: Place) -> At<String> {
    At {
        value: value.to_owned(),
        place,
    }
}

fn secret(value: &str, place: Place) -> At<Secret> {
    At {
        value: Zeroizing::new(value.to_owned()),
        place,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::validate::{Source, validate};
    use crate::config::{Config, Dns, Hooks, Located, Mtu, Suite, Table};

    const KEY_A: &str = "cEN0raABhctV+PdHYvWsSx+vwxsx10yu75a7WH3e+m0=";
    const PUBLIC_B: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
    const PUBLIC_C: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn read(text: &str) -> Result<Config, String> {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let source = Source {
            path: Path::new("/etc/wireguard/wg0.conf"),
            read_key_file: &|_| unreachable!("this format has no key files"),
        };
        let config = parse(text, &mut problems).and_then(|raw| validate(raw, source, &mut problems, &mut warnings));
        problems.sort_by_key(|problem| problem.line);
        assert_eq!(config.is_none(), !problems.is_empty(), "{problems:?}");
        config.ok_or_else(|| {
            Located {
                path: Path::new("f"),
                problems: &problems,
            }
            .to_string()
        })
    }

    /// The problems of a file with a private key in line 2 and `lines` from line 3 on.
    fn interface_problems(lines: &str) -> String {
        read(&format!("[Interface]\nPrivateKey = {KEY_A}\n{lines}\n")).expect_err(lines)
    }

    /// The problems of a file with a peer whose public key stands in line 4, and `lines` from line 5 on.
    fn peer_problems(lines: &str) -> String {
        read(&format!(
            "[Interface]\nPrivateKey = {KEY_A}\n[Peer]\nPublicKey = {PUBLIC_B}\n{lines}\n"
        ))
        .expect_err(lines)
    }

    #[test]
    fn a_network_of_several_peers_is_the_last_ones() {
        let text = format!(
            "[Interface]\nPrivateKey = {KEY_A}\n\
             [Peer]\nPublicKey = {PUBLIC_B}\nAllowedIPs = 10.0.0.0/24, 10.0.1.0/24, 10.0.1.7/24\n\
             [Peer]\nPublicKey = {PUBLIC_C}\nAllowedIPs = 10.0.0.9/24\n"
        );
        let config = read(&text).expect("all is right");
        let allowed = config.peers.iter().map(|peer| peer.allowed_ips.clone());
        let expected =
            [["10.0.1.0/24"], ["10.0.0.0/24"]].map(|of| of.map(|text| text.parse().expect("a network")).to_vec());
        assert!(allowed.eq(expected));
    }

    #[test]
    fn every_key_is_read() {
        let text = format!(
            "# a comment\n\
             [Interface]\n\
             Address = 10.0.0.1/24 fd00::1/64, # another\n\
             address=10.0.1.1\n\
             ListenPort = 51820\n\
             PrivateKey = {KEY_A}\n\
             MTU = 1380\n\
             FwMark = 0xca6c\n\
             Table = 51820\n\
             DNS = 10.0.0.53, corp.example ~lab.example\n\
             DNS = fd00::53,~.\n\
             SaveConfig = false\n\
             PreUp = true\n\
             PostUp = iptables -A FORWARD -i %i -j ACCEPT; echo up\n\
             PostUp = echo 2\n\
             PreDown = echo 3\n\
             PostDown = echo a=b\n\
             \n\
             [Peer]\n\
             PublicKey = {PUBLIC_B}\n\
             PresharedKey = {KEY_A}\n\
             AllowedIPs = 10.0.0.2/32,10.1.2.3/16\n\
             AllowedIPs = fd00::2/128\n\
             Endpoint = [2001:db8::1]:51820\n\
             PersistentKeepalive = 25\n\
             \n\
             [peer]\n\
             publickey = {PUBLIC_C}\n\
             AllowedIPs =\n\
             PersistentKeepalive = off\n"
        );
        let config = read(&text).expect("all is right");
        let interface = &config.interface;
        assert_eq!(interface.name, "wg0");
        assert_eq!(interface.private_key, Some(KEY_A.parse().expect("a key")));
        let addresses: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.1/24", "fd00::1/64", "10.0.1.1/32"]);
        assert_eq!((interface.listen_port, interface.mtu), (51820, Mtu::Bytes(1380)));
        assert_eq!(interface.fwmark.map(u32::from), Some(0xca6c));
        assert_eq!(interface.routing.table, Table::Number(51820));
        let dns = Dns {
            servers: ["10.0.0.53", "fd00::53"]
                .map(|text| text.parse().expect("an address"))
                .into(),
            search: vec!["corp.example".into()],
            domains: vec!["lab.example".into()],
        };
        assert_eq!(interface.dns, dns);
        let commands = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let hooks = Hooks {
            pre_up: commands(&["true"]),
            post_up: commands(&["iptables -A FORWARD -i %i -j ACCEPT; echo up", "echo 2"]),
            pre_down: commands(&["echo 3"]),
            post_down: commands(&["echo a=b"]),
        };
        assert_eq!(interface.hooks, hooks);
        let [b, c] = &config.peers[..] else { panic!("two peers") };
        assert_eq!(
            (b.public_key.to_string(), c.public_key.to_string()),
            (PUBLIC_B.into(), PUBLIC_C.into())
        );
        assert_eq!(b.preshared_key, Some(KEY_A.parse().expect("a key")));
        let allowed: Vec<_> = b.allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(allowed, ["10.0.0.2/32", "10.1.0.0/16", "fd00::2/128"]);
        assert_eq!(
            b.endpoint.as_ref().map(ToString::to_string),
            Some("[2001:db8::1]:51820".into())
        );
        assert_eq!(b.persistent_keepalive, Some(Duration::from_secs(25)));
        assert_eq!(
            (c.persistent_keepalive, c.allowed_ips.len(), c.suite),
            (None, 0, Suite::Auto)
        );
    }

    #[test]
    fn every_problem_names_its_line_and_what_would_be_right() {
        let interface = [
            ("ListenPort = x", "f:3: Interface.ListenPort = x: a port is"),
            ("ListenPort = 65536", "f:3: Interface.ListenPort = 65536: a port is"),
            ("FwMark = 0xzz", "f:3: Interface.FwMark = 0xzz: a mark is"),
            (
                "SaveConfig = yes",
                "f:3: Interface.SaveConfig = yes: write true or false",
            ),
            ("MTU = big", "f:3: Interface.MTU = \"big\": an MTU is"),
            (
                "Adress = 10.0.0.1",
                "f:3: Interface.Adress: unknown key; did you mean Address?",
            ),
            (
                "AllowedIPs = 10.0.0.0/8",
                "f:3: Interface.AllowedIPs: this key belongs in [Peer]",
            ),
            (
                "Address = 10.0.0.1/33",
                "f:3: Interface.Address = \"10.0.0.1/33\": the prefix length",
            ),
            (
                "Table = main",
                "f:3: Interface.Table = \"main\": the table is \"auto\", \"off\", or the number of a routing table",
            ),
            (
                "DNS = 10.0.0.1.2",
                "f:3: Interface.DNS = \"10.0.0.1.2\": a name server is an IP address",
            ),
            (
                "DNS = corp.example",
                "f:3: Interface.DNS = \"corp.example\": there is no name server to ask",
            ),
            ("PostUp =", "f:3: Interface.PostUp = \"\": write a command"),
            (
                "ListenPort = 1\nListenPort = 2",
                "f:4: Interface.ListenPort: ListenPort stands in line 3 already",
            ),
            ("[Interface]", "f:3: Interface: there is one [Interface], in line 1"),
            ("[Network]", "f:3: the sections are [Interface] and [Peer]"),
            ("what", "f:3: this is neither a [Section] nor Key = value"),
        ];
        for (line, expected) in interface {
            let problems = interface_problems(line);
            assert!(problems.starts_with(expected), "{problems}");
            assert_eq!(problems.lines().count(), 1, "{problems}");
        }
        let peer = [
            (
                "Endpoint = example.com",
                "f:5: Peer[0].Endpoint = \"example.com\": the port is missing",
            ),
            (
                "PersistentKeepalive = 65536",
                "f:5: Peer[0].PersistentKeepalive = 65536: an interval is",
            ),
            (
                "ListenPort = 1",
                "f:5: Peer[0].ListenPort: this key belongs in [Interface]",
            ),
            ("[Peer]\nEndpoint = 192.0.2.1:1", "f:5: Peer[1]: PublicKey is missing"),
        ];
        for (line, expected) in peer {
            let problems = peer_problems(line);
            assert!(problems.starts_with(expected), "{problems}");
            assert_eq!(problems.lines().count(), 1, "{problems}");
        }
        let whole = [
            ("", "f:1: Interface: the section [Interface] is missing"),
            (
                "ListenPort = 1\n[Interface]",
                "f:1: ListenPort: this key stands before the first section",
            ),
        ];
        for (text, expected) in whole {
            let problems = read(text).expect_err(text);
            assert!(problems.starts_with(expected), "{problems}");
        }
    }

    #[test]
    fn a_file_may_leave_the_key_to_a_command_but_not_have_a_wrong_one() {
        let warnings = |text: &str| {
            let (mut problems, mut warnings) = (Vec::new(), Vec::new());
            let source = Source {
                path: Path::new("wg0.conf"),
                read_key_file: &|_| unreachable!("this format has no key files"),
            };
            let raw = parse(text, &mut problems).expect("a section");
            let config = validate(raw, source, &mut problems, &mut warnings);
            assert_eq!(config.expect("it is right").interface.private_key, None);
            warnings.iter().map(ToString::to_string).collect::<Vec<_>>().concat()
        };
        let command = "PostUp = wg set %i private-key <(pass vpn)";
        assert_eq!(warnings(&format!("[Interface]\n{command}\n")), "");
        assert!(warnings("[Interface]\nMTU = 1400\n").contains("no PrivateKey is given"));
        let problems = read(&format!("[Interface]\nPrivateKey =\n{command}\n")).expect_err("no key");
        assert!(problems.starts_with("f:2: Interface.PrivateKey"), "{problems}");
    }

    #[test]
    fn no_problem_tells_a_secret() {
        let problems = interface_problems("PresharedKey = 5ec2e7\n5ec2e7");
        assert!(!problems.contains("5ec2e7"), "{problems}");
        let problems = peer_problems("PresharedKey = 5ec2e7");
        assert!(
            problems.contains("PresharedKey") && !problems.contains("5ec2e7"),
            "{problems}"
        );
        let problems = read("[Interface]\nPrivateKey = 5ec2e7").expect_err("no key");
        assert!(!problems.contains("5ec2e7"), "{problems}");
    }

    #[test]
    fn the_format_is_told_from_toml_by_name_and_content() {
        let cases = [
            ("wg0.conf", "", true),
            ("wg0.toml", "[interface]\nname = \"a\"\n[[peer]]", false),
            ("wg0", "# x\n [Interface] \nMTU = 1", true),
            ("wg0", "[Peer]", true),
            ("wg0", "[interface]", false),
        ];
        for (path, text, expected) in cases {
            assert_eq!(is_meant(Path::new(path), text), expected, "{path} {text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(
            text in "(\\[Interface\\]\n|\\[Peer\\]\n|(Address|MTU|PrivateKey|AllowedIPs|FwMark|x) ?= ?[0-9a-f:./, x-]{0,12}\n|\\PC{0,10}\n){0,12}",
        ) {
            let _ = read(&text);
        }
    }
}
