//! The file with what was not imported: one JSON object a line, readable by its owner alone, since it holds what was to be sent.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::portion::Rejected;
use crate::cli::file;
use crate::queue::files;

/// The file, made when there is something to write.
#[derive(Debug)]
pub(super) struct Rejects {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
}

impl Rejects {
    /// For an import that begins: there must be no such file, since it would be another import's.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub(super) fn begin(path: &Path) -> io::Result<Rejects> {
        match path.symlink_metadata() {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => Ok(Rejects {
                path: path.to_owned(),
                file: None,
                bytes: 0,
            }),
        }
    }

    /// For an import that goes on with the file that it has made, and had written so many bytes: what was written behind them was not yet accounted for. Where
    /// somebody has taken the file away, another one is begun.
    pub(super) fn go_on(path: &Path, bytes: u64) -> io::Result<Rejects> {
        let mut rejects = Rejects {
            path: path.to_owned(),
            file: None,
            bytes: 0,
        };
        let mut file = match OpenOptions::new().write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(rejects),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() < bytes {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is shorter than the import had left it",
            ));
        }
        file.set_len(bytes)?;
        file.seek(SeekFrom::Start(bytes))?;
        rejects.file = Some(file);
        rejects.bytes = bytes;
        Ok(rejects)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How long the file is.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes these, and returns once they are on disk.
    pub(super) fn write(&mut self, rejected: &[Rejected]) -> io::Result<()> {
        if rejected.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        for rejected in rejected {
            serde_json::to_writer(&mut text, rejected)?;
            text.push(b'\n');
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = file::create(&self.path)?;
                files::sync_parent(&self.path)?;
                self.file.insert(file)
            }
        };
        file.write_all(&text)?;
        file.sync_data()?;
        self.bytes += text.len() as u64;
        Ok(())
    }
}
