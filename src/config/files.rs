//! Files that take the place of others, where more users than we may have put some.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::Foreign;

/// What lies beside the file `path` and belongs to it: no other file has one of that name.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Creates a file that only we may read, in the place of one that a killed process may have left. A link is not followed: the
/// folder may be another user's.
///
/// # Errors
/// What open(2) and unlink(2) say.
pub fn create_anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::options().write(true).create_new(true).mode(0o600).open(path),
    }
}

/// The file that `path` leads to by links: for root, by none that others can have put there.
///
/// # Errors
/// What realpath(3) says; which link is another user's.
pub(crate) fn follow(path: &Path) -> io::Result<PathBuf> {
    match Foreign::of_links(path) {
        Some(foreign) => Err(io::Error::other(format!("root follows no link of others: {foreign}"))),
        None => fs::canonicalize(path),
    }
}
