//! What systemd is told, by its protocol (`sd_notify`(3)). Without systemd nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

/// Whether there is somebody to be told.
pub(super) fn is_heard() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// How often systemd wants to hear that the process gets on, at the least; none where it does not.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero())
}

/// Events are accepted from now on, by the configuration as it was read last.
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

/// How it goes, in words.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The process gets on.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// A stop takes at least this much longer.
pub(super) fn extend(by: Duration) {
    let micros = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::ExtendTimeoutUsec(micros)]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "failed to notify systemd");
    }
}
