//! The system calls themselves: a seam shows that the daemon waits for its barrier, this shows what the barrier is.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Relay, ids, segment, spool, within};

const REQUESTS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
async fn an_fdatasync_of_the_volume_returns_before_each_200_is_written() {
    let dir = spool();
    let segment = segment().await;
    // Nothing is delivered meanwhile, so that the only answers with 200 are the daemon's own.
    segment.down().await;
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let output = dir.path().join("trace");
    let Some(mut strace) = attach(&relay, &output).await else {
        println!("SKIPPED: strace is not installed, or may not attach to a process here");
        return;
    };
    for n in 0..REQUESTS {
        relay.track("KEY12345", &ids("e", n..n + 1)).await;
    }
    kill_process(Pid::from_child(&strace), Signal::INT).expect("strace was running");
    strace.wait().expect("it can be waited for");

    let trace = std::fs::read_to_string(&output).expect("a trace");
    let (mut synced, mut answers) = (false, 0);
    for line in trace.lines() {
        let ended = line.ends_with("= 0");
        if line.contains("fdatasync(") && line.contains("/volumes/0/db>") && ended
            || line.contains("<... fdatasync resumed>") && ended
        {
            synced = true;
        }
        if line.contains("HTTP/1.1 200 OK") && !line.contains("resumed>") {
            assert!(
                synced,
                "answer {answers} was written without a sync before it:\n{trace}"
            );
            synced = false;
            answers += 1;
        }
    }
    assert_eq!(answers, REQUESTS, "{trace}");
}

/// strace, once it follows every thread of the daemon.
async fn attach(relay: &Relay, output: &std::path::Path) -> Option<Child> {
    let mut strace = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-s",
            "16",
            "-e",
            "trace=fdatasync,sendto,write,writev",
            "-o",
        ])
        .arg(output)
        .args(["-p", &relay.pid().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let status = format!("/proc/{}/status", relay.pid());
    let attached = async {
        loop {
            let traced = std::fs::read_to_string(&status)
                .is_ok_and(|s| s.contains("TracerPid:") && !s.contains("TracerPid:\t0"));
            if traced && all_threads_traced(relay.pid()) {
                return true;
            }
            if strace.try_wait().expect("it can be waited for").is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(attached).await.then_some(strace)
}

fn all_threads_traced(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
        .expect("a living process")
        .flatten();
    let mut status = threads
        .map(|thread| std::fs::read_to_string(thread.path().join("status")).unwrap_or_default());
    status.all(|status| !status.contains("TracerPid:\t0"))
}
