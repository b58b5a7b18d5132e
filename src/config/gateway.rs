//! `[gateway]`, and what single peers may reach through it: from the file's keys to validated values.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use super::problem::nearest;
use super::raw::{At, FlagOrGroups, Place, RawPeer, WordOrTexts};
use super::toml::Section;
use super::types::UnknownWord;
use super::validate::Validation;
use super::values;

/// The keys of `[gateway]`.
pub(super) const KEYS: &[&str] = &["egress", "masquerade", "inbound", "mss_clamp", "peer_to_peer"];

/// What the machine does with packets that come out of the tunnel and are for somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Where they may leave.
    pub egress: Egress,
    /// Which of them leave under the gateway's own address.
    pub masquerade: Masquerade,
    /// Whether hosts beyond the egress may open connections to peers. Where the file does not say: unless any family is
    /// masqueraded.
    pub inbound: bool,
    /// Whether the MSS of TCP connections through the tunnel is held to what the path carries.
    pub mss_clamp: bool,
    /// Which peers may reach each other.
    pub peer_to_peer: PeerToPeer,
}

/// The interfaces through which a gateway's packets leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Egress {
    /// Those of the default routes, followed as they change.
    Auto,
    /// These; no duplicates.
    Interfaces(Vec<String>),
}

/// Which packets leave under the gateway's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Masquerade {
    /// IPv4 and IPv6.
    #[default]
    All,
    /// IPv4; IPv6 is routed.
    Ipv4,
    /// IPv6; IPv4 is routed.
    Ipv6,
    /// None: networks beyond the egress must know the way back.
    Off,
}

impl Masquerade {
    const ALL: [Masquerade; 4] = [Masquerade::All, Masquerade::Ipv4, Masquerade::Ipv6, Masquerade::Off];
    const WORDS: &[&str] = &["all", "ipv4", "ipv6", "off"];
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Masquerade::WORDS[*self as usize])
    }
}

impl FromStr for Masquerade {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Masquerade, UnknownWord> {
        let known = Masquerade::WORDS;
        let found = known.iter().position(|word| *word == text);
        found.map(|at| Masquerade::ALL[at]).ok_or(UnknownWord { known })
    }
}

/// Which peers may reach each other through the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerToPeer {
    /// None.
    Off,
    /// All.
    On,
    /// Those that stand in one group, by their names.
    Groups(Vec<Vec<String>>),
}

/// What one peer may reach through the gateway, whoever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whether it may use the egress at all.
    pub internet: bool,
    /// The only destinations, where there is such a list. The gateway's own addresses in the tunnel are always among them.
    pub allow: Option<Vec<IpNet>>,
    /// Never these, whatever else allows them.
    pub deny: Vec<IpNet>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            internet: true,
            allow: None,
            deny: Vec::new(),
        }
    }
}

/// `[gateway]` as the file spells it.
#[expect(missing_docs, reason = "the fields are those of the validated gateway")]
pub struct RawGateway {
    pub place: Place,
    pub egress: Option<WordOrTexts>,
    pub masquerade: Option<At<String>>,
    pub inbound: Option<At<bool>>,
    pub mss_clamp: Option<At<bool>>,
    pub peer_to_peer: Option<FlagOrGroups>,
}

/// A peer's keys as the file spells them.
#[derive(Default)]
#[expect(missing_docs, reason = "the fields are those of the validated policy")]
pub struct RawPolicy {
    pub internet: Option<At<bool>>,
    pub allow: Option<Vec<At<String>>>,
    pub deny: Vec<At<String>>,
}

impl RawGateway {
    pub(super) fn read(section: &mut Section<'_, '_>, place: Place) -> RawGateway {
        RawGateway {
            egress: section.word_or_texts("egress"),
            masquerade: section.text("masquerade"),
            inbound: section.flag("inbound"),
            mss_clamp: section.flag("mss_clamp"),
            peer_to_peer: section.flag_or_groups("peer_to_peer"),
            place,
        }
    }
}

impl RawPolicy {
    pub(super) fn read(section: &mut Section<'_, '_>) -> RawPolicy {
        RawPolicy {
            internet: section.flag("internet"),
            allow: section.optional_texts("allow"),
            deny: section.texts("deny"),
        }
    }
}

