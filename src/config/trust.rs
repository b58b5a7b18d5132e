//! Whose word a file is. Root carries out no command that somebody else can have written: that somebody would be root. Whoever
//! became root by sudo gives the order, and so may have written the commands too.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::keyfile::shell_quoted;
use super::{RUN_DIR, STATE_DIR};
use crate::sys::exec;

/// Root's number.
const ROOT: u32 = 0;
/// Group and others may write (inode(7)).
const WRITABLE: u32 = 0o022;
/// Of these, others than the group.
const WRITABLE_BY_OTHERS: u32 = 0o002;
/// In such a directory nobody replaces what is another's.
const STICKY: u32 = 0o1000;
/// More links on a way than this the kernel does not follow (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// By what others than its owners, who are trusted, can have written a file, or put it where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The file, or a directory or a link on the way to it.
    path: PathBuf,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It is this user's.
    Owner(u32),
    /// It is a link of this user's.
    Link(u32),
    /// These permission bits let others write.
    Mode(u32),
}

impl Foreign {
    /// Judges the open file that `path` has led to, by its `metadata`, and the way there. `None`: nobody but root, and whoever became
    /// root by sudo, can have written it.
    pub(super) fn of(path: &Path, metadata: &Metadata) -> Option<Foreign> {
        let owners: Vec<u32> = [ROOT].into_iter().chain(sudoer()).collect();
        Foreign::to(&owners, unmapped_user(), path, metadata)
    }

    /// As [`Foreign::of`], for `owners` in the place of root. Directories may be `landlord`'s too.
    fn to(owners: &[u32], landlord: Option<u32>, path: &Path, metadata: &Metadata) -> Option<Foreign> {
        let is_ours = owners.contains(&metadata.uid());
        let file = judge(path, metadata, is_ours, WRITABLE);
        file.or_else(|| judge_way(owners, landlord, way_to(path), WRITABLE))
    }

    /// Judges the place where root is about to make `path`, or to write to what it finds there: the way there, and whose the file is.
    /// Groups may write to a directory on it, /var/log is syslog's on some machines, and their members are trusted; so is whose
    /// [`RUN_DIR`] and [`STATE_DIR`] are, the service's user. `None`: nobody else can have root write to another file, but by a
    /// second name for it in a directory like /tmp, which the open file tells (`nlink`); or this is not root. What lies there may be
    /// another file a moment later: that which was opened there is judged by its own metadata, `open`.
    pub(crate) fn of_place(path: &Path, open: Option<Metadata>) -> Option<Foreign> {
        let services = [RUN_DIR, STATE_DIR].map(Path::new);
        if exec::effective_user() != ROOT || path.parent().is_some_and(|folder| services.contains(&folder)) {
            return None;
        }
        let owners: Vec<u32> = [ROOT].into_iter().chain(sudoer()).collect();
        Foreign::of_place_to(&owners, unmapped_user(), &services, path, open)
    }

    /// Judges the links by which root is about to come to the file `path`: whoever has one decides where it leads. `None`: none is
    /// somebody else's; or this is not root.
    pub(super) fn of_links(path: &Path) -> Option<Foreign> {
        if exec::effective_user() != ROOT {
            return None;
        }
        let owners: Vec<u32> = [ROOT].into_iter().chain(sudoer()).chain(unmapped_user()).collect();
        Foreign::of_links_to(&owners, path)
    }

    /// As [`Foreign::of_links`], for `owners` in the place of root.
    fn of_links_to(owners: &[u32], path: &Path) -> Option<Foreign> {
        let links = way_to(path).into_iter().filter(|(_, found)| found.is_symlink());
        links
            .into_iter()
            .find_map(|(place, found)| judge(&place, &found, owners.contains(&found.uid()), 0))
    }

    /// As [`Foreign::of_place`], for `owners` in the place of root and these directories in that of the service's. Directories may be
    /// `landlord`'s too.
    fn of_place_to(
        owners: &[u32],
        landlord: Option<u32>,
        services: &[&Path],
        path: &Path,
        open: Option<Metadata>,
    ) -> Option<Foreign> {
        let path = std::path::absolute(path).ok()?;
        // What does not exist yet is made by us, below what does.
        let folder = path.parent()?;
        let mut way = way_to(folder);
        // By whatever links it was come to.
        let is_services = way
            .pop_if(|(place, _)| services.contains(&place.as_path()) && folder.is_dir())
            .is_some();
        judge_way(owners, landlord, way, WRITABLE_BY_OTHERS).or_else(|| {
            let found = open.or_else(|| fs::symlink_metadata(&path).ok());
            let found = found.filter(|_| !is_services)?;
            judge(&path, &found, owners.contains(&found.uid()), 0)
        })
    }
}

