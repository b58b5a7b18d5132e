//! As much of D-Bus as a client needs that calls a few methods (the D-Bus specification, "Message Protocol" and
//! "Authentication Protocol"): little endian, one call at a time, no file descriptors.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Bytes of the part of a header that every message has, its fields' length included.
const FIXED_LEN: usize = 16;
/// No answer to our calls is near as long; the specification's limit is 128 MiB.
const MESSAGE_LEN_MAX: usize = 1 << 20;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// A connection to a message bus.
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
}

/// Which method of whom.
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The bus can't be reached, or says what is no D-Bus.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side refused.
    #[error("{text} ({name})")]
    Refused {
        /// The error's name.
        name: String,
        /// What it says.
        text: String,
    },
}

impl Bus {
    /// Connects to the bus whose socket is at `path`, as the user that the process runs as.
    pub(super) async fn connect(path: &Path) -> Result<Bus, CallError> {
        let mut stream = UnixStream::connect(path).await?;
        let user = stream.peer_cred().map(|_| effective_user())??;
        let hex: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
        stream
            .write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())
            .await?;
        let answer = read_line(&mut stream).await?;
        if !answer.starts_with("OK ") {
            return Err(
                io::Error::new(io::ErrorKind::PermissionDenied, format!("the bus refuses us: {answer}")).into(),
            );
        }
        stream.write_all(b"BEGIN\r\n").await?;
        let mut bus = Bus { stream, serial: 0 };
        bus.call(bus_method("Hello"), &Body::default()).await?;
        Ok(bus)
    }

    /// Whether somebody has the bus name `name`; does not start it.
    pub(super) async fn has_owner(&mut self, name: &str) -> Result<bool, CallError> {
        let mut body = Body::default();
        body.text(name);
        let answer = self.call(bus_method("NameHasOwner"), &body).await?;
        Ok(answer
            .first_chunk()
            .is_some_and(|value| u32::from_le_bytes(*value) != 0))
    }

    /// Calls a method and waits for its answer: the body.
    pub(super) async fn call(&mut self, call: Call<'_>, body: &Body) -> Result<Vec<u8>, CallError> {
        self.serial += 1;
        self.stream.write_all(&message(self.serial, &call, body)).await?;
        loop {
            let answer = self.receive().await?;
            // Signals, and answers that nobody waits for any more.
            if answer.reply_to != Some(self.serial) {
                continue;
            }
            match answer.kind {
                METHOD_RETURN => return Ok(answer.body),
                ERROR => {
                    return Err(CallError::Refused {
                        name: answer.error_name.unwrap_or_default(),
                        text: Reader::new(&answer.body).text().unwrap_or("no reason given").to_owned(),
                    });
                }
                _ => {}
            }
        }
    }

    async fn receive(&mut self) -> Result<Answer, CallError> {
        let mut head = vec![0; FIXED_LEN];
        self.stream.read_exact(&mut head).await?;
        let len = |at: usize| {
            head[at..]
                .first_chunk()
                .map_or(usize::MAX, |bytes| u32::from_le_bytes(*bytes) as usize)
        };
        let (body_len, fields_len) = (len(4), len(12));
        if head[0] != b'l' || body_len.max(fields_len) > MESSAGE_LEN_MAX {
            return Err(not_dbus().into());
        }
        let fields_end = FIXED_LEN + fields_len;
        let body_begin = fields_end.next_multiple_of(8);
        head.resize(body_begin + body_len, 0);
        self.stream.read_exact(&mut head[FIXED_LEN..]).await?;
        let body = head.split_off(body_begin);
        head.truncate(fields_end);
        Answer::read(&head, body).ok_or_else(|| not_dbus().into())
    }
}

fn bus_method(member: &str) -> Call<'_> {
    Call {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member,
    }
}

fn not_dbus() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "this is no D-Bus message")
}

/// As the bus sees us.
fn effective_user() -> io::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let effective = ids.and_then(|ids| ids.split_whitespace().nth(1));
    effective
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other("/proc/self/status has no user"))
}

/// One line of the authentication, without its end. Byte by byte: what follows is not ours to read yet.
async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await?);
        if line.len() > 1024 {
            return Err(not_dbus());
        }
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Arguments of a call.
#[derive(Default)]
pub(super) struct Body {
    signature: String,
    bytes: Vec<u8>,
}

impl Body {
    /// INT32, "i".
    pub(super) fn int(&mut self, value: i32) {
        self.signature.push('i');
        put_int(&mut self.bytes, value);
    }

    /// BOOLEAN, "b".
    pub(super) fn flag(&mut self, value: bool) {
        self.signature.push('b');
        put_int(&mut self.bytes, value.into());
    }

    /// STRING, "s".
    pub(super) fn text(&mut self, value: &str) {
        self.signature.push('s');
        put_text(&mut self.bytes, value);
    }

