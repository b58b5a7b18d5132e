//! Metrics over HTTP: a server that knows one page. Each connection is one request, bounded in time and size; what is
//! more than [`CONNECTIONS_MAX`] waits in the kernel's queue.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::Order;
use super::server::{GROUP, ask};
use super::socket::{Access, SocketError, SocketFile};
use crate::config::MetricsListen;
use crate::stats::exposition::Format;

/// Connections that are served at once. A Prometheus opens one.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may take to ask, and to take its answer.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_LEN_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;

/// Serves metrics.
pub struct Exporter {
    listener: Listener,
    /// Of connections. They keep theirs also where [`Exporter::serve`] is ended and called again.
    seats: Arc<Semaphore>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(SocketFile),
}

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The address can't be had.
    #[error("cannot serve metrics on {listen}: {error}")]
    Tcp {
        /// The configured address.
        listen: std::net::SocketAddr,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// The socket can't be made.
    #[error("cannot serve metrics: {0}")]
    Unix(#[from] SocketError),
}

impl Exporter {
    /// Listens.
    pub async fn bind(listen: &MetricsListen) -> Result<Exporter, ExporterError> {
        Ok(Exporter::on(match listen {
            MetricsListen::Tcp(listen) => Listener::Tcp(
                TcpListener::bind(listen)
                    .await
                    .map_err(|error| ExporterError::Tcp { listen: *listen, error })?,
            ),
            MetricsListen::Unix(path) => Listener::Unix(SocketFile::bind(path, Access::Group(GROUP)).await?),
        }))
    }

    /// The listener of an earlier process. Needs a tokio runtime.
    pub fn inherited(listen: &MetricsListen, listener: OwnedFd) -> Result<Exporter, ExporterError> {
        Ok(Exporter::on(match listen {
            MetricsListen::Tcp(listen) => Listener::Tcp(
                TcpListener::from_std(listener.into())
                    .map_err(|error| ExporterError::Tcp { listen: *listen, error })?,
            ),
            MetricsListen::Unix(path) => Listener::Unix(SocketFile::inherited(path, listener)?),
        }))
    }

    fn on(listener: Listener) -> Exporter {
        Exporter {
            listener,
            seats: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    /// The listener, for a program that is to go on with it.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        match &self.listener {
            Listener::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Listener::Unix(socket) => socket.duplicate(),
        }
    }

    /// Has a socket's name stay when this goes.
    pub fn leave_behind(&mut self) {
        if let Listener::Unix(socket) = &mut self.listener {
            socket.leave_behind();
        }
    }

    /// Answers for ever, with what the control thread says.
    pub async fn serve(&self, orders: mpsc::Sender<Order>) {
        loop {
            let Ok(seat) = self.seats.clone().acquire_owned().await else {
                return;
            };
            let accepted = match &self.listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    let orders = orders.clone();
                    tokio::task::spawn_local(async move {
                        let _seat = seat;
                        converse(stream, orders, REQUEST_TIME_MAX).await;
                    });
                }),
                Listener::Unix(socket) => socket.accept().await.map(|stream| {
                    let orders = orders.clone();
                    tokio::task::spawn_local(async move {
                        let _seat = seat;
                        converse(stream, orders, REQUEST_TIME_MAX).await;
                    });
                }),
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "metrics: cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One request and its answer. A client that breaks off loses its own answer only.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, orders: mpsc::Sender<Order>, patience: Duration) {
    let answer = match timeout(patience, read_head(&mut stream)).await {
        Ok(Ok(Some(head))) => answer(&head, &orders).await,
        Ok(Ok(None)) => Answer::text("431 Request Header Fields Too Large", "the request is too long\n"),
        Ok(Err(_)) => return,
        Err(_) => Answer::text("408 Request Timeout", "the request took too long\n"),
    };
    let _ = timeout(ANSWER_TIME_MAX, async {
        stream.write_all(&answer.bytes()).await?;
        stream.shutdown().await
    })
    .await;
}

/// The bytes up to the empty line; `None` when they are too many.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if head.windows(4).any(|window| window == b"\r\n\r\n") {
            return Ok(Some(head));
        }
        if head.len() >= HEAD_LEN_MAX {
            return Ok(None);
        }
    }
}

