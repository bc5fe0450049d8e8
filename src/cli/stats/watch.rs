//! `segspool stats --watch`: the same, live, on a whole terminal. When the daemon goes away it says so, and tries again.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table, Wrap};
use ratatui::{DefaultTerminal, Frame};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::view::{facts, for_seconds, glance};
use crate::cli::admin::{Admin, Failure};
use crate::cli::events::{Event, Events};
use crate::cli::{EX_OSERR, EX_USAGE};
use crate::stats::{LaneSnapshot, LaneState, Snapshot};

/// How long to wait before the daemon is asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Points of five seconds that are kept: ten minutes.
const POINTS_MAX: usize = 120;
/// A smaller terminal shows what there is at one glance, and each lane in a line of words.
const WIDTH_MIN: u16 = 100;
const HEIGHT_MIN: u16 = 18;

/// Watches until whoever watches has seen enough.
pub(super) async fn watch(admin: &Admin) -> Result<ExitCode, Failure> {
    if !io::stdout().is_terminal() {
        let message = "--watch needs a terminal; `segspool stats --json` is for scripts";
        return Err(Failure::new(EX_USAGE, message));
    }
    // The first answer comes before the terminal is taken over, so that what is wrong is told in one line.
    let mut stream = Some(Events::of(admin.open(STREAM).await?));
    let no_terminal = |error: io::Error| Failure::new(EX_OSERR, format!("no terminal: {error}"));
    let mut ends = [SignalKind::terminate(), SignalKind::hangup()]
        .map(|kind| signal(kind).map_err(no_terminal));
    let [Ok(terminated), Ok(hung_up)] = &mut ends else {
        return Err(Failure::new(EX_OSERR, "no signals"));
    };
    let mut inputs = inputs();
    let mut terminal = ratatui::try_init().map_err(no_terminal)?;
    let mut screen = Screen::default();
    let ended = loop {
        if let Err(error) = draw(&mut terminal, &screen) {
            break Err(no_terminal(error));
        }
        tokio::select! {
            input = inputs.recv() => match input {
                Some(input) if is_end(&input) => break Ok(ExitCode::SUCCESS),
                Some(_) => {}
                None => break Ok(ExitCode::SUCCESS),
            },
            _ = terminated.recv() => break Ok(ExitCode::SUCCESS),
            _ = hung_up.recv() => break Ok(ExitCode::SUCCESS),
            event = next(admin, &mut stream) => match event {
                Ok(event) => screen.take(&event),
                Err(trouble) => screen.trouble = Some(trouble),
            },
        }
    };
    ratatui::restore();
    ended
}

const STREAM: &str = "/stats/stream";

/// The next event, over a new connection where there is none; an error says what is wrong, and the next call tries again.
async fn next(admin: &Admin, stream: &mut Option<Events>) -> Result<Event, String> {
    let events = match stream {
        Some(events) => events,
        None => {
            sleep(AGAIN_AFTER).await;
            let answer = admin.open(STREAM).await.map_err(|e| e.to_string())?;
            stream.insert(Events::of(answer))
        }
    };
    let next = events.next().await;
    match next {
        Ok(Some(event)) => Ok(event),
        Ok(None) => {
            *stream = None;
            Err("the daemon has stopped".to_owned())
        }
        Err(error) => {
            *stream = None;
            Err(error.to_string())
        }
    }
}

/// What is typed, and how the terminal changes. The thread ends with the process.
fn inputs() -> mpsc::UnboundedReceiver<Input> {
    let (send, inputs) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while let Ok(input) = event::read() {
            if send.send(input).is_err() {
                return;
            }
        }
    });
    inputs
}

