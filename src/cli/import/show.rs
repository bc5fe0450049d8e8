//! What whoever waits for an import sees: a bar with rate and remaining time, on a terminal only.

use std::time::Duration;

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::cli::complain;
use crate::words::counted;

/// How often a bar moves that nothing else moves, so that one sees that it waits and does not hang.
const FRAME: Duration = Duration::from_millis(200);

/// The bar.
#[derive(Debug)]
pub(super) struct Show {
    bar: ProgressBar,
    begun: Instant,
    events: u64,
    has_told: bool,
}

impl Show {
    /// A bar for a file of so many bytes, of which so many are done; one that knows no end where there is none.
    pub(super) fn begin(done: u64, size: Option<u64>) -> Show {
        let (bar, template) = match size {
            Some(size) => (
                ProgressBar::new(size),
                "{bar:30.green/dim} {percent:>3} %  {msg}  {eta} left",
            ),
            None => (ProgressBar::new_spinner(), "{spinner} {bytes}  {msg}"),
        };
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        bar.set_style(style);
        bar.set_position(done);
        // What an earlier run has done says nothing of this one's pace.
        bar.reset_eta();
        bar.enable_steady_tick(FRAME);
        Show {
            bar,
            begun: Instant::now(),
            events: 0,
            has_told: false,
        }
    }

    /// Everything up to here is done, with so many more events.
    pub(super) fn done(&mut self, offset: u64, events: u64) {
        self.events += events;
        self.bar.set_position(offset);
        let rate = self.rate();
        self.bar.set_message(format!(
            "{}, {} a second",
            counted(self.events, "event"),
            HumanCount(rate)
        ));
    }

    /// Nothing happens for so long. Where there is no bar, that is said once.
    pub(super) fn waits(&mut self, why: &str, wait: Duration) {
        let wait = HumanDuration(wait);
        if !self.bar.is_hidden() {
            self.bar
                .set_message(format!("{why}; trying again in {wait}"));
        } else if !self.has_told {
            self.has_told = true;
            complain(&format_args!("waiting for the daemon: {why}"));
        }
    }

    /// How many events were accepted since the bar began.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// How many events a second there were.
    pub(super) fn rate(&self) -> u64 {
        let seconds = self.begun.elapsed().as_secs_f64();
        (self.events as f64 / seconds.max(0.001)) as u64
    }

    /// For how long it has gone on.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
