//! Changes of a validated configuration, by texts such as a file has them: what `ringway peer` and `ringway set` are
//! made of. What comes out is as valid as what went in.

use std::fmt::{self, Display};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::gateway::Policy;
use super::key::{PrivateKey, PublicKey};
use super::types::{Config, Mtu, Peer, Suite};
use super::validate::{MTU_MIN, MTU_MIN_IPV6};
use super::values;

/// What to set on a peer, spelled as in a file; `None` leaves a thing as it is, an empty text or list takes it away.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the fields are the keys of [[peer]]")]
pub struct PeerEdit {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<KeyText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_ips: Option<Vec<String>>,
    /// Seconds; 0 switches keepalives off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_keepalive: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
}

/// The text of a secret key: wiped when dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(pub Zeroizing<String>);

/// Why a configuration was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// No peer has this name or key.
    #[error("no peer has the name or public key \"{0}\"")]
    NoSuchPeer(String),
    /// It would not be valid afterwards.
    #[error("{0}")]
    Invalid(String),
}

impl Config {
    /// With one more peer.
    pub fn with_peer(&self, public_key: PublicKey, edit: &PeerEdit) -> Result<Config, EditError> {
        let own = self.interface.private_key.as_ref().map(PrivateKey::public_key);
        if own == Some(public_key) {
            return Err(EditError::Invalid(
                "this is the public key of the interface itself; write that of the other side".into(),
            ));
        }
        if let Some(peer) = self.peers.iter().find(|peer| peer.public_key == public_key) {
            let name = peer.name.as_deref().unwrap_or("without a name");
            return Err(EditError::Invalid(format!(
                "there is a peer with this public key ({name}); change it with \"ringway peer set\""
            )));
        }
        let mut config = self.clone();
        config.peers.push(Peer {
            name: None,
            public_key,
            preshared_key: None,
            endpoint: None,
            allowed_ips: Vec::new(),
            persistent_keepalive: None,
            suite: Suite::Auto,
            policy: Policy::default(),
        });
        config.edit_peer(self.peers.len(), edit)?;
        Ok(config)
    }

    /// With another state of the peer that has the name or public key `who`.
    pub fn with_changed_peer(&self, who: &str, edit: &PeerEdit) -> Result<Config, EditError> {
        let at = self.find_peer(who)?;
        let mut config = self.clone();
        config.edit_peer(at, edit)?;
        Ok(config)
    }

    /// Without the peer that has the name or public key `who`.
    pub fn without_peer(&self, who: &str) -> Result<Config, EditError> {
        let at = self.find_peer(who)?;
        let mut config = self.clone();
        config.peers.remove(at);
        Ok(config)
    }

    /// With another MTU: "auto", or bytes.
    pub fn with_mtu(&self, text: &str) -> Result<Config, EditError> {
        let has_ipv6 = self.interface.addresses.iter().any(|address| address.addr().is_ipv6());
        let least = if has_ipv6 { MTU_MIN_IPV6 } else { MTU_MIN };
        let bytes = |text: &str| text.parse::<u16>().ok().filter(|bytes| i64::from(*bytes) >= least);
        let mut config = self.clone();
        config.interface.mtu = match (text, bytes(text)) {
            ("auto", _) => Mtu::Auto,
            (_, Some(bytes)) => Mtu::Bytes(bytes),
            (_, None) => {
                let why = if has_ipv6 {
                    " (the interface has IPv6 addresses)"
                } else {
                    ""
                };
                return Err(EditError::Invalid(format!(
                    "mtu = {text:?}: an MTU is \"auto\", or {least} to 65535{why}"
                )));
            }
        };
        Ok(config)
    }

    /// By name, else by public key.
    fn find_peer(&self, who: &str) -> Result<usize, EditError> {
        let named = self.peers.iter().position(|peer| peer.name.as_deref() == Some(who));
        let keyed = || {
            let key: PublicKey = who.parse().ok()?;
            self.peers.iter().position(|peer| peer.public_key == key)
        };
        named
            .or_else(keyed)
            .ok_or_else(|| EditError::NoSuchPeer(who.to_owned()))
    }

    fn edit_peer(&mut self, at: usize, edit: &PeerEdit) -> Result<(), EditError> {
        let mut peer = self.peers[at].clone();
        if let Some(name) = &edit.name {
            values::check_peer_name(name).or_else(|error| {
                if name.is_empty() {
                    Ok(())
                } else {
                    wrong("name", name, error)
                }
            })?;
            peer.name = Some(name.clone()).filter(|name| !name.is_empty());
        }
        if let Some(KeyText(text)) = &edit.preshared_key {
            peer.preshared_key = match text.as_str() {
                "" => None,
                // The text is secret, also where it is no key.
                text => Some(
                    text.parse()
                        .map_err(|error| EditError::Invalid(format!("preshared_key: {error}")))?,
                ),
            };
        }
        if let Some(text) = &edit.endpoint {
            peer.endpoint = match text.as_str() {
                "" => None,
                text => Some(text.parse().or_else(|error| wrong("endpoint", text, error))?),
            };
        }
        if let Some(texts) = &edit.allowed_ips {
            peer.allowed_ips.clear();
            for text in texts {
                let network = values::parse_allowed_ip(text).or_else(|error| wrong("allowed_ips", text, error))?;
                if !peer.allowed_ips.contains(&network) {
                    peer.allowed_ips.push(network);
                }
            }
        }
        if let Some(seconds) = edit.persistent_keepalive {
            peer.persistent_keepalive = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        }
        if let Some(text) = &edit.suite {
            peer.suite = text.parse().or_else(|error| wrong("suite", text, error))?;
        }
        for (_, other) in self.peers.iter().enumerate().filter(|(i, _)| *i != at) {
            refuse_common(&peer, other)?;
        }
        self.peers[at] = peer;
        Ok(())
    }
}

