//! TOML -> raw. Knows keys and types; what the values may be is [`super::validate`]'s to say.

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};
use zeroize::Zeroizing;

use super::gateway::{self, RawGateway, RawPolicy};
use super::lockdown::RawLockdown;
use super::metrics::{self, RawMetrics};
use super::problem::{Problem, nearest};
use super::raw::{
    At, FlagOrGroups, NumberOrWord, Place, RawConfig, RawDns, RawInterface, RawPeer, RawRouting, Secret, WordOrTexts,
};

/// Reads `source`, appending everything that is wrong to `problems`. The result holds what could be read, so that
/// validation can report on it too; `None` when the text is not TOML, where any further finding would be noise.
pub fn parse(source: &str, problems: &mut Vec<Problem>) -> Option<RawConfig> {
    let lines = Lines::of(source);
    let (root, errors) = DeTable::parse_recoverable(source);
    if !errors.is_empty() {
        // Only the message: the error's own Display quotes the line, which may hold a key.
        problems.extend(errors.iter().map(|error| Problem {
            line: lines.line_at(error.span().map_or(0, |span| span.start)),
            key: String::new(),
            value: None,
            text: format!("not TOML: {}", error.message()),
        }));
        return None;
    }

    let mut reader = Reader {
        source,
        lines,
        problems,
    };
    let root = root.into_inner();
    let interface = reader.interface(&root);
    let gateway = reader.gateway(&root);
    let peers = reader.peers(&root);
    let metrics = reader.metrics(&root);
    reader.refuse_unknown_sections(&root);
    Some(RawConfig {
        interface,
        gateway,
        peers,
        metrics,
    })
}

/// The keys of `[interface]`.
const INTERFACE_KEYS: &[&str] = &[
    "name",
    "private_key",
    "private_key_file",
    "listen_port",
    "addresses",
    "mtu",
    "workers",
    "io",
    "crypto",
    "fwmark",
    "control_socket",
    "latency_log",
    "udp_gso",
    "udp_gro",
    "tun_tso",
    "tun_uso",
    "pin",
    "sandbox",
    "lane_ports",
    "table",
    "metric",
    "exclude",
    "bind_interface",
    "dns",
    "dns_search",
    "dns_domains",
    "pre_up",
    "post_up",
    "pre_down",
    "post_down",
    "state_dir",
    "lockdown",
    "lockdown_inside",
    "lockdown_outside",
    "lockdown_keep",
];

/// The keys of `[[peer]]`.
const PEER_KEYS: &[&str] = &[
    "name",
    "public_key",
    "preshared_key",
    "preshared_key_file",
    "endpoint",
    "allowed_ips",
    "persistent_keepalive",
    "suite",
    "internet",
    "allow",
    "deny",
];

/// Every section and its keys.
const SECTIONS: [(&str, &[&str]); 4] = [
    ("[interface]", INTERFACE_KEYS),
    ("[gateway]", gateway::KEYS),
    ("[metrics]", metrics::KEYS),
    ("[[peer]]", PEER_KEYS),
];

