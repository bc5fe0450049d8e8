//! What of a changed configuration a running process can take up. Pure.

use super::Config;

/// Keeps the listed settings as they were, and names those that would have changed.
macro_rules! keep {
    ($old:ident, $new:ident: $($($key:ident).+),+ $(,)?) => {{
        let mut kept = Vec::new();
        $(if $new.$($key).+ != $old.$($key).+ {
            $new.$($key).+ = $old.$($key).+.clone();
            kept.push(stringify!($($key).+));
        })+
        kept
    }};
}

impl Config {
    /// What a process that goes by this configuration goes by once it is given `new`, and the keys that stay as they are until it is
    /// started anew: what they name is open, bound or on disk.
    #[must_use]
    pub fn reloaded(&self, mut new: Config) -> (Config, Vec<&'static str>) {
        let kept = keep!(self, new:
            data_dir,
            ingest.listen,
            ingest.socket_mode,
            ingest.socket_group,
            ingest.max_body,
            ingest.tls,
            admin,
            queue,
            profiles,
            log.format,
        );
        (new, kept)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_can_be_taken_up_is_and_what_cannot_is_named() {
        let old = Config::default();
        let mut new = Config::default();
        new.segment.linger = Duration::from_secs(7);
        new.ingest.cors_origins = vec!["https://shop.example.test".into()];
        assert_eq!(old.reloaded(new.clone()), (new.clone(), vec![]));

        let mut fixed = new.clone();
        fixed.ingest.listen.clear();
        fixed.queue.max_bytes = bytesize::ByteSize::gib(1);
        let kept = vec!["ingest.listen", "queue"];
        assert_eq!(old.reloaded(fixed), (new, kept));
    }
}
