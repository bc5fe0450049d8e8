//! Which path leads where. Pure.

use crate::event::Kind;
use crate::ingest::Call;

/// The ingest listener's call behind a path: `//` collapses, a trailing `/` is fine.
pub(super) fn ingest_call(path: &str) -> Option<Call> {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let (Some("v1"), Some(name), None) = (segments.next(), segments.next(), segments.next()) else {
        return None;
    };
    match name {
        "batch" => Some(Call::Batch),
        _ => Kind::from_name(name).map(Call::Single),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_path_and_nothing_else_has() {
        for (path, expected) in [
            ("/v1/batch", Some(Call::Batch)),
            ("//v1/batch", Some(Call::Batch)),
            ("/v1//batch/", Some(Call::Batch)),
            ("/v1/track", Some(Call::Single(Kind::Track))),
            ("/v1/identify", Some(Call::Single(Kind::Identify))),
            ("/v1/page", Some(Call::Single(Kind::Page))),
            ("/v1/screen", Some(Call::Single(Kind::Screen))),
            ("/v1/group", Some(Call::Single(Kind::Group))),
            ("/v1/alias/", Some(Call::Single(Kind::Alias))),
            ("/", None),
            ("/v1", None),
            ("/v2/batch", None),
            ("/v1/batch/x", None),
            ("/v1/Batch", None),
            ("/v1/unknown", None),
        ] {
            assert_eq!(ingest_call(path), expected, "{path}");
        }
    }
}
