//! The dashboard: one page that holds everything but data, which it asks of the rest of the admin listener.
//!
//! The files beside this one are joined when the program is built. The browser is told the hashes of the style and the script, and
//! runs nothing else, whatever an event may say: no other script, no request to anywhere else, no frame.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

use crate::server::reply::{self, Reply};

const STYLE: &str = include_str!("style.css");

/// One module, from the tools to the life of the page.
const SCRIPT: &str = concat!(
    include_str!("script/words.js"),
    include_str!("script/elements.js"),
    include_str!("script/relay.js"),
    include_str!("script/now.js"),
    include_str!("script/charts.js"),
    include_str!("script/lanes.js"),
    include_str!("script/letters.js"),
    include_str!("script/tail.js"),
    include_str!("script/life.js"),
);

/// The page, and the policy under which it is shown.
struct Dashboard {
    html: String,
    policy: String,
}

static DASHBOARD: LazyLock<Dashboard> = LazyLock::new(|| Dashboard {
    html: include_str!("page.html")
        .replace("/* style.css */", STYLE)
        .replace("/* script/ */", SCRIPT),
    policy: [
        "default-src 'none'",
        &format!("style-src '{}'", source_hash(STYLE)),
        &format!("script-src '{}'", source_hash(SCRIPT)),
        "connect-src 'self'",
        // The page's icon is within the page.
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        // Text never becomes markup, even by mistake.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    .join("; "),
});

/// The page.
pub(super) fn page() -> Reply {
    reply::page(&DASHBOARD.html, &DASHBOARD.policy)
}

/// What a policy calls an element with this text.
fn source_hash(text: &str) -> String {
    format!(
        "sha256-{}",
        STANDARD.encode(digest(&SHA256, text.as_bytes()))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of the page's only element of this name.
    fn element<'a>(html: &'a str, name: &str) -> &'a str {
        let (_, rest) = html.split_once(&format!("<{name}")).expect("it is there");
        let (_, rest) = rest.split_once('>').expect("its tag ends");
        let (text, rest) = rest.split_once(&format!("</{name}>")).expect("it ends");
        assert!(!rest.contains(&format!("<{name}")), "there is one {name}");
        text
    }

    #[test]
    fn the_policy_names_the_style_and_the_script_that_are_served_and_nothing_from_elsewhere() {
        let Dashboard { html, policy } = &*DASHBOARD;
        for (directive, name) in [("style-src", "style"), ("script-src", "script")] {
            let expected = format!("{directive} '{}';", source_hash(element(html, name)));
            assert!(policy.contains(&expected), "{policy} lacks {expected}");
        }
        for loose in ["unsafe", "http", "*", "blob:"] {
            assert!(!policy.contains(loose), "{policy} has {loose}");
        }
        for outside in [
            "src=",
            "@import",
            "url(",
            " style=",
            " onclick=",
            "innerHTML",
            "eval(",
        ] {
            assert!(!html.contains(outside), "the page has {outside}");
        }
    }
}
