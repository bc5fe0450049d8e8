//! The dashboard in a real browser: it moves as the daemon works, its buttons do what they say, and no other page gets in.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{ChildStdin, Command, Stdio};

use segspool::stand_in::{Answer, Rule};
use segspool::stats::LaneState;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::support::{Relay, ids, segment, spool, within};
use super::{CHROMIUM, Language, Process, Way, sources};

const KEY: &str = "KEY-ab12";
const TOKEN: &str = "s3cret-token";

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_moves_as_the_daemon_works_and_asks_nobody_else() {
    let Some(mut page) = Browser::start("moves") else {
        return;
    };
    let way = Way::new(&[]).await;
    way.relay.track(KEY, &ids("before", 0..3)).await;
    way.relay.until(|stats| stats.delivery.events == 3).await;
    page.open(&way.relay).await;
    page.shows("#about", "3 accepted, 3 delivered").await;
    page.shows("#accepting", "✓ Yes").await;
    page.shows("#delivering", "nothing waits").await;
    page.shows("#lanes li", "3 in 1 batch").await;
    let chart = "return await page.getByRole('img').first().getAttribute('aria-label')";
    let first = page.run(chart).await;
    let said = first.as_str().unwrap_or_default();
    assert!(
        said.starts_with("Accepted over the last ten minutes: now"),
        "{said}"
    );

    way.relay.track(KEY, &ids("after", 0..40)).await;
    page.shows("#about", "43 accepted, 43 delivered").await;
    page.run(&format!(
        "while ((await page.getByRole('img').first().getAttribute('aria-label')) === {first})
           await page.waitForTimeout(50)"
    ))
    .await;
    page.asked_nobody_but(&way.relay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_lane_is_told_in_one_glance_and_resumed() {
    let Some(mut page) = Browser::start("glance") else {
        return;
    };
    let way = Way::new(&[]).await;
    way.segment
        .set_rules(vec![Rule::always(Answer::status(401))]);
    way.relay.track(KEY, &ids("held", 0..3)).await;
    page.open(&way.relay).await;
    page.shows("#delivering", "✕ No").await;
    page.shows("#delivering", "1 lane held").await;
    page.shows("#waiting", "3").await;
    page.shows("#done", "a lane waits for somebody").await;
    page.shows("#attention", "Held, and tried again slowly")
        .await;
    page.shows("#lanes li", "✕ held").await;
    page.shows("#lanes li", "next try in").await;
    way.segment.set_rules(Vec::new());
    page.clicks("Resume segment …ab12").await;
    page.shows("#delivering", "✓ Yes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_is_paused_and_resumed_by_its_buttons() {
    let Some(mut page) = Browser::start("lanes") else {
        return;
    };
    let way = Way::new(&[]).await;
    way.relay.track(KEY, &ids("first", 0..1)).await;
    way.relay.until(|stats| stats.delivery.events == 1).await;
    page.open(&way.relay).await;
    page.clicks("Pause segment …ab12").await;
    page.shows("#lanes li", "paused by an operator").await;
    page.shows("#notice", "Paused segment …ab12.").await;
    let focused = "return document.activeElement.getAttribute('aria-label')";
    let focused = page
        .run(&format!(
            "return await page.evaluate(() => {{ {focused} }})"
        ))
        .await;
    assert_eq!(focused, "Resume segment …ab12", "the focus is not lost");

    way.relay.track(KEY, &ids("kept", 0..5)).await;
    page.shows("#waiting", "5").await;
    page.shows("#delivering", "1 lane paused").await;
    let stats = way.relay.stats().await;
    assert_eq!(stats.lanes[0].state, LaneState::Paused);
    assert_eq!((stats.queue.events, stats.delivery.events), (5, 1));

    page.clicks("Resume segment …ab12").await;
    way.relay.until(|stats| stats.delivery.events == 6).await;
    page.shows("#lanes li", "idle").await;
    page.asked_nobody_but(&way.relay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_shown_replayed_and_purged_and_only_when_asked_twice() {
    let Some(mut page) = Browser::start("letters") else {
        return;
    };
    let way = Way::new(&[]).await;
    way.segment
        .set_rules(vec![Rule::always(Answer::status(400))]);
    let event = json!({"userId": "u", "event": "<b onclick=alert(1)>", "properties": {"n": 7}});
    let event = event
        .to_string()
        .replace("\"n\":7", "\"n\":12345678901234567890123");
    for _ in 0..2 {
        way.relay.post("/v1/track", KEY, event.clone()).await;
    }
    way.relay
        .post("/v1/track", KEY, r#"{"event":"Nobody"}"#)
        .await;
    way.relay
        .until(|stats| stats.dead_letters.events == 3)
        .await;
    page.open(&way.relay).await;
    page.shows("#letters-note", "3 letters").await;

    page.clicks("Show refused").await;
    page.shows("#letters li", "2 letters, of 1 lane, answered 400")
        .await;
    page.clicks("Show event").await;
    page.shows("#letters pre", "\"event\": \"<b onclick=alert(1)>\"")
        .await;
    page.shows("#letters pre", "12345678901234567890123").await;

    // Its second ask can be refused, by the button and by the keyboard.
    for refuse in [
        "await page.getByRole('button', { name: 'Cancel', exact: true }).click()",
        "await page.keyboard.press('Escape')",
    ] {
        page.clicks("Purge").await;
        page.run(refuse).await;
        page.run(
            "await page.getByText('Delete this event for ever?').waitFor({ state: 'hidden' })",
        )
        .await;
    }
    assert_eq!(way.relay.stats().await.dead_letters.events, 3);

    page.clicks("Purge").await;
    page.clicks_in_question("Delete this event for ever?", "Purge")
        .await;
    page.shows("#notice", "Purged 1 letter.").await;
    page.shows("#letters-note", "2 letters").await;

    way.segment.set_rules(Vec::new());
    page.clicks("Replay").await;
    page.clicks_in_question("Send this event back into its lane?", "Replay")
        .await;
    page.shows("#notice", "Replayed 1 letter.").await;
    way.relay.until(|stats| stats.delivery.events == 1).await;

    page.shows("#letters-note", "1 letter,").await;
    page.clicks("Purge all").await;
    page.clicks_in_question("Delete 1 letter (no_user_anon_id) for ever?", "Purge")
        .await;
    page.shows("#letters-note", "There are none.").await;
    assert_eq!(way.relay.stats().await.dead_letters.events, 0);
    page.asked_nobody_but(&way.relay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_shows_what_passes_its_filters_until_it_is_stopped() {
    let Some(mut page) = Browser::start("tail") else {
        return;
    };
    let way = Way::new(&[]).await;
    page.open(&way.relay).await;
    page.run(
        "await page.getByLabel('What happened').selectOption('delivered');
         await page.getByLabel('Name of a track').fill('Wanted')",
    )
    .await;
    page.clicks("Start").await;
    page.shows("#tail-state", "Listening.").await;
    for event in ["Other", "Wanted", "<i>Wanted"] {
        let body = json!({"userId": "u", "event": event, "messageId": "m-1"}).to_string();
        way.relay.post("/v1/track", KEY, body).await;
    }
    page.shows("#tail li", "✓ delivered").await;
    page.shows("#tail li", "…ab12").await;
    way.relay.until(|stats| stats.delivery.events == 3).await;
    let told = "return await page.locator('#tail li').allInnerTexts()";
    let told = page.run(told).await;
    assert_eq!(told.as_array().map(Vec::len), Some(1), "{told}");
    page.clicks("Stop").await;
    page.shows("#tail-state", "Stopped.").await;
    page.asked_nobody_but(&way.relay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_asked_for_and_kept_in_memory_alone() {
    let Some(mut page) = Browser::start("token") else {
        return;
    };
    let dir = spool();
    let file = dir.path().join("token");
    std::fs::write(&file, TOKEN).expect("written");
    let file = file.to_str().expect("text").to_owned();
    let segment = segment().await;
    let data_dir = dir.path().join("spool");
    let settings = [("ADMIN__TOKEN_FILE", file.as_str())];
    let relay = Relay::start(&data_dir, &segment.url(), &settings).await;
    relay.track(KEY, &ids("first", 0..1)).await;
    page.goto(&relay.admin).await;
    page.shows("#link-state", "Waiting for the token").await;
    let is_board_hidden = "return await page.locator('#board').isHidden()";
    assert_eq!(page.run(is_board_hidden).await, true);
    for (token, seen, text) in [
        (
            "wrong",
            "#door-error",
            "The daemon did not take this token.",
        ),
        (TOKEN, "#link-state", "✓ Live"),
    ] {
        page.run(&format!(
            "await page.getByLabel('Token').fill('{token}'); await page.keyboard.press('Enter')"
        ))
        .await;
        page.shows(seen, text).await;
    }
    page.clicks("Pause segment …ab12").await;
    page.shows("#lanes li", "paused by an operator").await;
    let kept = "return await page.evaluate(() => [localStorage.length, sessionStorage.length, \
        document.cookie, document.documentElement.outerHTML, location.href])";
    let kept = page.run(kept).await.to_string();
    assert!(kept.starts_with("[0,0,\"\","), "{kept}");
    assert!(!kept.contains(TOKEN), "{kept}");
    page.goto(&relay.admin).await;
    page.shows("#link-state", "Waiting for the token").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_goes_away_is_missed_and_found_again() {
    let Some(mut page) = Browser::start("away") else {
        return;
    };
    let mut way = Way::new(&[]).await;
    page.open(&way.relay).await;
    let admin = way.relay.admin.replace("http://", "");
    way.relay.kill();
    page.shows("#link-state", "✕ No news since").await;
    page.shows("#link-more", "Next try in").await;
    let is_old = "return await page.locator('#board.is-old').count()";
    assert_eq!(page.run(is_old).await, 1);

    let settings = [("ADMIN__LISTEN", admin.as_str())];
    let endpoint = way.segment.url();
    way.relay = Relay::start(way.spool.path(), &endpoint, &settings).await;
    page.shows("#link-state", "✓ Live").await;
    way.relay.track(KEY, &ids("again", 0..2)).await;
    page.shows("#about", "2 accepted, 2 delivered").await;
    assert_eq!(page.run(is_old).await, 0);

    // One that hangs tells nothing, and closes nothing.
    way.relay.signal(rustix::process::Signal::STOP);
    page.shows("#link-state", "✕ No news since").await;
    way.relay.signal(rustix::process::Signal::CONT);
    page.shows("#link-state", "✓ Live").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_phone_nothing_is_wider_than_the_screen() {
    let Some(mut page) = Browser::start("phone") else {
        return;
    };
    let way = Way::new(&[]).await;
    way.segment
        .set_rules(vec![Rule::always(Answer::status(400))]);
    page.run("await page.setViewportSize({ width: 360, height: 740 })")
        .await;
    page.open(&way.relay).await;
    page.clicks("Start").await;
    page.shows("#tail-state", "Listening.").await;
    let long = "x".repeat(300);
    let body = json!({"userId": long, "event": long, "properties": {"long": long}}).to_string();
    way.relay.post("/v1/track", KEY, body).await;
    page.clicks("Show refused").await;
    page.clicks("Show event").await;
    page.clicks("Purge all").await;
    page.shows("#letters pre", &long).await;
    page.shows("#tail li", "refused").await;
    let widths = "return await page.evaluate(() => \
        [...document.querySelectorAll('*')].filter((one) => !one.matches('.skip') && \
        one.getBoundingClientRect().right > 360).map((one) => one.outerHTML.slice(0, 80)))";
    assert_eq!(page.run(widths).await, json!([]));
    let width = "return await page.evaluate(() => document.documentElement.scrollWidth)";
    assert_eq!(page.run(width).await, 360);
}

/// Another port of the same machine is another origin, though the same site.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_reads_and_changes_nothing_and_shows_no_dashboard() {
    let Some(mut page) = Browser::start("elsewhere") else {
        return;
    };
    let way = Way::new(&[]).await;
    way.relay.track(KEY, &ids("first", 0..1)).await;
    let stats = way.relay.until(|stats| stats.delivery.events == 1).await;
    let (admin, lane) = (&way.relay.admin, &stats.lanes[0].id);
    for elsewhere in [
        way.segment.url(),
        way.relay.ingest.replace("127.0.0.1", "localhost"),
    ] {
        // What is there does not matter: it has an origin.
        page.goto(&elsewhere).await;
        let statuses = format!(
            "const statuses = [];
             page.on('response', (reply) => statuses.push(reply.status()));
             await page.evaluate(async () => {{
               const attempts = [['GET', '/stats'], ['POST', '/lanes/{lane}/pause'], ['POST', '/dead-letters/replay?all=true']];
               for (const [method, path] of attempts)
                 await fetch('{admin}' + path, {{ method, mode: 'no-cors' }}).catch(() => {{}});
             }});
             page.removeAllListeners('response');
             return statuses"
        );
        assert_eq!(
            page.run(&statuses).await,
            json!([403, 403, 403]),
            "{elsewhere}"
        );
    }
    assert_ne!(way.relay.stats().await.lanes[0].state, LaneState::Paused);
    // A link may open it.
    page.goto(&way.segment.url()).await;
    page.run(&format!(
        "await page.evaluate(() => {{ location.href = '{admin}/' }});
         await page.waitForURL('{admin}/')"
    ))
    .await;
    page.shows("#link-state", "✓ Live").await;
}

/// A page in Chromium, driven step by step.
struct Browser {
    name: &'static str,
    node: Process,
    steps: ChildStdin,
    done: mpsc::UnboundedReceiver<String>,
}

impl Browser {
    /// Starts one; none where there is no Chromium, which is said.
    fn start(name: &'static str) -> Option<Browser> {
        if !Language::Page.is_installed_for(name) {
            return None;
        }
        let mut command = Command::new("node");
        command
            .arg(sources().join("browser/drive.mjs"))
            .arg(CHROMIUM)
            .current_dir(Language::Page.installed_in())
            .env("NO_PROXY", "*")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut node = command.spawn().expect("Node.js is installed");
        let steps = node.stdin.take().expect("it is piped");
        let stdout = node.stdout.take().expect("it is piped");
        let (send, done) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _unheard = send.send(line);
            }
        });
        Some(Browser {
            name,
            node: Process(node),
            steps,
            done,
        })
    }

    /// Opens the dashboard, and waits until it has something to show.
    async fn open(&mut self, relay: &Relay) {
        self.goto(&relay.admin).await;
        self.shows("#link-state", "✓ Live").await;
    }

    async fn goto(&mut self, url: &str) {
        self.run(&format!("await page.goto('{url}/')")).await;
    }

    /// Waits until an element that is seen has this text.
    async fn shows(&mut self, selector: &str, text: &str) {
        let text = json!(text);
        let step = format!(
            "await page.locator('{selector}').filter({{ hasText: {text} }}).first().waitFor()"
        );
        self.run(&step).await;
    }

    /// Presses the first button of this name.
    async fn clicks(&mut self, name: &str) {
        let step = format!(
            "await page.getByRole('button', {{ name: '{name}', exact: true }}).first().click()"
        );
        self.run(&step).await;
    }

    /// Presses a button beside this question.
    async fn clicks_in_question(&mut self, question: &str, name: &str) {
        let step = format!(
            "await page.getByRole('group', {{ name: '{question}' }}).getByRole('button', {{ name: '{name}' }}).click()"
        );
        self.run(&step).await;
    }

    /// Asserts that the page has complained of nothing, and asked for nothing but what the relay serves.
    async fn asked_nobody_but(&mut self, relay: &Relay) {
        let seen = self.run("return seen").await;
        assert_eq!(seen["complaints"], json!([]), "{}", self.name);
        let requests = seen["requests"].as_array().expect("a list");
        let is_ours = |url: &Value| {
            let url = url.as_str().expect("a URL");
            url.starts_with(&relay.admin) || url.starts_with("data:")
        };
        assert!(requests.iter().all(is_ours), "{}: {seen}", self.name);
        assert!(!requests.is_empty());
    }

    /// Runs one step, which must succeed, and returns what it returns.
    async fn run(&mut self, step: &str) -> Value {
        writeln!(self.steps, "{}", json!(step)).expect("the driver reads");
        let Some(line) = within(self.done.recv()).await else {
            let status = self.node.end().await;
            panic!("{}: the driver has ended: {status}", self.name);
        };
        let mut done: Value = serde_json::from_str(&line).expect("JSON");
        assert!(
            done.get("error").is_none(),
            "{}: {step}: {}",
            self.name,
            done["error"].as_str().unwrap_or_default()
        );
        done["value"].take()
    }
}
