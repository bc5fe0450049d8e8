//! What a database's files look like from outside. Never opens one, and never changes a file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::words::counted;

/// What shows that a database's files are damaged, whatever sled makes of them: it opens many a damaged file as an empty database,
/// or as what came before the damage. None is no proof: what lies within a segment is not looked at.
///
/// # Errors
/// The files cannot be read.
pub(in crate::queue) fn visible_damage(dir: &Path) -> io::Result<Option<String>> {
    let conf = dir.join("conf");
    if conf.exists() && !is_conf(&fs::read(conf)?) {
        return Ok(Some("its file conf is damaged".to_owned()));
    }
    let db = match File::open(dir.join("db")) {
        Ok(db) => db,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(Some("its file db is gone".to_owned()));
        }
        Err(e) => return Err(e),
    };
    let bytes = db.metadata()?.len();
    if bytes == 0 {
        return Ok(Some("its file db is empty".to_owned()));
    }
    let (mut good, mut bad) = (0u64, 0u64);
    for at in (0..bytes).step_by(SEGMENT_BYTES) {
        let mut head = [0; SEGMENT_HEAD_BYTES];
        match db.read_exact_at(&mut head, at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => bad += 1,
            Err(e) => return Err(e),
            // A segment that is not used.
            Ok(()) if head == [0; SEGMENT_HEAD_BYTES] => {}
            Ok(()) if is_segment_head(&head) => good += 1,
            Ok(()) => bad += 1,
        }
    }
    let all = bytes.div_ceil(SEGMENT_BYTES as u64);
    Ok(match (good, bad) {
        (0, _) => Some(format!(
            "nothing of its file db is sled's, in {}",
            counted(bytes, "byte")
        )),
        (_, 0) => None,
        _ => Some(format!(
            "of its file db {bad} of {} cannot be read",
            counted(all, "segment")
        )),
    })
}

/// sled's, of its default (0.34.7, src/config.rs).
const SEGMENT_BYTES: usize = 512 * 1024;
/// A checksum, the segment's place in the log, and what was stable when it was begun (0.34.7, src/pagecache/logger.rs).
const SEGMENT_HEAD_BYTES: usize = 20;

fn is_segment_head(head: &[u8; SEGMENT_HEAD_BYTES]) -> bool {
    let (sum, rest) = head.split_at(4);
    (!crc32fast::hash(rest)).to_le_bytes() == sum
}

fn is_conf(content: &[u8]) -> bool {
    let Some((text, sum)) = content.split_last_chunk::<4>() else {
        return false;
    };
    !text.is_empty() && crc32fast::hash(text).to_le_bytes() == *sum
}

#[cfg(test)]
mod tests {
    use super::super::{Barrier, Changes, Store};
    use super::*;

    #[test]
    fn files_that_sled_would_open_as_an_empty_database_show_their_damage() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(dir.path(), &Barrier::os()).expect("opened");
        let damage = || visible_damage(dir.path()).expect("read");
        // As soon as it is open, and while it grows over several segments.
        assert_eq!(damage(), None);
        for n in 0..3u8 {
            let mut changes = Changes::default();
            for m in 0..250u8 {
                changes.put(&[n, m], &[m; 3000]);
            }
            store.commit(changes).expect("committed");
            assert_eq!(damage(), None);
        }
        drop(store);
        assert_eq!(damage(), None);
        let db = fs::read(dir.path().join("db")).expect("read");
        assert!(db.len() > 2 * SEGMENT_BYTES, "{}", db.len());
        let conf = fs::read(dir.path().join("conf")).expect("read");
        let mut overwritten = db.clone();
        overwritten[SEGMENT_BYTES..2 * SEGMENT_BYTES].fill(0xa5);
        let random: Vec<u8> = (0..db.len()).map(|n| (n * 7 % 251) as u8).collect();
        for (name, good, bad, said) in [
            ("db", &db, vec![], "its file db is empty"),
            ("db", &db, vec![0; db.len()], "nothing of its file db"),
            ("db", &db, random, "nothing of its file db"),
            ("db", &db, overwritten, "of its file db 1 of "),
            ("conf", &conf, vec![], "its file conf is damaged"),
            (
                "conf",
                &conf,
                b"random bytes".to_vec(),
                "its file conf is damaged",
            ),
        ] {
            fs::write(dir.path().join(name), bad).expect("written");
            let found = damage().expect("damage");
            assert!(found.starts_with(said), "{found}");
            fs::write(dir.path().join(name), good).expect("written");
            assert_eq!(damage(), None);
        }
        fs::remove_file(dir.path().join("db")).expect("removed");
        assert_eq!(damage().as_deref(), Some("its file db is gone"));
    }
}
