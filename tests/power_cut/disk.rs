//! A disk that knows what of it would survive a power cut. The model alone; `mount.rs` lets a process use it.
//!
//! It keeps everything twice: as written, which is what a process sees, and as durable. A file's data and size become durable by a
//! sync of the file, a name by a sync of its directory, and neither does the other's work. A rename is one change, also between two
//! directories. What was not synced is lost at a cut, or kept in part, as [`Kept`] says: a disk may keep any of it.
//!
//! It is harsher than most: ext4 makes a new file's name durable with its data.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use fuser::Errno;

/// A file's or a directory's number; never given twice.
pub(crate) type Ino = u64;

pub(crate) const ROOT: Ino = 1;

/// What a disk keeps or loses as a whole.
const SECTOR_BYTES: usize = 4096;

/// What a cut leaves of that which was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing.
    Nothing,
    /// The oldest of each file's writes and of all names; the write in between is torn.
    Oldest,
    /// Names up to some moment, and any sectors.
    Sectors,
    /// Names and sizes, with zeros in place of data.
    Sizes,
    /// Names alone: what was new is empty.
    Names,
}

impl Kept {
    pub(crate) const ALL: [Kept; 5] = [
        Kept::Nothing,
        Kept::Oldest,
        Kept::Sectors,
        Kept::Sizes,
        Kept::Names,
    ];
}

/// Chance that can be had again: splitmix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// The disk.
pub(crate) struct Disk {
    nodes: BTreeMap<Ino, Node>,
    next: Ino,
    /// Changes of names that are not durable yet, in order.
    journal: Vec<Naming>,
}

struct Node {
    mode: u16,
    /// Its directory and its name there, as it was last named.
    parent: Ino,
    name: OsString,
    content: Content,
}

enum Content {
    File(File),
    Directory(Directory),
}

#[derive(Default)]
struct File {
    written: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Resize(usize),
}

#[derive(Default)]
struct Directory {
    written: BTreeMap<OsString, Ino>,
    durable: BTreeMap<OsString, Ino>,
}

/// Names given and taken at once: a directory, a name there, and what bears it from now on.
struct Naming(Vec<(Ino, OsString, Option<Ino>)>);

/// What `stat` says.
pub(crate) struct Stat {
    pub(crate) bytes: u64,
    pub(crate) is_directory: bool,
    pub(crate) mode: u16,
}

impl Disk {
    /// An empty one.
    pub(crate) fn new() -> Disk {
        let root = Node {
            mode: 0o700,
            parent: ROOT,
            name: OsString::new(),
            content: Content::Directory(Directory::default()),
        };
        Disk {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
            journal: Vec::new(),
        }
    }

    pub(crate) fn stat(&self, ino: Ino) -> Result<Stat, Errno> {
        let node = self.nodes.get(&ino).ok_or(Errno::ENOENT)?;
        let (bytes, is_directory) = match &node.content {
            Content::File(file) => (file.written.len() as u64, false),
            Content::Directory(_) => (0, true),
        };
        Ok(Stat {
            bytes,
            is_directory,
            mode: node.mode,
        })
    }

    /// Where it lies, as last named, below the root.
    pub(crate) fn path(&self, mut ino: Ino) -> PathBuf {
        let mut names = Vec::new();
        while let Some(node) = self.nodes.get(&ino).filter(|_| ino != ROOT) {
            names.push(&node.name);
            ino = node.parent;
        }
        names.into_iter().rev().collect()
    }

    pub(crate) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Ino, Errno> {
        let named = self.directory(parent)?.written.get(name);
        named.copied().ok_or(Errno::ENOENT)
    }

    pub(crate) fn list(&self, ino: Ino) -> Result<Vec<(OsString, Ino)>, Errno> {
        let names = self.directory(ino)?.written.iter();
        Ok(names.map(|(name, ino)| (name.clone(), *ino)).collect())
    }

    pub(crate) fn read(&self, ino: Ino, at: usize, bytes: usize) -> Result<&[u8], Errno> {
        let written = match self.nodes.get(&ino).map(|node| &node.content) {
            Some(Content::File(file)) => &file.written,
            Some(Content::Directory(_)) => return Err(Errno::EISDIR),
            None => return Err(Errno::ENOENT),
        };
        let at = at.min(written.len());
        Ok(&written[at..written.len().min(at + bytes)])
    }

