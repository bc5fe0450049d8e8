//! Which path leads where. Pure.

use crate::event::Kind;
use crate::ingest::Call;

/// What a path of the ingest listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Events.
    Events(Call),
    /// What analytics.js reports of itself. Not events: answered and discarded.
    ClientMetrics,
}

/// The ingest listener's route of a path: `//` collapses, a trailing `/` is fine. Browsers use the short forms, Ruby and Java
/// `import`.
pub(super) fn ingest(path: &str) -> Option<Route> {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let (Some("v1"), Some(name), None) = (segments.next(), segments.next(), segments.next()) else {
        return None;
    };
    match name {
        "batch" | "b" | "import" => Some(Route::Events(Call::Batch)),
        "m" => Some(Route::ClientMetrics),
        _ => Kind::from_path(name).map(|kind| Route::Events(Call::Single(kind))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_paths_and_nothing_else_has() {
        let batch = Some(Route::Events(Call::Batch));
        let single = |kind| Some(Route::Events(Call::Single(kind)));
        for (path, expected) in [
            ("/v1/batch", batch),
            ("/v1/b", batch),
            ("/v1/import/", batch),
            ("//v1/batch", batch),
            ("/v1//batch/", batch),
            ("/v1/track", single(Kind::Track)),
            ("/v1/t", single(Kind::Track)),
            ("/v1/identify", single(Kind::Identify)),
            ("/v1/i", single(Kind::Identify)),
            ("/v1/page", single(Kind::Page)),
            ("/v1/p", single(Kind::Page)),
            ("/v1/screen", single(Kind::Screen)),
            ("/v1/s", single(Kind::Screen)),
            ("/v1/group", single(Kind::Group)),
            ("/v1/g", single(Kind::Group)),
            ("/v1/alias/", single(Kind::Alias)),
            ("/v1/a", single(Kind::Alias)),
            ("/v1/m", Some(Route::ClientMetrics)),
            ("/", None),
            ("/v1", None),
            ("/v2/batch", None),
            ("/v1/batch/x", None),
            ("/v1/Batch", None),
            ("/v1/unknown", None),
        ] {
            assert_eq!(ingest(path), expected, "{path}");
        }
    }
}