fn is_end(input: &Input) -> bool {
    let Input::Key(key) = input else { return false };
    let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind != KeyEventKind::Release
        && (is_ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// What is known.
#[derive(Debug, Default)]
struct Screen {
    snapshot: Snapshot,
    points: VecDeque<Point>,
    /// The snapshot that the point under way began with.
    since: Option<Snapshot>,
    /// Why there is no news.
    trouble: Option<String>,
}

/// A few seconds of the past.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Point {
    accepted_per_second: f64,
    delivered_per_second: f64,
    queue_events: u64,
}

#[derive(Debug, Deserialize)]
struct History {
    points: VecDeque<Point>,
}

impl Screen {
    fn take(&mut self, event: &Event) {
        // What a later daemon says besides is none of our business.
        if event.name == "history" {
            if let Ok(history) = serde_json::from_str::<History>(&event.data) {
                self.points = history.points;
                self.since = None;
            }
        } else if let Ok(snapshot) = serde_json::from_str(&event.data) {
            self.snapshot = snapshot;
            self.trouble = None;
            self.add_point();
        }
    }

    /// Adds a point once five seconds have passed since the last.
    fn add_point(&mut self) {
        let now = &self.snapshot;
        let Some(since) = &self.since else {
            self.since = Some(now.clone());
            return;
        };
        let seconds = now.uptime_seconds - since.uptime_seconds;
        if seconds < 4.5 {
            return;
        }
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        self.points.push_back(Point {
            accepted_per_second: rate(now.ingest.accepted_events, since.ingest.accepted_events),
            delivered_per_second: rate(now.delivery.events, since.delivery.events),
            queue_events: now.queue.events,
        });
        self.since = Some(now.clone());
        while self.points.len() > POINTS_MAX {
            self.points.pop_front();
        }
    }
}

fn draw(terminal: &mut DefaultTerminal, screen: &Screen) -> io::Result<()> {
    terminal.draw(|frame| paint(frame, screen)).map(|_| ())
}

fn paint(frame: &mut Frame<'_>, screen: &Screen) {
    let area = frame.area();
    if area.width < WIDTH_MIN || area.height < HEIGHT_MIN {
        paint_small(frame, screen);
    } else {
        paint_all(frame, screen);
    }
}

fn paint_small(frame: &mut Frame<'_>, screen: &Screen) {
    let glance = glance(&screen.snapshot);
    let [head, lanes, foot] = Layout::vertical([
        Constraint::Length(glance.len() as u16),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let width = usize::from(head.width);
    let glance = glance.iter().map(|line| Line::from(cut(line, width)));
    frame.render_widget(Paragraph::new(glance.collect::<Vec<_>>()), head);
    let lines = screen.snapshot.lanes.iter().map(|lane| {
        let mut line = format!(
            "{} {} {}, {} waiting",
            lane.destination,
            lane.key,
            lane.state.name(),
            lane.events
        );
        if let Some(reason) = &lane.reason {
            line.push_str(": ");
            line.push_str(reason);
        }
        Line::styled(line, style_of(lane.state))
    });
    let lines = Paragraph::new(lines.collect::<Vec<_>>()).wrap(Wrap { trim: true });
    frame.render_widget(lines, lanes);
    paint_foot(frame, foot, screen);
}

fn paint_all(frame: &mut Frame<'_>, screen: &Screen) {
    let width = usize::from(frame.area().width);
    let facts: Vec<Line<'_>> = facts(&screen.snapshot)
        .into_iter()
        .map(|(what, fact)| Line::from(cut(&format!("{what:<13}{fact}"), width)))
        .collect();
    let [head, charts, lanes, foot] = Layout::vertical([
        Constraint::Length(facts.len() as u16),
        Constraint::Length(5),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(facts), head);
    paint_charts(frame, charts, screen);
    paint_lanes(frame, lanes, &screen.snapshot.lanes);
    paint_foot(frame, foot, screen);
}

fn paint_foot(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let line = match &screen.trouble {
        None => Line::from("q or Ctrl-C ends"),
        Some(trouble) => Line::styled(
            cut(&format!("NO NEWS: {trouble}"), usize::from(area.width)),
            Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        ),
    };
    frame.render_widget(Paragraph::new(line), area);
}

fn paint_charts(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    type Value = fn(&Point) -> f64;
    let charts: [(&str, Value); 3] = [
        ("accepted/s", |point| point.accepted_per_second),
        ("delivered/s", |point| point.delivered_per_second),
        ("waiting", |point| point.queue_events as f64),
    ];
    let areas: [Rect; 3] = Layout::horizontal([Constraint::Fill(1); 3]).areas(area);
    for ((title, value), area) in charts.into_iter().zip(areas) {
        let block = Block::bordered().title(title);
        let width = block.inner(area).width as usize;
        let skipped = screen.points.len().saturating_sub(width);
        // A rate below one is still some.
        let bars = screen.points.iter().skip(skipped);
        let bars: Vec<u64> = bars.map(|point| value(point).ceil() as u64).collect();
        frame.render_widget(Sparkline::default().data(bars).block(block), area);
    }
}

fn paint_lanes(frame: &mut Frame<'_>, area: Rect, lanes: &[LaneSnapshot]) {
    // What the other columns leave, and the space before each but the first.
    let for_reason = usize::from(area.width).saturating_sub(80 + 6);
    let rows = lanes.iter().map(|lane| {
        let wait = lane.retry_in_seconds.map(for_seconds).unwrap_or_default();
        Row::new([
            lane.id.clone(),
            cut(&format!("{} {}", lane.destination, lane.key), 22),
            lane.state.name().to_owned(),
            lane.events.to_string(),
            lane.delivered_events.to_string(),
            wait,
            cut(lane.reason.as_deref().unwrap_or_default(), for_reason),
        ])
        .style(style_of(lane.state))
    });
    let widths = [
        Constraint::Length(16),
        Constraint::Length(22),
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Fill(1),
    ];
    let header = [
        "LANE",
        "DESTINATION",
        "STATE",
        "EVENTS",
        "DELIVERED",
        "RETRY IN",
        "WHY",
    ];
    let header = Row::new(header).style(Style::new().add_modifier(Modifier::BOLD));
    frame.render_widget(Table::new(rows, widths).header(header), area);
}

fn style_of(state: LaneState) -> Style {
    match state {
        LaneState::Held => Style::new().fg(Color::Red),
        LaneState::BackingOff | LaneState::RateLimited | LaneState::Paused => {
            Style::new().fg(Color::Yellow)
        }
        LaneState::Idle | LaneState::Sending => Style::new(),
    }
}

/// A text as far as it fits, with an ellipsis where something is left out.
fn cut(text: &str, width: usize) -> String {
    if Span::raw(text).width() <= width {
        return text.to_owned();
    }
    let mut cut = text.to_owned();
    while Span::raw(&cut).width() >= width.max(1) {
        cut.pop();
    }
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_ends_in_an_ellipsis() {
        for (text, width, expected) in [
            ("waiting", 7, "waiting"),
            ("waiting", 6, "waiti…"),
            ("注文完了", 8, "注文完了"),
            ("注文完了", 7, "注文完…"),
            ("waiting", 1, "…"),
            ("", 0, ""),
        ] {
            assert_eq!(cut(text, width), expected);
        }
    }
}
