//! One netlink connection, and its errors as those of the operating system.

use std::io;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinHandle;

use super::LinkError;

/// An open netlink socket and the task that serves it.
pub(super) struct Netlink {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    /// Opens the socket in the calling thread's network namespace.
    pub(super) fn connect() -> Result<Netlink, LinkError> {
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(LinkError::Socket)?;
        Ok(Netlink {
            handle,
            task: tokio::spawn(connection),
        })
    }

    /// As [`Netlink::connect`]; also told of what happens in `groups`: one item each, whatever it is.
    pub(super) fn listen(
        groups: &[MulticastGroup],
    ) -> Result<(Netlink, impl Stream<Item = ()> + Unpin + Send + use<>), LinkError> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(groups).map_err(LinkError::Socket)?;
        let netlink = Netlink {
            handle,
            task: tokio::spawn(connection),
        };
        Ok((netlink, messages.map(drop)))
    }

    pub(super) fn links(&self) -> rtnetlink::LinkHandle {
        self.handle.link()
    }

    pub(super) fn addresses(&self) -> rtnetlink::AddressHandle {
        self.handle.address()
    }

    pub(super) fn rules(&self) -> rtnetlink::RuleHandle {
        self.handle.rule()
    }

    /// The index of the interface with this name, if there is one.
    pub(super) async fn index_of(&self, name: &str) -> Result<Option<u32>, LinkError> {
        let mut found = std::pin::pin!(self.links().get().match_name(name.to_owned()).execute());
        match found.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) => match io_error(error) {
                error if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
                error => Err(LinkError::Kernel {
                    action: format!("look for the interface {name}"),
                    error,
                }),
            },
        }
    }

    /// The name of the interface with this index; `None`: it is gone.
    pub(super) async fn name_of(&self, index: u32) -> Option<String> {
        let link = self.links().get().match_index(index).execute().try_next().await;
        name_in(link.ok()??)
    }

    pub(super) fn routes(&self) -> rtnetlink::RouteHandle {
        self.handle.route()
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The name in a message about an interface.
pub(super) fn name_in(link: LinkMessage) -> Option<String> {
    link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

/// The errno that the kernel answered, or what happened instead of an answer.
pub(super) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// That what was to be removed is not there, or the whole interface is not, is no error.
pub(super) fn unless_gone(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL | libc::ENOENT | libc::ENXIO) => Ok(()),
        _ => Err(error),
    }
}
