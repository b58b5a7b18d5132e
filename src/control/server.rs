//! The control socket: JSON lines over a Unix stream socket, see [`super::api`].

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Order;
use super::api::{ApiError, ErrorCode, REQUEST_LEN_MAX, Response};

/// Clients that may be connected at once: one that opens connections without end gets no more.
const CLIENTS_MAX: usize = 32;

/// The socket file; removed on drop.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

/// Why the control socket can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another daemon answers there.
    #[error("{}: another ringway answers on this control socket; stop it, or set `control_socket`", .0.display())]
    InUse(PathBuf),
    /// Something else than a socket is in the way.
    #[error("{}: is in the way and is no socket; remove it, or set `control_socket`", .0.display())]
    NotASocket(PathBuf),
    /// The file system refused.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, #[source] io::Error),
}

impl Server {
    /// Creates the socket, for its owner only, in place of one that a dead daemon left.
    pub async fn bind(path: &Path) -> Result<Server, ServeError> {
        let failed = |error| ServeError::Io(path.to_owned(), error);
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(ServeError::NotASocket(path.to_owned())),
            Ok(_) if UnixStream::connect(path).await.is_ok() => return Err(ServeError::InUse(path.to_owned())),
            Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let server = Server {
            listener,
            path: path.to_owned(),
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(server)
    }

    /// Accepts clients for ever and sends their requests to `orders`.
    pub async fn serve(&self, orders: mpsc::Sender<Order>) {
        let seats = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let Ok(seat) = seats.clone().acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let orders = orders.clone();
                    tokio::task::spawn_local(async move {
                        let _seat = seat;
                        // A client that hangs up ends its own conversation only.
                        let _ = converse(stream, orders).await;
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

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already, with the whole run directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn converse(stream: UnixStream, orders: mpsc::Sender<Order>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    loop {
        line.clear();
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
            answer(&line, &orders).await
        };
        let mut text = serde_json::to_string(&response)?;
        text.push('\n');
        writer.write_all(text.as_bytes()).await?;
        if too_long {
            return Ok(());
        }
    }
}

async fn answer(line: &str, orders: &mpsc::Sender<Order>) -> Response {
    let request = match serde_json::from_str(line) {
        Ok(request) => request,
        Err(error) => return refusal(ErrorCode::BadRequest, error.to_string()),
    };
    let (reply, answer) = oneshot::channel();
    if orders.send(Order::Answer(request, reply)).await.is_ok()
        && let Ok(response) = answer.await
    {
        return response;
    }
    refusal(ErrorCode::Unavailable, "the daemon is shutting down".into())
}

pub(super) fn refusal(code: ErrorCode, message: String) -> Response {
    Response::Error(ApiError { code, message })
}
