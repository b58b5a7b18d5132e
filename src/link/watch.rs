//! Being told that routes, addresses, rules or links have changed, and asking where a route leads.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use tokio::time;

use super::LinkError;
use super::netlink::{Netlink, io_error};

/// One change comes as a handful of messages, and a daemon that configures a network makes many: they count as one.
const SETTLE: Duration = Duration::from_millis(100);

/// What may lead to other routes.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Tells that the network around the tunnel has changed, in the namespace where it was made.
pub struct RouteWatch {
    // Ends with the watch.
    _netlink: Netlink,
    messages: Box<dyn Stream<Item = ()> + Unpin + Send>,
}

impl RouteWatch {
    /// Begins to listen.
    pub fn start() -> Result<RouteWatch, LinkError> {
        let (netlink, messages) = Netlink::listen(&GROUPS)?;
        Ok(RouteWatch {
            _netlink: netlink,
            messages: Box::new(messages),
        })
    }

    /// Waits until something has changed, and a moment more for what comes with it; `None`: nothing more will be told.
    pub async fn changed(&mut self) -> Option<()> {
        self.messages.next().await?;
        let settled = time::sleep(SETTLE);
        tokio::pin!(settled);
        loop {
            tokio::select! {
                () = &mut settled => return Some(()),
                message = self.messages.next() => message?,
            }
        }
    }
}

/// Asks the kernel for routes.
pub struct RouteQueries(Netlink);

impl RouteQueries {
    /// Opens a socket for it.
    pub fn open() -> Result<RouteQueries, LinkError> {
        Netlink::connect().map(RouteQueries)
    }

    /// The interface by which packets with `mark` (0: none) leave from our address `source` to `remote`.
    ///
    /// # Errors
    /// `EINVAL`: `source` is not ours (IPv4). `ENETUNREACH`, `EHOSTUNREACH`: no route.
    pub async fn interface_towards(&self, remote: IpAddr, source: IpAddr, mark: u32) -> io::Result<u32> {
        let host_len = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(remote, host_len(remote))
            .map_err(io::Error::other)?
            .source_prefix(source, host_len(source))
            .map_err(io::Error::other)?;
        if mark != 0 {
            builder = builder.mark(mark);
        }
        let answer = self.0.routes().get(builder.build()).execute().try_next().await;
        let route = answer.map_err(io_error)?.ok_or(io::ErrorKind::NotFound)?;
        let interface = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        interface.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
