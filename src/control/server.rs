//! The control socket: JSON lines over a Unix stream socket, see [`super::api`].

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use zeroize::Zeroize as _;

use super::Order;
use super::api::{ApiError, ErrorCode, REQUEST_LEN_MAX, Request, Response};
use super::socket::{SocketError, SocketFile};

/// Clients that may be connected at once: one that opens connections without end gets no more.
const CLIENTS_MAX: usize = 32;

/// A request that changes the tunnel, and the way that the answer goes.
pub type Asked = (Request, oneshot::Sender<Response>);

/// Where requests go.
#[derive(Clone)]
pub struct Desks {
    /// Those that ask for something.
    pub orders: mpsc::Sender<Order>,
    /// Those that change something; `None` where somebody else configures the tunnel.
    pub changes: Option<mpsc::Sender<Asked>>,
}

/// The control socket.
pub struct Server(SocketFile);

impl Server {
    /// Creates the socket, for its owner only, in place of one that a dead daemon left.
    pub async fn bind(path: &Path) -> Result<Server, SocketError> {
        SocketFile::bind(path).await.map(Server)
    }

    /// Accepts clients for ever and sends their requests to `desks`.
    pub async fn serve(&self, desks: Desks) {
        let seats = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let Ok(seat) = seats.clone().acquire_owned().await else {
                return;
            };
            match self.0.accept().await {
                Ok(stream) => {
                    let desks = desks.clone();
                    tokio::task::spawn_local(async move {
                        let _seat = seat;
                        // A client that hangs up ends its own conversation only.
                        let _ = converse(stream, desks).await;
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

async fn converse(stream: UnixStream, desks: Desks) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
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
            answer(&line, &desks).await
        };
        let mut text = serde_json::to_string(&response)?;
        text.push('\n');
        writer.write_all(text.as_bytes()).await?;
        if too_long {
            return Ok(());
        }
    }
}

async fn answer(line: &str, desks: &Desks) -> Response {
    let request: Request = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(error) => return refusal(ErrorCode::BadRequest, error.to_string()),
    };
    let (reply, answer) = oneshot::channel();
    let is_taken = match (request.is_change(), &desks.changes) {
        (false, _) => desks.orders.send(Order::Answer(request, reply)).await.is_ok(),
        (true, Some(changes)) => changes.send((request, reply)).await.is_ok(),
        (true, None) => {
            let text = "wg configures this tunnel: use wg set, or wg syncconf";
            return refusal(ErrorCode::BadRequest, text.into());
        }
    };
    if is_taken && let Ok(response) = answer.await {
        return response;
    }
    refusal(ErrorCode::Unavailable, "the daemon is shutting down".into())
}

/// An answer that says no.
pub(crate) fn refusal(code: ErrorCode, message: String) -> Response {
    Response::Error(ApiError { code, message })
}
