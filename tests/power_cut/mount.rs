//! A [`Disk`] mounted with FUSE, so that the real daemon works on it; its power can be cut, and its syncs can be ignored or fail.
//!
//! Once the power is cut nothing reaches the disk any more, and every call fails. The kernel's cache writes through: a write is
//! here when it has returned. Unmounting gives the disk back, as it is.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use tokio::sync::watch;

use crate::disk::{Disk, Ino};

/// What becomes of a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    /// What it is for.
    Done,
    /// It returns, and has done nothing.
    Ignored,
    /// It fails, and what was to be synced never will be.
    Failed,
}

/// What becomes of the sync of a file or a directory, by its path below the disk's root.
pub(crate) type React = dyn FnMut(&Path) -> Sync + Send;

/// A disk in use; it is unmounted when this is dropped.
pub(crate) struct Mount {
    point: PathBuf,
    session: Option<BackgroundSession>,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    is_cut: watch::Sender<bool>,
}

struct State {
    disk: Disk,
    /// Changes and syncs until the power is cut.
    left: Option<u64>,
    react: Box<React>,
    /// Listings that are being read: entries do not move when others are removed meanwhile.
    listings: BTreeMap<u64, Vec<(OsString, Ino)>>,
    next_listing: u64,
}

impl Mount {
    /// Mounts the disk at a directory that is there. The power is cut after so many changes and syncs, if at all.
    ///
    /// # Errors
    /// FUSE is not to be had here.
    pub(crate) fn new(
        disk: Disk,
        point: &Path,
        power: Option<u64>,
        react: Box<React>,
    ) -> io::Result<Mount> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                disk,
                left: power,
                react,
                listings: BTreeMap::new(),
                next_listing: 0,
            }),
            is_cut: watch::Sender::new(false),
        });
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("segspool-power-cut".to_owned()),
            MountOption::DefaultPermissions,
        ];
        let session = fuser::spawn_mount(Fs(Arc::clone(&shared)), point, &config)?;
        Ok(Mount {
            point: point.to_owned(),
            session: Some(session),
            shared,
        })
    }

    /// Whether the power is cut.
    pub(crate) fn is_cut(&self) -> bool {
        *self.shared.is_cut.borrow()
    }

    /// Returns once the power is cut.
    pub(crate) async fn cut(&self) {
        // The sender lives in `shared`.
        let _ = self.shared.is_cut.subscribe().wait_for(|cut| *cut).await;
    }

    /// Takes the disk out, once its last user is gone: the kernel may still be closing the files of a process that has ended.
    pub(crate) fn unmount(mut self) -> Disk {
        let session = self.session.take().expect("it is taken here alone");
        detach(&self.point);
        session.join().expect("a session ends with its mount");
        std::mem::replace(&mut self.shared.lock().disk, Disk::new())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            // A test has failed, and its daemon may be there still.
            detach(&self.point);
            drop(session);
        }
    }
}

/// Has a mount go from sight now, and end with its last user.
fn detach(point: &Path) {
    let _gone = Command::new("umount")
        .arg("--lazy")
        .arg(point)
        .stderr(Stdio::null())
        .status();
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the disk, as long as there is power.
    fn look<T>(&self, look: impl FnOnce(&mut State) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut state = self.lock();
        if state.left == Some(0) {
            return Err(Errno::EIO);
        }
        look(&mut state)
    }

    /// Changes the disk, or syncs it; this may be what the power does not suffice for any more.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut state = self.lock();
        if let Some(left) = &mut state.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.is_cut.send_replace(true);
                return Err(Errno::EIO);
            }
        }
        change(&mut state)
    }

    fn sync(&self, ino: INodeNo, reply: ReplyEmpty) {
        let synced = self.change(|state| {
            let path = state.disk.path(ino.0);
            match (state.react)(&path) {
                Sync::Done => state.disk.sync(ino.0),
                Sync::Ignored => Ok(()),
                Sync::Failed => {
                    state.disk.fail_to_sync(ino.0);
                    Err(Errno::EIO)
                }
            }
        });
        answer(reply, synced);
    }
}

