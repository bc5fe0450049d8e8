//! Secrets that systemd hands over: a setting that names a file may say `credential:NAME` in place of a path.
//!
//! What it names is `$CREDENTIALS_DIRECTORY/NAME`, where systemd puts what a unit's `LoadCredential=` lists (`systemd.exec`(5)). Of a directory,
//! which segspool.service lists under the name `segspool`, each file is called `segspool_NAME` there. Reads no secret.

use std::env;
use std::path::{Path, PathBuf};

/// The variable with the directory.
const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
const SCHEME: &str = "credential:";
/// What systemd puts before the name of each file of the directory that segspool.service lists.
const OF_DIRECTORY: &str = "segspool_";

/// The file that a setting names.
///
/// # Errors
/// It names a credential, and none of that name was handed over.
pub(super) fn file(named: &Path) -> Result<PathBuf, String> {
    find(named, env::var_os(DIRECTORY).map(PathBuf::from).as_deref())
}

fn find(named: &Path, directory: Option<&Path>) -> Result<PathBuf, String> {
    let Some(name) = named.to_str().and_then(|text| text.strip_prefix(SCHEME)) else {
        return Ok(named.to_owned());
    };
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(format!("`{name}` is no name of a credential"));
    }
    let directory = directory.ok_or_else(|| {
        format!("systemd has handed over no credentials: ${DIRECTORY} is not set")
    })?;
    let candidates = [name.to_owned(), format!("{OF_DIRECTORY}{name}")];
    let mut files = candidates.iter().map(|name| directory.join(name));
    files.find(|file| file.exists()).ok_or_else(|| {
        format!(
            "systemd has handed over no credential `{name}`: put the file {name} into /etc/segspool/credentials, or list it with \
             LoadCredential="
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_found_by_its_name_or_as_a_file_of_the_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["token", "segspool_key"] {
            std::fs::write(dir.path().join(name), name).expect("it can be written");
        }
        for (named, expected) in [
            ("/etc/token", Ok(PathBuf::from("/etc/token"))),
            ("credential:token", Ok(dir.path().join("token"))),
            ("credential:key", Ok(dir.path().join("segspool_key"))),
            ("credential:secret", Err("no credential `secret`")),
            ("credential:", Err("`` is no name")),
            ("credential:../token", Err("`../token` is no name")),
            ("credential:..", Err("`..` is no name")),
        ] {
            match (find(Path::new(named), Some(dir.path())), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{named}"),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                (found, expected) => panic!("{named}: {found:?}, not {expected:?}"),
            }
        }
        let none = find(Path::new("credential:token"), None).expect_err("there is no directory");
        assert!(none.contains("CREDENTIALS_DIRECTORY is not set"), "{none}");
    }
}
