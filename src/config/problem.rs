//! What is wrong with a configuration, in the words that a person needs to put it right.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::trust::Foreign;

/// One finding: where, which key, what stands there, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1.
    pub line: u32,
    /// Path of the key as the file's format has it, e.g. `peer[2].allowed_ips[0]`; empty for the file as a whole.
    pub key: String,
    /// What stands there, as the file spells it; `None` for secrets and for what is missing.
    pub value: Option<String>,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            f.write_str(&self.key)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.text)
    }
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The file was read, and is wrong. One line per problem, in the order of the file.
    #[error("{}", Located { path, problems })]
    Invalid {
        /// The file.
        path: PathBuf,
        /// At least one.
        problems: Vec<Problem>,
    },
    /// Root would run commands of it.
    #[error("{}: root runs no commands ({hook}) that others can have written: {foreign}", path.display())]
    Commands {
        /// The file.
        path: PathBuf,
        /// The key that has some.
        hook: &'static str,
        /// By what they can.
        foreign: Foreign,
    },
}

/// Shows problems one per line as `FILE:LINE: KEY = VALUE: TEXT`, which editors and terminals can follow.
#[derive(Debug, Clone, Copy)]
pub struct Located<'a> {
    /// The file.
    pub path: &'a Path,
    /// What to show.
    pub problems: &'a [Problem],
}

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{}: {problem}", self.path.display(), problem.line)?;
        }
        Ok(())
    }
}

/// The known word that `word` was probably meant to be: equal but for case, `_` and `-`, or a few typing mistakes away.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |word: &str| word.replace(['_', '-'], "").to_lowercase();
    let word = plain(word);
    known
        .iter()
        .map(|known| (strsim::osa_distance(&word, &plain(known)), *known))
        .filter(|(distance, known)| *distance <= known.len().max(word.len()) / 3)
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_wireguard_spellings_and_typing_mistakes_but_no_strangers() {
        let known = [
            "addresses",
            "allowed_ips",
            "endpoint",
            "listen_port",
            "mtu",
            "persistent_keepalive",
            "private_key",
        ];
        let cases = [
            ("AllowedIPs", Some("allowed_ips")),
            ("PersistentKeepalive", Some("persistent_keepalive")),
            ("Address", Some("addresses")),
            ("endpiont", Some("endpoint")),
            ("listen-port", Some("listen_port")),
            ("mut", Some("mtu")),
            ("dns", None),
            ("x", None),
            ("", None),
        ];
        for (word, expected) in cases {
            assert_eq!(nearest(word, &known), expected, "{word:?}");
        }
    }

    #[test]
    fn problems_are_shown_one_per_line_with_file_line_key_and_value() {
        let problem = |line, key: &str, value: Option<&str>| Problem {
            line,
            key: key.into(),
            value: value.map(str::to_owned),
            text: "wrong".into(),
        };
        let error = LoadError::Invalid {
            path: "rw0.toml".into(),
            problems: vec![
                problem(1, "", None),
                problem(2, "interface.name", None),
                problem(3, "a.b[0]", Some("7")),
            ],
        };
        assert_eq!(
            error.to_string(),
            "rw0.toml:1: wrong\nrw0.toml:2: interface.name: wrong\nrw0.toml:3: a.b[0] = 7: wrong"
        );
    }
}
