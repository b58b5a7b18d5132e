//! Key files: one key in base64, as `ringway genkey > FILE` or `wg genkey > FILE` writes it.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use zeroize::Zeroizing;

/// A key and white space around it fit easily; a file that is longer is no key file.
const KEY_FILE_LEN_MAX: u64 = 1024;

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It can't be opened or read, or is no text.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// Group or others may access it.
    #[error("other users can access this file (mode {mode:04o}); run: chmod 600 {file}")]
    Exposed {
        /// Its permission bits.
        mode: u32,
        /// Its path, quoted for the shell.
        file: String,
    },
    /// It is far longer than a key.
    #[error("this file is longer than {KEY_FILE_LEN_MAX} bytes; a key file holds one key")]
    TooLong,
}

/// Reads the key file at `path`, without the white space around the key.
pub fn read(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let mut file = File::open(path)?;
    // The open file is asked, not the path: nobody can exchange it in between.
    let metadata = file.metadata()?;
    let mode = metadata.mode() & 0o7777;
    // Pipes (`<(pass show vpn)`) have no owner to protect them from.
    if metadata.is_file() && mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed {
            mode,
            file: shell_quoted(path),
        });
    }
    // With room for everything from the start: a growing String would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_LEN_MAX as usize + 1));
    let len = (&mut file).take(KEY_FILE_LEN_MAX + 1).read_to_string(&mut text)?;
    if len as u64 > KEY_FILE_LEN_MAX {
        return Err(KeyFileError::TooLong);
    }
    Ok(Zeroizing::new(text.trim().to_owned()))
}

/// `path` as one word of a shell command.
pub(crate) fn shell_quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+,:@%=".contains(&b);
    if !text.is_empty() && !text.starts_with('-') && text.bytes().all(is_plain) {
        text
    } else {
        let dash = if text.starts_with('-') { "./" } else { "" };
        format!("'{dash}{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    fn file(name: &str, content: &[u8], mode: u32) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("ringway-keyfile-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn white_space_around_the_key_is_dropped() {
        let path = file("plain", b" abc=\n\n", 0o600);
        assert_eq!(read(&path).unwrap().as_str(), "abc=");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_others_can_access_is_refused_with_the_command_that_helps() {
        for mode in [0o640, 0o604, 0o610, 0o602, 0o777] {
            let path = file(&format!("mode {mode:o}"), b"abc=\n", mode);
            let error = read(&path).unwrap_err().to_string();
            assert!(
                error.contains(&format!("(mode {mode:04o}); run: chmod 600 '{}'", path.display())),
                "{error}"
            );
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn long_missing_and_binary_files_are_refused() {
        let path = file("long", &[b'a'; 2000], 0o600);
        assert!(matches!(read(&path), Err(KeyFileError::TooLong)));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(read(&path), Err(KeyFileError::Read(_))));
        fs::remove_file(&path).unwrap();
        assert_eq!(
            read(&path).unwrap_err().to_string(),
            "No such file or directory (os error 2)"
        );
        assert!(matches!(read(Path::new("/dev/null")), Ok(text) if text.is_empty()));
    }

    #[test]
    fn paths_are_quoted_for_the_shell_only_where_needed() {
        let cases = [
            ("/etc/ringway/rw0.key", "/etc/ringway/rw0.key"),
            ("my key", "'my key'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("-rf", "'./-rf'"),
        ];
        for (path, expected) in cases {
            assert_eq!(shell_quoted(Path::new(path)), expected);
        }
    }
}
