//! What the system around a tunnel is made to do: its link, routes to it, and the name servers behind it.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use super::service::{self, Confined};
use super::{RunError, leftovers};
use crate::config::{Config, Dns, Mtu, Routing};
use crate::control::Control;
use crate::dns::{self, DnsError};
use crate::link::{self, Link, LinkError, Policy, Routes};

/// A tunnel's place in the system, while it is up.
pub(super) struct Network {
    link: Link,
    index: u32,
    name: String,
    mtu: u16,
    ways: Ways,
    /// Name servers that were set.
    dns: Option<dns::Setting>,
    /// Who was told of them when the thread gave that up.
    dns_at_first: Option<dns::Backend>,
    /// What the thread has given up that it did not need then.
    pub(super) confined: Confined,
}

/// What is led where: what [`Routes`] borrows, and the mark that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ways {
    networks: Vec<IpNet>,
    routing: Routing,
    /// The interface's addresses.
    addresses: Vec<IpNet>,
    remotes: Vec<IpAddr>,
    policy: Option<Policy>,
    /// The configured one.
    fwmark: Option<u32>,
}

impl Ways {
    /// What `config` wants while peers are at `remotes`, by the policy that holds already, if any.
    ///
    /// # Errors
    /// What the kernel says; another tunnel has all packets already.
    async fn plan(config: &Config, remotes: Vec<IpAddr>, policy: Option<Policy>) -> Result<Ways, LinkError> {
        let interface = &config.interface;
        let allowed = config.peers.iter().flat_map(|peer| &peer.allowed_ips);
        let mut ways = Ways {
            networks: allowed.copied().collect(),
            routing: interface.routing.clone(),
            addresses: interface.addresses.clone(),
            remotes,
            policy,
            fwmark: interface.fwmark.map(u32::from),
        };
        ways.policy = link::policy_for(&ways.routes(), ways.fwmark).await?;
        Ok(ways)
    }

    fn routes(&self) -> Routes<'_> {
        Routes {
            networks: &self.networks,
            exclude: &self.routing.exclude,
            table: self.routing.table,
            metric: self.routing.metric,
            remotes: &self.remotes,
            policy: self.policy,
        }
    }

    /// What the tunnel's own packets are marked with; 0: nothing.
    pub(super) fn mark(&self) -> u32 {
        self.policy.map(|policy| policy.mark).or(self.fwmark).unwrap_or(0)
    }

    /// Whether a table of the tunnel's own has routes.
    pub(super) fn has_policy(&self) -> bool {
        self.policy.is_some()
    }
}

/// A tunnel's place in the system, for a process that goes on with it. What the configuration says is not in it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    mtu: u16,
    remotes: Vec<IpAddr>,
    policy: Option<Policy>,
    link: link::Made,
    dns: Option<dns::Backend>,
    dns_at_first: Option<dns::Backend>,
    confined: bool,
    /// None where the program before knew no difference.
    #[serde(default)]
    files_confined: Option<bool>,
}

/// What was done to the system for a change, and can be undone.
#[derive(Default)]
pub(super) struct Made {
    mtu_before: Option<u16>,
    addresses: Vec<IpNet>,
    routes: bool,
    dns_before: Option<Dns>,
}

impl Network {
    /// Brings the link up and leads packets to it. What was made until an error is undone.
    pub(super) async fn up(control: &mut Control, config: &Config, index: u32) -> Result<Network, RunError> {
        let interface = &config.interface;
        let name = control.facts().name.clone();
        leftovers::sweep(&name).await;
        let remotes = control.endpoints().iter().map(|remote| remote.ip()).collect();
        let ways = Ways::plan(config, remotes, None).await?;
        if let Some(policy) = ways.policy {
            // Before anything leads packets into the tunnel.
            control.set_fwmark(policy.mark)?;
            tell(policy);
        }
        let mtu = tunnel_mtu(config, &ways).await?;
        control.set_tun_mtu(mtu)?;
        let link = link::set_up(link::Plan {
            index,
            name: &name,
            mtu,
            addresses: &interface.addresses,
            routes: ways.routes(),
        })
        .await?;
        let mut network = Network {
            link,
            index,
            name,
            mtu,
            ways,
            dns: None,
            dns_at_first: None,
            confined: Confined::default(),
        };
        if let Err(error) = network.set_dns(&interface.dns).await {
            network.down().await;
            return Err(error.into());
        }
        Ok(network)
    }

    /// Goes on with what another process has made, by the same `config`. Nothing is changed.
    pub(super) async fn resume(
        state: &State,
        config: &Config,
        (index, name): (u32, &str),
    ) -> Result<Network, RunError> {
        let interface = &config.interface;
        let allowed = config.peers.iter().flat_map(|peer| &peer.allowed_ips);
        Ok(Network {
            link: Link::resume((index, name), &state.link, state.policy).await?,
            index,
            name: name.to_owned(),
            mtu: state.mtu,
            ways: Ways {
                networks: allowed.copied().collect(),
                routing: interface.routing.clone(),
                addresses: interface.addresses.clone(),
                remotes: state.remotes.clone(),
                policy: state.policy,
                fwmark: interface.fwmark.map(u32::from),
            },
            dns: state.dns.map(|backend| dns::Setting::made(backend, name, index)),
            dns_at_first: state.dns_at_first,
            // What a thread has given up it does not get back.
            confined: Confined {
                at_all: state.confined,
                files: state.files_confined.unwrap_or(state.confined),
            },
        })
    }

