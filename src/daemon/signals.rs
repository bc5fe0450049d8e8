//! Signals: SIGTERM and SIGINT ask for a stop; a second one ends the process at once. SIGHUP asks to read the configuration anew.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator;
use tokio::sync::mpsc;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// To end, by the name of the signal.
    Stop(&'static str),
    /// To read the configuration anew.
    Reload,
}

/// Signals as they come.
#[derive(Debug)]
pub(super) struct Signals(mpsc::UnboundedReceiver<i32>);

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn listen() -> io::Result<Signals> {
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order: the second signal finds what the first has set.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stopping))?;
            flag::register(signal, Arc::clone(&stopping))?;
        }
        let mut incoming = iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let (send, received) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("segspool-signals".into())
            .spawn(move || {
                for signal in incoming.forever() {
                    if send.send(signal).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Signals(received))
    }

    /// What the next signal asks for; none once the thread that listens has died.
    pub(super) async fn next(&mut self) -> Option<Signal> {
        Some(match self.0.recv().await? {
            SIGHUP => Signal::Reload,
            SIGINT => Signal::Stop("SIGINT"),
            _ => Signal::Stop("SIGTERM"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_has_died_is_no_request_to_stop() {
        let (send, received) = mpsc::unbounded_channel();
        let mut signals = Signals(received);
        for (signal, asks) in [
            (SIGHUP, Signal::Reload),
            (SIGINT, Signal::Stop("SIGINT")),
            (SIGTERM, Signal::Stop("SIGTERM")),
        ] {
            send.send(signal).expect("it is received");
            assert_eq!(signals.next().await, Some(asks));
        }
        drop(send);
        assert_eq!(signals.next().await, None);
    }
}
