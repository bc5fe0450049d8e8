//! Who may talk to a listener from a browser. Pure.
//!
//! A page that a user happens to visit can make the user's browser send requests to this machine. Two things give such requests
//! away: an `Origin` header, or a `Sec-Fetch-Site` that is not this one, which no server-side client sends, and, where the page's own name was made to point here (DNS
//! rebinding), a `Host` that is none of ours. The admin listener has a page of its own, the dashboard, and serves no other.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{HOST, HeaderValue, ORIGIN, REFERER};

use super::IngestConfig;

/// The rules of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    /// Names by which it may be called, besides addresses and `localhost`.
    pub(super) hosts: Vec<String>,
    /// Origins whose pages may post; `*` stands for all.
    pub(super) origins: Vec<String>,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It was sent to a name that is none of ours.
    Host,
    /// It comes from a page that may not post.
    Origin,
}

/// What a request to the admin listener is for, as far as it matters who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Opening the dashboard, which holds no data by itself.
    Page,
    /// Reading.
    Read,
    /// Changing something.
    Change,
}

impl Guard {
    /// Those of the ingest listener.
    pub(super) fn new(config: &IngestConfig) -> Guard {
        Guard {
            hosts: config.allowed_hosts.clone(),
            origins: config.cors_origins.clone(),
        }
    }

    /// Those of a path that no page from elsewhere has any business with.
    pub(super) fn without_origins(&self) -> Guard {
        Guard {
            origins: Vec::new(),
            hosts: self.hosts.clone(),
        }
    }

    /// Lets a request in, and says which origin its reply may be shown to.
    pub(super) fn admit<'a>(
        &self,
        headers: &'a HeaderMap,
    ) -> Result<Option<&'a HeaderValue>, Foreign> {
        self.admit_host(headers)?;
        match headers.get(ORIGIN) {
            Some(origin) if self.may_post(origin.as_bytes()) => Ok(Some(origin)),
            Some(_) => Err(Foreign::Origin),
            None if is_for_another_site(headers) && !self.may_post(page(headers)) => {
                Err(Foreign::Origin)
            }
            None => Ok(None),
        }
    }

    /// Lets a request in that comes from an operator: from the dashboard, by hand, or from no browser at all.
    pub(super) fn admit_operator(
        &self,
        headers: &HeaderMap,
        purpose: Purpose,
    ) -> Result<(), Foreign> {
        self.admit_host(headers)?;
        let origin = headers.get(ORIGIN);
        if origin.is_some() && !is_own_origin(headers) {
            return Err(Foreign::Origin);
        }
        // Only a browser sends it, and no page can change it.
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        let admitted = match (purpose, site) {
            (Purpose::Page | Purpose::Read, None | Some(b"none" | b"same-origin")) => true,
            // A link from elsewhere may open the page, and nothing else may show or fetch it.
            (Purpose::Page, Some(_)) => is_opened_by_a_link(headers),
            // No browser. One that names its origin but not its site knows too little to vouch for its page.
            (Purpose::Change, None) => origin.is_none(),
            (Purpose::Change, Some(b"same-origin")) => origin.is_some(),
            (Purpose::Read | Purpose::Change, Some(_)) => false,
        };
        admitted.then_some(()).ok_or(Foreign::Origin)
    }

    fn admit_host(&self, headers: &HeaderMap) -> Result<(), Foreign> {
        let mut hosts = headers.get_all(HOST).iter();
        match hosts.all(|host| self.is_ours(host)) {
            true => Ok(()),
            false => Err(Foreign::Host),
        }
    }

    /// An address needs no name, so nobody can have made a name point here; `localhost` resolves on the machine itself.
    fn is_ours(&self, host: &HeaderValue) -> bool {
        let Ok(host) = host.to_str() else {
            return false;
        };
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _port)) => address,
            None => host.rsplit_once(':').map_or(host, |(name, _port)| name),
        };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        name.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || self
                .hosts
                .iter()
                .any(|ours| ours.eq_ignore_ascii_case(&name))
    }

    fn may_post(&self, origin: &[u8]) -> bool {
        self.origins
            .iter()
            .any(|allowed| allowed == "*" || allowed.as_bytes() == origin)
    }
}