    /// What a program has to know that goes on with it. Dropping this leaves all as it is.
    pub(super) fn state(&self) -> State {
        State {
            mtu: self.mtu,
            dns: self.dns_backend(),
            remotes: self.ways.remotes.clone(),
            policy: self.ways.policy,
            link: self.link.made(),
            dns_at_first: self.dns_at_first,
            confined: self.confined.at_all,
            files_confined: Some(self.confined.files),
        }
    }

    /// The interface's index.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Who was told of name servers.
    pub(super) fn dns_backend(&self) -> Option<dns::Backend> {
        self.dns.as_ref().map(dns::Setting::backend)
    }

    /// What is led where at the moment.
    pub(super) fn ways(&self) -> &Ways {
        &self.ways
    }

    /// What is to be led where for `wanted`. Nothing is changed.
    pub(super) async fn plan(&self, wanted: &Config, remotes: Vec<IpAddr>) -> Result<Ways, LinkError> {
        Ways::plan(wanted, remotes, self.ways.policy).await
    }

    /// Gives up what the thread does not need, unless an earlier process has.
    pub(super) async fn confine(&mut self, config: &Config, file: &Path) {
        if !self.confined.files {
            self.dns_at_first = self.dns_backend();
            self.confined = service::confine(config, file, self.dns_at_first).await;
        }
    }

    /// Whether the name servers of `wanted` can be set in spite of what the thread has given up.
    pub(super) async fn may_set(&self, wanted: &Dns) -> bool {
        if !self.confined.at_all || wanted.servers.is_empty() {
            return true;
        }
        let backend = dns::backend().await;
        backend == dns::Backend::Resolved || Some(backend) == self.dns_at_first
    }

    /// Makes what the kernel and others may refuse: MTU, addresses, routes, name servers. What was made is in `made`,
    /// after an error too. The mark of `ways` is the caller's part, and the new MTU is given back.
    pub(super) async fn prepare(
        &mut self,
        plan: &Plan,
        (running, wanted): (&Config, &Config),
        ways: &Ways,
        made: &mut Made,
    ) -> Result<Option<u16>, RunError> {
        if plan.mtu {
            let mtu = tunnel_mtu(wanted, ways).await?;
            if mtu != self.mtu {
                self.link.set_mtu(mtu).await?;
                made.mtu_before = Some(std::mem::replace(&mut self.mtu, mtu));
            }
        }
        for address in &plan.addresses.add {
            self.link.add_address(*address).await?;
            made.addresses.push(*address);
        }
        if plan.routes && *ways != self.ways {
            made.routes = true;
            self.link.route(&ways.routes(), &ways.addresses).await?;
        }
        if plan.dns {
            made.dns_before = Some(running.interface.dns.clone());
            self.set_dns(&wanted.interface.dns).await?;
        }
        Ok(made.mtu_before.map(|_| self.mtu))
    }

    /// Takes away what nothing needs any more, once all else is changed. What can't be is logged: it would help nobody to
    /// undo the rest for it.
    pub(super) async fn finish(&mut self, plan: &Plan, ways: Ways) {
        for address in &plan.addresses.remove {
            warn(self.link.remove_address(*address).await);
        }
        if !plan.addresses.remove.is_empty() {
            warn(self.link.mend(&ways.routes(), &ways.addresses).await);
        }
        if let Some(policy) = ways.policy.filter(|_| !self.ways.has_policy()) {
            tell(policy);
        }
        self.ways = ways;
    }

    /// Undoes what [`Network::prepare`] made.
    pub(super) async fn undo(&mut self, made: Made) {
        if let Some(dns) = made.dns_before
            && let Err(error) = self.set_dns(&dns).await
        {
            tracing::warn!(%error, "the name servers are not as they were");
        }
        if made.routes {
            warn(self.link.route(&self.ways.routes(), &self.ways.addresses).await);
        }
        for address in made.addresses.into_iter().rev() {
            warn(self.link.remove_address(address).await);
        }
        if let Some(mtu) = made.mtu_before {
            warn(self.link.set_mtu(mtu).await);
            self.mtu = mtu;
        }
    }

    async fn set_dns(&mut self, dns: &Dns) -> Result<(), DnsError> {
        dns::change(&mut self.dns, &self.name, self.index, dns).await?;
        if let Some(dns) = &self.dns {
            tracing::info!(by = %dns.backend(), "name servers set");
        }
        Ok(())
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

fn tell(policy: Policy) {
    tracing::info!(
        table = policy.table,
        fwmark = policy.mark,
        "all packets but the tunnel's own are led to a table of its own"
    );
}

fn warn(result: Result<(), LinkError>) {
    if let Err(error) = result {
        tracing::warn!("{error}");
    }
}

/// The configured MTU, or the one that the paths to the peers allow, as the tunnel's marked packets see them.
async fn tunnel_mtu(config: &Config, ways: &Ways) -> Result<u16, LinkError> {
    let interface = &config.interface;
    match interface.mtu {
        Mtu::Bytes(mtu) => Ok(mtu),
        Mtu::Auto => {
            let roaming = ways.remotes.len() < config.peers.len();
            let mut addresses = interface.addresses.iter();
            let ipv6_inside = addresses.any(|address| matches!(address, IpNet::V6(_)));
            let device = interface.routing.bind_interface.as_deref();
            let mark = Some(ways.mark()).filter(|mark| *mark != 0);
            link::auto_mtu(ways.remotes.iter().copied(), mark, device, roaming, ipv6_inside).await
        }
    }
}
