//! Signals: SIGTERM and SIGINT ask for a stop; a second one ends the process at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator;
use tokio::sync::mpsc;

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
        let mut incoming = iterator::Signals::new([SIGTERM, SIGINT])?;
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

    /// The next signal's name.
    pub(super) async fn next(&mut self) -> &'static str {
        match self.0.recv().await {
            Some(SIGINT) => "SIGINT",
            _ => "SIGTERM",
        }
    }
}