/// What is on a [way](way_to) and nobody's of `owners`, or a directory to which others can write by one of the bits `writable`; the
/// last such.
fn judge_way(owners: &[u32], landlord: Option<u32>, way: Vec<(PathBuf, Metadata)>, writable: u32) -> Option<Foreign> {
    way.into_iter().rev().find_map(|(place, found)| {
        let is_ours = owners.contains(&found.uid()) || landlord == Some(found.uid());
        let is_sticky = found.mode() & STICKY != 0;
        judge(&place, &found, is_ours, if is_sticky { 0 } else { writable })
    })
}

/// The directories and links by which the kernel comes to `path`, that included, in its order and as far as they exist.
fn way_to(path: &Path) -> Vec<(PathBuf, Metadata)> {
    let parts_of =
        |path: &Path| -> Vec<OsString> { path.components().rev().map(|part| part.as_os_str().into()).collect() };
    let mut rest = std::path::absolute(path).map_or_else(|_| Vec::new(), |path| parts_of(&path));
    let (mut way, mut here, mut links) = (Vec::new(), PathBuf::new(), 0);
    while let Some(part) = rest.pop() {
        match part.to_str() {
            Some(".") => continue,
            Some("..") => {
                here.pop();
                continue;
            }
            // The root of an absolute link takes the place of what is there.
            _ => here.push(part),
        }
        let place = here.clone();
        let Ok(found) = fs::symlink_metadata(&place) else { break };
        if found.is_symlink() {
            let Ok(target) = fs::read_link(&place) else { break };
            links += 1;
            if links > LINKS_MAX {
                break;
            }
            here.pop();
            rest.extend(parts_of(&target));
        } else if !found.is_dir() {
            break;
        }
        way.push((place, found));
    }
    way
}

/// What is wrong with this one file, directory or link, if it is not ours or has one of the bits `writable`.
fn judge(path: &Path, found: &Metadata, is_ours: bool, writable: u32) -> Option<Foreign> {
    let mode = found.mode() & 0o7777;
    let why = match () {
        () if !is_ours && found.is_symlink() => Why::Link(found.uid()),
        () if !is_ours => Why::Owner(found.uid()),
        // Nobody can write to a link.
        () if mode & writable != 0 && !found.is_symlink() => Why::Mode(mode),
        () => return None,
    };
    let path = path.to_owned();
    Some(Foreign { path, why })
}

