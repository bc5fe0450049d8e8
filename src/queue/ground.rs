//! Looks at the directory that a spool is to lie in, before it is used: what would not work is an error that says why, and what may
//! cost events or secrets one day is a warning. Never changes anything.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Access, access, statfs};
use rustix::process::getuid;
use tracing::warn;

/// Who may do more than look at what the group may look at: others at all, and the group if it may write.
const TOO_OPEN: u32 = 0o027;

/// Finds what would keep a spool from working in `data_dir`, which need not be there yet. `names` are those of what may lie in it.
///
/// # Errors
/// It is no directory, or this user may not work in it.
pub(super) fn check(data_dir: &Path, names: &[&str]) -> io::Result<()> {
    match fs::metadata(data_dir) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => {
            let why = "it is not a directory";
            return Err(io::Error::new(io::ErrorKind::NotADirectory, why));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let Ok(target) = fs::read_link(data_dir) else {
                return Ok(());
            };
            let why = format!("it is a link to {}, and nothing is there", target.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        Err(e) => return Err(e),
    }
    check_access(data_dir)?;
    // A copy that was made by somebody else has another owner throughout.
    names
        .iter()
        .try_for_each(|name| check_access(&data_dir.join(name)))
}

/// Says what is to be known of the place that a spool lies in, whoever chose it.
pub(super) fn warn_of_risks(data_dir: &Path) {
    if let Ok(found) = fs::metadata(data_dir)
        && found.permissions().mode() & TOO_OPEN != 0
    {
        warn!(
            data_dir = %data_dir.display(),
            mode = format!("{:04o}", found.permissions().mode() & 0o7777),
            "others than its owner can get into the data directory, which holds write keys and events; chmod it to 0700"
        );
    }
    if let Ok(found) = statfs(data_dir)
        && let Some((file_system, risk)) = risk(found.f_type as u32)
    {
        warn!(data_dir = %data_dir.display(), file_system, "{risk}");
    }
}

/// Whether this user may do with a file or a directory what the daemon does; yes where there is none.
fn check_access(path: &Path) -> io::Result<()> {
    let Ok(found) = fs::metadata(path) else {
        return Ok(());
    };
    let wanted = match found.is_dir() {
        true => Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
        false => Access::READ_OK | Access::WRITE_OK,
    };
    access(path, wanted).map_err(|error| {
        let error = io::Error::from(error);
        let why = format!(
            "user {} may not write to {}, which is user {}'s with mode {:04o}: {error}",
            getuid().as_raw(),
            path.display(),
            found.uid(),
            found.permissions().mode() & 0o7777
        );
        io::Error::new(error.kind(), why)
    })
}

const IN_MEMORY: &str =
    "the data directory is in memory: what is accepted does not survive a reboot";
const IN_CONTAINER: &str = "the data directory is in the container's own layer, and goes with the container; give it a volume";
const ELSEWHERE: &str = "the data directory is on a network file system: what syncs, renames and locks promise there is not known";
const IN_USER_SPACE: &str = "the data directory is on a FUSE file system: what syncs, renames and locks promise there depends on the program behind it";

/// A file system's name, by the number that Linux has for it (`statfs(2)`), and what there is to say of it.
fn risk(f_type: u32) -> Option<(&'static str, &'static str)> {
    let risk = match f_type {
        0x0102_1994 => ("tmpfs", IN_MEMORY),
        0x8584_58f6 => ("ramfs", IN_MEMORY),
        0x794c_7630 => ("overlay", IN_CONTAINER),
        0x6969 => ("nfs", ELSEWHERE),
        0xff53_4d42 => ("cifs", ELSEWHERE),
        0xfe53_4d42 => ("smb2", ELSEWHERE),
        0x517b => ("smb", ELSEWHERE),
        0x0102_1997 => ("9p", ELSEWHERE),
        0x00c3_6400 => ("ceph", ELSEWHERE),
        0x5346_414f => ("afs", ELSEWHERE),
        0x6573_5546 => ("fuse", IN_USER_SPACE),
        _ => return None,
    };
    Some(risk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_disk_is_fine_and_what_is_none_is_named() {
        // ext4, XFS, btrfs, ZFS, F2FS
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x2fc1_2fc1, 0xf2f5_2010] {
            assert_eq!(risk(local), None, "{local:x}");
        }
        for (f_type, name, said) in [
            (0x6969, "nfs", ELSEWHERE),
            (0xff53_4d42, "cifs", ELSEWHERE),
            (0x6573_5546, "fuse", IN_USER_SPACE),
            (0x0102_1994, "tmpfs", IN_MEMORY),
            (0x794c_7630, "overlay", IN_CONTAINER),
        ] {
            assert_eq!(risk(f_type), Some((name, said)));
        }
    }
}
