//! The control socket: JSON lines over a Unix stream socket, see [`super::api`].

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use zeroize::Zeroize as _;

use super::Order;
use super::api::{
    ApiError, CaptureReport, CaptureRequest, ErrorCode, ExplainRequest, REQUEST_LEN_MAX, Request, Response,
};
use super::capture::Feed;
use super::explain;
use super::socket::{Access, SocketError, SocketFile};
use crate::sys::exec;

/// Clients that may be connected at once: one that opens connections without end gets no more.
const CLIENTS_MAX: usize = 32;

/// The group whose members may use the control socket, where the machine has it.
pub const GROUP: &str = "ringway";
/// A request that changes the tunnel.
pub struct Asked {
    /// What is wanted.
    pub request: Request,
    /// The way that the answer goes.
    pub reply: oneshot::Sender<Response>,
    /// For an upgrade, whoever asks, because another process is to answer. Nothing more is said to it in this one unless by
    /// `reply`.
    pub client: Option<OwnedFd>,
}

/// Where requests go.
#[derive(Clone)]
pub struct Desks {
    /// Those that ask for something.
    pub orders: mpsc::Sender<Order>,
    /// Those that change something; `None` where somebody else configures the tunnel.
    pub changes: Option<mpsc::Sender<Asked>>,
    /// Those for upgrades.
    pub upgrades: mpsc::Sender<Asked>,
}

/// The control socket.
pub struct Server {
    socket: SocketFile,
    /// Of clients. They keep theirs also where [`Server::serve`] is ended and called again.
    seats: Arc<Semaphore>,
}

impl Server {
    /// Creates the socket, for its owner and the group [`GROUP`], in place of one that a dead daemon left.
    pub async fn bind(path: &Path) -> Result<Server, SocketError> {
        SocketFile::bind(path, Access::Group(GROUP)).await.map(Server::on)
    }

    /// The socket at `path` that an earlier process has made. Needs a tokio runtime.
    pub fn inherited(path: &Path, listener: OwnedFd) -> Result<Server, SocketError> {
        SocketFile::inherited(path, listener).map(Server::on)
    }

    fn on(socket: SocketFile) -> Server {
        Server {
            socket,
            seats: Arc::new(Semaphore::new(CLIENTS_MAX)),
        }
    }

