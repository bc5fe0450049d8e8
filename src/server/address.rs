//! Where applications post, as an operator writes it: `ip:port` or `unix:/path`. Pure.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// What a Unix socket's path is written behind.
const UNIX_PREFIX: &str = "unix:";

/// One address of the ingest listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket at an absolute path.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let Some(path) = text.strip_prefix(UNIX_PREFIX) else {
            return text.parse().map(Address::Tcp).map_err(|_| {
                format!("`{text}` is neither `ip:port`, such as `127.0.0.1:7346`, nor `unix:/path`")
            });
        };
        let path = PathBuf::from(path);
        if !path.is_absolute() || path.file_name().is_none() {
            return Err(format!(
                "`{text}` must name a socket by its absolute path, such as `unix:/run/segspool/ingest.sock`"
            ));
        }
        Ok(Address::Unix(path))
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Tcp(address)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Address, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Who may connect to a Unix socket: its permission bits, written in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// The bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl Default for SocketMode {
    /// The owner and the group.
    fn default() -> SocketMode {
        SocketMode(0o660)
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<SocketMode, String> {
        let is_octal = !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        match u32::from_str_radix(text, 8) {
            Ok(bits) if is_octal && bits <= 0o777 => Ok(SocketMode(bits)),
            _ => Err(format!(
                "`{text}` is no mode in octal between \"0000\" and \"0777\", such as \"0660\""
            )),
        }
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<SocketMode, D::Error> {
        // A number would be read as decimal.
        let text = String::deserialize(from).map_err(|_| {
            serde::de::Error::custom("a mode is a string in octal, such as \"0660\"")
        })?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_as_it_is_written() {
        for text in [
            "127.0.0.1:7346",
            "[::1]:7346",
            "unix:/run/segspool/ingest.sock",
        ] {
            assert_eq!(
                text.parse::<Address>().expect("an address").to_string(),
                text
            );
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for (text, expected) in [
            ("localhost:7346", "such as `127.0.0.1:7346`"),
            ("127.0.0.1", "such as `127.0.0.1:7346`"),
            ("/run/segspool.sock", "nor `unix:/path`"),
            ("", "nor `unix:/path`"),
            ("unix:ingest.sock", "absolute path"),
            ("unix:./ingest.sock", "absolute path"),
            ("unix:", "absolute path"),
            ("unix:/", "absolute path"),
        ] {
            let error = text.parse::<Address>().expect_err(text);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_mode_is_octal() {
        for (text, expected) in [
            ("0660", Some(0o660)),
            ("660", Some(0o660)),
            ("0777", Some(0o777)),
            ("0", Some(0)),
            ("1777", None),
            ("0680", None),
            ("+660", None),
            ("0o660", None),
            ("", None),
        ] {
            let mode = text.parse::<SocketMode>().ok().map(SocketMode::bits);
            assert_eq!(mode, expected, "{text}");
        }
    }
}
