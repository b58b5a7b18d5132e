//! Whose word a file is. Root carries out no command that somebody else can have written: that somebody would be root. Whoever
//! became root by sudo gives the order, and so may have written the commands too.

use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::keyfile::shell_quoted;

/// Root's number.
const ROOT: u32 = 0;
/// Group and others may write (inode(7)).
const WRITABLE: u32 = 0o022;
/// In such a directory nobody replaces what is another's.
const STICKY: u32 = 0o1000;

/// By what others than its owners, who are trusted, can have written a file, or put it where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The file, or a directory on the way to it.
    path: PathBuf,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It is this user's.
    Owner(u32),
    /// These permission bits let others write.
    Mode(u32),
}

impl Foreign {
    /// Judges the open file that `path` has led to, by its `metadata`, and the directories on the way. `None`: nobody but root, and whoever became root by sudo, can
    /// have written it.
    pub(super) fn of(path: &Path, metadata: &Metadata) -> Option<Foreign> {
        let owners: Vec<u32> = [ROOT].into_iter().chain(sudoer()).collect();
        Foreign::to(&owners, unmapped_user(), path, metadata)
    }

    /// As [`Foreign::of`], for `owners` in the place of root. Directories may be `landlord`'s too.
    fn to(owners: &[u32], landlord: Option<u32>, path: &Path, metadata: &Metadata) -> Option<Foreign> {
        let judge = |path: &Path, found: &Metadata, is_ours: bool, may_write: bool| {
            let mode = found.mode() & 0o7777;
            let why = match () {
                () if !is_ours => Why::Owner(found.uid()),
                () if mode & WRITABLE != 0 && !may_write => Why::Mode(mode),
                () => return None,
            };
            let path = path.to_owned();
            Some(Foreign { path, why })
        };
        let is_ours = owners.contains(&metadata.uid());
        let file = judge(path, metadata, is_ours, false);
        // A link may lead there from elsewhere; who can write there can have it lead to another file.
        let ways = [std::path::absolute(path), fs::canonicalize(path)];
        let mut folders = ways.iter().flatten().flat_map(|way| way.ancestors().skip(1));
        file.or_else(|| {
            folders.find_map(|folder| {
                // What is gone by now leads nowhere.
                let found = fs::metadata(folder).ok()?;
                let is_ours = owners.contains(&found.uid()) || landlord == Some(found.uid());
                judge(folder, &found, is_ours, found.mode() & STICKY != 0)
            })
        })
    }
}

/// Says what is wrong, and what would put it right.
impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, word) = (self.path.display(), shell_quoted(&self.path));
        match self.why {
            Why::Owner(user) => write!(f, "{path} belongs to the user {user}; run: chown root {word}"),
            Why::Mode(mode) => write!(
                f,
                "others can write to {path} (mode {mode:04o}); run: chmod go-w {word}"
            ),
        }
    }
}

/// The user who asked sudo to run this (sudo(8), ENVIRONMENT).
fn sudoer() -> Option<u32> {
    std::env::var("SUDO_UID").ok()?.parse().ok()
}

/// Whom all those seem to be who have no number in this user namespace (user_namespaces(7)): the machine's root is one of them
/// where it has not lent all of its numbers.
fn unmapped_user() -> Option<u32> {
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    let counts = map
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    if counts.sum::<u64>() >= u64::from(u32::MAX) {
        return None;
    }
    let user = fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?;
    user.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    /// A directory of ours, removed on drop.
    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
    }

    #[test]
    fn a_file_is_roots_word_where_nobody_else_can_write_to_it_or_to_the_way_there() {
        let folder = Folder(std::env::temp_dir().join(format!("ringway-trust-{}", std::process::id())));
        let inner = folder.0.join("inner");
        let file = inner.join("rw0.toml");
        fs::create_dir_all(&inner).expect("a directory");
        fs::write(&file, "").expect("a file");
        let link = folder.0.join("link.toml");
        symlink(&file, &link).expect("a link");
        let me = fs::metadata(&file).expect("it is there").uid();
        let judged = |path: &Path, owners: &[u32]| {
            let metadata = fs::metadata(path).expect("it is there");
            Foreign::to(owners, unmapped_user(), path, &metadata).map(|foreign| foreign.to_string())
        };
        let ours = [ROOT, me];
        for path in [&folder.0, &inner, &file] {
            set_mode(path, 0o755);
        }
        assert_eq!(judged(&file, &ours), None, "also below a directory like /tmp");
        assert_eq!(judged(&link, &ours), None);
        for (wrong, mode) in [(&file, 0o664), (&file, 0o646), (&inner, 0o775), (&folder.0, 0o757)] {
            let right = fs::metadata(wrong).expect("it is there").mode() & 0o7777;
            set_mode(wrong, mode);
            let path = wrong.display();
            let expected = format!("others can write to {path} (mode {mode:04o}); run: chmod go-w {path}");
            assert_eq!(judged(&file, &ours), Some(expected));
            assert!(judged(&link, &ours).is_some(), "{path} is on the link's way too");
            set_mode(wrong, right);
        }
        let path = file.display();
        let strange = format!("{path} belongs to the user {me}; run: chown root {path}");
        assert_eq!(judged(&file, &[me + 1]), Some(strange));
    }
}