    /// The listener, for a program that is to go on with it.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.socket.duplicate()
    }

    /// Has the name stay when this goes.
    pub fn leave_behind(&mut self) {
        self.socket.leave_behind();
    }

    /// Accepts clients for ever and sends their requests to `desks`.
    pub async fn serve(&self, desks: Desks) {
        // Not the socket's owner: the folder may belong to somebody who can put another file in its place.
        let owner = exec::effective_user();
        loop {
            let Ok(seat) = self.seats.clone().acquire_owned().await else {
                return;
            };
            match self.socket.accept().await {
                Ok(stream) => {
                    let desks = desks.clone();
                    tokio::task::spawn_local(async move {
                        let _seat = seat;
                        // A client that hangs up ends its own conversation only.
                        let user = stream.peer_cred().map(|user| user.uid()).ok();
                        let is_owner = user.is_some() && (user == Some(0) || user == Some(owner));
                        let _ = converse(stream, desks, is_owner).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "control socket: cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn converse(mut stream: UnixStream, desks: Desks, is_owner: bool) -> io::Result<()> {
    // Not owned halves, which would close the connection of a client that another process is to answer.
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    loop {
        // A request may hold a key.
        line.zeroize();
        if (&mut reader)
            .take(REQUEST_LEN_MAX as u64 + 1)
            .read_line(&mut line)
            .await?
            == 0
        {
            return Ok(());
        }
        let too_long = !line.ends_with('\n') && line.len() > REQUEST_LEN_MAX;
        let response = if too_long {
            refusal(
                ErrorCode::BadRequest,
                format!("a request is at most {REQUEST_LEN_MAX} bytes long"),
            )
        } else {
            match answer(&line, &desks, is_owner, writer.as_ref()).await {
                Answer::Line(response) => response,
                Answer::Capture(request, feed) => {
                    let report = CaptureReport {
                        name: feed.name.clone(),
                        format: "pcapng".into(),
                    };
                    writer.write_all(&as_line(&Response::Capture(report))?).await?;
                    return feed.stream(&request, &mut reader, &mut writer).await;
                }
            }
        };
        writer.write_all(&as_line(&response)?).await?;
        if too_long {
            return Ok(());
        }
    }
}

fn as_line(response: &Response) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    Ok(line)
}

/// How a conversation goes on.
enum Answer {
    /// With a response, and the next request.
    Line(Response),
    /// With a capture, up to its end.
    Capture(CaptureRequest, Feed),
}

async fn answer(line: &str, desks: &Desks, is_owner: bool, client: &UnixStream) -> Answer {
    let request: Request = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(error) => return Answer::Line(refusal(ErrorCode::BadRequest, error.to_string())),
    };
    let orders = &desks.orders;
    let response = match request {
        Request::Capture(request) => {
            let order = |reply| Order::Capture(request.clone(), reply);
            match ask(orders, order).await {
                Some(Ok(feed)) => return Answer::Capture(request, feed),
                Some(Err(error)) => Some(Response::Error(error)),
                None => None,
            }
        }
        Request::Explain(request) => explain_packet(request, orders).await,
        // A file of somebody else's may hold commands, which would run with the daemon's privileges.
        Request::Apply { .. } if !is_owner => Some(refusal(
            ErrorCode::NotPermitted,
            "only root and the daemon's own user may have a file read; the group may change peers and the MTU".into(),
        )),
        Request::Upgrade { .. } if !is_owner => Some(refusal(
            ErrorCode::NotPermitted,
            "only root and the daemon's own user may have another program go on with the tunnel".into(),
        )),
        Request::Upgrade { .. } => match client.as_fd().try_clone_to_owned() {
            Ok(client) => {
                let asked = |reply| Asked {
                    request,
                    reply,
                    client: Some(client),
                };
                ask(&desks.upgrades, asked).await
            }
            Err(error) => Some(refusal(ErrorCode::Failed, error.to_string())),
        },
        request if request.is_change() => match &desks.changes {
            Some(changes) => {
                let asked = |reply| Asked {
                    request,
                    reply,
                    client: None,
                };
                ask(changes, asked).await
            }
            None => {
                let text = "wg configures this tunnel: use wg set, or wg syncconf";
                Some(refusal(ErrorCode::BadRequest, text.into()))
            }
        },
        request => ask(orders, |reply| Order::Answer(request, reply)).await,
    };
    Answer::Line(response.unwrap_or_else(|| refusal(ErrorCode::Unavailable, "the daemon is shutting down".into())))
}

/// The kernel answers here, so that the control thread need not wait for it.
async fn explain_packet(request: ExplainRequest, orders: &mpsc::Sender<Order>) -> Option<Response> {
    let interface = ask(orders, Order::Name).await?;
    match explain::ask_kernel(&interface, &request).await {
        Ok(kernel) => ask(orders, |reply| Order::Explain(request, kernel, reply)).await,
        Err(error) => Some(Response::Error(error)),
    }
}

/// Sends an order to whom carries it out, and waits for the answer; `None` when that one is ending.
pub(crate) async fn ask<O, T>(desk: &mpsc::Sender<O>, order: impl FnOnce(oneshot::Sender<T>) -> O) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    desk.send(order(reply)).await.ok()?;
    answer.await.ok()
}

/// An answer that says no.
pub(crate) fn refusal(code: ErrorCode, message: String) -> Response {
    Response::Error(ApiError { code, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client, with one that answers every request for a name.
    struct Client(BufReader<UnixStream>);

    impl Client {
        async fn connect(path: &Path) -> Client {
            Client(BufReader::new(
                UnixStream::connect(path).await.expect("somebody listens"),
            ))
        }

        async fn ask(&mut self) {
            let line = b"{\"command\":\"status\"}\n";
            self.0.write_all(line).await.expect("it is read");
        }

        async fn hear(&mut self) {
            let mut line = String::new();
            let heard = self.0.read_line(&mut line);
            let heard = tokio::time::timeout(Duration::from_secs(20), heard).await;
            assert!(heard.expect("it is answered").expect("text") > 0);
        }
    }

    #[test]
    fn clients_keep_their_seats_when_the_server_is_served_anew() {
        let path = std::env::temp_dir().join(format!("ringway-server-{}.sock", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let all = async {
            let server = Server::bind(&path).await.expect("a socket");
            let (orders, mut received) = mpsc::channel(1);
            let desks = Desks {
                orders,
                changes: None,
                upgrades: mpsc::channel(1).0,
            };
            let answer = async {
                while let Some(order) = received.recv().await {
                    if let Order::Answer(_, reply) = order {
                        let _ = reply.send(refusal(ErrorCode::Unavailable, "a test".into()));
                    }
                }
            };
            let first = async {
                let mut clients = Vec::new();
                for _ in 0..CLIENTS_MAX {
                    let mut client = Client::connect(&path).await;
                    client.ask().await;
                    client.hear().await;
                    clients.push(client);
                }
                clients
            };
            let second = async |mut clients: Vec<Client>| {
                let mut one_more = Client::connect(&path).await;
                one_more.ask().await;
                // Time enough for whoever would answer.
                for _ in 0..100 {
                    clients[0].ask().await;
                    clients[0].hear().await;
                }
                let unheard = one_more.0.get_ref().try_read(&mut [0]);
                assert_eq!(unheard.map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
                clients.pop();
                one_more.hear().await;
            };
            let both = async {
                let clients = tokio::select! {
                    () = server.serve(desks.clone()) => unreachable!("it serves for ever"),
                    clients = first => clients,
                };
                tokio::select! {
                    () = server.serve(desks.clone()) => unreachable!("it serves for ever"),
                    () = second(clients) => {}
                }
            };
            tokio::select! {
                () = answer => unreachable!("desks are there"),
                () = both => {}
            }
        };
        tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), all);
    }
}
