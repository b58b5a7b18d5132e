//! A running gateway: its table in place, packets forwarded, and the egress followed as default routes change.

use ipnet::IpNet;
use tokio::sync::Mutex;

use super::rules::{self, GatewayPlan};
use super::sysctl::{self, Sysctls};
use super::{FirewallError, nft};
use crate::config::{Config, Egress, Gateway, Peer};
use crate::link;

const PURPOSE: &str = "gateway";

/// What was set up for one tunnel. Dropping it removes nothing: that takes a runtime, see [`Running::tear_down`].
pub struct Running {
    state: Mutex<State>,
}

struct State {
    interface: String,
    /// None once `[gateway]` went from the configuration.
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
///
/// `None` without `[gateway]`; what a dead daemon left is removed then.
pub async fn set_up(config: &Config) -> Result<Option<Running>, FirewallError> {
    let Some(wanted) = Wanted::of(config) else {
        remove_leftovers(config).await;
        return Ok(None);
    };
    let mut state = State {
        egress: None,
        rules: String::new(),
        sysctls: Sysctls::open(sysctl::state_path(&config.interface.control_socket)),
        interface: config.interface.name.clone(),
        wanted: Some(wanted),
    };
    match state.apply().await {
        Ok(()) => Ok(Some(Running {
            state: Mutex::new(state),
        })),
        Err(error) => {
            state.remove().await;
            Err(error)
        }
    }
}

impl Running {
    /// Replaces the rules by those of a changed configuration, from one packet to the next. On an error the rules are
    /// those of before.
    pub async fn update(&self, config: &Config) -> Result<(), FirewallError> {
        let mut state = self.state.lock().await;
        let before = std::mem::replace(&mut state.wanted, Wanted::of(config));
        if state.wanted.is_none() {
            state.remove().await;
            return Ok(());
        }
        let result = state.apply().await;
        if result.is_err() {
            state.wanted = before;
        }
        result
    }

    /// Follows the default routes for as long as it is polled, where the egress is "auto".
    pub async fn follow(&self) -> std::convert::Infallible {
        let mut watch = match link::RouteWatch::start() {
            Ok(watch) => watch,
            Err(error) => {
                tracing::warn!(%error, "changes of the default route will not be noticed");
                return std::future::pending().await;
            }
        };
        while watch.changed().await.is_some() {
            let mut state = self.state.lock().await;
            let is_auto = |wanted: &Wanted| wanted.gateway.egress == Egress::Auto;
            if state.wanted.as_ref().is_some_and(is_auto)
                && let Err(error) = state.apply().await
            {
                tracing::warn!(%error, "the gateway does not follow the default route");
            }
        }
        std::future::pending().await
    }

    /// Removes the table and puts the kernel's switches back.
    pub async fn tear_down(self) {
        self.state.into_inner().remove().await;
    }
}

impl State {
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
        self.sysctls.restore();
        match nft::delete(&nft::table(PURPOSE, &self.interface)).await {
            Ok(()) | Err(FirewallError::NoNft) => {}
            Err(error) => tracing::warn!(%error, "the gateway's rules are left"),
        }
        self.rules.clear();
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

/// What a daemon that was killed left under this name, before `[gateway]` went from its file.
async fn remove_leftovers(config: &Config) {
    let state = sysctl::state_path(&config.interface.control_socket);
    if state.exists() {
        Sysctls::open(state).restore();
    }
    let table = nft::table(PURPOSE, &config.interface.name);
    // Without nft, or without the right to list tables, there is none of ours.
    if nft::tables().await.is_ok_and(|tables| tables.contains(&table))
        && let Err(error) = nft::delete(&table).await
    {
        tracing::warn!(%error, "a dead daemon's rules are left");
    }
}