pub(super) struct Reader<'a> {
    source: &'a str,
    lines: Lines,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn interface(&mut self, root: &DeTable<'_>) -> RawInterface {
        let Some((key, value)) = find(root, "interface") else {
            self.problems.push(Problem {
                line: 1,
                key: "interface".into(),
                value: None,
                text: "the section [interface] is missing".into(),
            });
            return RawInterface {
                place: Place {
                    line: 1,
                    key: "interface".into(),
                },
                ..RawInterface::default()
            };
        };
        let place = Place {
            line: self.lines.line_at(key.span().start),
            key: "interface".into(),
        };
        let DeValue::Table(table) = value.get_ref() else {
            self.problems
                .push(place.problem(None, "this is a section of its own: write [interface]"));
            return RawInterface {
                place,
                ..RawInterface::default()
            };
        };
        self.refuse_unknown_keys(table, &place, INTERFACE_KEYS);
        let mut section = Section {
            reader: self,
            table,
            prefix: &place.key,
        };
        RawInterface {
            name: section.text("name"),
            private_key: section.secret("private_key"),
            private_key_file: section.text("private_key_file"),
            key_may_come_later: false,
            listen_port: section.number("listen_port"),
            addresses: section.texts("addresses"),
            mtu: section.number_or_word("mtu"),
            workers: section.number_or_word("workers"),
            io: section.text("io"),
            crypto: section.text("crypto"),
            fwmark: section.number("fwmark"),
            control_socket: section.text("control_socket"),
            latency_log: section.text("latency_log"),
            udp_gso: section.flag("udp_gso"),
            udp_gro: section.flag("udp_gro"),
            tun_tso: section.flag("tun_tso"),
            tun_uso: section.flag("tun_uso"),
            pin: section.flag("pin"),
            sandbox: section.flag("sandbox"),
            lane_ports: section.flag("lane_ports"),
            routing: RawRouting {
                table: section.number_or_word("table"),
                metric: section.number("metric"),
                exclude: section.texts("exclude"),
                bind_interface: section.text("bind_interface"),
            },
            dns: RawDns {
                servers: section.texts("dns"),
                search: section.texts("dns_search"),
                domains: section.texts("dns_domains"),
            },
            save_config: false,
            pre_up: section.texts("pre_up"),
            post_up: section.texts("post_up"),
            pre_down: section.texts("pre_down"),
            post_down: section.texts("post_down"),
            state_dir: section.text("state_dir"),
            lockdown: RawLockdown::read(&mut section),
            place,
        }
    }

    fn gateway(&mut self, root: &DeTable<'_>) -> Option<RawGateway> {
        let (key, value) = find(root, "gateway")?;
        let place = Place {
            line: self.lines.line_at(key.span().start),
            key: "gateway".into(),
        };
        let DeValue::Table(table) = value.get_ref() else {
            self.problems
                .push(place.problem(None, "this is a section of its own: write [gateway]"));
            return None;
        };
        self.refuse_unknown_keys(table, &place, gateway::KEYS);
        let mut section = Section {
            reader: self,
            table,
            prefix: "gateway",
        };
        Some(RawGateway::read(&mut section, place))
    }

    fn peers(&mut self, root: &DeTable<'_>) -> Vec<RawPeer> {
        let Some((key, value)) = find(root, "peer") else {
            return Vec::new();
        };
        let DeValue::Array(peers) = value.get_ref() else {
            let place = Place {
                line: self.lines.line_at(key.span().start),
                key: "peer".into(),
            };
            self.problems
                .push(place.problem(None, "there can be several peers: write [[peer]], with two brackets"));
            return Vec::new();
        };
        peers.iter().enumerate().map(|(i, peer)| self.peer(i, peer)).collect()
    }

    fn peer(&mut self, i: usize, peer: &Spanned<DeValue<'_>>) -> RawPeer {
        let place = Place {
            line: self.lines.line_at(peer.span().start),
            key: format!("peer[{i}]"),
        };
        let DeValue::Table(table) = peer.get_ref() else {
            self.problems
                .push(place.problem(None, "each peer is a section of its own: write [[peer]]"));
            return RawPeer {
                place,
                ..RawPeer::default()
            };
        };
        self.refuse_unknown_keys(table, &place, PEER_KEYS);
        let mut section = Section {
            reader: self,
            table,
            prefix: &place.key,
        };
        RawPeer {
            name: section.text("name"),
            public_key: section.text("public_key"),
            preshared_key: section.secret("preshared_key"),
            preshared_key_file: section.text("preshared_key_file"),
            endpoint: section.text("endpoint"),
            allowed_ips: section.texts("allowed_ips"),
            persistent_keepalive: section.number("persistent_keepalive"),
            suite: section.text("suite"),
            policy: RawPolicy::read(&mut section),
            place,
        }
    }

    fn metrics(&mut self, root: &DeTable<'_>) -> Option<RawMetrics> {
        let (key, value) = find(root, "metrics")?;
        let place = Place {
            line: self.lines.line_at(key.span().start),
            key: "metrics".into(),
        };
        let DeValue::Table(table) = value.get_ref() else {
            self.problems
                .push(place.problem(None, "this is a section of its own: write [metrics]"));
            return None;
        };
        self.refuse_unknown_keys(table, &place, metrics::KEYS);
        let mut section = Section {
            reader: self,
            table,
            prefix: &place.key,
        };
        Some(RawMetrics {
            listen: section.text("listen"),
            place,
        })
    }

    fn refuse_unknown_keys(&mut self, table: &DeTable<'_>, at: &Place, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let text = if let Some(section) = section_of(name) {
                format!("this key belongs in {section}")
            } else if let Some(nearest) = nearest(name, known) {
                format!("unknown key; did you mean \"{nearest}\"?")
            } else {
                format!("unknown key; the keys here are {}", known.join(", "))
            };
            let line = self.lines.line_at(key.span().start);
            self.problems.push(Problem {
                line,
                key: format!("{}.{}", at.key, shown_key(name)),
                value: None,
                text,
            });
        }
    }

    fn refuse_unknown_sections(&mut self, root: &DeTable<'_>) {
        for (key, value) in root
            .iter()
            .filter(|(key, _)| !matches!(key.get_ref().as_ref(), "interface" | "gateway" | "metrics" | "peer"))
        {
            let name: &str = key.get_ref();
            let is_value = !matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_));
            let text = match (
                section_of(name),
                nearest(name, &["interface", "gateway", "metrics", "peer"]),
            ) {
                (Some(section), _) => format!("this key belongs in {section}"),
                (None, Some("peer")) => "unknown section; did you mean [[peer]]?".into(),
                (None, Some(nearest)) => format!("unknown section; did you mean [{nearest}]?"),
                (None, None) if is_value => {
                    "unknown key; all keys belong in a section: [interface], [gateway], [metrics] or [[peer]]".into()
                }
                (None, None) => {
                    "unknown section; the sections are [interface], [gateway], [metrics] and [[peer]]".into()
                }
            };
            let line = self.lines.line_at(key.span().start);
            self.problems.push(Problem {
                line,
                key: shown_key(name),
                value: None,
                text,
            });
        }
    }
}

