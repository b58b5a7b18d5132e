//! A Unix stream socket with a name in the file system, for its owner, and for a group where one is named.
//!
//! The file's mode decides who may connect (unix(7): it takes write permission), so nobody is asked who he is afterwards.

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

/// Who may connect, root aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access<'a> {
    /// The owner.
    Owner,
    /// The owner and this group, where the machine has it.
    Group(&'a str),
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
    pub async fn bind(path: &Path, access: Access<'_>) -> Result<SocketFile, SocketError> {
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
        let mode = if is_given_to_group(path, access) { 0o660 } else { 0o600 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
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

/// Gives the file to the group. A daemon that may not, because it is neither root nor a member, keeps it to its owner.
fn is_given_to_group(path: &Path, access: Access<'_>) -> bool {
    let Access::Group(name) = access else { return false };
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let Some(id) = group_id(&groups, name) else {
        return false;
    };
    match std::os::unix::fs::chown(path, None, Some(id)) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(path = %path.display(), group = name, %error, "the socket stays its owner's alone");
            false
        }
    }
}

/// The number of the group `name` by the text of group(5). Only local groups: what opens a VPN's controls should not
/// depend on a directory service that may be reached through that VPN.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    let mut lines = groups.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?)
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
        let socket = SocketFile::bind(&path, Access::Owner).await.expect("a socket");
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a folder")), 0o755);
        assert!(matches!(
            SocketFile::bind(&path, Access::Owner).await,
            Err(SocketError::InUse(_))
        ));
        drop(socket);
        assert!(!path.exists());
        std::fs::write(&path, "x").expect("a file");
        assert!(matches!(
            SocketFile::bind(&path, Access::Owner).await,
            Err(SocketError::NotASocket(_))
        ));
        clean_up(&path);
    }

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let groups = "root:x:0:\nringway-x:x:7:\n+nis\nringway:x:998:alice,bob\nbroken:x:many:\n";
        assert_eq!(group_id(groups, "ringway"), Some(998));
        assert_eq!(group_id(groups, "root"), Some(0));
        for none in ["ring", "broken", "+nis", "alice", ""] {
            assert_eq!(group_id(groups, none), None, "{none}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn without_the_group_the_socket_is_its_owners() {
        let path = path("no-group");
        let socket = SocketFile::bind(&path, Access::Group("no such group"))
            .await
            .expect("a socket");
        assert_eq!(
            std::fs::metadata(socket.path()).expect("it is there").mode() & 0o7777,
            0o600
        );
        drop(socket);
        clean_up(&path);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_name_that_a_new_daemon_has_taken_is_left_to_it() {
        let path = path("taken");
        let old = SocketFile::bind(&path, Access::Owner).await.expect("a socket");
        std::fs::remove_file(&path).expect("it is there");
        assert!(!old.is_in_place());
        let new = SocketFile::bind(&path, Access::Owner).await.expect("the name is free");
        drop(old);
        assert!(new.is_in_place());
        drop(new);
        clean_up(&path);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_a_dead_daemon_left_is_replaced() {
        let path = path("dead");
        let dead = SocketFile::bind(&path, Access::Owner).await.expect("a socket");
        let moved = path.with_extension("moved");
        std::fs::rename(&path, &moved).expect("the same folder");
        drop(dead);
        std::fs::rename(&moved, &path).expect("the same folder");
        assert!(SocketFile::bind(&path, Access::Owner).await.is_ok());
        clean_up(&path);
    }
}
