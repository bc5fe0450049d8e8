//! Which profile a path names, and its path at the Profile API. Pure.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// All but what RFC 3986 reserves for nothing: the Profile API may answer 500 to anything else in the clear.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// One resource of one profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    space: String,
    collection: &'static str,
    id_type: String,
    id_value: String,
    resource: &'static str,
    query: Option<String>,
}

/// Why a path names no profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// It has not the form of one.
    Path,
    /// It ends in none of the five resources.
    Resource,
    /// It names a collection other than users and accounts.
    Collection,
    /// Its space cannot be one.
    Space,
    /// It is a short form, and no space is configured.
    NoSpace,
    /// Its id is malformed, and how.
    Id(&'static str),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddressError::Path => {
                "profiles are at /v1/profiles/{type:value}/{resource} and \
                 /v1/spaces/{space}/collections/{users|accounts}/profiles/{type:value}/{resource}"
            }
            AddressError::Resource => {
                "there is no such resource; there are traits, external_ids, events, metadata and links"
            }
            AddressError::Collection => {
                "there is no such collection; there are users and accounts"
            }
            AddressError::Space => "the id of a space is letters, digits, - and _",
            AddressError::NoSpace => {
                "this path stands for the space of profiles.space_id, which is not set"
            }
            AddressError::Id(why) => why,
        })
    }
}

impl std::error::Error for AddressError {}

/// Whether a path is about profiles, right or wrong.
#[must_use]
pub fn is_profile_path(path: &str) -> bool {
    let mut segments = segments(path);
    let (version, kind) = (segments.next(), segments.next());
    version == Some("v1") && matches!(kind, Some("spaces" | "profiles"))
}

/// Whether a text can be the id of a space.
#[must_use]
pub fn is_space_id(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    !text.is_empty() && text.bytes().all(fits)
}

impl Address {
    /// The address that a path and its query give, where the short form stands for `own_space`. `//` collapses, a trailing `/` is
    /// fine.
    ///
    /// # Errors
    /// It names no profile.
    pub fn parse(
        path: &str,
        query: Option<&str>,
        own_space: Option<&str>,
    ) -> Result<Address, AddressError> {
        let segments: Vec<_> = segments(path).collect();
        let (space, collection, id, resource) = match segments[..] {
            ["v1", "profiles", id, resource] => (own_space, "users", id, resource),
            [
                "v1",
                "spaces",
                space,
                "collections",
                collection,
                "profiles",
                id,
                resource,
            ] => (Some(space), collection, id, resource),
            ["v1", "profiles", _] | ["v1", "spaces", _, "collections", _, "profiles", _] => {
                return Err(AddressError::Resource);
            }
            _ => return Err(AddressError::Path),
        };
        let resource = match resource {
            "traits" => "traits",
            "external_ids" => "external_ids",
            "events" => "events",
            "metadata" | "properties" => "metadata",
            "links" => "links",
            _ => return Err(AddressError::Resource),
        };
        let collection = match collection {
            "users" => "users",
            "accounts" => "accounts",
            _ => return Err(AddressError::Collection),
        };
        let space = space.ok_or(AddressError::NoSpace)?;
        if !is_space_id(space) {
            return Err(AddressError::Space);
        }
        let (id_type, id_value) = parse_id(id)?;
        Ok(Address {
            space: space.to_owned(),
            collection,
            id_type,
            id_value,
            resource,
            query: query.filter(|query| !query.is_empty()).map(str::to_owned),
        })
    }

