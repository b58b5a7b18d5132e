//! A running gateway: its table in place, packets forwarded, and the egress followed as default routes change.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify};

use super::rules::{self, GatewayPlan};
use super::sysctl::Sysctls;
use super::{FirewallError, lockdown};
use crate::config::files::with_suffix;
use crate::config::{Config, Egress, Gateway, Peer};
use crate::link;
use crate::link::nft::{self, NftError};

const PURPOSE: &str = "gateway";

/// What one tunnel has, which may be nothing. Dropping it removes nothing: that takes a runtime, see [`Running::tear_down`].
pub struct Running {
    state: Mutex<State>,
    updated: Notify,
    /// A change that raises or lifts the kill switch is under way: where nobody waits for its end, the switch may stand.
    pub(super) is_switch_changing: Cell<bool>,
}

struct State {
    interface: String,
    /// None without `[gateway]`.
    wanted: Option<Wanted>,
    /// None before the first rules.
    egress: Option<Vec<String>>,
    /// What the table was made from.
    rules: String,
    sysctls: Sysctls,
}

/// What of the configuration matters here.
struct Wanted {
    addresses: Vec<IpNet>,
    gateway: Gateway,
    peers: Vec<Peer>,
}

/// Sets up what `[gateway]` in `config` says, in place of what a dead daemon may have left. The interface exists, and
/// nothing of this lets a packet pass that the rules do not: they come first. On an error nothing is left.
pub async fn set_up(config: &Config) -> Result<Running, FirewallError> {
    let interface = &config.interface;
    let wanted = Wanted::of(config);
    if wanted.is_none() {
        let mut tell = |what| tracing::info!("removed what a daemon that was killed has left: {what}");
        // No reason not to come up.
        if let Err(error) = remove_leftovers(&interface.name, &interface.control_socket, &mut tell).await {
            tracing::warn!(%error, "cannot remove what a daemon that was killed may have left");
        }
    }
    let mut state = State {
        egress: None,
        rules: String::new(),
        sysctls: Sysctls::open(state_path(&interface.control_socket)),
        interface: interface.name.clone(),
        wanted,
    };
    if let Err(error) = state.apply_or_remove(false).await {
        state.remove().await;
        return Err(error);
    }
    Ok(Running::of(state))
}

/// Where the daemon whose control socket this is keeps what forwarding was before it.
pub fn state_path(control_socket: &Path) -> PathBuf {
    with_suffix(control_socket, ".sysctl")
}

/// What a process that goes on with the tunnel has to know of the rules.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedOver {
    egress: Option<Vec<String>>,
    rules: String,
    #[serde(default)]
    is_switch_changing: bool,
}

/// Goes on with what another process has set up by the same `config`. Where this program's rules are others, they take the
/// place of those that stand, from one packet to the next.
pub async fn resume(config: &Config, handed_over: &HandedOver) -> Running {
    let interface = &config.interface;
    let mut state = State {
        egress: handed_over.egress.clone(),
        rules: handed_over.rules.clone(),
        sysctls: Sysctls::open(state_path(&interface.control_socket)),
        interface: interface.name.clone(),
        wanted: Wanted::of(config),
    };
    // What stands goes on standing.
    if let Err(error) = state.apply().await {
        tracing::warn!(%error, "the gateway's rules are those of before the upgrade");
    }
    let running = Running::of(state);
    running.is_switch_changing.set(handed_over.is_switch_changing);
    running
}

impl Running {
    fn of(state: State) -> Running {
        Running {
            state: Mutex::new(state),
            updated: Notify::new(),
            is_switch_changing: Cell::new(false),
        }
    }

    /// What a program has to know that goes on with it. Dropping this leaves all as it is.
    pub async fn handed_over(&self) -> HandedOver {
        let state = self.state.lock().await;
        HandedOver {
            egress: state.egress.clone(),
            rules: state.rules.clone(),
            is_switch_changing: self.is_switch_changing.get(),
        }
    }

    /// Replaces the rules by those of a changed configuration, from one packet to the next; `[gateway]` may come and go. On
    /// an error all is as before.
    pub async fn update(&self, config: &Config) -> Result<(), FirewallError> {
        let mut state = self.state.lock().await;
        let before = std::mem::replace(&mut state.wanted, Wanted::of(config));
        let result = state.apply_or_remove(before.is_some()).await;
        if result.is_err() {
            let is_set = state.wanted.is_some();
            state.wanted = before;
            if let Err(error) = state.apply_or_remove(is_set).await {
                tracing::warn!(%error, "the gateway's rules are not as before");
            }
        }
        self.updated.notify_one();
        result
    }