/// Says what is wrong, and what would put it right.
impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, word) = (self.path.display(), shell_quoted(&self.path));
        match self.why {
            Why::Owner(user) => write!(f, "{path} belongs to the user {user}; run: chown root {word}"),
            Why::Link(user) => write!(
                f,
                "the link {path} belongs to the user {user}; run: chown -h root {word}"
            ),
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
    use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};

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
    fn root_writes_where_nobody_else_can_have_put_a_file_in_the_way() {
        let folder = Folder(std::env::temp_dir().join(format!("ringway-place-{}", std::process::id())));
        let inner = folder.0.join("inner");
        fs::create_dir_all(&inner).expect("a directory");
        let me = fs::metadata(&inner).expect("it is there").uid();
        let link = folder.0.join("link");
        symlink(&inner, &link).expect("a link");
        let ours = [ROOT, me];
        let judged = |path: &Path, owners: &[u32]| {
            Foreign::of_place_to(owners, unmapped_user(), &[], path, None).map(|foreign| foreign.to_string())
        };
        for path in [&folder.0, &inner] {
            set_mode(path, 0o755);
        }
        let places = [inner.join("log"), link.join("log"), inner.join("new/log")];
        for mode in [0o755, 0o775, 0o1777] {
            set_mode(&inner, mode);
            for place in &places {
                assert_eq!(judged(place, &ours), None, "{mode:o}");
            }
        }
        set_mode(&inner, 0o757);
        let path = inner.display();
        let open = format!("others can write to {path} (mode 0757); run: chmod go-w {path}");
        for place in &places {
            assert_eq!(judged(place, &ours).as_ref(), Some(&open));
        }
        // Who can replace a link that another link leads to decides where both lead.
        let [home, by_link] = ["home", "by_link"].map(|name| folder.0.join(name));
        fs::create_dir(&home).expect("a directory");
        set_mode(&home, 0o755);
        symlink("../home", inner.join("second")).expect("a link");
        symlink("inner/./second", &by_link).expect("a link");
        assert_eq!(judged(&by_link.join("log"), &ours).as_ref(), Some(&open));
        set_mode(&inner, 0o1777);
        assert_eq!(judged(&by_link.join("log"), &ours), None);
        symlink("loop", folder.0.join("loop")).expect("a link");
        assert_eq!(judged(&folder.0.join("loop/log"), &ours), None, "it leads nowhere");
        // Whoever may put files there can have chosen the one that is there; the directories are a stranger's here as well.
        fs::write(&places[0], "").expect("a file");
        let strange = format!("{path} belongs to the user {me}; run: chown root {path}");
        assert_eq!(judged(&places[0], &[me + 1]), Some(strange));
        let path = places[0].display();
        let strange = format!("{path} belongs to the user {me}; run: chown root {path}");
        assert_eq!(
            Foreign::of_place_to(&[me + 1], Some(me), &[], &places[0], None).map(|found| found.to_string()),
            Some(strange)
        );
        // The service's directory is trusted with what is in it, by whatever links it was come to.
        let place = link.join("log");
        assert_eq!(
            Foreign::of_place_to(&[me + 1], Some(me), &[&inner], &place, None),
            None,
            "{place:?}"
        );
        assert!(Foreign::of_place_to(&[me + 1], Some(me), &[&folder.0], &place, None).is_some());
        // What can yet be made in it is another matter.
        let missing = Foreign::of_place_to(&[me + 1], None, &[&inner], &inner.join("new/log"), None);
        assert!(missing.is_some());
    }

    #[test]
    fn a_link_of_somebody_else_leads_root_nowhere() {
        const STRANGER: u32 = 64_998;
        let folder = Folder(std::env::temp_dir().join(format!("ringway-link-{}", std::process::id())));
        let [open, home] = ["open", "home"].map(|name| folder.0.join(name));
        for (path, mode) in [(&folder.0, 0o755), (&open, 0o1777), (&home, 0o755)] {
            fs::create_dir(path).expect("a directory");
            set_mode(path, mode);
        }
        let file = home.join("rw0.toml");
        fs::write(&file, "").expect("a file");
        set_mode(&file, 0o644);
        let link = open.join("link");
        symlink(&home, &link).expect("a link");
        let metadata = fs::metadata(&file).expect("it is there");
        let owners = [ROOT, metadata.uid()];
        let judged = || {
            let word = Foreign::to(&owners, unmapped_user(), &link.join("rw0.toml"), &metadata);
            [
                word,
                Foreign::of_place_to(&owners, unmapped_user(), &[], &link.join("log"), None),
            ]
        };
        assert_eq!(judged(), [None, None]);
        if let Err(error) = lchown(&link, Some(STRANGER), None) {
            return println!("skipped: only root gives links away: {error}");
        }
        let path = link.display();
        let expected = format!("the link {path} belongs to the user {STRANGER}; run: chown -h root {path}");
        assert_eq!(
            judged().map(|foreign| foreign.map(|foreign| foreign.to_string())),
            [Some(expected.clone()), Some(expected.clone())]
        );
        // Nor does one that a link of ours leads to; a stranger's directory on the way is another matter.
        let ours = folder.0.join("ours");
        symlink(link.join("rw0.toml"), &ours).expect("a link");
        let links = |path: &Path| Foreign::of_links_to(&owners, path).map(|foreign| foreign.to_string());
        assert_eq!(links(&ours), Some(expected));
        lchown(&home, Some(STRANGER), None).expect("root may");
        let direct = folder.0.join("direct");
        symlink(&file, &direct).expect("a link");
        assert_eq!(links(&direct), None);
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
