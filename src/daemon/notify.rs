//! What systemd is told. Without systemd nothing happens.

use sd_notify::NotifyState;
use tracing::warn;

/// Events are accepted from now on.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read anew; [`ready`] says when it has been.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => warn!(%error, "failed to notify systemd"),
    }
}

/// The process is on its way out.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "failed to notify systemd");
    }
}