    /// Follows the default routes for as long as it is polled, where the egress is "auto".
    pub async fn follow(&self) -> std::convert::Infallible {
        loop {
            if !self.state.lock().await.follows_routes() {
                self.updated.notified().await;
                continue;
            }
            let mut watch = match link::RouteWatch::start() {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::warn!(%error, "changes of the default route will not be noticed");
                    return std::future::pending().await;
                }
            };
            loop {
                let mut state = self.state.lock().await;
                if !state.follows_routes() {
                    break;
                }
                if let Err(error) = state.apply().await {
                    tracing::warn!(%error, "the gateway does not follow the default route");
                }
                drop(state);
                let is_over = tokio::select! {
                    change = watch.changed() => change.is_none(),
                    () = self.updated.notified() => false,
                };
                if is_over {
                    return std::future::pending().await;
                }
            }
        }
    }

    /// Removes the table and puts the kernel's switches back, those that a change was about to make when it was cut short too; the kill
    /// switch, where one was cut short, is made as `config` says, which ran last.
    pub async fn tear_down(self, config: &Config) {
        let interface = &config.interface;
        if self.is_switch_changing.get()
            && let Err(error) = lockdown::restore(interface).await
        {
            tracing::warn!(%error, "the kill switch may not be as the file says; lift it with: ringway unblock {}", interface.name);
        }
        let mut state = self.state.into_inner();
        // A change that was to remove it may have been cut short.
        if state.wanted.is_some() || state.egress.is_some() || !state.rules.is_empty() {
            state.remove().await;
        }
    }
}

impl State {
    fn follows_routes(&self) -> bool {
        let is_auto = |wanted: &Wanted| wanted.gateway.egress == Egress::Auto;
        self.wanted.as_ref().is_some_and(is_auto)
    }

    /// As [`State::apply`]; where nothing is wanted, removes what `is_set`.
    async fn apply_or_remove(&mut self, is_set: bool) -> Result<(), FirewallError> {
        match &self.wanted {
            Some(_) => self.apply().await,
            None => {
                if is_set {
                    self.remove().await;
                }
                Ok(())
            }
        }
    }

    /// Makes the kernel do what is wanted. Does nothing where it does already.
    async fn apply(&mut self) -> Result<(), FirewallError> {
        let Some(wanted) = &self.wanted else { return Ok(()) };
        let interface = self.interface.as_str();
        let egress = match &wanted.gateway.egress {
            Egress::Interfaces(names) => names.clone(),
            Egress::Auto => {
                let names = link::egress_interfaces(interface).await?;
                // Others' names may hold what nft would not read as a name.
                names
                    .into_iter()
                    .filter(|name| !name.contains(['"', '*', '\\']))
                    .collect()
            }
        };
        let rules = rules::gateway(GatewayPlan {
            interface,
            gateway: &wanted.gateway,
            peers: &wanted.peers,
            addresses: &wanted.addresses,
            egress: &egress,
        });
        if rules != self.rules {
            let script = nft::replacing(&nft::table(PURPOSE, interface), &rules);
            nft::apply(&format!("set the rules of the gateway {interface}"), &script).await?;
            self.rules = rules;
        }
        let [ipv4, ipv6] = wanted.families();
        let interfaces = egress.iter().map(String::as_str).chain([interface]);
        self.sysctls.forward(interfaces, ipv4, ipv6)?;
        if self.egress.as_ref() != Some(&egress) {
            match egress.is_empty() {
                false => tracing::info!(egress = egress.join(" "), "gateway"),
                true => tracing::warn!("no default route: until there is one, nothing that peers send leaves here"),
            }
            self.egress = Some(egress);
        }
        Ok(())
    }

    async fn remove(&mut self) {
        if let Err(error) = self.sysctls.restore() {
            tracing::warn!(%error, "forwarding may not be as before; see: ringway cleanup {}", self.interface);
        }
        match nft::delete(&nft::table(PURPOSE, &self.interface)).await {
            Ok(()) | Err(NftError::Missing) => {}
            Err(error) => tracing::warn!(%error, "the gateway's rules are left"),
        }
        self.rules.clear();
        self.egress = None;
    }
}

impl Wanted {
    fn of(config: &Config) -> Option<Wanted> {
        Some(Wanted {
            addresses: config.interface.addresses.clone(),
            gateway: config.gateway.clone()?,
            peers: config
                .peers
                .iter()
                .map(|peer| Peer {
                    preshared_key: None,
                    ..peer.clone()
                })
                .collect(),
        })
    }

    /// Whether IPv4 and IPv6 occur inside the tunnel.
    fn families(&self) -> [bool; 2] {
        let allowed = self.peers.iter().flat_map(|peer| &peer.allowed_ips);
        let inside: Vec<&IpNet> = self.addresses.iter().chain(allowed).collect();
        [true, false].map(|ipv4| inside.iter().any(|network| network.addr().is_ipv4() == ipv4))
    }
}

/// Removes what a daemon that was killed left of the tunnel `name`, which must not run; tells what that was, a phrase each.
///
/// # Errors
/// Something that could not be removed, the log has the others; the rest was.
pub async fn remove_leftovers(
    name: &str,
    control_socket: &Path,
    tell: &mut dyn FnMut(String),
) -> Result<(), FirewallError> {
    let state = state_path(control_socket);
    let forwarding = match state.exists() {
        true => Sysctls::open(state).restore().map(|()| tell("forwarding".to_owned())),
        false => Ok(()),
    };
    let table = nft::table(PURPOSE, name);
    let rules = match nft::tables().await {
        Ok(tables) if !tables.contains(&table) => Ok(()),
        Ok(_) => nft::delete(&table)
            .await
            .map(|()| tell(format!("the table inet {table}"))),
        // Then none is ours.
        Err(error) if matches!(error, NftError::Missing) || error.is_permission_denied() => Ok(()),
        Err(error) => Err(error),
    };
    if let (Err(error), Err(_)) = (&rules, &forwarding) {
        tracing::error!("{error}");
    }
    forwarding.and(rules.map_err(FirewallError::from))
}