impl Validation<'_> {
    pub(super) fn gateway(&mut self, raw: &RawGateway, peers: &[RawPeer]) -> Gateway {
        let masquerade: Masquerade = self.word(raw.masquerade.as_ref());
        Gateway {
            egress: self.egress(raw.egress.as_ref()),
            masquerade,
            inbound: raw
                .inbound
                .as_ref()
                .map_or(masquerade == Masquerade::Off, |at| at.value),
            mss_clamp: raw.mss_clamp.as_ref().is_none_or(|at| at.value),
            peer_to_peer: self.peer_to_peer(raw.peer_to_peer.as_ref(), peers),
        }
    }

    fn egress(&mut self, raw: Option<&WordOrTexts>) -> Egress {
        match raw {
            None => Egress::Auto,
            Some(WordOrTexts::Word(at)) if at.value == "auto" => Egress::Auto,
            Some(WordOrTexts::Word(at)) => {
                self.refuse(at, "the egress is \"auto\", or a list of interfaces: [\"eth0\"]");
                Egress::Auto
            }
            Some(WordOrTexts::Texts(list)) => {
                let mut names: Vec<String> = Vec::with_capacity(list.len());
                for at in list {
                    match self.check(at, values::check_interface_name(&at.value)) {
                        Some(name) if !names.contains(&name) => names.push(name),
                        _ => {}
                    }
                }
                Egress::Interfaces(names)
            }
        }
    }

    fn peer_to_peer(&mut self, raw: Option<&FlagOrGroups>, peers: &[RawPeer]) -> PeerToPeer {
        let groups = match raw {
            None => return PeerToPeer::Off,
            Some(FlagOrGroups::Flag(at)) if at.value => return PeerToPeer::On,
            Some(FlagOrGroups::Flag(_)) => return PeerToPeer::Off,
            Some(FlagOrGroups::Groups(groups)) => groups,
        };
        let known: Vec<&str> = peers
            .iter()
            .filter_map(|peer| peer.name.as_ref())
            .map(|at| at.value.as_str())
            .collect();
        for at in groups.iter().flatten() {
            if known.contains(&at.value.as_str()) {
                continue;
            }
            let text = match nearest(&at.value, &known) {
                Some(nearest) => format!("no peer has this name; did you mean \"{nearest}\"?"),
                None => "no peer has this name; a group lists the names of peers that may reach each other".into(),
            };
            self.refuse(at, text);
        }
        let names = |group: &Vec<At<String>>| group.iter().map(|at| at.value.clone()).collect();
        PeerToPeer::Groups(groups.iter().map(names).collect())
    }

    /// `has_gateway`: without one, a peer's policy would say nothing.
    pub(super) fn policy(&mut self, raw: &RawPolicy, has_gateway: bool) -> Policy {
        let internet = raw.internet.as_ref().is_none_or(|at| at.value);
        if let (true, Some(at), Some(_)) = (internet, &raw.internet, &raw.allow) {
            self.refuse(
                at,
                "allow lists the only destinations of this peer; leave out one of both",
            );
        }
        let policy = Policy {
            internet,
            allow: raw.allow.as_ref().map(|list| self.networks(list)),
            deny: self.networks(&raw.deny),
        };
        let lists = raw.allow.iter().flatten().chain(&raw.deny);
        let places = raw.internet.iter().map(|at| &at.place).chain(lists.map(|at| &at.place));
        if !has_gateway && let Some(place) = places.min_by_key(|place| place.line) {
            let text = "this says what the peer may reach through a gateway; it needs a section [gateway]";
            self.problems.push(place.problem(None, text));
        }
        policy
    }

    /// Networks with their host bits cleared, without duplicates.
    pub(super) fn networks(&mut self, raw: &[At<String>]) -> Vec<IpNet> {
        let mut networks: Vec<IpNet> = Vec::with_capacity(raw.len());
        for at in raw {
            match self.read(at, values::parse_network).map(|network| network.trunc()) {
                Some(network) if !networks.contains(&network) => networks.push(network),
                _ => {}
            }
        }
        networks
    }
}
