//! What the audience sees while the demo runs: what is happening now, in words, and two bars. Where there is no terminal,
//! one plain line for each change of scene.

use std::time::Duration;

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::watch;
use tokio::time::{Instant, interval};

use crate::stand_in::StandIn;

/// How often the bars move.
const FRAME: Duration = Duration::from_millis(100);

/// The progress on stderr.
#[derive(Debug)]
pub(super) struct Show {
    begun: Instant,
    screen: MultiProgress,
    now: ProgressBar,
    accepted: ProgressBar,
    delivered: ProgressBar,
}

impl Show {
    /// Shows two empty bars for so many events.
    pub(super) fn begin(events: u64) -> Show {
        let screen = MultiProgress::new();
        let add = |bar: ProgressBar, template| {
            let style =
                ProgressStyle::with_template(template).expect("the template is well-formed");
            screen.add(bar).with_style(style)
        };
        let bar = "{prefix:>11} {bar:40.green/dim} {human_pos:>10} of {human_len}";
        let now = add(ProgressBar::new_spinner(), "{spinner} {wide_msg}");
        let accepted = add(ProgressBar::new(events), bar).with_prefix("accepted");
        let delivered = add(ProgressBar::new(events), bar).with_prefix("delivered");
        Show {
            begun: Instant::now(),
            screen,
            now,
            accepted,
            delivered,
        }
    }

    /// Says what is happening from now on.
    pub(super) fn say(&self, scene: &str) {
        let line = format!("{:5.1} s  {scene}", self.begun.elapsed().as_secs_f64());
        if self.screen.is_hidden() {
            let accepted = HumanCount(self.accepted.position());
            let delivered = HumanCount(self.delivered.position());
            eprintln!("{line} (accepted {accepted}, delivered {delivered})");
            return;
        }
        self.keep_scene();
        self.now.set_message(line);
    }

    /// Keeps the bars moving.
    pub(super) async fn follow(&self, accepted: watch::Receiver<u64>, segment: &StandIn) -> ! {
        let mut frames = interval(FRAME);
        loop {
            frames.tick().await;
            self.look(&accepted, segment);
            self.now.tick();
        }
    }

    /// Moves the bars to where things are.
    pub(super) fn look(&self, accepted: &watch::Receiver<u64>, segment: &StandIn) {
        self.accepted.set_position(*accepted.borrow());
        self.delivered.set_position(segment.tally().distinct_events);
    }

    /// Takes the bars off the screen; the scenes stay.
    pub(super) fn end(self) {
        self.keep_scene();
        for bar in [self.now, self.accepted, self.delivered] {
            bar.finish_and_clear();
        }
    }

    /// Moves the scene that is over above the bars.
    fn keep_scene(&self) {
        let over = self.now.message();
        if !over.is_empty() {
            // A terminal that can't be written to shows nothing else either.
            let _written = self.screen.println(format!("  {over}"));
        }
    }
}