/// The section that `key` belongs in.
fn section_of(key: &str) -> Option<&'static str> {
    let mut sections = SECTIONS.into_iter();
    sections
        .find(|(_, keys)| keys.contains(&key))
        .map(|(section, _)| section)
}

/// One table of the file, while its keys are read.
pub(super) struct Section<'a, 'b> {
    reader: &'a mut Reader<'b>,
    table: &'a DeTable<'a>,
    prefix: &'a str,
}

impl Section<'_, '_> {
    pub(super) fn text(&mut self, key: &str) -> Option<At<String>> {
        self.read(key, "a text in quotes", |value| value.as_str().map(str::to_owned))
    }

    fn number(&mut self, key: &str) -> Option<At<i64>> {
        self.read(key, "a whole number, without quotes", integer)
    }

    pub(super) fn flag(&mut self, key: &str) -> Option<At<bool>> {
        self.read(key, "true or false, without quotes", |value| value.as_bool())
    }

    fn number_or_word(&mut self, key: &str) -> Option<At<NumberOrWord>> {
        self.read(key, "a whole number, or \"auto\"", |value| match value {
            DeValue::String(word) => Some(NumberOrWord::Word(word.clone().into_owned())),
            value => integer(value).map(NumberOrWord::Number),
        })
    }

    /// As text, but what stands there instead is never shown.
    fn secret(&mut self, key: &str) -> Option<At<Secret>> {
        let (_, value) = find(self.table, key)?;
        let place = self.place(value, key.to_owned());
        match value.get_ref().as_str() {
            Some(text) => Some(At {
                value: Zeroizing::new(text.to_owned()),
                place,
            }),
            None => {
                self.reader.problems.push(place.problem(None, "write a text in quotes"));
                None
            }
        }
    }

    /// As texts; `None` where the key is missing, which is not the same as an empty list.
    pub(super) fn optional_texts(&mut self, key: &str) -> Option<Vec<At<String>>> {
        find(self.table, key)?;
        Some(self.texts(key))
    }

