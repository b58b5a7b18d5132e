//! Writes what runs back into the TOML file that it came from, with everything in it that did not change: comments,
//! order, spelling. A file of wg-quick's is written anew, as wg-quick does it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, TableLike, Value};
use zeroize::Zeroizing;

use super::files::{create_anew, follow, with_suffix};
use super::gateway;
use super::key::{PrivateKey, PublicKey};
use super::problem::LoadError;
use super::routing::{self, Routing};
use super::types::{Config, Mtu, Peer, Suite};
use super::wgquick_text::to_wg_quick;
use super::{check, wgquick};

/// Why nothing was saved. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Somebody has broken the file since it was read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no way to say it in this file.
    #[error("{}: cannot say there what runs: {reason}", path.display())]
    Unsayable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file system refused.
    #[error("{}: cannot be written: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// Makes the file at `path` say `running`; false where it does already. The file is replaced as a whole, and keeps its
/// mode and owner.
pub fn save(path: &Path, running: &Config) -> Result<bool, SaveError> {
    let failed = |error| SaveError::Io {
        path: path.to_owned(),
        error,
    };
    // Not the link is to be replaced, but the file that it leads to.
    let target = follow(path).map_err(failed)?;
    let text = Zeroizing::new(fs::read_to_string(&target).map_err(failed)?);
    let file = check(path, &text, 0)?.config;
    if file == *running {
        return Ok(false);
    }
    let unsayable = |reason: String| SaveError::Unsayable {
        path: path.to_owned(),
        reason,
    };
    // As wg-quick saves, without comments.
    let new = match wgquick::is_meant(path, &text) {
        true => to_wg_quick(running),
        false => update(&text, &file, running).map_err(unsayable)?,
    };
    match check(path, &new, 0) {
        Ok(loaded) if loaded.config == *running => {}
        Ok(_) => {
            return Err(unsayable(
                "something of it has no place there, or needs a restart".into(),
            ));
        }
        Err(error) => return Err(unsayable(error.to_string())),
    }
    replace(&target, new.as_bytes()).map_err(failed)?;
    Ok(true)
}

/// `text`, which says `file`, changed so that it says `running`.
fn update(text: &str, file: &Config, running: &Config) -> Result<Zeroizing<String>, String> {
    // Only the message: the whole text would quote the line, which may hold a key.
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| error.message().to_owned())?;
    // For what is as long-winded as it is seldom: as the program would write it.
    let rendered = Zeroizing::new(super::render::to_toml(running));
    let rendered: DocumentMut = rendered
        .parse()
        .map_err(|error: toml_edit::TomlError| error.message().to_owned())?;
    let interface = document
        .get_mut("interface")
        .and_then(Item::as_table_like_mut)
        .ok_or("there is no [interface]")?;
    update_interface(interface, file, running);
    if file.interface.lockdown != running.interface.lockdown {
        let from = rendered.get("interface").and_then(Item::as_table_like);
        copy(
            interface,
            from,
            &["lockdown", "lockdown_inside", "lockdown_outside", "lockdown_keep"],
        );
    }
    if file.gateway != running.gateway {
        match rendered.get("gateway") {
            None => drop(document.remove("gateway")),
            Some(from) => match document.get_mut("gateway").and_then(Item::as_table_like_mut) {
                Some(table) => copy(table, from.as_table_like(), gateway::KEYS),
                None => drop(document.insert("gateway", from.clone())),
            },
        }
    }
    if document.get("peer").is_some_and(|peers| !peers.is_array_of_tables()) {
        return Err("peers are written as one list there; write each as a section [[peer]]".into());
    }
    if document.get("peer").is_none() && !running.peers.is_empty() {
        document.insert("peer", Item::ArrayOfTables(ArrayOfTables::new()));
    }
    if let Some(tables) = document.get_mut("peer").and_then(Item::as_array_of_tables_mut) {
        update_peers(tables, file, running);
        let from = rendered.get("peer").and_then(Item::as_array_of_tables);
        for table in tables.iter_mut() {
            let key = table.get("public_key").and_then(Item::as_str).map(str::to_owned);
            let key = key.as_deref().and_then(|key| key.parse::<PublicKey>().ok());
            let policy = |config: &Config| {
                let peer = config.peers.iter().find(|peer| Some(peer.public_key) == key);
                peer.map(|peer| peer.policy.clone()).unwrap_or_default()
            };
            let at = running.peers.iter().position(|peer| Some(peer.public_key) == key);
            if policy(file) != policy(running)
                && let Some(from) = from.zip(at).and_then(|(tables, at)| tables.get(at))
            {
                copy(table, Some(from), &["internet", "allow", "deny"]);
            }
        }
    }
    Ok(Zeroizing::new(document.to_string()))
}

