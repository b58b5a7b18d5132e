//! /etc/resolv.conf itself, where nobody looks after it.
//!
//! What was there is kept beside it, as `resolv.conf.ringway-NAME`, and put back: the same file, or the same symbolic link.
//! Each step is one rename, so that there is a whole file at any moment, and after a crash what was kept is found again.
//! Our own file begins with a line that names the tunnel and sums up the rest: one that somebody has changed meanwhile is
//! not ours any more, and stays.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use blake2::{Blake2s256, Digest as _};

const FIRST_WORDS: &str = "# ringway ";
const KEPT: &str = "resolv.conf.ringway-";

/// A directory with a resolv.conf: /etc.
pub(super) struct Directory<'a>(pub(super) &'a Path);

impl Directory<'_> {
    /// Puts `text` in place for the tunnel `name`. What is kept of it already stays what is put back.
    pub(super) fn set(&self, name: &str, text: &str) -> io::Result<()> {
        let (file, kept) = (self.file(), self.kept(name));
        let is_kept = match fs::hard_link(&file, &kept) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            // What a daemon that was killed has kept, and nobody could put back: still the file that was there first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            // Another file system: somebody has mounted a file there, as containers have it.
            Err(_) => fs::copy(&file, &kept).map(|_| true),
        };
        let keeps_ours = !matches!(is_kept, Ok(false));
        let result = is_kept.and_then(|_| self.replace(name, &signed(name, text)));
        if result.is_err() && keeps_ours {
            let _ = fs::remove_file(kept);
        }
        result
    }

    /// Puts back what was kept for `name`; true when something was. After somebody else's change the file stays as it is.
    pub(super) fn restore(&self, name: &str) -> io::Result<bool> {
        let (file, kept) = (self.file(), self.kept(name));
        if owner(&fs::read(&file).unwrap_or_default()).as_deref() == Some(name) {
            return put_back(&kept, &file).map(|()| true);
        }
        // A tunnel that came up later has kept ours; what we have kept is what it is to put back.
        if let Some(theirs) = self.kept_of_others(name)? {
            return put_back(&kept, &theirs).map(|()| true);
        }
        match fs::symlink_metadata(&kept) {
            // Looked at first: where nothing may be written, removing what is not there is refused too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
            Ok(_) => fs::remove_file(&kept).map(|()| true),
        }
    }

    /// The file that another tunnel has kept and that is the one of `name`.
    fn kept_of_others(&self, name: &str) -> io::Result<Option<PathBuf>> {
        for entry in fs::read_dir(self.0)? {
            let path = entry?.path();
            let is_kept = path
                .file_name()
                .is_some_and(|file| file.to_string_lossy().starts_with(KEPT));
            if is_kept && owner(&fs::read(&path).unwrap_or_default()).as_deref() == Some(name) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let new = self.0.join(format!(".{KEPT}{name}.new"));
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o644)
                .open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, self.file())
        };
        let result = write();
        if result.is_err() {
            let _ = fs::remove_file(&new);
        }
        match result {
            // A mounted file can't be replaced, only written.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => fs::write(self.file(), text),
            result => result,
        }
    }

    fn file(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    fn kept(&self, name: &str) -> PathBuf {
        self.0.join(format!("{KEPT}{name}"))
    }
}

/// Moves `kept` to `file`. Where nothing was kept there was nothing, so the file goes.
fn put_back(kept: &Path, file: &Path) -> io::Result<()> {
    match fs::rename(kept, file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::remove_file(file),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EXDEV)) => {
            fs::write(file, fs::read(kept)?)?;
            fs::remove_file(kept)
        }
        result => result,
    }
}

/// `text` behind lines that say whose it is.
fn signed(name: &str, text: &str) -> String {
    let rest = format!("# What was here is kept as {KEPT}{name}, and comes back when the tunnel {name} ends.\n{text}");
    format!("{FIRST_WORDS}{name} {}\n{rest}", sum(&rest))
}

