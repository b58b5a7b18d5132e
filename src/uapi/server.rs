//! The socket that `wg` connects to: any number of operations per connection, one connection per command of `wg`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixStream, unix::pipe};
use tokio::sync::{Semaphore, mpsc, oneshot};
use zeroize::Zeroizing;

use super::parse::{Operation, SetRequest};
use super::{UapiError, format};
use crate::control::Order;
use crate::control::changes::Changes;
use crate::control::socket::{Access, SocketError, SocketFile};
use crate::sys::tun;
use crate::sys::watch::Watch;

/// Where `wg` looks for sockets.
const DIRECTORY: &str = "/var/run/wireguard";
/// Bytes of a line: the longest key has 78.
const LINE_LEN_MAX: usize = 4096;
/// Bytes of one `set`: 100,000 peers with all that a peer can have.
const SET_LEN_MAX: usize = 64 << 20;
/// Clients that may be connected at once.
const CLIENTS_MAX: usize = 32;

/// How long a client may take to make a request, from when it could, and to take the answer: `wg` takes as long as it needs
/// to write them. Whoever is silent would keep its seat from others.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(10);

/// The socket of the interface `name`.
pub fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.sock"))
}

/// The socket, while its name is there.
pub struct Server {
    socket: SocketFile,
    /// Of clients. They keep theirs also where [`Server::serve`] is ended and called again.
    seats: Arc<Semaphore>,
    /// [`CLIENT_TIME_MAX`], but in tests.
    client_time_max: Duration,
    /// inotify's descriptor, which reads as a pipe does.
    watch: pipe::Receiver,
}

impl Server {
    /// Creates the socket at `path`.
    pub async fn bind(path: &Path) -> Result<Server, SocketError> {
        Server::watching(SocketFile::bind(path, Access::Owner).await?)
    }

    /// The socket at `path` that an earlier process has made. Needs a tokio runtime.
    pub fn inherited(path: &Path, listener: OwnedFd) -> Result<Server, SocketError> {
        Server::watching(SocketFile::inherited(path, listener)?)
    }

