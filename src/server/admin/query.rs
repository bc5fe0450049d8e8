//! What a query asks of the dead letters, and of the tail. Pure.
//!
//! A parameter that is not known, or given twice, is an error: a filter that was misspelt must not mean all of them.

use std::borrow::Cow;

use jiff::Timestamp;

use super::Error;
use crate::queue::{Filter, LaneId, LetterId};
use crate::stats::{Wanted, What};

/// Letters of a list, unless the query says how many.
const LIMIT: usize = 100;
/// The most it may say.
const LIMIT_MAX: usize = 1_000;

/// The parameters of a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) filter: Filter,
    /// All letters are meant, and the sender says so.
    all: bool,
    pub(super) after: Option<LetterId>,
    pub(super) limit: usize,
}

impl Query {
    /// Reads a query that may only select.
    pub(super) fn selecting(query: &str) -> Result<Query, Error> {
        Query::parse(query, &[])
    }

    /// Reads a query that selects, and pages.
    pub(super) fn paging(query: &str) -> Result<Query, Error> {
        Query::parse(query, &["after", "limit"])
    }

    /// Reads a query that selects what is to be changed: it must say what, or that all are meant.
    pub(super) fn changing(query: &str) -> Result<Query, Error> {
        let query = Query::parse(query, &["all"])?;
        let is_all = query.filter == Filter::default();
        match (is_all, query.all) {
            (true, false) => Err(bad("say which dead letters are meant, or all=true")),
            (false, true) => Err(bad("all=true and a filter contradict each other")),
            (true, true) | (false, false) => Ok(query),
        }
    }

    fn parse(query: &str, beyond_filters: &[&str]) -> Result<Query, Error> {
        let mut parsed = Query {
            filter: Filter::default(),
            all: false,
            after: None,
            limit: LIMIT,
        };
        for (name, value) in parameters(query)? {
            let filter = &mut parsed.filter;
            match &*name {
                "id" => filter.id = Some(letter_id(&value)?),
                "lane" => filter.lane = Some(lane_id(&value)?),
                "code" if value.is_empty() => return Err(bad("`code` is empty")),
                "code" => filter.code = Some(value.into_owned()),
                "status" => {
                    let status = value.parse().ok().filter(|s| (100..1000).contains(s));
                    filter.status = Some(
                        status.ok_or_else(|| bad("`status` is a status of HTTP, such as 400"))?,
                    );
                }
                "since" => filter.since_ms = Some(time("since", &value)?),
                "until" => filter.until_ms = Some(time("until", &value)?),
                "all" if beyond_filters.contains(&"all") => match &*value {
                    "true" => parsed.all = true,
                    _ => return Err(bad("`all` is true, or left out")),
                },
                "after" if beyond_filters.contains(&"after") => {
                    parsed.after = Some(letter_id(&value)?);
                }
                "limit" if beyond_filters.contains(&"limit") => {
                    let limit = value.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n));
                    parsed.limit = limit
                        .ok_or_else(|| bad(&format!("`limit` is between 1 and {LIMIT_MAX}")))?;
                }
                _ => {
                    let names = ["id", "lane", "code", "status", "since", "until"];
                    let names: Vec<_> = names.iter().chain(beyond_filters).copied().collect();
                    return Err(bad(&format!(
                        "a parameter is not known; known are {}",
                        names.join(", ")
                    )));
                }
            }
        }
        Ok(parsed)
    }
}

/// Reads what somebody wants to be told of by the tail.
pub(super) fn listening(query: &str) -> Result<Wanted, Error> {
    let mut wanted = Wanted::default();
    for (name, value) in parameters(query)? {
        match &*name {
            "lane" => wanted.lane = Some(lane_id(&value)?.to_string()),
            "type" | "event" if value.is_empty() => {
                return Err(bad(&format!("`{name}` is empty")));
            }
            "type" => wanted.kind = Some(value.into_owned()),
            "event" => wanted.event = Some(value.into_owned()),
            "what" => {
                let what = What::from_name(&value);
                wanted.what = Some(what.ok_or_else(|| {
                    let names = What::ALL.map(What::name).join(", ");
                    bad(&format!("`what` is one of {names}"))
                })?);
            }
            _ => {
                return Err(bad(
                    "a parameter is not known; known are lane, type, event, what",
                ));
            }
        }
    }
    Ok(wanted)
}

