//! What proves to the token endpoint who asks: a JWT that names the client, lives for a minute and is signed with its key. Pure
//! but for the key file; time is an argument. Nothing here shows the key or an assertion.

use std::fmt;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::Signer;
use serde::Serialize;
use uuid::Uuid;
use zeroize::{Zeroize as _, Zeroizing};

use super::super::SetupError;

/// An assertion was issued a little before now, by clocks that differ a little.
const ISSUED_BEFORE: i64 = 5;
/// And it ends a minute after that, the longest life that is accepted.
const EXPIRES_AFTER: i64 = 55;

/// Makes assertions for one client.
pub(super) struct Issuer {
    client_id: String,
    key_id: String,
    audience: String,
    signer: Box<dyn Signer>,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Issuer")
    }
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    typ: &'static str,
    kid: &'a str,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
    jti: String,
}

impl Issuer {
    /// Assertions of `client_id` for the server `audience`, signed with the RSA key in a PEM file.
    ///
    /// # Errors
    /// The file holds no such key. The error names it and shows nothing of it.
    pub(super) fn new(
        client_id: &str,
        key_id: &str,
        audience: String,
        private_key_file: &Path,
    ) -> Result<Issuer, SetupError> {
        let wrong = |why: &dyn fmt::Display| {
            let file = private_key_file.display();
            SetupError(format!("segment.oauth.private_key_file {file}: {why}"))
        };
        let pem = Zeroizing::new(fs::read(private_key_file).map_err(|e| wrong(&e))?);
        // The parser's own words may quote the file.
        let mut key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| wrong(&"holds no private key in PEM"))?;
        let signing_key = any_supported_type(&key);
        key.zeroize();
        let signer = signing_key
            .ok()
            .and_then(|key| key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]))
            .ok_or_else(|| wrong(&"holds no RSA private key of 2048 bits or more"))?;
        Ok(Issuer {
            client_id: client_id.into(),
            key_id: key_id.into(),
            audience,
            signer,
        })
    }

    /// An assertion for use at `now`, by the server's clock, in seconds since 1970. None where the key does not sign.
    pub(super) fn assertion(&self, now: i64) -> Option<Zeroizing<String>> {
        let header = Header {
            alg: "RS256",
            typ: "JWT",
            kid: &self.key_id,
        };
        let part = |json: serde_json::Result<Vec<u8>>| {
            URL_SAFE_NO_PAD.encode(json.expect("strings and numbers become JSON"))
        };
        let mut assertion = Zeroizing::new(part(serde_json::to_vec(&header)));
        assertion.push('.');
        assertion.push_str(&part(serde_json::to_vec(&self.claims(now, Uuid::new_v4()))));
        let signature = self.signer.sign(assertion.as_bytes()).ok()?;
        assertion.push('.');
        assertion.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Some(assertion)
    }

    fn claims(&self, now: i64, id: Uuid) -> Claims<'_> {
        Claims {
            iss: &self.client_id,
            sub: &self.client_id,
            aud: &self.audience,
            iat: now - ISSUED_BEFORE,
            exp: now + EXPIRES_AFTER,
            jti: id.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST_KEY: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/test-only-rsa-key.pem"
    );

    const ELLIPTIC_KEY: &str = include_str!("../../../../tests/fixtures/test-only-ec-key.pem");

    fn issuer(file: &Path) -> Result<Issuer, SetupError> {
        Issuer::new("client", "key", "https://oauth2.segment.io".into(), file)
    }

    #[test]
    fn an_assertion_claims_to_be_its_client_for_a_minute() {
        let issuer = issuer(Path::new(TEST_KEY)).expect("a key");
        let claims = issuer.claims(1_000_000, Uuid::nil());
        let expected = Claims {
            iss: "client",
            sub: "client",
            aud: "https://oauth2.segment.io",
            iat: 999_995,
            exp: 1_000_055,
            jti: Uuid::nil().to_string(),
        };
        assert_eq!(claims, expected);
        assert!(claims.exp - claims.iat <= 60);
    }

    #[test]
    fn no_two_assertions_are_the_same() {
        let issuer = issuer(Path::new(TEST_KEY)).expect("a key");
        let assertion = || issuer.assertion(1_000_000).expect("signed");
        assert_ne!(assertion(), assertion());
    }

    #[test]
    fn keys_are_read_in_both_of_their_forms() {
        let pkcs8 = PrivateKeyDer::from_pem_file(TEST_KEY).expect("a key");
        // Behind its header a PKCS #8 key is a PKCS #1 key.
        let pkcs1 = base64::engine::general_purpose::STANDARD.encode(&pkcs8.secret_der()[26..]);
        let label = "RSA PRIVATE KEY";
        let pem = format!("-----BEGIN {label}-----\n{pkcs1}\n-----END {label}-----\n");
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), pem).expect("written");
        issuer(file.path()).expect("a key");
    }

    #[test]
    fn a_file_without_an_rsa_key_is_named_and_not_shown() {
        for (content, expected) in [
            ("", "holds no private key in PEM"),
            ("PRIVATE STUFF", "holds no private key in PEM"),
            (
                "-----BEGIN PRIVATE KEY-----\nPRIVATE*STUFF\n-----END PRIVATE KEY-----\n",
                "holds no private key in PEM",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "holds no RSA private key",
            ),
            (ELLIPTIC_KEY, "holds no RSA private key"),
        ] {
            let file = tempfile::NamedTempFile::new().expect("a file");
            fs::write(file.path(), content).expect("written");
            let said = issuer(file.path()).expect_err(expected).to_string();
            let begin = format!(
                "failed to set delivery up: segment.oauth.private_key_file {}: {expected}",
                file.path().display()
            );
            assert!(said.starts_with(&begin), "{said}");
            assert!(!said.contains("STUFF"), "{said}");
        }
    }
}