    /// An array of `(iay)`: address families and addresses.
    pub(super) fn addresses<'a>(&mut self, addresses: impl Iterator<Item = (i32, &'a [u8])>) {
        self.signature += "a(iay)";
        self.structs(addresses, |bytes, (family, address)| {
            put_int(bytes, family);
            put_len(bytes, address.len());
            bytes.extend_from_slice(address);
        });
    }

    /// An array of `(sb)`.
    pub(super) fn flagged_texts<'a>(&mut self, texts: impl Iterator<Item = (&'a str, bool)>) {
        self.signature += "a(sb)";
        self.structs(texts, |bytes, (text, flag)| {
            put_text(bytes, text);
            put_int(bytes, flag.into());
        });
    }

    /// The array's length leaves out the padding before its first struct.
    fn structs<T>(&mut self, items: impl Iterator<Item = T>, put: impl Fn(&mut Vec<u8>, T)) {
        put_len(&mut self.bytes, 0);
        let len_at = self.bytes.len() - 4;
        pad(&mut self.bytes, 8);
        let begin = self.bytes.len();
        for item in items {
            pad(&mut self.bytes, 8);
            put(&mut self.bytes, item);
        }
        let len = (self.bytes.len() - begin) as u32;
        self.bytes[len_at..len_at + 4].copy_from_slice(&len.to_le_bytes());
    }
}

/// A whole method call.
fn message(serial: u32, call: &Call<'_>, body: &Body) -> Vec<u8> {
    let mut fields = Vec::new();
    let texts = [
        (1, 'o', call.path),
        (2, 's', call.interface),
        (3, 's', call.member),
        (6, 's', call.destination),
    ];
    for (code, kind, value) in texts {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind as u8, 0]);
        put_text(&mut fields, value);
    }
    if !body.signature.is_empty() {
        pad(&mut fields, 8);
        fields.extend([8, 1, b'g', 0, body.signature.len() as u8]);
        fields.extend(body.signature.bytes());
        fields.push(0);
    }
    let mut message = vec![b'l', METHOD_CALL, 0, 1];
    put_len(&mut message, body.bytes.len());
    message.extend(serial.to_le_bytes());
    put_len(&mut message, fields.len());
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(&body.bytes);
    message
}

fn pad(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}

fn put_int(bytes: &mut Vec<u8>, value: i32) {
    pad(bytes, 4);
    bytes.extend(value.to_le_bytes());
}

fn put_len(bytes: &mut Vec<u8>, len: usize) {
    pad(bytes, 4);
    // Our messages are short.
    bytes.extend((len as u32).to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_len(bytes, text.len());
    bytes.extend(text.bytes());
    bytes.push(0);
}

/// What of a message says whose answer it is.
struct Answer {
    kind: u8,
    reply_to: Option<u32>,
    error_name: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    /// Reads a header up to the end of its fields. `None`: it is none.
    fn read(head: &[u8], body: Vec<u8>) -> Option<Answer> {
        let mut answer = Answer {
            kind: head[1],
            reply_to: None,
            error_name: None,
            body,
        };
        let mut reader = Reader {
            bytes: head,
            at: FIXED_LEN,
        };
        while reader.at < head.len() {
            reader.align(8);
            let code = reader.byte()?;
            match (code, reader.signature()?) {
                (5, "u") => answer.reply_to = Some(reader.int()?),
                (4, "s") => answer.error_name = Some(reader.text()?.to_owned()),
                (_, "s" | "o") => drop(reader.text()?),
                (_, "u") => drop(reader.int()?),
                (_, "g") => drop(reader.signature()?),
                // A field of a later version: there is no telling where it ends.
                _ => break,
            }
        }
        Some(answer)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    fn align(&mut self, alignment: usize) {
        self.at = self.at.next_multiple_of(alignment);
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn int(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.int()?;
        let text = self.take(usize::try_from(len).ok()?)?;
        self.byte()?;
        std::str::from_utf8(text).ok()
    }

    fn signature(&mut self) -> Option<&'a str> {
        let len = self.byte()?;
        let text = self.take(len.into())?;
        self.byte()?;
        std::str::from_utf8(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arguments_are_aligned_as_the_specification_says() {
        let mut body = Body::default();
        body.int(7);
        body.addresses([(2, &[10, 0, 0, 1][..]), (2, &[1][..])].into_iter());
        assert_eq!(body.signature, "ia(iay)");
        let first = [2, 0, 0, 0, 4, 0, 0, 0, 10, 0, 0, 1, 0, 0, 0, 0];
        let second = [2, 0, 0, 0, 1, 0, 0, 0, 1];
        assert_eq!(body.bytes, [&[7, 0, 0, 0, 25, 0, 0, 0][..], &first, &second].concat());
        let mut body = Body::default();
        body.flagged_texts([("a", true)].into_iter());
        body.flag(false);
        let array = [12, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'a', 0, 0, 0];
        assert_eq!(body.bytes[..16], array);
        let mut body = Body::default();
        body.flagged_texts(std::iter::empty());
        assert_eq!(body.bytes, [0; 8]);
    }

    #[test]
    fn answers_are_told_by_the_call_they_answer() {
        let head = [
            &[b'l', ERROR, 0, 1, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0][..],
            &[5, 1, b'u', 0, 3, 0, 0, 0],
            &[8, 1, b'g', 0, 1, b's', 0, 0],
            &[4, 1, b's', 0, 3, 0, 0, 0, b'a', b'.', b'b', 0],
        ]
        .concat();
        let answer = Answer::read(&head, Vec::new()).expect("well formed");
        assert_eq!((answer.kind, answer.reply_to), (ERROR, Some(3)));
        assert_eq!(answer.error_name.as_deref(), Some("a.b"));
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(head in prop::collection::vec(any::<u8>(), FIXED_LEN..80)) {
            let _ = Answer::read(&head, Vec::new());
        }
    }
}
