//! Which path leads where. Pure.

use crate::event::Kind;
use crate::ingest::Call;

/// What a path of the ingest listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Events.
    Events(Call),
    /// An event in the address of a picture.
    Pixel(Kind),
    /// Events that Segment's own webhooks post.
    Received,
    /// What analytics.js reports of itself. Not events: answered and discarded.
    ClientMetrics,
}

impl Route {
    /// The methods it takes.
    pub(super) fn methods(self) -> &'static str {
        match self {
            Route::Pixel(_) => "GET, POST, OPTIONS",
            Route::Events(_) | Route::ClientMetrics => "POST, OPTIONS",
            // No page has any business here.
            Route::Received => "POST",
        }
    }
}

/// The ingest listener's route of a path: `//` collapses, a trailing `/` is fine. Browsers use the short forms, Ruby and Java
/// `import`.
pub(super) fn ingest(path: &str) -> Option<Route> {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    let mut next = || segments.next();
    match (next()?, next()?, next(), next()) {
        ("v1", "batch" | "b" | "import", None, None) => Some(Route::Events(Call::Batch)),
        ("v1", "webhook", None, None) => Some(Route::Received),
        ("v1", "m", None, None) => Some(Route::ClientMetrics),
        ("v1", "pixel", Some(call), None) => Kind::from_path(call).map(Route::Pixel),
        ("v1", name, None, None) => {
            Kind::from_path(name).map(|kind| Route::Events(Call::Single(kind)))
        }
        _ => None,
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
            ("/v1/webhook", Some(Route::Received)),
            ("/v1/webhook/x", None),
            ("/v1/pixel/track", Some(Route::Pixel(Kind::Track))),
            ("/v1/pixel/a", Some(Route::Pixel(Kind::Alias))),
            ("//v1//pixel//page/", Some(Route::Pixel(Kind::Page))),
            ("/", None),
            ("/v1", None),
            ("/v2/batch", None),
            ("/v1/batch/x", None),
            ("/v1/track/pixel", None),
            ("/v1/pixel", None),
            ("/v1/pixel/", None),
            ("/v1/pixel/batch", None),
            ("/v1/pixel/m", None),
            ("/v1/pixel/track/x", None),
            ("/v1/Batch", None),
            ("/v1/unknown", None),
        ] {
            assert_eq!(ingest(path), expected, "{path}");
        }
    }
}
