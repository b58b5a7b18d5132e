//! What the system around a tunnel is made to do: its link, routes to it, and the name servers behind it.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::RunError;
use crate::config::{Config, Mtu, RUN_DIR};
use crate::control::Control;
use crate::control::runtime::Runtime;
use crate::dns;
use crate::firewall::gateway;
use crate::link::{self, Link, LinkError, Routes};

/// A tunnel's place in the system, while it is up.
pub(super) struct Network {
    link: Link,
    /// Name servers that were set.
    dns: Option<dns::Setting>,
}

impl Network {
    /// Brings the link up and leads packets to it. What was made until an error is undone.
    pub(super) async fn up(control: &mut Control, config: &Config, ifindex: u32) -> Result<Network, RunError> {
        let interface = &config.interface;
        let name = control.facts().name.clone();
        sweep(&name).await;
        let networks = networks(config);
        let remotes: Vec<IpAddr> = control.endpoints().iter().map(|remote| remote.ip()).collect();
        let mut mark = interface.fwmark.map(u32::from);
        let mut routes = Routes {
            networks: &networks,
            exclude: &interface.routing.exclude,
            table: interface.routing.table,
            metric: interface.routing.metric,
            remotes: &remotes,
            policy: None,
        };
        routes.policy = link::policy_for(&routes, mark).await?;
        if let Some(policy) = routes.policy {
            // Before anything leads packets into the tunnel.
            control.set_fwmark(policy.mark)?;
            mark = Some(policy.mark);
            tracing::info!(
                table = policy.table,
                fwmark = policy.mark,
                "all packets but the tunnel's own are led to a table of its own"
            );
        }
        let mtu = tunnel_mtu(config, &remotes, mark).await?;
        control.set_tun_mtu(mtu)?;
        let link = link::set_up(link::Plan {
            index: ifindex,
            name: &name,
            mtu,
            addresses: &interface.addresses,
            routes,
        })
        .await?;
        let mut network = Network { link, dns: None };
        if !interface.dns.servers.is_empty() {
            match dns::set(&name, ifindex, &interface.dns).await {
                Ok(setting) => {
                    tracing::info!(by = %setting.backend(), "name servers set");
                    network.dns = Some(setting);
                }
                Err(error) => {
                    network.down().await;
                    return Err(error.into());
                }
            }
        }
        Ok(network)
    }

    /// Who was told of name servers.
    pub(super) fn dns_backend(&self) -> Option<dns::Backend> {
        self.dns.as_ref().map(dns::Setting::backend)
    }

    /// Puts the system back as it was, as far as that can be done; what can't is logged.
    pub(super) async fn down(self) {
        if let Some(dns) = self.dns
            && let Err(error) = dns.revert().await
        {
            tracing::warn!(%error, "the name servers are not as they were");
        }
        if let Err(error) = self.link.tear_down().await {
            tracing::warn!(%error, "the link did not come down cleanly");
        }
    }
}

/// Removes what a daemon that was killed has left of the tunnel `name`, which must not run; tells what that was, a phrase
/// each.
///
/// # Errors
/// What the kernel says; [`LinkError::Exists`] when the interface exists.
pub fn cleanup(name: &str) -> Result<Vec<String>, RunError> {
    Runtime::Tokio.block_on(async |_| {
        if link::exists(name).await? {
            return Err(LinkError::Exists(name.to_owned()).into());
        }
        let mut removed = dns::remove_leftovers(name).await?;
        removed.extend(link::remove_leftovers(name).await?);
        let socket = Path::new(RUN_DIR).join(format!("{name}.sock"));
        removed.extend(gateway::remove_leftovers(name, &socket).await?);
        Ok(removed)
    })?
}

/// As [`cleanup`], of a tunnel that is just coming up. What can't be removed is no reason not to.
async fn sweep(name: &str) {
    let dns = dns::remove_leftovers(name).await.map_err(RunError::from);
    let link = link::remove_leftovers(name).await.map_err(RunError::from);
    for swept in [dns, link] {
        match swept {
            Ok(removed) => {
                for what in removed {
                    tracing::info!("removed what a daemon that was killed has left: {what}");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot remove what a daemon that was killed may have left"),
        }
    }
}

/// All that peers are routed.
fn networks(config: &Config) -> Vec<IpNet> {
    let allowed = config.peers.iter().flat_map(|peer| &peer.allowed_ips);
    allowed.copied().collect()
}

/// The configured MTU, or the one that the paths to the peers allow, as packets with the tunnel's `mark` see them.
async fn tunnel_mtu(config: &Config, remotes: &[IpAddr], mark: Option<u32>) -> Result<u16, RunError> {
    let interface = &config.interface;
    match interface.mtu {
        Mtu::Bytes(mtu) => Ok(mtu),
        Mtu::Auto => {
            let roaming = remotes.len() < config.peers.len();
            let mut addresses = interface.addresses.iter();
            let ipv6_inside = addresses.any(|address| matches!(address, IpNet::V6(_)));
            let device = interface.routing.bind_interface.as_deref();
            Ok(link::auto_mtu(remotes.iter().copied(), mark, device, roaming, ipv6_inside).await?)
        }
    }
}
