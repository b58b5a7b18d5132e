//! Log lines for systemd's journal, with fields (systemd.journal-fields(7)): `journalctl PEER=laptop` finds what concerns one
//! peer.
//!
//! One datagram per line, as systemd.io/JOURNAL_NATIVE_PROTOCOL has it. The crate `tracing-journald` speaks it too, but its
//! MESSAGE lacks the fields, and MESSAGE is all that `journalctl -u` and `systemctl status` show.

use std::fmt::{self, Debug};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::FormatFields as _;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::layer::Context;

/// Where the journal takes lines with fields.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Bytes of a value: as long as the journal lets a line of standard error be (LineMax= of journald.conf(5)), and well below
/// what a datagram holds.
const VALUE_LEN_MAX: usize = 48 * 1024;

/// The interface of the tunnel that this process runs, once there is one.
static TUNNEL: OnceLock<String> = OnceLock::new();

/// Has every line say from here on which tunnel it is about.
pub(super) fn name_tunnel(name: &str) {
    // One process runs one tunnel.
    let _ = TUNNEL.set(name.to_owned());
}

/// Whether standard error leads to the journal, as systemd.exec(5) tells it: the variable may have come to this process
/// though its standard error was led elsewhere.
pub(super) fn is_stderr() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
    stderr
        .and_then(|stderr| stderr.metadata())
        .is_ok_and(|stderr| is_stream(&stream, &stderr))
}

fn is_stream(variable: &str, stream: &fs::Metadata) -> bool {
    variable == format!("{}:{}", stream.dev(), stream.ino())
}

/// Writes a program's last word, why it failed, to standard error or to the journal behind it.
pub(super) fn last_word(program: &'static str, why: &str) {
    let journal = is_stderr().then(|| Journal::open(program).ok()).flatten();
    for line in why.lines() {
        let entry = Entry::new(program, priority(Level::ERROR), line);
        let is_sent = journal.as_ref().is_some_and(|journal| journal.send(&entry).is_ok());
        if !is_sent {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "{program}: {line}");
        }
    }
}

/// Sends events to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    program: &'static str,
}

impl Journal {
    /// The machine's journal, for lines of `program`'s.
    ///
    /// # Errors
    /// When there is none that listens.
    pub(super) fn open(program: &'static str) -> io::Result<Journal> {
        Journal::at(Path::new(SOCKET), program)
    }

    fn at(path: &Path, program: &'static str) -> io::Result<Journal> {
        // Only to see whether somebody listens: a socket that stays connected would lose a journal whose socket was made
        // anew, and workers may connect to nothing once they are confined.
        UnixDatagram::unbound()?.connect(path)?;
        Ok(Journal {
            socket: UnixDatagram::unbound()?,
            path: path.to_owned(),
            program,
        })
    }

    fn send(&self, entry: &Entry) -> io::Result<()> {
        self.socket.send_to(&entry.0, &self.path).map(drop)
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let priority = priority(*event.metadata().level());
        let message = message(event);
        let mut entry = Entry::new(self.program, priority, &message);
        entry.describe(event);
        if self.send(&entry).is_err() {
            // The journal reads levels of lines so (sd-daemon(3)). Nobody is left to tell when that is gone too.
            let _ = writeln!(io::stderr(), "<{priority}>{message}");
        }
    }
}

/// The text with its fields behind it, as on standard error.
fn message(event: &Event<'_>) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = DefaultFields::new().format_fields(Writer::new(&mut text), event);
    text
}

/// The level as syslog(3) numbers it.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// An entry in the making: fields, each with its name.
struct Entry(Vec<u8>);

impl Entry {
    fn new(program: &str, priority: u8, message: &str) -> Entry {
        let mut entry = Entry(Vec::with_capacity(512));
        entry.put("MESSAGE", message);
        entry.put("PRIORITY", &priority.to_string());
        entry.put("SYSLOG_IDENTIFIER", program);
        if let Some(tunnel) = TUNNEL.get() {
            entry.put("TUNNEL", tunnel);
        }
        entry
    }

    /// Where the event comes from, and its fields.
    fn describe(&mut self, event: &Event<'_>) {
        let metadata = event.metadata();
        self.put("TARGET", metadata.target());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            self.put("CODE_FILE", file);
            self.put("CODE_LINE", &line.to_string());
        }
        event.record(self);
    }

    fn put(&mut self, name: &str, value: &str) {
        let value = cut(value);
        self.0.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }
}