/// A name and its value.
type Parameter<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The parameters of a query, each given once.
fn parameters(query: &str) -> Result<Vec<Parameter<'_>>, Error> {
    let mut parameters: Vec<Parameter<'_>> = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if parameters.iter().any(|(given, _)| *given == name) {
            return Err(bad(&format!("`{name}` is given twice")));
        }
        parameters.push((name, value));
    }
    Ok(parameters)
}

fn lane_id(text: &str) -> Result<LaneId, Error> {
    LaneId::parse(text).ok_or_else(|| bad("`lane` is 16 hexadecimal digits, in lower case"))
}

/// The id of a letter.
pub(super) fn letter_id(text: &str) -> Result<LetterId, Error> {
    text.parse().map_err(|error| bad(&format!("{error}")))
}

fn time(name: &str, value: &str) -> Result<i64, Error> {
    let time: Result<Timestamp, _> = value.parse();
    time.map(Timestamp::as_millisecond)
        .map_err(|_| bad(&format!("`{name}` is a time such as 2026-11-23T14:00:00Z")))
}

fn bad(message: &str) -> Error {
    Error::Parameter(message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::LaneName;

    #[test]
    fn every_parameter_narrows_the_filter() {
        let id = "65".repeat(21);
        let lane = LaneName::new("segment", "KEY").id();
        let query = format!(
            "id={id}&lane={lane}&code=refused&status=400&since=2026-01-01T00:00:00Z&until=2026-01-02T00%3A00%3A00Z"
        );
        let filter = Query::selecting(&query).expect("a query").filter;
        let expected = Filter {
            id: id.parse().ok(),
            lane: Some(lane),
            code: Some("refused".into()),
            status: Some(400),
            since_ms: Some(1_767_225_600_000),
            until_ms: Some(1_767_312_000_000),
            before: None,
        };
        assert_eq!(filter, expected);
        let page = Query::paging(&format!("after={id}&limit=1000")).expect("a query");
        assert_eq!((page.after, page.limit), (id.parse().ok(), 1000));
        assert_eq!(Query::paging("").expect("a query").limit, LIMIT);
    }

    #[test]
    fn what_is_malformed_unknown_or_given_twice_is_an_error() {
        for query in [
            "id=12",
            "lane=xyz",
            "lane=ABCDEF0123456789",
            "code=",
            "status=abc",
            "status=99",
            "since=yesterday",
            "until=",
            "stauts=400",
            "code=a&code=b",
            "limit=0",
            "limit=1001",
            "limit=-1",
            "after=zz",
            "all=true",
        ] {
            let error = Query::paging(query).expect_err(query);
            assert!(matches!(error, Error::Parameter(_)), "{query}");
        }
        assert!(Query::selecting("limit=5").is_err());
    }

    #[test]
    fn a_listener_says_what_it_wants_in_known_words() {
        let lane = LaneName::new("segment", "KEY").id();
        let query = format!("lane={lane}&type=track&event=Order%20Completed&what=refused");
        let expected = Wanted {
            lane: Some(lane.to_string()),
            kind: Some("track".into()),
            event: Some("Order Completed".into()),
            what: Some(What::Refused),
        };
        assert_eq!(listening(&query).expect("a query"), expected);
        assert_eq!(listening("").expect("a query"), Wanted::default());
        for query in [
            "lane=1",
            "type=",
            "event=",
            "what=lost",
            "what=",
            "key=a",
            "type=a&type=b",
            "tpye=track",
        ] {
            let error = listening(query).expect_err(query);
            assert!(matches!(error, Error::Parameter(_)), "{query}");
        }
    }

    #[test]
    fn a_change_needs_a_filter_or_all() {
        for (query, fits) in [
            ("", false),
            ("all=true", true),
            ("all=yes", false),
            ("code=refused", true),
            ("code=refused&all=true", false),
        ] {
            assert_eq!(Query::changing(query).is_ok(), fits, "{query}");
        }
    }
}