    pub(crate) fn make_file(&mut self, parent: Ino, name: &OsStr, mode: u16) -> Result<Ino, Errno> {
        self.make(parent, name, mode, Content::File(File::default()))
    }

    pub(crate) fn make_directory(
        &mut self,
        parent: Ino,
        name: &OsStr,
        mode: u16,
    ) -> Result<Ino, Errno> {
        let content = Content::Directory(Directory::default());
        self.make(parent, name, mode, content)
    }

    fn make(
        &mut self,
        parent: Ino,
        name: &OsStr,
        mode: u16,
        content: Content,
    ) -> Result<Ino, Errno> {
        if self.directory(parent)?.written.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let ino = self.next;
        self.next += 1;
        let node = Node {
            mode: mode & 0o7777,
            parent,
            name: name.to_owned(),
            content,
        };
        self.nodes.insert(ino, node);
        self.name(vec![(parent, name.to_owned(), Some(ino))]);
        Ok(ino)
    }

    /// Takes a file's or an empty directory's name away.
    pub(crate) fn remove(
        &mut self,
        parent: Ino,
        name: &OsStr,
        is_directory: bool,
    ) -> Result<(), Errno> {
        let ino = self.lookup(parent, name)?;
        match (&self.directory(ino), is_directory) {
            (Ok(directory), true) if !directory.written.is_empty() => return Err(Errno::ENOTEMPTY),
            (Ok(_), true) | (Err(_), false) => {}
            (Ok(_), false) => return Err(Errno::EISDIR),
            (Err(_), true) => return Err(Errno::ENOTDIR),
        }
        self.name(vec![(parent, name.to_owned(), None)]);
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), Errno> {
        let ino = self.lookup(from.0, from.1)?;
        if let Ok(replaced) = self.lookup(to.0, to.1)
            && self
                .directory(replaced)
                .is_ok_and(|d| !d.written.is_empty())
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.name(vec![
            (from.0, from.1.to_owned(), None),
            (to.0, to.1.to_owned(), Some(ino)),
        ]);
        let node = self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)?;
        (node.parent, node.name) = (to.0, to.1.to_owned());
        Ok(())
    }

    pub(crate) fn write(&mut self, ino: Ino, at: usize, bytes: &[u8]) -> Result<(), Errno> {
        let change = Change::Write {
            at,
            bytes: bytes.to_owned(),
        };
        self.file(ino)?.change(change);
        Ok(())
    }

    pub(crate) fn resize(&mut self, ino: Ino, bytes: usize) -> Result<(), Errno> {
        self.file(ino)?.change(Change::Resize(bytes));
        Ok(())
    }

    pub(crate) fn set_mode(&mut self, ino: Ino, mode: u16) -> Result<(), Errno> {
        self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)?.mode = mode & 0o7777;
        Ok(())
    }

    /// Makes a file's data and size durable, or the names in a directory.
    pub(crate) fn sync(&mut self, ino: Ino) -> Result<(), Errno> {
        if let Ok(file) = self.file(ino) {
            for change in file.unsynced.drain(..) {
                change.apply(&mut file.durable);
            }
            return Ok(());
        }
        self.directory(ino)?;
        // A change that touches another directory too takes with it what came before in that one.
        let mut directories = BTreeSet::from([ino]);
        let mut due: Vec<bool> = vec![false; self.journal.len()];
        for (naming, due) in self.journal.iter().zip(&mut due).rev() {
            *due = naming.0.iter().any(|(d, ..)| directories.contains(d));
            if *due {
                directories.extend(naming.0.iter().map(|(d, ..)| *d));
            }
        }
        let mut due = due.into_iter();
        let (now, later) = std::mem::take(&mut self.journal)
            .into_iter()
            .partition(|_| due.next() == Some(true));
        self.journal = later;
        self.harden(now);
        Ok(())
    }

    /// A sync that fails, as Linux has it: a file's pages count as clean from then on, and never reach the disk.
    pub(crate) fn fail_to_sync(&mut self, ino: Ino) {
        if let Ok(file) = self.file(ino) {
            file.unsynced.clear();
        }
    }

    /// The power is cut: nothing but what is durable is there any more, and what else `kept` says.
    pub(crate) fn cut(&mut self, kept: Kept, dice: &mut Dice) {
        let named = match kept {
            Kept::Nothing => 0,
            Kept::Oldest | Kept::Sectors => dice.below(self.journal.len() + 1),
            Kept::Sizes | Kept::Names => self.journal.len(),
        };
        let mut journal = std::mem::take(&mut self.journal);
        journal.truncate(named);
        self.harden(journal);
        for node in self.nodes.values_mut() {
            match &mut node.content {
                Content::File(file) => file.cut(kept, dice),
                Content::Directory(directory) => directory.written = directory.durable.clone(),
            }
        }
        self.forget_the_nameless();
    }

    fn forget_the_nameless(&mut self) {
        let mut reached = BTreeMap::from([(ROOT, (ROOT, OsString::new()))]);
        let mut waiting = vec![ROOT];
        while let Some(ino) = waiting.pop() {
            for (name, child) in self.list(ino).unwrap_or_default() {
                reached.insert(child, (ino, name));
                waiting.push(child);
            }
        }
        self.nodes.retain(|ino, _| reached.contains_key(ino));
        for (ino, place) in reached {
            if let Some(node) = self.nodes.get_mut(&ino) {
                (node.parent, node.name) = place;
            }
        }
    }

    fn name(&mut self, naming: Vec<(Ino, OsString, Option<Ino>)>) {
        for (directory, name, ino) in &naming {
            if let Ok(directory) = self.directory_mut(*directory) {
                put(&mut directory.written, name, *ino);
            }
        }
        self.journal.push(Naming(naming));
    }

    fn harden(&mut self, journal: Vec<Naming>) {
        for (directory, name, ino) in journal.into_iter().flat_map(|naming| naming.0) {
            if let Ok(directory) = self.directory_mut(directory) {
                put(&mut directory.durable, &name, ino);
            }
        }
    }

    fn file(&mut self, ino: Ino) -> Result<&mut File, Errno> {
        match self.nodes.get_mut(&ino).map(|node| &mut node.content) {
            Some(Content::File(file)) => Ok(file),
            Some(Content::Directory(_)) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn directory(&self, ino: Ino) -> Result<&Directory, Errno> {
        match self.nodes.get(&ino).map(|node| &node.content) {
            Some(Content::Directory(directory)) => Ok(directory),
            Some(Content::File(_)) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn directory_mut(&mut self, ino: Ino) -> Result<&mut Directory, Errno> {
        match self.nodes.get_mut(&ino).map(|node| &mut node.content) {
            Some(Content::Directory(directory)) => Ok(directory),
            Some(Content::File(_)) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }
}

fn put(names: &mut BTreeMap<OsString, Ino>, name: &OsStr, ino: Option<Ino>) {
    match ino {
        Some(ino) => names.insert(name.to_owned(), ino),
        None => names.remove(name),
    };
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.written);
        self.unsynced.push(change);
    }

    fn cut(&mut self, kept: Kept, dice: &mut Dice) {
        let unsynced = std::mem::take(&mut self.unsynced);
        match kept {
            Kept::Nothing | Kept::Names => {}
            Kept::Oldest => {
                let whole = dice.below(unsynced.len() + 1);
                for (n, change) in unsynced.into_iter().enumerate() {
                    match change {
                        change if n < whole => change.apply(&mut self.durable),
                        Change::Write { at, mut bytes } if n == whole => {
                            bytes.truncate(dice.below(bytes.len() + 1));
                            Change::Write { at, bytes }.apply(&mut self.durable);
                        }
                        Change::Write { .. } | Change::Resize(_) => {}
                    }
                }
            }
            Kept::Sectors => {
                for change in unsynced {
                    change.apply_sectors(&mut self.durable, dice);
                }
            }
            Kept::Sizes => {
                for change in unsynced {
                    let bytes = match change {
                        Change::Write { at, bytes } => self.durable.len().max(at + bytes.len()),
                        Change::Resize(bytes) => bytes,
                    };
                    self.durable.resize(bytes, 0);
                }
            }
        }
        self.written = self.durable.clone();
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write { bytes, .. } if bytes.is_empty() => {}
            Change::Write { at, bytes } => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
            Change::Resize(bytes) => content.resize(*bytes, 0),
        }
    }

    /// Of a write, some sectors, cut where the disk's lie; of a resize, all or nothing.
    fn apply_sectors(self, content: &mut Vec<u8>, dice: &mut Dice) {
        match self {
            Change::Write { at, bytes } => {
                let mut from = 0;
                while from < bytes.len() {
                    let room = SECTOR_BYTES - (at + from) % SECTOR_BYTES;
                    let to = bytes.len().min(from + room);
                    if dice.below(2) == 0 {
                        let bytes = bytes[from..to].to_owned();
                        Change::Write {
                            at: at + from,
                            bytes,
                        }
                        .apply(content);
                    }
                    from = to;
                }
            }
            Change::Resize(_) if dice.below(2) == 0 => self.apply(content),
            Change::Resize(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(disk: &Disk, names: &[&str]) -> Option<Vec<u8>> {
        let found = names
            .iter()
            .try_fold(ROOT, |ino, name| disk.lookup(ino, name.as_ref()));
        let read = found.and_then(|ino| disk.read(ino, 0, usize::MAX / 2).map(<[u8]>::to_vec));
        read.ok()
    }

    fn cut(disk: &mut Disk, kept: Kept) {
        disk.cut(kept, &mut Dice(1));
    }

    #[test]
    fn data_and_its_name_survive_each_by_a_sync_of_its_own() {
        for (file_synced, directory_synced, kept, left) in [
            (true, true, Kept::Nothing, Some(&b"data"[..])),
            (false, true, Kept::Nothing, Some(b"")),
            (true, false, Kept::Nothing, None),
            (true, false, Kept::Names, Some(b"data")),
            (false, false, Kept::Names, Some(b"")),
            (false, false, Kept::Sizes, Some(b"\0\0\0\0")),
        ] {
            let mut disk = Disk::new();
            let file = disk.make_file(ROOT, "f".as_ref(), 0o600).expect("made");
            disk.write(file, 0, b"data").expect("written");
            if file_synced {
                disk.sync(file).expect("synced");
            }
            if directory_synced {
                disk.sync(ROOT).expect("synced");
            }
            assert_eq!(content(&disk, &["f"]).as_deref(), Some(&b"data"[..]));
            cut(&mut disk, kept);
            assert_eq!(content(&disk, &["f"]).as_deref(), left, "{kept:?}");
        }
    }

    #[test]
    fn a_rename_between_directories_is_there_whole_or_not_at_all() {
        for synced in [None, Some("a"), Some("b")] {
            let mut disk = Disk::new();
            let a = disk
                .make_directory(ROOT, "a".as_ref(), 0o700)
                .expect("made");
            let b = disk
                .make_directory(ROOT, "b".as_ref(), 0o700)
                .expect("made");
            let file = disk.make_file(a, "f".as_ref(), 0o600).expect("made");
            for ino in [ROOT, a, b, file] {
                disk.sync(ino).expect("synced");
            }
            disk.rename((a, "f".as_ref()), (b, "g".as_ref()))
                .expect("renamed");
            if let Some(name) = synced {
                let ino = disk.lookup(ROOT, name.as_ref()).expect("it is there");
                disk.sync(ino).expect("synced");
            }
            cut(&mut disk, Kept::Nothing);
            let there = (content(&disk, &["a", "f"]), content(&disk, &["b", "g"]));
            assert_eq!(there.0.is_some(), synced.is_none());
            assert_eq!(there.1.is_some(), synced.is_some());
        }
    }

    #[test]
    fn what_a_failed_sync_left_out_no_later_one_makes_durable() {
        let mut disk = Disk::new();
        let file = disk.make_file(ROOT, "f".as_ref(), 0o600).expect("made");
        disk.sync(ROOT).expect("synced");
        disk.write(file, 0, b"lost").expect("written");
        disk.fail_to_sync(file);
        disk.write(file, 4, b"kept").expect("written");
        disk.sync(file).expect("synced");
        cut(&mut disk, Kept::Nothing);
        assert_eq!(
            content(&disk, &["f"]).as_deref(),
            Some(&b"\0\0\0\0kept"[..])
        );
    }

    #[test]
    fn a_directory_that_was_removed_and_not_synced_is_back_with_what_was_in_it() {
        let mut disk = Disk::new();
        let a = disk
            .make_directory(ROOT, "a".as_ref(), 0o700)
            .expect("made");
        let file = disk.make_file(a, "f".as_ref(), 0o600).expect("made");
        disk.write(file, 0, b"data").expect("written");
        for ino in [file, a, ROOT] {
            disk.sync(ino).expect("synced");
        }
        let root = OsStr::new("a");
        disk.remove(a, "f".as_ref(), false).expect("removed");
        disk.remove(ROOT, root, true).expect("removed");
        assert!(disk.lookup(ROOT, root).is_err());
        cut(&mut disk, Kept::Nothing);
        assert_eq!(content(&disk, &["a", "f"]).as_deref(), Some(&b"data"[..]));
    }
}
