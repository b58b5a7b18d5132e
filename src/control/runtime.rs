//! The control thread's runtime, and the only module that knows tokio-uring.
//!
//! `tokio_uring::start` is a tokio current-thread runtime whose file operations go through a ring of its own, so the
//! latency log is written without blocking the thread that answers handshakes. Where the kernel refuses io_uring, the
//! same futures run on plain tokio and the file is written by its blocking pool.

use std::future::Future;
use std::io::{self, Write};
use std::path::Path;

/// Which runtime the control thread runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// tokio-uring.
    Uring,
    /// Plain tokio.
    Tokio,
}

impl Runtime {
    /// Runs `main` to its end on this thread.
    pub fn block_on<T>(self, main: impl Future<Output = T>) -> io::Result<T> {
        match self {
            Runtime::Uring => Ok(tokio_uring::start(main)),
            Runtime::Tokio => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                Ok(tokio::task::LocalSet::new().block_on(&runtime, main))
            }
        }
    }
}

/// A file that grows at its end.
pub struct LogFile {
    handle: Handle,
    len: u64,
}

enum Handle {
    Uring(tokio_uring::fs::File),
    Tokio(std::fs::File),
}

impl LogFile {
    /// Creates the file, or empties it.
    pub async fn create(runtime: Runtime, path: &Path) -> io::Result<LogFile> {
        let handle = match runtime {
            Runtime::Uring => Handle::Uring(tokio_uring::fs::File::create(path).await?),
            Runtime::Tokio => Handle::Tokio(std::fs::File::create(path)?),
        };
        Ok(LogFile { handle, len: 0 })
    }

    /// Writes `bytes` behind everything that was written before.
    pub async fn append(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let len = bytes.len() as u64;
        match &self.handle {
            Handle::Uring(file) => file.write_all_at(bytes, self.len).await.0?,
            Handle::Tokio(file) => {
                let mut file = file.try_clone()?;
                tokio::task::spawn_blocking(move || file.write_all(&bytes))
                    .await
                    .map_err(io::Error::other)??;
            }
        }
        self.len += len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_lines_follow_each_other_on_both_runtimes() {
        for runtime in [Runtime::Uring, Runtime::Tokio] {
            let path = std::env::temp_dir().join(format!("ringway-log-{runtime:?}-{}", std::process::id()));
            let written = std::panic::catch_unwind(|| {
                runtime.block_on(async {
                    let mut log = LogFile::create(runtime, &path).await?;
                    log.append(b"one\n".to_vec()).await?;
                    log.append(b"two\n".to_vec()).await
                })
            });
            let Ok(written) = written else {
                println!("skipped on {runtime:?}: the kernel grants no io_uring");
                continue;
            };
            written.expect("the runtime starts").expect("the file can be written");
            assert_eq!(std::fs::read(&path).expect("the file exists"), b"one\ntwo\n");
            std::fs::remove_file(&path).expect("the file can be removed");
        }
    }
}