/// Everything changes by way of the kernel, which may so keep what it knows.
const TTL: Duration = Duration::from_secs(3600);
/// How large the disk says it is, and how much of it free, in blocks of 4 KiB.
const BLOCKS: u64 = 1 << 20;

struct Fs(Arc<Shared>);

impl Filesystem for Fs {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.look(|state| {
            let ino = state.disk.lookup(parent.0, name)?;
            attributes(&state.disk, ino)
        });
        enter(reply, found);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.look(|state| attributes(&state.disk, ino.0)) {
            Ok(found) => reply.attr(&TTL, &found),
            Err(e) => reply.error(e),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        _modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = self.0.change(|state| {
            if let Some(mode) = mode {
                state.disk.set_mode(ino.0, mode as u16)?;
            }
            if let Some(size) = size {
                state.disk.resize(ino.0, size as usize)?;
            }
            attributes(&state.disk, ino.0)
        });
        match set {
            Ok(now) => reply.attr(&TTL, &now),
            Err(e) => reply.error(e),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.0.change(|state| {
            let mode = (mode & !umask) as u16;
            let ino = state.disk.make_directory(parent.0, name, mode)?;
            attributes(&state.disk, ino)
        });
        enter(reply, made);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.0.change(|state| {
            let mode = (mode & !umask) as u16;
            let ino = state.disk.make_file(parent.0, name, mode)?;
            attributes(&state.disk, ino)
        });
        match made {
            Ok(made) => reply.created(
                &TTL,
                &made,
                Generation(0),
                FileHandle(0),
                FopenFlags::empty(),
            ),
            Err(e) => reply.error(e),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.0.change(|s| s.disk.remove(parent.0, name, false));
        answer(reply, removed);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.0.change(|s| s.disk.remove(parent.0, name, true));
        answer(reply, removed);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.0.change(|state| {
            if !flags.is_empty() {
                return Err(Errno::EINVAL);
            }
            let to = (new_parent.0, new_name);
            state.disk.rename((parent.0, name), to)
        });
        answer(reply, renamed);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.look(|state| {
            let read = state.disk.read(ino.0, offset as usize, size as usize)?;
            Ok(read.to_vec())
        });
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(e),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self
            .0
            .change(|state| state.disk.write(ino.0, offset as usize, data));
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(e),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _data: bool, reply: ReplyEmpty) {
        self.0.sync(ino, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _data: bool, reply: ReplyEmpty) {
        self.0.sync(ino, reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let listed = self.0.look(|state| {
            let listing = state.disk.list(ino.0)?;
            state.next_listing += 1;
            state.listings.insert(state.next_listing, listing);
            Ok(state.next_listing)
        });
        match listed {
            Ok(listing) => reply.opened(FileHandle(listing), FopenFlags::empty()),
            Err(e) => reply.error(e),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        listing: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.0.look(|state| {
            let listing = state.listings.get(&listing.0).ok_or(Errno::EBADF)?;
            let rest = listing.iter().enumerate().skip(offset as usize);
            for (n, (name, ino)) in rest {
                // One that has been removed meanwhile is no directory any more either.
                let is_directory = state.disk.stat(*ino).is_ok_and(|stat| stat.is_directory);
                if reply.add(INodeNo(*ino), n as u64 + 1, kind(is_directory), name) {
                    break;
                }
            }
            Ok(())
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        listing: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.lock().listings.remove(&listing.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, 4096, 255, 4096);
    }
}

fn attributes(disk: &Disk, ino: Ino) -> Result<FileAttr, Errno> {
    let stat = disk.stat(ino)?;
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    Ok(FileAttr {
        ino: INodeNo(ino),
        size: stat.bytes,
        blocks: stat.bytes.div_ceil(4096) * 8,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(stat.is_directory),
        perm: stat.mode,
        nlink: 1,
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

fn kind(is_directory: bool) -> FileType {
    if is_directory {
        FileType::Directory
    } else {
        FileType::RegularFile
    }
}

fn enter(reply: ReplyEntry, found: Result<FileAttr, Errno>) {
    match found {
        Ok(found) => reply.entry(&TTL, &found, Generation(0)),
        Err(e) => reply.error(e),
    }
}

fn answer(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}