/// Whether a browser asks on behalf of a page from elsewhere. It names no origin where the page only shows a picture, such as a
/// pixel call.
fn is_for_another_site(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    matches!(site, Some(b"cross-site" | b"same-site"))
}

/// Whether the origin is that of this listener, which speaks plain HTTP.
fn is_own_origin(headers: &HeaderMap) -> bool {
    let bytes = |name| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
    let is_one = |name| headers.get_all(name).iter().count() == 1;
    is_one(HOST) && is_one(ORIGIN) && bytes(ORIGIN).strip_prefix(b"http://") == Some(bytes(HOST))
}

/// Whether it becomes a whole tab: not a frame, a picture or a script of somebody else's page.
fn is_opened_by_a_link(headers: &HeaderMap) -> bool {
    let is = |name: &str, value: &[u8]| headers.get(name).is_some_and(|v| v.as_bytes() == value);
    is("sec-fetch-mode", b"navigate") && is("sec-fetch-dest", b"document")
}

/// The origin of the page, as far as the browser tells.
fn page(headers: &HeaderMap) -> &[u8] {
    let referer = headers.get(REFERER).map_or(&b""[..], HeaderValue::as_bytes);
    // `https://host:port/…` up to the third slash.
    let mut slashes = (0..referer.len()).filter(|at| referer[*at] == b'/');
    slashes.nth(2).map_or(referer, |end| &referer[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(guard: &Guard, headers: &[(&str, &str)]) -> Result<bool, Foreign> {
        guard.admit(&map(headers)).map(|origin| origin.is_some())
    }

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                hyper::header::HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                value.parse().expect("a value"),
            );
        }
        map
    }

    #[test]
    fn a_host_is_an_address_localhost_or_a_name_the_operator_gave() {
        let guard = Guard {
            hosts: vec!["relay.internal".into()],
            ..Guard::default()
        };
        for (host, expected) in [
            ("127.0.0.1:7346", Ok(false)),
            ("127.0.0.1", Ok(false)),
            ("[::1]:7346", Ok(false)),
            ("10.0.0.7:7346", Ok(false)),
            ("localhost:7346", Ok(false)),
            ("LOCALHOST.", Ok(false)),
            ("app.localhost", Ok(false)),
            ("Relay.Internal:7346", Ok(false)),
            ("attacker.example", Err(Foreign::Host)),
            ("127.0.0.1.attacker.example", Err(Foreign::Host)),
            ("localhost.attacker.example", Err(Foreign::Host)),
            ("", Err(Foreign::Host)),
        ] {
            assert_eq!(admit(&guard, &[("host", host)]), expected, "{host}");
        }
        assert_eq!(admit(&guard, &[]), Ok(false), "HTTP/1.0 names no host");
        let second = [("host", "localhost"), ("host", "attacker.example")];
        assert_eq!(admit(&guard, &second), Err(Foreign::Host));
    }

    #[test]
    fn a_page_may_post_only_where_the_operator_listed_its_origin() {
        let origin = "https://shop.example.test";
        for (origins, expected) in [
            (&[][..], Err(Foreign::Origin)),
            (&["https://other.example.test"], Err(Foreign::Origin)),
            (&[origin], Ok(true)),
            (&["*"], Ok(true)),
        ] {
            let guard = Guard {
                origins: origins.iter().map(|o| (*o).to_owned()).collect(),
                ..Guard::default()
            };
            assert_eq!(
                admit(&guard, &[("origin", origin)]),
                expected,
                "{origins:?}"
            );
        }
    }

    /// Browsers send no Origin with the request for a picture: any page could once post pixel calls.
    #[test]
    fn a_picture_is_shown_only_to_pages_whose_origin_the_operator_listed() {
        let guard = Guard {
            origins: vec!["https://shop.example.test".into()],
            ..Guard::default()
        };
        let shop = "https://shop.example.test/a/b?c";
        for (site, referer, expected) in [
            ("cross-site", shop, Ok(false)),
            ("same-site", "https://shop.example.test/", Ok(false)),
            (
                "cross-site",
                "https://other.example.test/",
                Err(Foreign::Origin),
            ),
            (
                "cross-site",
                "https://shop.example.test.evil/",
                Err(Foreign::Origin),
            ),
            ("cross-site", "", Err(Foreign::Origin)),
            ("none", "", Ok(false)),
            ("same-origin", "http://127.0.0.1:7346/", Ok(false)),
        ] {
            let headers = [("sec-fetch-site", site), ("referer", referer)];
            assert_eq!(admit(&guard, &headers), expected, "{site} {referer}");
        }
        assert_eq!(
            admit(&guard, &[("sec-fetch-mode", "cors")]),
            Ok(false),
            "Node.js"
        );
    }

    #[test]
    fn the_dashboard_may_read_and_change_and_a_page_from_elsewhere_may_open_it_and_nothing_more() {
        use Purpose::{Change, Page, Read};
        const HOST: (&str, &str) = ("host", "127.0.0.1:7347");
        const OWN: (&str, &str) = ("origin", "http://127.0.0.1:7347");
        const LINK: &[(&str, &str)] = &[
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        let site = |site| ("sec-fetch-site", site);
        let origin = |origin| ("origin", origin);
        let all = &[Page, Read, Change][..];
        let guard = Guard {
            // They are for the ingest listener.
            origins: vec!["https://shop.example.test".into(), "*".into()],
            ..Guard::default()
        };
        for (headers, admitted) in [
            // No browser.
            (vec![HOST], all),
            (vec![], all),
            (vec![HOST, ("sec-fetch-mode", "cors")], all),
            // The dashboard itself.
            (vec![HOST, OWN, site("same-origin")], all),
            (vec![HOST, site("same-origin")], &[Page, Read]),
            (vec![HOST, OWN], &[Page, Read]),
            // The address bar.
            (vec![HOST, site("none")], &[Page, Read]),
            (vec![HOST, OWN, site("none")], &[Page, Read]),
            // A link from elsewhere, and what only looks like one.
            ([&[HOST, site("cross-site")], LINK].concat(), &[Page]),
            ([&[HOST, site("same-site")], LINK].concat(), &[Page]),
            (
                vec![
                    HOST,
                    site("cross-site"),
                    LINK[0],
                    ("sec-fetch-dest", "iframe"),
                ],
                &[],
            ),
            (vec![HOST, site("cross-site"), LINK[1]], &[]),
            (vec![HOST, site("cross-site")], &[]),
            (vec![HOST, site("same-site")], &[]),
            (vec![HOST, site("Same-Origin")], &[]),
            (vec![HOST, site("")], &[]),
            // A form posts with its page's origin, and navigates.
            (
                [
                    &[HOST, site("cross-site"), origin("https://evil.example")],
                    LINK,
                ]
                .concat(),
                &[],
            ),
            // Other origins: another port, scheme, name, or none that has a name.
            (
                vec![HOST, site("same-origin"), origin("http://127.0.0.1:8080")],
                &[],
            ),
            (
                vec![HOST, site("same-origin"), origin("https://127.0.0.1:7347")],
                &[],
            ),
            (
                vec![HOST, site("same-origin"), origin("http://localhost:7347")],
                &[],
            ),
            (vec![HOST, site("same-origin"), origin("null")], &[]),
            (vec![HOST, site("same-origin"), origin("")], &[]),
            (vec![HOST, origin("https://shop.example.test")], &[]),
            (
                vec![
                    HOST,
                    site("same-origin"),
                    OWN,
                    origin("https://evil.example"),
                ],
                &[],
            ),
            (vec![HOST, HOST, OWN, site("same-origin")], &[]),
            (vec![OWN, site("same-origin")], &[]),
        ] {
            let map = map(&headers);
            for purpose in all {
                let expected = match admitted.contains(purpose) {
                    true => Ok(()),
                    false => Err(Foreign::Origin),
                };
                let found = guard.admit_operator(&map, *purpose);
                assert_eq!(found, expected, "{purpose:?} {headers:?}");
            }
        }
        // The name of a page elsewhere, made to point here: to the browser all of it is one origin.
        for purpose in all {
            let headers = map(&[
                ("host", "attacker.example:7347"),
                ("origin", "http://attacker.example:7347"),
                site("same-origin"),
            ]);
            let found = guard.admit_operator(&headers, *purpose);
            assert_eq!(found, Err(Foreign::Host), "{purpose:?}");
        }
    }
}