/// Which tunnel has written this; `None` for what no tunnel has, or somebody has changed.
fn owner(content: &[u8]) -> Option<String> {
    let (first, rest) = std::str::from_utf8(content).ok()?.split_once('\n')?;
    let (name, written) = first.strip_prefix(FIRST_WORDS)?.split_once(' ')?;
    (written == sum(rest)).then(|| name.to_owned())
}

fn sum(text: &str) -> String {
    let digest = Blake2s256::digest(text.as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const BEFORE: &str = "nameserver 192.0.2.53\n";

    /// Runs `test` in a directory of its own with a resolv.conf.
    fn in_directory(test: impl FnOnce(&Directory<'_>, &dyn Fn() -> String)) {
        let id = format!(
            "ringway-resolv-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let path = std::env::temp_dir().join(id);
        fs::create_dir(&path).expect("a directory");
        fs::write(path.join("resolv.conf"), BEFORE).expect("written");
        let read = || fs::read_to_string(path.join("resolv.conf")).unwrap_or_default();
        test(&Directory(&path), &read);
        let left: Vec<_> = fs::read_dir(&path)
            .expect("it exists")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        fs::remove_dir_all(&path).expect("it exists");
        assert!(
            left.iter().all(|name| name == "resolv.conf" || name == "real"),
            "{left:?}"
        );
    }

    #[test]
    fn what_was_there_comes_back() {
        in_directory(|etc, read| {
            etc.set("rw0", "nameserver 10.0.0.1\n").unwrap();
            assert!(
                read().starts_with("# ringway rw0 ") && read().ends_with("\nnameserver 10.0.0.1\n"),
                "{}",
                read()
            );
            assert!(etc.restore("rw0").unwrap());
            assert_eq!(read(), BEFORE);
            assert!(!etc.restore("rw0").unwrap(), "nothing is kept any more");
            assert_eq!(read(), BEFORE);
        });
    }

    #[test]
    fn a_symbolic_link_comes_back_as_one() {
        in_directory(|etc, read| {
            fs::rename(etc.file(), etc.0.join("real")).unwrap();
            symlink("real", etc.file()).unwrap();
            etc.set("rw0", "nameserver 10.0.0.1\n").unwrap();
            assert_eq!(fs::read_to_string(etc.0.join("real")).unwrap(), BEFORE);
            etc.restore("rw0").unwrap();
            assert_eq!(fs::read_link(etc.file()).unwrap(), Path::new("real"));
            assert_eq!(read(), BEFORE);
        });
    }

    #[test]
    fn where_there_was_nothing_nothing_is_left() {
        in_directory(|etc, read| {
            fs::remove_file(etc.file()).unwrap();
            etc.set("rw0", "nameserver 10.0.0.1\n").unwrap();
            assert!(read().contains("10.0.0.1"));
            etc.restore("rw0").unwrap();
            assert!(!etc.file().exists());
        });
    }

    #[test]
    fn a_file_that_somebody_has_changed_meanwhile_stays() {
        in_directory(|etc, read| {
            etc.set("rw0", "nameserver 10.0.0.1\n").unwrap();
            let changed = read() + "nameserver 192.0.2.1\n";
            fs::write(etc.file(), &changed).unwrap();
            etc.restore("rw0").unwrap();
            assert_eq!(read(), changed);
        });
    }

    #[test]
    fn tunnels_may_end_in_any_order() {
        for order in [["rw0", "rw1"], ["rw1", "rw0"]] {
            in_directory(|etc, read| {
                etc.set("rw0", "nameserver 10.0.0.1\n").unwrap();
                etc.set("rw1", "nameserver 10.1.0.1\n").unwrap();
                etc.restore(order[0]).unwrap();
                assert!(read().contains(if order[0] == "rw0" { "10.1.0.1" } else { "10.0.0.1" }));
                etc.restore(order[1]).unwrap();
                assert_eq!(read(), BEFORE);
            });
        }
    }
}
