//! A Unix socket in the file system: made with its group and mode, taken over from a dead process, removed when it closes; or handed over by
//! whoever keeps it.
//!
//! A file that is no socket, and a socket on which somebody answers, are never touched.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

use super::address::SocketMode;

/// A bound socket.
#[derive(Debug)]
pub(super) struct UnixSocket {
    // In this order: as long as the listener is open, no other file can have its inode.
    _file: Option<SocketFile>,
    listener: UnixListener,
}

impl UnixSocket {
    /// Binds a socket at `path`. Only its owner can connect before it has its group and mode, as the daemon's umask is 077.
    pub(super) async fn bind(
        path: &Path,
        mode: SocketMode,
        group: Option<&str>,
    ) -> io::Result<UnixSocket> {
        let group = group.map(group_id).transpose()?;
        clear(path).await?;
        let listener = UnixListener::bind(path)?;
        let file = SocketFile {
            path: path.to_owned(),
            id: id(&fs::symlink_metadata(path)?),
        };
        if group.is_some() {
            std::os::unix::fs::lchown(path, None, group)
                .map_err(|e| explained(&e, "its group cannot be set"))?;
        }
        fs::set_permissions(path, Permissions::from_mode(mode.bits()))?;
        Ok(UnixSocket {
            _file: Some(file),
            listener,
        })
    }

    /// Takes over a socket that somebody else has bound, who also removes it.
    pub(super) fn handed(listener: std::os::unix::net::UnixListener) -> io::Result<UnixSocket> {
        Ok(UnixSocket {
            _file: None,
            listener: UnixListener::from_std(listener)?,
        })
    }

    /// Waits for the next connection.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

/// The file of a bound socket, removed with it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another daemon may have put its own in the place.
        if !fs::symlink_metadata(&self.path).is_ok_and(|found| id(&found) == self.id) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            warn!(%error, path = %self.path.display(), "failed to remove a socket");
        }
    }
}

/// Makes way: removes the socket that a dead process has left.
async fn clear(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            return match fs::metadata(parent) {
                Ok(_) => Ok(()),
                Err(e) => Err(explained(
                    &e,
                    &format!("the directory {}", parent.display()),
                )),
            };
        }
        Err(e) => return Err(e),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is no socket",
        ));
    }
    match UnixStream::connect(path).await {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A full backlog too is somebody's.
        Ok(_) => return Err(in_use()),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(in_use()),
        Err(e) => return Err(explained(&e, "whether it is in use cannot be told")),
    }
    match fs::symlink_metadata(path) {
        Ok(now) if id(&now) == id(&found) => fs::remove_file(path),
        // Another process has been faster.
        Ok(_) => Err(in_use()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

pub(super) fn group_id(name: &str) -> io::Result<u32> {
    uzers::get_group_by_name(name)
        .map(|group| group.gid())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("ingest.socket_group: there is no group `{name}`"),
            )
        })
}

fn in_use() -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, "address in use")
}

fn explained(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn id(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}