    /// The path at the Profile API, with the query as it came.
    #[must_use]
    pub fn target(&self) -> String {
        let Address {
            space,
            collection,
            id_type,
            id_value,
            resource,
            query,
        } = self;
        let id_type = utf8_percent_encode(id_type, ENCODED);
        let id_value = utf8_percent_encode(id_value, ENCODED);
        let mut target = format!(
            "/v1/spaces/{space}/collections/{collection}/profiles/{id_type}:{id_value}/{resource}"
        );
        if let Some(query) = query {
            target.push('?');
            target.push_str(query);
        }
        target
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

/// The type and the value of an id, decoded.
fn parse_id(segment: &str) -> Result<(String, String), AddressError> {
    let wrong = AddressError::Id;
    let bytes = segment.as_bytes();
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let escapes = (0..bytes.len()).filter(|at| bytes[*at] == b'%');
    if !escapes
        .into_iter()
        .all(|at| is_hex(at + 1) && is_hex(at + 2))
    {
        return Err(wrong("the id has a % that begins no percent-encoding"));
    }
    let id = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| wrong("the id is not UTF-8 when decoded"))?;
    if id.chars().any(char::is_control) {
        return Err(wrong("the id holds a control character"));
    }
    match id.split_once(':') {
        None => Err(wrong(
            "the id is not of the form type:value, such as user_id:u1",
        )),
        Some(("", _)) => Err(wrong("the id has no type before its colon")),
        Some((_, "")) => Err(wrong("the id has no value behind its colon")),
        Some((id_type, value)) => Ok((id_type.to_owned(), value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_path_lead_to_the_api_s_own_with_the_id_encoded_anew() {
        let long = "/v1/spaces/spa_1/collections";
        for (path, query, expected) in [
            (
                "/v1/profiles/user_id:u1/traits",
                None,
                "/users/profiles/user_id:u1/traits",
            ),
            (
                "/v1/profiles/user_id:u1/properties",
                Some(""),
                "/users/profiles/user_id:u1/metadata",
            ),
            (
                "/v1/spaces/spa_1/collections/accounts/profiles/group_id:g/links/",
                Some("limit=2&limit=%20+"),
                "/accounts/profiles/group_id:g/links?limit=2&limit=%20+",
            ),
            (
                "//v1//profiles/email:a+b@example.test/events",
                None,
                "/users/profiles/email:a%2Bb%40example.test/events",
            ),
            (
                "/v1/profiles/user_id%3Aa%2fb%3a%25/external_ids",
                None,
                "/users/profiles/user_id:a%2Fb%3A%25/external_ids",
            ),
            (
                "/v1/profiles/x:../traits",
                None,
                "/users/profiles/x:../traits",
            ),
            (
                "/v1/profiles/a.b c:é/metadata",
                None,
                "/users/profiles/a.b%20c:%C3%A9/metadata",
            ),
        ] {
            assert!(is_profile_path(path));
            let address = Address::parse(path, query, Some("spa_1")).expect(path);
            assert_eq!(address.target(), format!("{long}{expected}"), "{path}");
        }
    }

    #[test]
    fn what_names_no_profile_is_told_why() {
        for (path, expected) in [
            ("/v1/profiles", "profiles are at"),
            ("/v1/spaces/s", "profiles are at"),
            ("/v1/profiles/user_id:u/traits/x", "profiles are at"),
            ("/v1/profiles/user_id:u", "no such resource"),
            ("/v1/profiles/user_id:u/audiences", "no such resource"),
            ("/v1/profiles/user_id:u/Traits", "no such resource"),
            (
                "/v1/spaces/s/collections/things/profiles/a:b/traits",
                "no such collection",
            ),
            (
                "/v1/spaces/../collections/users/profiles/a:b/traits",
                "the id of a space",
            ),
            (
                "/v1/spaces/%2e/collections/users/profiles/a:b/traits",
                "the id of a space",
            ),
            ("/v1/profiles/user_id:u/traits", "profiles.space_id"),
            (
                "/v1/spaces/s/collections/users/profiles/u1/traits",
                "type:value",
            ),
            (
                "/v1/spaces/s/collections/users/profiles/:u1/traits",
                "no type",
            ),
            (
                "/v1/spaces/s/collections/users/profiles/user_id:/traits",
                "no value",
            ),
            (
                "/v1/spaces/s/collections/users/profiles/a:%zz/traits",
                "begins no percent-encoding",
            ),
            (
                "/v1/spaces/s/collections/users/profiles/a:%4/traits",
                "begins no percent-encoding",
            ),
            (
                "/v1/spaces/s/collections/users/profiles/a:%ff/traits",
                "not UTF-8",
            ),
            (
                "/v1/spaces/s/collections/users/profiles/a:%0a/traits",
                "control character",
            ),
        ] {
            let error = Address::parse(path, None, None).expect_err(path);
            assert!(error.to_string().contains(expected), "{path}: {error}");
        }
        for path in ["/v1/batch", "/v2/profiles/a:b/traits", "/profiles", "/"] {
            assert!(!is_profile_path(path), "{path}");
        }
    }
}
