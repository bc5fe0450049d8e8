//! Files for events: new ones, which only their owner can read, since they hold what was to be sent.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::EX_CANTCREAT;
use super::admin::Failure;

/// Makes a file; never writes over one that is there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// As [`create`], for the file that `flag` names.
pub(super) fn create_for(flag: &str, path: &Path) -> Result<File, Failure> {
    create(path).map_err(|error| {
        let path = path.display();
        let message = format!(
            "failed to make {path}: {error}. Name a new file with {flag}, in a directory that you can write"
        );
        Failure::new(EX_CANTCREAT, message)
    })
}
