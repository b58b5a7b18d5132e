//! A Unix stream socket with a name in the file system, for its owner only.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// The socket; its name is removed on drop, unless it has become another's.
pub struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon answers there.
    #[error("{}: another daemon answers on this socket; stop that one, or choose another name or path", .0.display())]
    InUse(PathBuf),
    /// Something else than a socket is in the way.
    #[error("{}: is in the way and is no socket; remove it, or choose another name or path", .0.display())]
    NotASocket(PathBuf),
    /// The file system refused.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, #[source] io::Error),
}

impl SocketFile {
    /// Creates the socket in place of one that a dead daemon left, and the directory that it lies in.
    pub async fn bind(path: &Path) -> Result<SocketFile, SocketError> {
        let failed = |error| SocketError::Io(path.to_owned(), error);
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        {
            std::fs::create_dir_all(folder).map_err(failed)?;
            // Whatever the umask: clients look for sockets here.
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
            Ok(_) => match UnixStream::connect(path).await {
                // Nobody listens: a dead daemon's.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                _ => return Err(SocketError::InUse(path.to_owned())),
            },
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = SocketFile {
            listener,
            path: path.to_owned(),
            identity: identity(path).map_err(failed)?,
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(socket)
    }

    /// The next client.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the name still leads here.
    pub fn is_in_place(&self) -> bool {
        identity(&self.path).is_ok_and(|found| found == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already, with the whole run directory; or a new daemon may have taken the name.
        if self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ringway-socket-{}-{name}/s.sock", std::process::id()))
    }

    fn clean_up(path: &Path) {
        std::fs::remove_dir_all(path.parent().expect("a folder")).expect("the folder is there");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_socket_is_its_owners_and_goes_with_the_daemon() {
        let path = path("owner");
        let socket = SocketFile::bind(&path).await.expect("a socket");
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a folder")), 0o755);
        assert!(matches!(SocketFile::bind(&path).await, Err(SocketError::InUse(_))));
        drop(socket);
        assert!(!path.exists());
        std::fs::write(&path, "x").expect("a file");
        assert!(matches!(SocketFile::bind(&path).await, Err(SocketError::NotASocket(_))));
        clean_up(&path);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_name_that_a_new_daemon_has_taken_is_left_to_it() {
        let path = path("taken");
        let old = SocketFile::bind(&path).await.expect("a socket");
        std::fs::remove_file(&path).expect("it is there");
        assert!(!old.is_in_place());
        let new = SocketFile::bind(&path).await.expect("the name is free");
        drop(old);
        assert!(new.is_in_place());
        drop(new);
        clean_up(&path);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_a_dead_daemon_left_is_replaced() {
        let path = path("dead");
        let dead = SocketFile::bind(&path).await.expect("a socket");
        let moved = path.with_extension("moved");
        std::fs::rename(&path, &moved).expect("the same folder");
        drop(dead);
        std::fs::rename(&moved, &path).expect("the same folder");
        assert!(SocketFile::bind(&path).await.is_ok());
        clean_up(&path);
    }
}