/// The keys that change live; the others are the same in both.
fn update_interface(table: &mut dyn TableLike, file: &Config, running: &Config) {
    let (old, new) = (&file.interface, &running.interface);
    if old.private_key != new.private_key {
        table.remove("private_key_file");
        let key = new.private_key.as_ref().map(PrivateKey::to_base64);
        set(table, "private_key", key.map(|key| key.as_str().into()));
    }
    if old.listen_port != new.listen_port {
        set(table, "listen_port", Some(i64::from(new.listen_port).into()));
    }
    if old.addresses != new.addresses {
        set(table, "addresses", Some(list(&new.addresses)));
    }
    if old.mtu != new.mtu {
        set(
            table,
            "mtu",
            Some(match new.mtu {
                Mtu::Auto => "auto".into(),
                Mtu::Bytes(bytes) => i64::from(bytes).into(),
            }),
        );
    }
    if old.fwmark != new.fwmark {
        set(
            table,
            "fwmark",
            new.fwmark.map(|mark| i64::from(u32::from(mark)).into()),
        );
    }
    update_routing(table, &old.routing, &new.routing);
    if old.dns.servers != new.dns.servers {
        set(table, "dns", list_or_none(&new.dns.servers));
    }
    if old.dns.search != new.dns.search {
        set(table, "dns_search", list_or_none(&new.dns.search));
    }
    if old.dns.domains != new.dns.domains {
        set(table, "dns_domains", list_or_none(&new.dns.domains));
    }
    let hooks = [
        ("pre_up", &old.hooks.pre_up, &new.hooks.pre_up),
        ("post_up", &old.hooks.post_up, &new.hooks.post_up),
        ("pre_down", &old.hooks.pre_down, &new.hooks.pre_down),
        ("post_down", &old.hooks.post_down, &new.hooks.post_down),
    ];
    for (key, old, new) in hooks {
        if old != new {
            set(table, key, list_or_none(new));
        }
    }
}

fn update_routing(table: &mut dyn TableLike, old: &Routing, new: &Routing) {
    if old.table != new.table {
        let value = match new.table {
            routing::Table::Auto => "auto".into(),
            routing::Table::Off => "off".into(),
            routing::Table::Number(number) => i64::from(number).into(),
        };
        set(table, "table", Some(value));
    }
    if old.metric != new.metric {
        set(table, "metric", new.metric.map(|metric| i64::from(metric).into()));
    }
    if old.exclude != new.exclude {
        set(table, "exclude", list_or_none(&new.exclude));
    }
}

/// `tables` are those of `file`'s peers, in their order.
fn update_peers(tables: &mut ArrayOfTables, file: &Config, running: &Config) {
    let running_peer = |old: &Peer| running.peers.iter().find(|new| new.public_key == old.public_key);
    let mut olds = file.peers.iter();
    tables.retain(|_| olds.next().is_none_or(|old| running_peer(old).is_some()));
    let kept = file.peers.iter().filter_map(|old| Some((old, running_peer(old)?)));
    for (table, (old, new)) in tables.iter_mut().zip(kept) {
        update_peer(table, Some(old), new);
    }
    for new in &running.peers {
        if !file.peers.iter().any(|old| old.public_key == new.public_key) {
            let mut table = Table::new();
            set(&mut table, "public_key", Some(new.public_key.to_string().into()));
            update_peer(&mut table, None, new);
            tables.push(table);
        }
    }
}

/// `old`: what the table says.
fn update_peer(table: &mut Table, old: Option<&Peer>, new: &Peer) {
    if old.map_or(&None, |old| &old.name) != &new.name {
        set(table, "name", new.name.as_deref().map(Value::from));
    }
    if old.map_or(&None, |old| &old.preshared_key) != &new.preshared_key {
        table.remove("preshared_key_file");
        let key = new.preshared_key.as_ref().map(|key| key.to_base64());
        set(table, "preshared_key", key.as_ref().map(|key| key.as_str().into()));
    }
    if old.map_or(&None, |old| &old.endpoint) != &new.endpoint {
        set(
            table,
            "endpoint",
            new.endpoint.as_ref().map(|host| host.to_string().into()),
        );
    }
    if old.map_or(&[][..], |old| &old.allowed_ips) != new.allowed_ips {
        set(table, "allowed_ips", list_or_none(&new.allowed_ips));
    }
    if old.and_then(|old| old.persistent_keepalive) != new.persistent_keepalive {
        let seconds = new.persistent_keepalive.map(|interval| interval.as_secs() as i64);
        set(table, "persistent_keepalive", seconds.map(Value::from));
    }
    if old.map_or(Suite::Auto, |old| old.suite) != new.suite {
        set(table, "suite", Some(new.suite.word().into()));
    }
}