    pub(super) fn word_or_texts(&mut self, key: &str) -> Option<WordOrTexts> {
        let (_, value) = find(self.table, key)?;
        match value.get_ref().as_str() {
            Some(_) => self.text(key).map(WordOrTexts::Word),
            None => Some(WordOrTexts::Texts(self.texts(key))),
        }
    }

    pub(super) fn flag_or_groups(&mut self, key: &str) -> Option<FlagOrGroups> {
        const RIGHT: &str = "true, false, or groups of texts: [[\"a\", \"b\"]]";
        let (_, value) = find(self.table, key)?;
        let DeValue::Array(groups) = value.get_ref() else {
            return self.read(key, RIGHT, |value| value.as_bool()).map(FlagOrGroups::Flag);
        };
        let mut read = Vec::with_capacity(groups.len());
        for (i, group) in groups.iter().enumerate() {
            match group.get_ref() {
                DeValue::Array(items) => read.push(self.texts_of(&format!("{key}[{i}]"), items)),
                _ => self.refuse(self.place(group, format!("{key}[{i}]")), group, RIGHT),
            }
        }
        Some(FlagOrGroups::Groups(read))
    }

    pub(super) fn texts(&mut self, key: &str) -> Vec<At<String>> {
        let Some((_, value)) = find(self.table, key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            let place = self.place(value, key.to_owned());
            let example = value
                .get_ref()
                .as_str()
                .map_or(String::new(), |text| format!(": [{text:?}]"));
            self.refuse(place, value, &format!("a list of texts, in brackets{example}"));
            return Vec::new();
        };
        self.texts_of(key, items)
    }

    fn texts_of(&mut self, key: &str, items: &DeArray<'_>) -> Vec<At<String>> {
        let mut texts = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let place = self.place(item, format!("{key}[{i}]"));
            match item.get_ref().as_str() {
                Some(text) => texts.push(At {
                    value: text.to_owned(),
                    place,
                }),
                None => self.refuse(place, item, "a text in quotes"),
            }
        }
        texts
    }

    fn read<T>(&mut self, key: &str, right: &str, read: impl Fn(&DeValue<'_>) -> Option<T>) -> Option<At<T>> {
        let (_, value) = find(self.table, key)?;
        let place = self.place(value, key.to_owned());
        match read(value.get_ref()) {
            Some(value) => Some(At { value, place }),
            None => {
                self.refuse(place, value, right);
                None
            }
        }
    }

    fn place(&self, value: &Spanned<DeValue<'_>>, key: String) -> Place {
        Place {
            line: self.reader.lines.line_at(value.span().start),
            key: format!("{}.{key}", self.prefix),
        }
    }

    fn refuse(&mut self, place: Place, value: &Spanned<DeValue<'_>>, right: &str) {
        let shown = self.reader.source.get(value.span()).map(|text| shorten(text, 60));
        self.reader
            .problems
            .push(place.problem(shown, format!("write {right}")));
    }
}

fn find<'a, 'i>(
    table: &'a DeTable<'i>,
    key: &str,
) -> Option<(&'a Spanned<std::borrow::Cow<'i, str>>, &'a Spanned<DeValue<'i>>)> {
    table.iter().find(|(found, _)| found.get_ref() == key)
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A key as TOML spells it: in quotes unless it is a bare one.
fn shown_key(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if is_bare { key.to_owned() } else { format!("{key:?}") }
}

/// The first line of `text`, at most `chars_max` characters of it.
fn shorten(text: &str, chars_max: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut short: String = line.chars().take(chars_max).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

/// Where lines begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(source: &str) -> Lines {
        Lines(source.match_indices('\n').map(|(at, _)| at + 1).collect())
    }

    /// The line, from 1, of the byte at `offset`.
    fn line_at(&self, offset: usize) -> u32 {
        u32::try_from(self.0.partition_point(|&begin| begin <= offset) + 1).unwrap_or(u32::MAX)
    }
}