    /// The listener, for a program that is to go on with it.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.socket.duplicate()
    }

    /// Has the name stay when this goes.
    pub fn leave_behind(&mut self) {
        self.socket.leave_behind();
    }

    fn watching(socket: SocketFile) -> Result<Server, SocketError> {
        let path = socket.path();
        let watch = Watch::new(path).and_then(|watch| pipe::Receiver::from_file_unchecked(watch.into()));
        let watch = watch.map_err(|error| SocketError::Io(path.to_owned(), error))?;
        Ok(Server {
            socket,
            seats: Arc::new(Semaphore::new(CLIENTS_MAX)),
            client_time_max: CLIENT_TIME_MAX,
            watch,
        })
    }

    /// Sends what clients want to `orders`, until the socket's name is removed.
    pub async fn serve(&self, orders: mpsc::Sender<Order>) {
        tokio::select! {
            () = self.accept(orders) => {}
            () = self.removed() => tracing::info!("{} was removed", self.socket.path().display()),
        }
    }

    async fn removed(&self) {
        while self.socket.is_in_place() {
            // Without the watch the name would not be missed; that is no reason to end.
            if self.watch.readable().await.is_err() {
                return std::future::pending().await;
            }
            // What happened is of no interest, only that something did.
            while self.watch.try_read(&mut [0; 1024]).is_ok_and(|len| len > 0) {}
        }
    }

    async fn accept(&self, orders: mpsc::Sender<Order>) {
        while let Ok(seat) = self.seats.clone().acquire_owned().await {
            match self.socket.accept().await {
                Ok(stream) => {
                    let (orders, time_max) = (orders.clone(), self.client_time_max);
                    tokio::task::spawn_local(async move {
                        let _seat = seat;
                        // A client that hangs up, or falls silent, ends its own conversation only.
                        if let Err(error) = converse(stream, &orders, time_max).await {
                            tracing::debug!(%error, "a conversation on wg's socket ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client of wg's socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// What a client asks for.
enum Asked {
    Get,
    Set(Result<Changes, UapiError>),
    /// It begins as a `get` and does not go on as one.
    Wrong(UapiError),
}

/// Answers operations until the client hangs up, says what is none, or takes longer than `time_max` over its part.
async fn converse(stream: UnixStream, orders: &mpsc::Sender<Order>, time_max: Duration) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = Lines::new(BufReader::new(reader));
    while let Some(asked) = within(time_max, read_request(&mut lines)).await? {
        let is_rest_left = matches!(asked, Asked::Set(Err(_)));
        let (dump, ended) = match asked {
            Asked::Get => match ask(orders, Order::Dump).await {
                Ok(dump) => (Some(format::dump(&dump)), Ok(())),
                Err(error) => (None, Err(error)),
            },
            Asked::Set(Ok(changes)) => (None, change(orders, changes).await),
            Asked::Set(Err(error)) | Asked::Wrong(error) => (None, Err(error)),
        };
        if let Some(text) = dump {
            within(time_max, writer.write_all(text.as_bytes())).await?;
        }
        within(time_max, writer.write_all(status(&ended).as_bytes())).await?;
        if is_rest_left {
            // What else belongs to the refused operation.
            let rest = async {
                while lines.next().await?.is_some_and(|line| !line.is_empty()) {}
                Ok(())
            };
            within(time_max, rest).await?;
        }
    }
    Ok(())
}

async fn within<T>(time_max: Duration, part: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let in_time = tokio::time::timeout(time_max, part).await;
    in_time.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The next request; `None` where there is no more, or none that is known.
async fn read_request<R: tokio::io::AsyncRead + Unpin>(lines: &mut Lines<R>) -> io::Result<Option<Asked>> {
    let Some(line) = lines.next().await? else {
        return Ok(None);
    };
    Ok(match Operation::parse(line) {
        None => {
            tracing::debug!("a client of wg's socket asks for no known operation");
            None
        }
        Some(Operation::Get) => match lines.next().await? {
            None => None,
            Some([]) => Some(Asked::Get),
            Some(_) => Some(Asked::Wrong(UapiError::invalid(
                "get=1 is not followed by an empty line",
            ))),
        },
        Some(Operation::Set) => Some(Asked::Set(read_set(lines).await?)),
    })
}

/// Reads a `set` up to the empty line or the end of the stream. An outer error is the connection's.
async fn read_set<R: tokio::io::AsyncRead + Unpin>(lines: &mut Lines<R>) -> io::Result<Result<Changes, UapiError>> {
    let mut request = SetRequest::new(tun::index_of);
    let mut len = 0;
    while let Some(line) = lines.next().await?.filter(|line| !line.is_empty()) {
        len += line.len();
        let taken = if len <= SET_LEN_MAX {
            request.line(line)
        } else {
            Err(UapiError {
                errno: libc::E2BIG,
                reason: format!("a set has at most {SET_LEN_MAX} bytes"),
            })
        };
        if let Err(error) = taken {
            return Ok(Err(error));
        }
    }
    Ok(Ok(request.finish()))
}

async fn change(orders: &mpsc::Sender<Order>, changes: Changes) -> Result<(), UapiError> {
    let result = ask(orders, |reply| Order::Change(changes, reply)).await?;
    result.map_err(|error| UapiError {
        errno: error.errno(),
        reason: error.to_string(),
    })
}

async fn ask<T>(orders: &mpsc::Sender<Order>, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, UapiError> {
    let (reply, answer) = oneshot::channel();
    if orders.send(order(reply)).await.is_ok()
        && let Ok(answer) = answer.await
    {
        return Ok(answer);
    }
    Err(UapiError {
        errno: libc::EIO,
        reason: "the daemon is shutting down".into(),
    })
}

fn status(result: &Result<(), UapiError>) -> String {
    if let Err(error) = result {
        tracing::warn!("wg's socket: {error}");
    }
    format::errno(result.as_ref().err().map_or(0, |error| error.errno))
}

/// Lines of a stream, in a buffer that is wiped: they may hold keys.
struct Lines<R> {
    reader: BufReader<R>,
    line: Zeroizing<Vec<u8>>,
}

impl<R: tokio::io::AsyncRead + Unpin> Lines<R> {
    fn new(reader: BufReader<R>) -> Lines<R> {
        Lines {
            reader,
            // It never grows, which would leave a copy behind.
            line: Zeroizing::new(Vec::with_capacity(LINE_LEN_MAX + 1)),
        }
    }

    /// The next line without its newline; `None` at the end of the stream.
    ///
    /// # Errors
    /// Those of the stream; `InvalidData` for a line that is too long.
    async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let mut bounded = (&mut self.reader).take(LINE_LEN_MAX as u64 + 1);
        if bounded.read_until(b'\n', &mut self.line).await? == 0 {
            return Ok(None);
        }
        match self.line.split_last() {
            Some((b'\n', line)) => Ok(Some(line)),
            _ if self.line.len() > LINE_LEN_MAX => Err(io::ErrorKind::InvalidData.into()),
            // The last line of the stream may do without.
            _ => Ok(Some(&self.line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PublicKey;
    use crate::control::dump::Dump;

    /// What comes back for `sent` on one connection, and the changes that were ordered.
    fn exchange(sent: &[u8]) -> (String, Vec<Changes>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let (mut client, server) = UnixStream::pair().expect("a pair of sockets");
            let (orders_in, mut orders) = crate::control::orders();
            let control = async {
                let mut seen = Vec::new();
                while let Some(order) = orders.recv().await {
                    match order {
                        Order::Change(changes, reply) => {
                            seen.push(changes);
                            reply.send(Ok(())).expect("the client waits");
                        }
                        Order::Dump(reply) => {
                            let dump = Dump {
                                private_key: None,
                                listen_port: 7,
                                fwmark: 0,
                                peers: Vec::new(),
                            };
                            reply.send(dump).expect("the client waits");
                        }
                        _ => unreachable!("the other socket's"),
                    }
                }
                seen
            };
            let client = async {
                client.write_all(sent).await.expect("the server reads");
                client.shutdown().await.expect("once");
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.expect("text");
                answer
            };
            let conversation = async {
                let ended = converse(server, &orders_in, CLIENT_TIME_MAX).await;
                drop(orders_in);
                ended
            };
            let (answer, seen, _) = tokio::join!(client, control, conversation);
            (answer, seen)
        })
    }

    #[test]
    fn one_connection_carries_several_operations() {
        let (answer, seen) = exchange(b"get=1\n\nset=1\nfwmark=5\n\nget=1\n\n");
        assert_eq!(
            answer,
            "listen_port=7\nerrno=0\n\nerrno=0\n\nlisten_port=7\nerrno=0\n\n"
        );
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].fwmark, Some(5));
    }

    #[test]
    fn a_set_with_a_wrong_line_changes_nothing_and_the_connection_goes_on() {
        let (answer, seen) = exchange(b"set=1\nfwmark=5\nfwmark=x\nlisten_port=1\n\nset=1\nfwmark=6\n\n");
        assert_eq!(answer, "errno=-22\n\nerrno=0\n\n");
        assert_eq!(seen.iter().map(|changes| changes.fwmark).collect::<Vec<_>>(), [Some(6)]);
        let (answer, _) = exchange(b"set=1\nnonsense\n\n");
        assert_eq!(answer, format!("errno=-{}\n\n", libc::EPROTO));
    }

    #[test]
    fn the_end_of_the_stream_ends_a_set_too() {
        let key = "ab".repeat(32);
        let (answer, seen) = exchange(format!("set=1\npublic_key={key}\nremove=true").as_bytes());
        assert_eq!(answer, "errno=0\n\n");
        assert_eq!(seen[0].peers[0].public_key, PublicKey([0xab; 32]));
        assert!(seen[0].peers[0].remove);
    }

    #[test]
    fn what_is_no_operation_ends_the_conversation() {
        for sent in ["", "\n", "hello\n", "get=2\n\nget=1\n\n", "get=1\n", "get"] {
            assert_eq!(exchange(sent.as_bytes()), (String::new(), Vec::new()), "{sent:?}");
        }
        assert_eq!(exchange(b"get=1\nx\n").0, "errno=-22\n\n");
    }

    #[test]
    fn endless_lines_end_the_conversation() {
        assert_eq!(exchange(&vec![b'a'; LINE_LEN_MAX + 2]).0, "");
        let sent = [b"set=1\nfwmark=".as_slice(), &vec![b'0'; LINE_LEN_MAX + 2]].concat();
        assert_eq!(exchange(&sent), (String::new(), Vec::new()));
        let longest = [b"set=1\nfwmark=".as_slice(), &vec![b'0'; LINE_LEN_MAX - 7], b"\n\n"].concat();
        assert_eq!(exchange(&longest).0, "errno=0\n\n");
    }

    #[test]
    fn clients_that_say_nothing_or_hear_nothing_keep_no_seat() {
        let path = std::env::temp_dir().join(format!("ringway-uapi-seats-{}.sock", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let mut server = Server::bind(&path).await.expect("a socket");
            server.client_time_max = Duration::from_millis(100);
            let (orders_in, mut orders) = crate::control::orders();
            let control = async {
                while let Some(order) = orders.recv().await {
                    let Order::Dump(reply) = order else {
                        unreachable!("only get is sent")
                    };
                    let dump = Dump {
                        private_key: None,
                        listen_port: 7,
                        fwmark: 0,
                        peers: Vec::new(),
                    };
                    // Whoever fell silent may be gone.
                    let _ = reply.send(dump);
                }
            };
            let clients = async {
                // More than there are seats: silent, in the middle of a request, and deaf to answers.
                let parts: [&[u8]; 4] = [
                    b"",
                    b"get=1\n",
                    b"set=1\nfwmark=x\nlisten_port=1",
                    &b"get=1\n\n".repeat(100_000),
                ];
                let mut held = Vec::new();
                for number in 0..2 * CLIENTS_MAX {
                    let mut client = UnixStream::connect(&path).await.expect("it listens");
                    let part = parts[number % parts.len()].to_vec();
                    held.push(tokio::task::spawn_local(async move {
                        let _ = client.write_all(&part).await;
                        std::future::pending::<()>().await;
                        drop(client);
                    }));
                }
                let mut client = UnixStream::connect(&path).await.expect("it listens");
                client.write_all(b"get=1\n\n").await.expect("it reads");
                client.shutdown().await.expect("once");
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.expect("text");
                held.iter().for_each(|client| client.abort());
                answer
            };
            let answer = tokio::select! {
                answer = tokio::time::timeout(Duration::from_secs(60), clients) => answer.expect("a seat becomes free"),
                () = server.serve(orders_in) => unreachable!("the socket is there"),
                () = control => unreachable!("the server has the other end"),
            };
            assert_eq!(answer, "listen_port=7\nerrno=0\n\n");
        });
    }

    #[test]
    fn the_server_ends_when_its_socket_is_removed() {
        let path = std::env::temp_dir().join(format!("ringway-uapi-{}.sock", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let server = Server::bind(&path).await.expect("a socket");
            let (orders, _orders) = crate::control::orders();
            let serving = server.serve(orders);
            tokio::pin!(serving);
            let early = tokio::time::timeout(Duration::from_millis(50), &mut serving).await;
            assert!(early.is_err(), "it is still there");
            std::fs::remove_file(&path).expect("it is there");
            let ended = tokio::time::timeout(Duration::from_secs(5), serving).await;
            assert!(ended.is_ok());
        });
    }
}
