//! TOML -> raw. Knows keys and types; what the values may be is [`super::validate`]'s to say.

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::problem::{Problem, nearest};
use super::raw::{At, NumberOrWord, Place, RawConfig, RawInterface, RawPeer, Secret};

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
    let peers = reader.peers(&root);
    reader.refuse_unknown_sections(&root);
    Some(RawConfig { interface, peers })
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
    "pre_up",
    "post_up",
    "pre_down",
    "post_down",
    "state_dir",
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
];

struct Reader<'a> {
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
        self.refuse_unknown_keys(table, &place, INTERFACE_KEYS, ("[[peer]]", PEER_KEYS));
        let mut section = Section {
            reader: self,
            table,
            prefix: &place.key,
        };
        RawInterface {
            name: section.text("name"),
            private_key: section.secret("private_key"),
            private_key_file: section.text("private_key_file"),
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
            table: section.text("table"),
            pre_up: section.texts("pre_up"),
            post_up: section.texts("post_up"),
            pre_down: section.texts("pre_down"),
            post_down: section.texts("post_down"),
            state_dir: section.text("state_dir"),
            place,
        }
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
        self.refuse_unknown_keys(table, &place, PEER_KEYS, ("[interface]", INTERFACE_KEYS));
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
            place,
        }
    }

    /// `elsewhere`: the other section, and its keys.
    fn refuse_unknown_keys(&mut self, table: &DeTable<'_>, at: &Place, known: &[&str], elsewhere: (&str, &[&str])) {
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let text = if elsewhere.1.contains(&name.as_ref()) {
                format!("this key belongs in {}", elsewhere.0)
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
            .filter(|(key, _)| !matches!(key.get_ref().as_ref(), "interface" | "peer"))
        {
            let name: &str = key.get_ref();
            let is_value = !matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_));
            let text = match nearest(name, &["interface", "peer"]) {
                _ if INTERFACE_KEYS.contains(&name) => "this key belongs in [interface]".into(),
                _ if PEER_KEYS.contains(&name) => "this key belongs in [[peer]]".into(),
                Some("interface") => "unknown section; did you mean [interface]?".into(),
                Some(_) => "unknown section; did you mean [[peer]]?".into(),
                None if is_value => "unknown key; all keys belong in [interface] or [[peer]]".to_owned(),
                None => "unknown section; the sections are [interface] and [[peer]]".into(),
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

/// One table of the file, while its keys are read.
struct Section<'a, 'b> {
    reader: &'a mut Reader<'b>,
    table: &'a DeTable<'a>,
    prefix: &'a str,
}

impl Section<'_, '_> {
    fn text(&mut self, key: &str) -> Option<At<String>> {
        self.read(key, "a text in quotes", |value| value.as_str().map(str::to_owned))
    }

    fn number(&mut self, key: &str) -> Option<At<i64>> {
        self.read(key, "a whole number, without quotes", integer)
    }

    fn flag(&mut self, key: &str) -> Option<At<bool>> {
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

    fn texts(&mut self, key: &str) -> Vec<At<String>> {
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