/// Names and allowed IPs belong to one peer each.
fn refuse_common(peer: &Peer, other: &Peer) -> Result<(), EditError> {
    let label = || other.name.clone().unwrap_or_else(|| other.public_key.to_string());
    if peer.name.is_some() && peer.name == other.name {
        return wrong(
            "name",
            peer.name.as_deref().unwrap_or_default(),
            "another peer has this name",
        );
    }
    match peer
        .allowed_ips
        .iter()
        .find(|network| other.allowed_ips.contains(network))
    {
        Some(network) => {
            let text = format!("it belongs to the peer {} already; take it from there first", label());
            wrong("allowed_ips", &network.to_string(), text)
        }
        None => Ok(()),
    }
}

fn wrong<T>(key: &str, value: &str, text: impl Display) -> Result<T, EditError> {
    Err(EditError::Invalid(format!("{key} = {value:?}: {text}")))
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(..)")
    }
}

impl Serialize for KeyText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<KeyText, D::Error> {
        String::deserialize(deserializer).map(|text| KeyText(Zeroizing::new(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "cEN0raABhctV+PdHYvWsSx+vwxsx10yu75a7WH3e+m0=";

    fn config() -> Config {
        let text = format!(
            "[interface]\nprivate_key = \"{KEY}\"\naddresses = [\"fd00::1/64\"]\n[[peer]]\nname = \"a\"\n\
             public_key = \"{}\"\nallowed_ips = [\"10.0.0.0/24\"]\n",
            PublicKey([1; 32])
        );
        super::super::check("/etc/ringway/rw0.toml".as_ref(), &text, 0o600)
            .expect("a configuration")
            .config
    }

    fn edit(json: &str) -> PeerEdit {
        serde_json::from_str(json).expect("an edit")
    }

    #[test]
    fn a_peer_is_added_changed_and_removed() {
        let key = PublicKey([2; 32]);
        let added = config()
            .with_peer(key, &edit(r#"{"name":"b","endpoint":"b.example:5","allowed_ips":["10.1.0.7/16","10.1.0.0/16"],"suite":"native"}"#))
            .expect("valid");
        let peer = &added.peers[1];
        assert_eq!(
            peer.endpoint.as_ref().map(ToString::to_string).as_deref(),
            Some("b.example:5")
        );
        assert_eq!((peer.allowed_ips.len(), peer.suite), (1, Suite::Native));
        let psk = format!(r#"{{"preshared_key":"{KEY}","persistent_keepalive":25,"endpoint":""}}"#);
        let changed = added.with_changed_peer("b", &edit(&psk)).expect("valid");
        let peer = &changed.peers[1];
        assert!(peer.preshared_key.is_some() && peer.endpoint.is_none());
        assert_eq!(peer.persistent_keepalive, Some(Duration::from_secs(25)));
        let bare = edit(r#"{"preshared_key":"","persistent_keepalive":0,"name":"","allowed_ips":[]}"#);
        let bare = changed.with_changed_peer(&key.to_string(), &bare).expect("valid");
        assert_eq!(bare.peers[1].name, None);
        assert!(bare.peers[1].preshared_key.is_none() && bare.peers[1].allowed_ips.is_empty());
        assert_eq!(bare.without_peer(&key.to_string()).expect("it is there"), config());
    }

    #[test]
    fn what_would_not_be_valid_is_refused_with_what_would_be_right() {
        let config = config();
        let own = config.interface.private_key.as_ref().expect("a key").public_key();
        let add = |json: &str| {
            config
                .with_peer(PublicKey([2; 32]), &edit(json))
                .expect_err("invalid")
                .to_string()
        };
        for (error, expected) in [
            (add(r#"{"name":"a"}"#), "name = \"a\": another peer has this name"),
            (add(r#"{"name":" x"}"#), "name = \" x\": a peer's name has"),
            (
                add(r#"{"allowed_ips":["10.0.0.5/24"]}"#),
                "allowed_ips = \"10.0.0.0/24\": it belongs to the peer a already",
            ),
            (
                add(r#"{"endpoint":"192.0.2.1"}"#),
                "endpoint = \"192.0.2.1\": the port is missing",
            ),
            (add(r#"{"suite":"x"}"#), "suite = \"x\": expected one of"),
            (
                add(r#"{"preshared_key":"secret"}"#),
                "preshared_key: a key is 44 characters",
            ),
            (
                config
                    .with_peer(own, &PeerEdit::default())
                    .expect_err("itself")
                    .to_string(),
                "the interface itself",
            ),
            (
                config
                    .with_peer(PublicKey([1; 32]), &PeerEdit::default())
                    .expect_err("known")
                    .to_string(),
                "(a); change it with",
            ),
            (
                config.without_peer("x").expect_err("unknown").to_string(),
                "no peer has the name or public key \"x\"",
            ),
            (
                config.with_mtu("1279").expect_err("IPv6").to_string(),
                "1280 to 65535 (the interface has IPv6 addresses)",
            ),
        ] {
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(serde_json::from_str::<PeerEdit>(r#"{"colour":"red"}"#).is_err());
        assert_eq!(config.with_mtu("1400").expect("valid").interface.mtu, Mtu::Bytes(1400));
        assert_eq!(config.with_mtu("auto").expect("valid"), config);
    }

    #[test]
    fn preshared_keys_do_not_show() {
        assert_eq!(
            format!("{:?}", edit(r#"{"preshared_key":"abc"}"#).preshared_key),
            "Some(KeyText(..))"
        );
    }
}