/// Makes `keys` what they are in `from`.
fn copy(table: &mut dyn TableLike, from: Option<&dyn TableLike>, keys: &[&str]) {
    for key in keys {
        let wanted = from.and_then(|from| from.get(key)).and_then(Item::as_value);
        set(table, key, wanted.cloned());
    }
}

/// Sets or removes a key; a comment behind its value stays.
fn set(table: &mut dyn TableLike, key: &str, value: Option<Value>) {
    let Some(mut value) = value else {
        table.remove(key);
        return;
    };
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => drop(table.insert(key, Item::Value(value))),
    }
}

fn list(items: &[impl ToString]) -> Value {
    Value::Array(
        items
            .iter()
            .map(|item| Value::from(item.to_string()))
            .collect::<Array>(),
    )
}

fn list_or_none(items: &[impl ToString]) -> Option<Value> {
    (!items.is_empty()).then(|| list(items))
}

/// Puts a file with these bytes in the place of `path`, with its mode and owner: either the old or the new one is there,
/// whole.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let old = fs::metadata(path)?;
    // Hidden: people edit files beside it.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let new = with_suffix(&path.with_file_name(name), ".new");
    let write = || {
        // Nobody but the owner sees it before it has the mode that it is to have.
        let mut file = create_anew(&new)?;
        file.write_all(bytes)?;
        fchown(&file, Some(old.uid()), Some(old.gid()))?;
        file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    let written = write();
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::edit::PeerEdit;

    const KEY: &str = "cEN0raABhctV+PdHYvWsSx+vwxsx10yu75a7WH3e+m0=";

    fn edit(json: &str) -> PeerEdit {
        serde_json::from_str(json).expect("an edit")
    }

    /// Writes `text` to a file, saves what `change` makes of it, and gives the file's text afterwards.
    fn saved(name: &str, text: &str, change: impl Fn(Config) -> Config) -> Result<String, SaveError> {
        // A file of wg-quick's gives the interface its name.
        let directory = std::env::temp_dir().join(format!("ringway-save-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).expect("a scratch directory");
        let path = directory.join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("a mode");
        let running = change(crate::config::load(&path).expect("a configuration").config);
        let result = save(&path, &running);
        let (after, mode) = (fs::read_to_string(&path), fs::metadata(&path));
        fs::remove_dir_all(&directory).expect("it is there");
        assert_eq!(mode.expect("it is there").permissions().mode() & 0o777, 0o640);
        result.map(|_| after.expect("text"))
    }

    fn file() -> String {
        format!(
            "# The office.\n[interface]\nname = \"rw0\"\nprivate_key = \"{KEY}\" # secret\nmtu = 1400   # the DSL line\n\n\
             # Ann's laptop\n[[peer]]\nname = \"ann\"\npublic_key = \"{}\"\nallowed_ips = [\"10.0.0.2/32\"] # one\n\n\
             # Bob's\n[[peer]]\nname = \"bob\"\npublic_key = \"{}\"\n# not yet:\n# suite = \"native\"\n",
            PublicKey([1; 32]),
            PublicKey([2; 32])
        )
    }

    #[test]
    fn only_what_changed_is_written_and_comments_stay() {
        let text = file();
        let same = saved("same.toml", &text, |config| config).expect("saved");
        assert_eq!(same, text);
        let after = saved("changed.toml", &text, |config| {
            let config = config.with_mtu("auto").expect("valid");
            let json = r#"{"allowed_ips":["10.0.0.2/32","10.0.1.0/24"],"persistent_keepalive":25}"#;
            config.with_changed_peer("ann", &edit(json)).expect("valid")
        })
        .expect("saved");
        let expected = text
            .replace("mtu = 1400   # the DSL line", "mtu = \"auto\"   # the DSL line")
            .replace(
                "[\"10.0.0.2/32\"] # one\n",
                "[\"10.0.0.2/32\", \"10.0.1.0/24\"] # one\npersistent_keepalive = 25\n",
            );
        assert_eq!(after, expected);
    }

    #[test]
    fn a_link_in_the_way_leads_nowhere() {
        let other = std::env::temp_dir().join(format!("ringway-save-{}-other", std::process::id()));
        fs::write(&other, "theirs").expect("a file");
        let after = saved("planted.toml", &file(), |config| {
            let new = std::env::temp_dir().join(format!(
                "ringway-save-{}-planted.toml/.planted.toml.new",
                std::process::id()
            ));
            std::os::unix::fs::symlink(&other, new).expect("a link");
            config.with_mtu("auto").expect("valid")
        });
        assert!(after.expect("saved").contains("mtu = \"auto\""));
        assert_eq!(fs::read(&other).expect("it is there"), b"theirs");
        fs::remove_file(other).expect("it is there");
    }

    #[test]
    fn peers_come_and_go() {
        let text = file();
        let after = saved("peers.toml", &text, |config| {
            let config = config.without_peer("ann").expect("there");
            config
                .with_peer(PublicKey([3; 32]), &edit(r#"{"name":"eve","endpoint":"e.example:1"}"#))
                .expect("valid")
        })
        .expect("saved");
        assert!(
            !after.contains("ann") && after.contains("# not yet:\n# suite = \"native\""),
            "{after}"
        );
        let config = crate::config::check("/etc/rw0.toml".as_ref(), &after, 0)
            .expect("valid")
            .config;
        let names: Vec<_> = config
            .peers
            .iter()
            .map(|peer| peer.name.as_deref().unwrap_or_default())
            .collect();
        assert_eq!(names, ["bob", "eve"]);
    }

    #[test]
    fn the_first_peer_of_a_file_finds_its_place() {
        let text = format!("[interface]\nname = \"rw0\"\nprivate_key = \"{KEY}\"\n");
        let after = saved("first.toml", &text, |config| {
            config
                .with_peer(PublicKey([3; 32]), &PeerEdit::default())
                .expect("valid")
        })
        .expect("saved");
        assert!(after.starts_with(&text) && after.contains("[[peer]]"), "{after}");
    }

    #[test]
    fn routes_and_name_servers_are_saved() {
        let text = file();
        let wanted = text.replace(
            "mtu = 1400",
            "table = 51\nmetric = 7\nexclude = [\"10.0.0.2/32\"]\ndns = [\"10.0.0.53\"]\ndns_search = [\"a.example\"]\nmtu = 1400",
        );
        let wanted = check("rw0.toml".as_ref(), &wanted, 0).expect("valid").config;
        let there = saved("routes.toml", &text, |mut config| {
            config.interface.routing = wanted.interface.routing.clone();
            config.interface.dns = wanted.interface.dns.clone();
            config
        })
        .expect("saved");
        let back = saved("back.toml", &there, |mut config| {
            config.interface.routing = Routing::default();
            config.interface.dns = Default::default();
            config
        })
        .expect("saved");
        assert!(
            there.contains("table = 51\n") && there.contains("dns_search"),
            "{there}"
        );
        assert!(!back.contains("metric") && !back.contains("dns"), "{back}");
    }

    #[test]
    fn the_gateway_and_the_kill_switch_are_saved() {
        let text = file();
        let gateway =
            text.replace("name = \"bob\"", "name = \"bob\"\ninternet = false") + "\n[gateway]\negress = [\"eth0\"]\n";
        let locked = text.replace(
            "mtu = 1400",
            "lockdown = true\nlockdown_outside = [\"10.9.0.1/32\"]\nmtu = 1400",
        );
        let [before, gateway, locked] =
            [&text, &gateway, &locked].map(|text| check("rw0.toml".as_ref(), text, 0).expect("valid").config);
        let there = saved("more.toml", &text, |_| gateway.clone()).expect("saved");
        assert!(
            there.contains("egress = [\"eth0\"]") && there.contains("internet = false"),
            "{there}"
        );
        let there = saved("other.toml", &there, |_| locked.clone()).expect("saved");
        assert!(
            there.contains("lockdown_outside") && !there.contains("[gateway]"),
            "{there}"
        );
        assert!(there.contains("# Ann's laptop"), "{there}");
        let back = saved("less.toml", &there, |_| before.clone()).expect("saved");
        assert!(
            !back.contains("gateway") && !back.contains("lockdown") && !back.contains("internet"),
            "{back}"
        );
    }

    #[test]
    fn a_file_of_wg_quicks_stays_one() {
        let text = format!("# Mine\n[Interface]\nPrivateKey = {KEY}\n");
        let after = saved("wg0.conf", &text, |config| config.with_mtu("1400").expect("valid")).expect("saved");
        assert_eq!(after, format!("[Interface]\nMTU = 1400\nPrivateKey = {KEY}\n"));
        // It has no word for a name.
        let edit = edit(r#"{"name":"eve"}"#);
        let error = saved("wg1.conf", &text, |config| {
            config.with_peer(PublicKey([3; 32]), &edit).expect("valid")
        });
        assert!(error.expect_err("no such key").to_string().contains("no place"));
    }
}
