//! A file without a name that lives in memory and can't be changed any more: memfd_create(2) and its seals (fcntl(2)).

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, Write};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use zeroize::Zeroizing;

const SEALS: libc::c_int = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;

/// Has `write` fill such a file, and seals it. What is written goes by way of one buffer, which is wiped.
///
/// # Errors
/// Those of `write`; what memfd_create(2) and write(2) say.
pub fn sealed(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<OwnedFd> {
    let mut file = create()?;
    let mut writer = BufWriter::with_capacity(64 * 1024, &mut file);
    let result = write(&mut writer).and_then(|()| writer.flush());
    // The buffer's memory: it is in the writer's hands, so it is overwritten by way of it once nothing is in it.
    wipe(writer);
    result?;
    file.rewind()?;
    // SAFETY: takes no pointers.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

/// Reads all of a file that [`sealed`] made.
///
/// # Errors
/// `InvalidData`: it is none. What read(2) says.
pub fn read(fd: OwnedFd) -> io::Result<Zeroizing<Vec<u8>>> {
    // SAFETY: takes no pointers.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & SEALS != SEALS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a sealed memory file"));
    }
    let mut file = File::from(fd);
    file.rewind()?;
    // Room for everything from the start: a vector that grows would leave copies behind.
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(len + 1));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn create() -> io::Result<File> {
    let open = |more| {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | more;
        // SAFETY: the name is a zero-terminated string that lives for ever.
        match unsafe { libc::memfd_create(c"ringway".as_ptr(), flags) } {
            fd if fd < 0 => Err(io::Error::last_os_error()),
            // SAFETY: memfd_create(2) just returned this descriptor, so nobody else owns it.
            fd => Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) })),
        }
    };
    // Nobody may execute it; kernels before 6.3 don't know the wish.
    match open(libc::MFD_NOEXEC_SEAL) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0),
        result => result,
    }
}

/// Overwrites an empty buffer's memory before it is given back: as many zeros as fit, which are then taken out unwritten.
fn wipe(mut writer: BufWriter<&mut File>) {
    let room = writer.capacity() - writer.buffer().len();
    // Not flushed: one byte less than the capacity stays in the buffer.
    let _ = writer.write(&Zeroizing::new(vec![0; room.saturating_sub(1)])[..]);
    let (_, rest) = writer.into_parts();
    drop(rest.map(Zeroizing::new));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_cannot_be_changed() {
        let text = vec![b'x'; 200_000];
        let fd = sealed(|out| out.write_all(&text)).unwrap();
        let mut file = File::from(fd.try_clone().unwrap());
        let changed = file.write(b"y").unwrap_err();
        assert_eq!(changed.raw_os_error(), Some(libc::EPERM));
        assert_eq!(*read(fd).unwrap(), text);
    }

    #[test]
    fn a_file_that_anybody_could_have_changed_is_refused() {
        let error = read(File::open("/dev/null").unwrap().into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(
            read(create().unwrap().into()).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn what_could_not_be_written_is_no_file() {
        assert!(sealed(|_| Err(io::ErrorKind::InvalidInput.into())).is_err());
    }
}