/// What goes back.
struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: String,
    /// The request was HEAD: everything but the body.
    is_head: bool,
}

impl Answer {
    fn text(status: &'static str, body: &str) -> Answer {
        Answer {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.to_owned(),
            is_head: false,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let Answer {
            status, content_type, ..
        } = self;
        let allow = if status.starts_with("405") {
            "Allow: GET, HEAD\r\n"
        } else {
            ""
        };
        let mut text = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
            self.body.len()
        );
        if !self.is_head {
            text += &self.body;
        }
        text.into_bytes()
    }
}

async fn answer(head: &[u8], orders: &mpsc::Sender<Order>) -> Answer {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    if !request.parse(head).is_ok_and(|status| status.is_complete()) {
        return Answer::text("400 Bad Request", "this is no HTTP request\n");
    }
    let is_head = request.method == Some("HEAD");
    let path = request.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let mut answer = match (request.method, path) {
        (Some("GET" | "HEAD"), "/metrics") => {
            let accept = request
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case("accept"));
            let accept = accept.map_or(String::new(), |header| {
                String::from_utf8_lossy(header.value).into_owned()
            });
            let format = Format::accepted(&accept);
            match ask(orders, |reply| Order::Metrics(format, reply)).await.flatten() {
                Some(body) => Answer {
                    status: "200 OK",
                    content_type: format.content_type(),
                    body,
                    is_head,
                },
                None => Answer::text("503 Service Unavailable", "a worker did not answer in time\n"),
            }
        }
        (Some("GET" | "HEAD"), "/") => Answer::text("200 OK", "ringway: metrics are at /metrics\n"),
        (Some("GET" | "HEAD"), _) => Answer::text("404 Not Found", "metrics are at /metrics\n"),
        _ => Answer::text("405 Method Not Allowed", "use GET\n"),
    };
    answer.is_head = is_head;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server whose metrics are `up 1` answers to `request`.
    async fn ask_for(request: &str) -> String {
        let (orders, mut received) = mpsc::channel(1);
        let control = async {
            while let Some(order) = received.recv().await {
                if let Order::Metrics(format, reply) = order {
                    let _ = reply.send(Some(format!("up 1 {format:?}\n")));
                }
            }
        };
        let (mut ours, theirs) = tokio::io::duplex(64 * 1024);
        let client = async {
            // A server that has refused the first bytes takes no more.
            let _ = ours.write_all(request.as_bytes()).await;
            let mut text = String::new();
            ours.read_to_string(&mut text).await.expect("text");
            text
        };
        tokio::join!(control, converse(theirs, orders, REQUEST_TIME_MAX), client).2
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_page_is_served_and_everything_else_is_refused() {
        let cases = [
            (
                "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                "200 OK",
                "up 1 Prometheus\n",
            ),
            (
                "GET /metrics?x=y HTTP/1.0\r\naccept: application/openmetrics-text; version=1.0.0\r\n\r\n",
                "200 OK",
                "up 1 OpenMetrics\n",
            ),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK", ""),
            ("GET / HTTP/1.1\r\n\r\n", "200 OK", "ringway: metrics are at /metrics\n"),
            ("GET /x HTTP/1.1\r\n\r\n", "404 Not Found", "metrics are at /metrics\n"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "use GET\n"),
            ("nonsense\r\n\r\n", "400 Bad Request", "this is no HTTP request\n"),
        ];
        for (request, status, body) in cases {
            let answer = ask_for(request).await;
            let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {head}");
            assert!(head.ends_with("Connection: close"), "{head}");
            assert_eq!(text, body, "{request}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD_LEN_MAX));
        assert!(ask_for(&long).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_that_says_nothing_is_let_go() {
        let (orders, _received) = mpsc::channel(1);
        let (mut ours, theirs) = tokio::io::duplex(1024);
        converse(theirs, orders, Duration::from_millis(10)).await;
        let mut text = String::new();
        ours.read_to_string(&mut text).await.expect("text");
        assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    }
}