/// What of the text fits into a value, in whole characters.
fn cut(text: &str) -> &str {
    if text.len() <= VALUE_LEN_MAX {
        return text;
    }
    let end = (0..=VALUE_LEN_MAX).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        // The message has been put already, with its fields.
        if field.name() != "message" {
            self.put(&field_name(field.name()), value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Where a value can't be written, there is none.
        if fmt::write(&mut text, format_args!("{value:?}")).is_ok() {
            self.record_str(field, &text);
        }
    }
}

/// The field's name as the journal takes it: capitals, digits and underscores, and none of the latter first, which are
/// the journal's own.
fn field_name(name: &str) -> String {
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    let capital = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    name.chars().map(capital).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::sandbox;

    /// A journal of the test's own.
    struct Reader {
        socket: UnixDatagram,
        path: PathBuf,
    }

    impl Reader {
        fn new(name: &str) -> Reader {
            let path = std::env::temp_dir().join(format!("ringway-journal-{}-{name}", std::process::id()));
            let _ = fs::remove_file(&path);
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            Reader { socket, path }
        }

        /// Calls `inside` with what it logs going here.
        fn listen(&self, inside: impl FnOnce()) {
            let journal = Journal::at(&self.path, "ringway").unwrap();
            tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), inside);
        }

        fn next(&self) -> BTreeMap<String, String> {
            let mut datagram = vec![0; 1 << 18];
            let len = self.socket.recv(&mut datagram).unwrap();
            let (mut fields, mut rest) = (BTreeMap::new(), &datagram[..len]);
            while !rest.is_empty() {
                let end = rest.iter().position(|byte| b"=\n".contains(byte)).unwrap();
                let (name, value) = (&rest[..end], &rest[end + 1..]);
                let (value, behind) = if rest[end] == b'=' {
                    value.split_at(value.iter().position(|byte| *byte == b'\n').unwrap())
                } else {
                    let (len, value) = value.split_at(8);
                    value.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize)
                };
                assert_eq!(behind[0], b'\n');
                rest = &behind[1..];
                let [name, value] = [name, value].map(|text| String::from_utf8(text.to_vec()).unwrap());
                assert!(fields.insert(name, value).is_none());
            }
            fields
        }
    }

    impl Drop for Reader {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.path);
        }
    }

    #[test]
    fn events_are_entries_whose_fields_can_be_asked_for_and_whose_text_is_whole() {
        let reader = Reader::new("entry");
        reader.listen(|| {
            tracing::info!(peer = %"laptop", session = ?Some(3), remote.lanes = 2, "handshake done");
            // What comes from outside can't add fields of its own.
            tracing::error!(peer = "a\nPRIORITY=0", "two\nlines");
        });
        let entry = reader.next();
        for (name, value) in [
            ("MESSAGE", "handshake done peer=laptop session=Some(3) remote.lanes=2"),
            ("PRIORITY", "6"),
            ("SYSLOG_IDENTIFIER", "ringway"),
            ("TARGET", "ringway::cli::journal::tests"),
            ("CODE_FILE", file!()),
            ("PEER", "laptop"),
            ("SESSION", "Some(3)"),
            ("REMOTE_LANES", "2"),
        ] {
            assert_eq!(entry.get(name).map(String::as_str), Some(value), "{name}");
        }
        let entry = reader.next();
        assert_eq!((&*entry["PRIORITY"], &*entry["PEER"]), ("3", "a\nPRIORITY=0"));
        assert!(entry["MESSAGE"].starts_with("two\nlines"), "{entry:?}");
    }

    #[test]
    fn a_worker_that_has_given_up_everything_is_heard() {
        let reader = Reader::new("confined");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                reader.listen(|| {
                    let _ = sandbox::confine_worker();
                    assert!(fs::read("/etc/hostname").is_err() || !Path::new("/etc/hostname").exists());
                    tracing::warn!(worker = 1, "confined");
                });
            });
        });
        assert_eq!(reader.next()["WORKER"], "1");
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_not_lost() {
        let reader = Reader::new("long");
        reader.listen(|| tracing::info!("{}", "€".repeat(VALUE_LEN_MAX)));
        let text = &reader.next()["MESSAGE"];
        assert!(text.len() > VALUE_LEN_MAX - 3 && text.chars().all(|c| c == '€'));
    }

    #[test]
    fn standard_error_is_the_journals_by_its_device_and_inode() {
        let file = File::open("/dev/null").unwrap().metadata().unwrap();
        assert!(is_stream(&format!("{}:{}", file.dev(), file.ino()), &file));
        for other in ["", "1", "1:2", &format!("{}:{}x", file.dev(), file.ino())] {
            assert!(!is_stream(other, &file), "{other}");
        }
        assert!(Journal::at(Path::new("/no/such/socket"), "ringway").is_err());
    }
}
