//! Where a spool may lie: what cannot be used is refused with a word, and what is unwise is said.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::life::serve;
use crate::support::{Relay, ids, segment, spool, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_data_dir_that_cannot_be_used_is_refused_with_what_to_do() {
    let dir = spool();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), "mine").expect("written");
    symlink("nowhere", path("dangling")).expect("linked");
    fs::create_dir(path("newer")).expect("made");
    fs::write(path("newer/format"), "3\n").expect("written");
    for (name, code, expected) in [
        ("file", 73, "it is not a directory. data_dir must be"),
        (
            "dangling",
            73,
            "it is a link to nowhere, and nothing is there. data_dir must be",
        ),
        ("file/below", 73, "data_dir must be a directory"),
        (
            "newer",
            78,
            "has format 3, and this version knows format 2 only. Use the version that made it",
        ),
    ] {
        let data_dir = path(name);
        let data_dir = data_dir.to_str().expect("text");
        let (found, said) = serve(&[("SEGSPOOL_DATA_DIR", data_dir)]).await;
        assert_eq!(found, Some(code), "{said}");
        let opening = format!("failed to open the spool in {data_dir}: ");
        assert!(said.contains(&opening), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(fs::read(path("file")).expect("it is there"), b"mine");
    assert_eq!(fs::read(path("newer/format")).expect("it is there"), b"3\n");
}

/// A spool that was copied by root is root's, and "Permission denied" alone does not say of what.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_user_may_not_write_to_is_named_with_its_owner() {
    // Who may do everything becomes somebody who may not.
    let is_root = rustix::process::getuid().is_root();
    for locked in ["spool", "spool/volumes"] {
        let dir = spool();
        let (data_dir, locked) = (dir.path().join("spool"), dir.path().join(locked));
        fs::create_dir_all(&data_dir).expect("made");
        fs::create_dir_all(&locked).expect("made");
        let program = dir.path().join("segspool");
        fs::copy(env!("CARGO_BIN_EXE_segspool"), &program).expect("copied");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("opened");
        let mut command = Command::new(&program);
        if is_root {
            for mine in [&data_dir, &program] {
                std::os::unix::fs::chown(mine, Some(NOBODY), Some(NOBODY)).expect("given away");
            }
            std::os::unix::fs::chown(&locked, Some(NOBODY), Some(NOBODY)).expect("given away");
            command.uid(NOBODY).gid(NOBODY);
        }
        fs::set_permissions(&locked, Permissions::from_mode(0o500)).expect("locked");
        command.arg("serve").env("SEGSPOOL_DATA_DIR", &data_dir);
        command.env("SEGSPOOL_INGEST__LISTEN", "[\"127.0.0.1:0\"]");
        command.env("SEGSPOOL_ADMIN__LISTEN", "127.0.0.1:0");
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = within(output).await.expect("no panic").expect("it ran");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(73), "{said}");
        let expected = format!(" may not write to {}, which is user ", locked.display());
        assert!(
            said.contains(&expected) && said.contains("mode 0500"),
            "{said}"
        );
        fs::set_permissions(&locked, Permissions::from_mode(0o700)).expect("unlocked");
    }
}

const NOBODY: u32 = 65534;

#[tokio::test(flavor = "multi_thread")]
async fn a_data_dir_that_is_a_link_is_as_good_as_where_it_leads() {
    let (dir, segment) = (spool(), segment().await);
    let (target, link) = (dir.path().join("target"), dir.path().join("link"));
    fs::create_dir(&target).expect("made");
    symlink(&target, &link).expect("linked");
    segment.down().await;
    let settings = [("SHUTDOWN__DRAIN", "0s")];
    let mut relay = Relay::start(&link, &segment.url(), &settings).await;
    relay.track("KEY12345", &ids("e", 0..5)).await;
    let (code, said) = serve(&[("SEGSPOOL_DATA_DIR", target.to_str().expect("text"))]).await;
    assert_eq!(code, Some(75), "the same spool: {said}");
    assert!(relay.stop().await.success());
    segment.up().await.expect("the port is kept");
    let relay = Relay::start(&target, &segment.url(), &[]).await;
    relay.until(|stats| stats.queue.events == 0).await;
    assert_eq!(segment.tally().distinct_events, 5);
    assert!(link.is_symlink());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_dir_that_others_can_get_into_is_warned_of_and_used() {
    let segment = segment().await;
    for (mode, is_warned_of) in [
        (0o700, false),
        (0o750, false),
        (0o755, true),
        (0o770, true),
        (0o1777, true),
    ] {
        let dir = spool();
        let mode = Permissions::from_mode(mode);
        fs::set_permissions(dir.path(), mode.clone()).expect("set");
        let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
        let warned = relay.log().contains("others than its owner can get into");
        assert_eq!(warned, is_warned_of, "{mode:?}: {}", relay.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
async fn a_data_dir_in_memory_is_warned_of_and_used() {
    let in_memory = Path::new("/dev/shm");
    let is_tmpfs = rustix::fs::statfs(in_memory).is_ok_and(|found| found.f_type == 0x0102_1994);
    let dir = tempfile::tempdir_in(in_memory).ok().filter(|_| is_tmpfs);
    let Some(dir) = dir else {
        println!("SKIPPED: /dev/shm is no tmpfs that can be written to");
        return;
    };
    let segment = segment().await;
    let relay = Relay::start(dir.path(), &segment.url(), &[]).await;
    let said = "what is accepted does not survive a reboot";
    assert!(relay.log().contains(said), "{}", relay.log());
    relay.track("KEY12345", &ids("e", 0..1)).await;
    relay.until(|stats| stats.delivery.events == 1).await;
}

/// Events that go to deleted files would be found by nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_deleted_under_the_daemon_takes_no_more_events_and_a_restart_makes_a_new_one()
 {
    let (dir, segment) = (spool(), segment().await);
    segment.down().await;
    let data_dir = dir.path().join("spool");
    let settings = [("SHUTDOWN__DRAIN", "0s")];
    let mut relay = Relay::start(&data_dir, &segment.url(), &settings).await;
    relay.track("KEY12345", &ids("before", 0..3)).await;
    fs::remove_dir_all(&data_dir).expect("removed");
    // Three volumes that fail end it; a client whose request comes as it ends is not answered.
    for attempt in 0..3 {
        let body = r#"{"userId":"u","event":"E"}"#;
        let reply = relay.poster().post("/v1/track", "KEY12345", body).await;
        let status = reply.map(|reply| reply.status().as_u16());
        assert!(matches!(status, Ok(503) | Err(_)), "{attempt}: {status:?}");
    }
    assert_eq!(relay.exit().await.code(), Some(70), "{}", relay.log());
    assert!(!data_dir.exists(), "{}", relay.log());

    segment.up().await.expect("the port is kept");
    let mut relay = Relay::start(&data_dir, &segment.url(), &[]).await;
    relay.track("KEY12345", &ids("after", 0..3)).await;
    relay.until(|stats| stats.queue.events == 0).await;
    assert!(relay.stop().await.success(), "{}", relay.log());
    assert_eq!(segment.tally().distinct_events, 3);
}
