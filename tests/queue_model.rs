//! The queue against a model of it: random operations on a real disk must show what a few plain vectors predict. Then what
//! random operations do not reach: damaged files, barriers that fail or are held, a spool that is already open.
//!
//! Only the queue's public face is used. A crash is a copy of the data directory made while the queue is open.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use segspool::queue::{
    AppendError, Barrier, BuryError, Config, DeadLetter, Durability, Filter, Lane, LaneName,
    LaneReader, NewLanes, OpenError, Position, Queue, Reading, Repacking, Run, WhenFull,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const LANES: usize = 3;
/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

// ---- the model ----

/// What a case does, step by step.
#[derive(Clone, Debug)]
enum Op {
    /// Requests handed in at once, so that they form a group. A request: lengths of events for some lanes.
    Append(Vec<Vec<(usize, Vec<usize>)>>),
    Read {
        lane: usize,
        bytes: usize,
    },
    /// Settles `len` of the events read by this process, from the one that `at` chooses on, or from the first unsettled one.
    Settle {
        lane: usize,
        at: Option<prop::sample::Index>,
        len: usize,
        twice: bool,
    },
    Bury {
        lane: usize,
        at: prop::sample::Index,
    },
    /// Removes one of the dead letters.
    Purge {
        at: prop::sample::Index,
    },
    /// Waits for the cursors to be saved.
    Save,
    /// Reads and settles all that a lane has and waits until that is saved, so that volumes can be repacked without it.
    Pass {
        lane: usize,
    },
    Reopen {
        volume_bytes: u64,
    },
    Crash {
        volume_bytes: u64,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let lane = 0..LANES;
    let len = prop_oneof![4 => 4..200usize, 2 => 200..9_000usize, 1 => Just(32 * 1024)];
    let request =
        prop::collection::vec((lane.clone(), prop::collection::vec(len, 1..8)), 1..=LANES);
    let op = prop_oneof![
        6 => prop::collection::vec(request, 1..4).prop_map(Op::Append),
        6 => (lane.clone(), prop_oneof![1..20_000usize, Just(usize::MAX)])
            .prop_map(|(lane, bytes)| Op::Read { lane, bytes }),
        8 => (lane.clone(), any::<Option<prop::sample::Index>>(), prop_oneof![4 => 1..6usize, 1 => Just(1_000)], any::<bool>())
            .prop_map(|(lane, at, len, twice)| Op::Settle { lane, at, len, twice }),
        2 => (lane.clone(), any::<prop::sample::Index>())
            .prop_map(|(lane, at)| Op::Bury { lane, at }),
        3 => lane.prop_map(|lane| Op::Pass { lane }),
        1 => any::<prop::sample::Index>().prop_map(|at| Op::Purge { at }),
        1 => Just(Op::Save),
        2 => volume_bytes().prop_map(|volume_bytes| Op::Reopen { volume_bytes }),
        1 => volume_bytes().prop_map(|volume_bytes| Op::Crash { volume_bytes }),
    ];
    prop::collection::vec(op, 5..40)
}

/// Every group its own volume, a few groups a volume, or all in one.
fn volume_bytes() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), Just(1 << 20), Just(128 << 20)]
}

/// One lane as it should be.
#[derive(Default)]
struct LaneModel {
    /// Every event ever accepted.
    events: Vec<Vec<u8>>,
    /// What this process counts as waiting.
    waiting: BTreeSet<usize>,
    /// What this process has still to read, in order.
    unread: VecDeque<usize>,
    /// What this process has read, by ordinal.
    read: Vec<ReadEvent>,
    /// Its dead letters.
    letters: BTreeMap<usize, DeadLetter>,
    /// Every event that ever was one. No later process gives it again.
    buried: BTreeSet<usize>,
    /// What was settled when the cursors were last known to be saved: no process gives it again.
    saved: BTreeSet<usize>,
}

/// An event that was read: which one of its lane, and its place in the spool.
#[derive(Clone, Copy)]
struct ReadEvent {
    event: usize,
    /// None for one that was left out, since it was settled or buried by an earlier process.
    place: Option<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    position: Position,
    index: u32,
    accepted_at_ms: i64,
}

impl LaneModel {
    fn depth(&self) -> (u64, u64) {
        let bytes = self.waiting.iter().map(|e| self.events[*e].len() as u64);
        (self.waiting.len() as u64, bytes.sum())
    }

    /// Whether a read gives an event's ordinal only: it is buried, and was settled by another process.
    fn is_left_out(&self, event: usize) -> bool {
        self.buried.contains(&event)
    }

    /// The cursors are known to be saved.
    fn save(&mut self) {
        let settled = (0..self.events.len()).filter(|event| !self.waiting.contains(event));
        self.saved = settled.collect();
    }

    /// Fills up to `ordinal` what was not given: it was settled when the process started.
    fn pass_over(&mut self, ordinal: u64) {
        let none = ReadEvent {
            event: usize::MAX,
            place: None,
        };
        self.read
            .resize(self.read.len().max(ordinal as usize), none);
    }

    /// The events that `range`, a range of ordinals, covers.
    fn settle(&mut self, range: std::ops::Range<usize>) {
        for read in &self.read[range] {
            self.waiting.remove(&read.event);
        }
    }
}

/// The queue under test and its model, side by side.
struct Pair {
    dir: TempDir,
    /// None only while it is opened anew: every handle must go before that.
    spool: Option<Spool>,
    models: Vec<LaneModel>,
    /// How many volumes were repacked by the queues that were closed.
    repacked: u64,
}

impl Pair {
    async fn new(volume_bytes: u64) -> Pair {
        let dir = tempdir();
        Pair {
            spool: Some(Spool::open(dir.path(), volume_bytes).await),
            dir,
            models: (0..LANES).map(|_| LaneModel::default()).collect(),
            repacked: 0,
        }
    }

    fn spool(&self) -> &Spool {
        self.spool.as_ref().expect("it is open between two steps")
    }

    async fn perform(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Append(requests) => self.append(requests).await?,
            Op::Read { lane, bytes } => {
                let read = self.read(lane, bytes).await?;
                let enough = read >= bytes || self.models[lane].unread.is_empty();
                prop_assert!(enough, "lane {lane} gave {read} of {bytes} bytes");
            }
            Op::Settle {
                lane,
                at,
                len,
                twice,
            } => {
                let model = &self.models[lane];
                let read = model.read.len();
                let unsettled = |r: &ReadEvent| model.waiting.contains(&r.event);
                let start = match at {
                    Some(at) if read > 0 => Some(at.index(read)),
                    _ => model.read.iter().position(unsettled),
                };
                if let Some(start) = start {
                    // Beyond what was read there is nothing to settle, and asking for it does no harm.
                    for _ in 0..=usize::from(twice) {
                        self.spool().readers[lane].settle(start as u64..(start + len) as u64);
                    }
                    self.models[lane].settle(start..read.min(start + len));
                }
            }
            Op::Bury { lane, at } => self.bury(lane, at).await?,
            Op::Purge { at } => self.purge(at).await?,
            Op::Save => self.save().await?,
            Op::Pass { lane } => {
                self.read(lane, usize::MAX).await?;
                self.spool().readers[lane].settle(0..u64::MAX);
                let read = self.models[lane].read.len();
                self.models[lane].settle(0..read);
                self.save().await?;
            }
            Op::Reopen { volume_bytes } => self.reopen(volume_bytes).await?,
            Op::Crash { volume_bytes } => self.crash(volume_bytes).await?,
        }
        self.check()
    }

    async fn save(&mut self) -> Result<(), TestCaseError> {
        let spool = self.spool();
        let saved = spool.queue.resume(&spool.lanes[0]).await;
        prop_assert!(saved.is_ok());
        self.models.iter_mut().for_each(LaneModel::save);
        Ok(())
    }

    async fn append(
        &mut self,
        requests: Vec<Vec<(usize, Vec<usize>)>>,
    ) -> Result<(), TestCaseError> {
        let mut appends = Vec::new();
        let spool = self.spool.as_ref().expect("it is open between two steps");
        for request in requests {
            let mut runs = Vec::new();
            for (lane, lens) in request {
                let model = &mut self.models[lane];
                let mut run = Run::default();
                for len in lens {
                    let number = model.events.len();
                    let event = event(lane, number, len);
                    run.push(&event);
                    model.events.push(event);
                    model.waiting.insert(number);
                    model.unread.push_back(number);
                }
                runs.push((Arc::clone(&spool.lanes[lane]), run));
            }
            appends.push(spool.queue.append(runs));
        }
        // Each hands its events in when it is first polled, so in this order.
        for result in futures_util::future::join_all(appends).await {
            prop_assert_eq!(result, Ok(Durability::Synced));
        }
        Ok(())
    }

    /// Reads, compares with what the model expects, and returns how many bytes that was.
    async fn read(&mut self, lane: usize, bytes: usize) -> Result<usize, TestCaseError> {
        let reader = &self.spool.as_ref().expect("it is open").readers[lane];
        let reading = reader.read(bytes).await.expect("a good disk");
        let model = &mut self.models[lane];
        let mut read = 0;
        for (ordinal, given) in in_order(&reading) {
            prop_assert!(ordinal >= model.read.len() as u64);
            model.pass_over(ordinal);
            let Some(event) = model.unread.pop_front() else {
                return Err(TestCaseError::fail(format!(
                    "lane {lane} gave more than it has"
                )));
            };
            let agrees = match given {
                Some((bytes, _)) => bytes == &model.events[event][..],
                None => true,
            };
            prop_assert!(agrees, "lane {lane} did not give event {event}");
            prop_assert_eq!(given.is_none(), model.is_left_out(event), "event {}", event);
            read += given.map_or(0, |(bytes, _)| bytes.len());
            let place = given.map(|(_, place)| place);
            model.read.push(ReadEvent { event, place });
            if given.is_none() {
                reader.settle(ordinal..ordinal + 1);
                model.waiting.remove(&event);
            }
        }
        Ok(read)
    }

    async fn bury(&mut self, lane: usize, at: prop::sample::Index) -> Result<(), TestCaseError> {
        let spool = self.spool.as_ref().expect("it is open between two steps");
        let model = &mut self.models[lane];
        if model.read.is_empty() {
            return Ok(());
        }
        let ordinal = at.index(model.read.len());
        let ReadEvent { event, place } = model.read[ordinal];
        let Some(place) = place else {
            return Ok(());
        };
        let letter = DeadLetter {
            lane: Some(name(lane)),
            accepted_at_ms: place.accepted_at_ms,
            ..letter(&model.events[event])
        };
        let letters = spool.queue.dead_letters();
        let burying = vec![(place.position, place.index, letter.clone())];
        prop_assert_eq!(letters.bury(burying).await, Ok(()));
        spool.readers[lane].settle(ordinal as u64..ordinal as u64 + 1);
        model.settle(ordinal..ordinal + 1);
        model.buried.insert(event);
        model.letters.insert(event, letter);
        Ok(())
    }

    /// Removes a letter, whatever the cursors on disk say of its event.
    async fn purge(&mut self, at: prop::sample::Index) -> Result<(), TestCaseError> {
        let spool = self.spool.as_ref().expect("it is open between two steps");
        let letters = spool.queue.dead_letters();
        let all = letters.read(None, &Filter::default(), usize::MAX).await;
        let all = all.expect("a good disk").letters;
        if all.is_empty() {
            return Ok(());
        }
        let (id, purged) = &all[at.index(all.len())];
        for expected in [1, 0] {
            let removed = letters.change(vec![*id], Vec::new()).await;
            prop_assert_eq!(removed, Ok(expected));
        }
        for model in &mut self.models {
            model.letters.retain(|_, letter| letter != purged);
        }
        Ok(())
    }

    /// After an orderly stop each lane has what is not settled, and nothing else.
    async fn reopen(&mut self, volume_bytes: u64) -> Result<(), TestCaseError> {
        self.spool().queue.close().await;
        self.open_anew(volume_bytes).await;
        self.models.iter_mut().for_each(LaneModel::save);
        self.take_stock(true).await
    }

    /// After a crash more may come again, but nothing that had been settled when the cursors were last saved.
    async fn crash(&mut self, volume_bytes: u64) -> Result<(), TestCaseError> {
        let copy = tempdir();
        copy_spool(self.dir.path(), copy.path());
        self.spool().queue.close().await;
        self.dir = copy;
        self.open_anew(volume_bytes).await;
        self.take_stock(false).await
    }

    async fn open_anew(&mut self, volume_bytes: u64) {
        self.repacked += self.spool().queue.usage().repacked_volumes;
        self.spool = None;
        self.spool = Some(Spool::open(self.dir.path(), volume_bytes).await);
    }

    /// Lays the model over what the new process found: everything that was waiting, in order, and of what was settled since
    /// the cursors were last known to be saved all, or, unless it is to be `exact`, what was not saved later and lies in no volume
    /// that was drained and so deleted.
    async fn take_stock(&mut self, exact: bool) -> Result<(), TestCaseError> {
        let spool = self.spool.as_ref().expect("it was opened just now");
        for lane in 0..LANES {
            let model = &mut self.models[lane];
            model.read.clear();
            let all = 0..model.events.len();
            model.unread = all.filter(|event| !model.saved.contains(event)).collect();
            let all: BTreeSet<_> = model.unread.iter().copied().collect();
            let before = std::mem::replace(&mut model.waiting, all);
            let depth = spool.lanes[lane].depth();
            prop_assert_eq!(spool.lanes[lane].recovered_events(), depth.events);
            if model.depth() == (depth.events, depth.bytes) {
                continue;
            }
            prop_assert!(
                !exact,
                "lane {lane} took up {depth:?} instead of {:?}",
                model.depth()
            );
            // Some were deleted with their volumes; reading tells which.
            let reader = &spool.readers[lane];
            let reading = reader.read(usize::MAX).await.expect("a good disk");
            model.waiting.clear();
            let mut expected = std::mem::take(&mut model.unread).into_iter();
            let mut left_out = Vec::new();
            let given = in_order(&reading);
            prop_assert_eq!(given.len() as u64, depth.events, "lane {} took up", lane);
            for (ordinal, given) in given {
                model.pass_over(ordinal);
                let Some((bytes, place)) = given else {
                    // Which one it is the letter does not say; it takes its turn.
                    left_out.push(ordinal);
                    model.read.push(ReadEvent {
                        event: usize::MAX,
                        place: None,
                    });
                    continue;
                };
                let event = expected.by_ref().find(|e| bytes == &model.events[*e][..]);
                let Some(event) = event.filter(|event| !model.buried.contains(event)) else {
                    return Err(TestCaseError::fail(format!(
                        "lane {lane} gave something else, or twice, or what is buried"
                    )));
                };
                model.waiting.insert(event);
                model.read.push(ReadEvent {
                    event,
                    place: Some(place),
                });
            }
            for ordinal in left_out {
                reader.settle(ordinal..ordinal + 1);
            }
            let lost: Vec<_> = before.difference(&model.waiting).collect();
            prop_assert!(lost.is_empty(), "lane {lane} lost {lost:?}");
        }
        self.check()
    }

    /// Depth, lane by lane and in all, is the model's; the dead letters too.
    fn check(&self) -> Result<(), TestCaseError> {
        let mut all = (0, 0);
        let spool = self.spool();
        for (number, (lane, model)) in spool.lanes.iter().zip(&self.models).enumerate() {
            let (depth, expected) = (lane.depth(), model.depth());
            prop_assert_eq!(
                (depth.events, depth.bytes),
                expected,
                "depth of lane {}",
                number
            );
            prop_assert_eq!(
                lane.lost_events(),
                0,
                "lane {} says it lost something",
                number
            );
            prop_assert_eq!(lane.oldest_ms().is_some(), expected.0 > 0);
            let unread = spool.readers[number].unread();
            prop_assert_eq!(
                unread.events,
                model.unread.len() as u64,
                "unread of lane {}",
                number
            );
            all = (all.0 + expected.0, all.1 + expected.1);
        }
        let depth = spool.queue.depth();
        prop_assert_eq!((depth.events, depth.bytes), all);
        Ok(())
    }

    /// Settles all that is left: nothing comes back, and the disk does.
    /// Returns how many volumes were repacked on the way.
    async fn drain(mut self) -> Result<u64, TestCaseError> {
        for lane in 0..LANES {
            self.read(lane, usize::MAX).await?;
            self.spool().readers[lane].settle(0..u64::MAX);
            let read = self.models[lane].read.len();
            self.models[lane].settle(0..read);
        }
        self.check()?;
        within(self.spool().queue.drained()).await;
        let mut letters: Vec<_> = self.spool().queue.dead_letters().all().await;
        letters.sort_by(|a, b| a.event.cmp(&b.event));
        let kept = self.models.iter().flat_map(|m| m.letters.values().cloned());
        let mut expected: Vec<_> = kept.collect();
        expected.sort_by(|a, b| a.event.cmp(&b.event));
        prop_assert_eq!(
            self.spool().queue.dead_letters().events(),
            expected.len() as u64,
            "dead letters"
        );
        prop_assert!(
            letters == expected,
            "the dead letters are not what was buried"
        );
        self.spool().queue.close().await;
        self.open_anew(1 << 20).await;
        prop_assert_eq!(self.spool().queue.depth().events, 0);
        prop_assert!(volumes(self.dir.path()).len() <= 1, "the disk is not back");
        self.spool().queue.close().await;
        Ok(self.repacked)
    }
}

type Given<'a> = Option<(&'a [u8], Place)>;

/// What a read gave, by ordinals: events, or none where one was left out.
fn in_order(reading: &Reading) -> Vec<(u64, Given<'_>)> {
    let mut given = Vec::new();
    for record in &reading.records {
        for index in 0..record.len() {
            let place = Place {
                position: record.position,
                index: record.skipped + index as u32,
                accepted_at_ms: record.accepted_at_ms,
            };
            let event = Some((record.event(index), place));
            given.push((record.first + index as u64, event));
        }
    }
    let left_out = reading.buried.iter().cloned().flatten();
    given.extend(left_out.map(|ordinal| (ordinal, None)));
    given.sort_by_key(|(ordinal, _)| *ordinal);
    given
}

#[test]
fn whatever_is_done_to_it_the_queue_holds_what_its_model_holds() {
    let config = ProptestConfig {
        cases: 24,
        failure_persistence: None,
        max_shrink_iters: 60,
        max_shrink_time: 30_000,
        ..ProptestConfig::default()
    };
    let repacked = AtomicU64::new(0);
    proptest!(config, |(volume_bytes in volume_bytes(), ops in ops())| {
        let volumes = runtime().block_on(async {
            let mut pair = Pair::new(volume_bytes).await;
            for op in ops {
                pair.perform(op).await?;
            }
            pair.drain().await
        })?;
        repacked.fetch_add(volumes, Ordering::Relaxed);
    });
    assert!(repacked.into_inner() > 0, "no volume was ever repacked");
}

// ---- what random operations do not reach ----

#[test]
fn a_second_open_is_told_that_the_spool_is_in_use() {
    runtime().block_on(async {
        let dir = tempdir();
        let (queue, lanes) = open(dir.path(), 1);
        let second = Queue::open(dir.path(), &config(1));
        assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
        queue.close().await;
        drop((queue, lanes));
        let (queue, _lanes) = open(dir.path(), 1);
        queue.close().await;
    });
}

#[test]
fn an_append_returns_after_its_barrier_and_shows_nothing_before() {
    runtime().block_on(async {
        let dir = tempdir();
        let (entered, mut at_barrier) = tokio::sync::mpsc::unbounded_channel();
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let barrier = Barrier::new(move |file| {
            entered.send(()).expect("the test waits");
            let released = released.lock().expect("one writer");
            released.recv().expect("the test releases");
            file.sync_data()
        });
        let (queue, _lanes) = Queue::open_with(
            dir.path(),
            &config(128 << 20),
            barrier,
            Repacking::WhenWorthIt,
        )
        .expect("opened");
        let lane = queue.lane(&name(0)).expect("a lane");
        let mut append = tokio::spawn({
            let (queue, runs) = (queue.clone(), vec![(Arc::clone(&lane), run(&[b"held"]))]);
            async move { queue.append(runs).await }
        });
        tokio::select! {
            biased;
            result = &mut append => panic!("{result:?} came before the barrier"),
            entered = at_barrier.recv() => entered.expect("the writer holds the barrier"),
        }
        // The writer stands in the barrier: whatever an answer needs has to come after this.
        assert!(!append.is_finished());
        assert_eq!(lane.depth().events, 0);
        assert_eq!(queue.depth().events, 0);
        release.send(()).expect("the writer waits");
        let result = within(append).await.expect("no panic");
        assert_eq!(result, Ok(Durability::Synced));
        assert_eq!(lane.depth().events, 1);
        drop(release);
        queue.close().await;
    });
}

/// A barrier that fails as often as the counter says.
fn failing_barrier() -> (Barrier, Arc<AtomicU32>) {
    let failures = Arc::new(AtomicU32::new(0));
    let left = Arc::clone(&failures);
    let barrier = Barrier::new(move |file| {
        let fails = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
        match fails {
            Ok(_) => Err(io::Error::from_raw_os_error(5)),
            Err(_) => file.sync_data(),
        }
    });
    (barrier, failures)
}

#[test]
fn what_a_failed_barrier_refused_counts_nowhere_and_the_rest_goes_on_in_a_new_volume() {
    runtime().block_on(async {
        let dir = tempdir();
        let (barrier, failures) = failing_barrier();
        let (queue, mut lanes) = Queue::open_with(
            dir.path(),
            &config(128 << 20),
            barrier,
            Repacking::WhenWorthIt,
        )
        .expect("opened");
        let lane = queue.lane(&name(0)).expect("a lane");
        let reader = within(lanes.next()).await;
        append(&queue, &lane, &[b"first", b"second"])
            .await
            .expect("stored");
        for _ in 0..2 {
            failures.store(1, Ordering::Release);
            let refused = append(&queue, &lane, &[b"refused"]).await;
            assert_eq!(refused, Err(AppendError::Storage));
            assert_eq!(lane.depth().events, 2, "nothing is counted");
        }
        append(&queue, &lane, &[b"third"]).await.expect("stored");
        assert!(volumes(dir.path()).len() >= 2, "it is another volume");
        assert_eq!(lane.depth().events, 3);
        assert_eq!(texts(&reader).await, ["first", "second", "third"]);
        reader.settle(0..2);
        queue.close().await;
        drop((queue, lanes, lane, reader));

        let spool = Spool::open(dir.path(), 1).await;
        assert_eq!(spool.lanes[0].depth().events, 1);
        assert_eq!(texts(&spool.readers[0]).await, ["third"]);
        spool.queue.close().await;
    });
}

#[test]
fn three_failures_in_a_row_end_the_writer_and_a_later_process_has_all_that_was_accepted() {
    runtime().block_on(async {
        let dir = tempdir();
        let (barrier, failures) = failing_barrier();
        let (queue, lanes) = Queue::open_with(
            dir.path(),
            &config(128 << 20),
            barrier,
            Repacking::WhenWorthIt,
        )
        .expect("opened");
        let lane = queue.lane(&name(0)).expect("a lane");
        append(&queue, &lane, &[b"kept"]).await.expect("stored");
        failures.store(u32::MAX, Ordering::Release);
        for _ in 0..3 {
            let refused = append(&queue, &lane, &[b"refused"]).await;
            assert_eq!(refused, Err(AppendError::Storage));
        }
        within(queue.ended()).await;
        assert_eq!(
            append(&queue, &lane, &[b"late"]).await,
            Err(AppendError::Closed)
        );
        within(queue.close()).await;
        drop((queue, lanes, lane));
        let spool = Spool::open(dir.path(), 1).await;
        assert_eq!(texts(&spool.readers[0]).await, ["kept"]);
        spool.queue.close().await;
    });
}

#[test]
fn a_letter_whose_sync_failed_is_buried_once_when_it_is_tried_again() {
    runtime().block_on(async {
        let dir = tempdir();
        let (barrier, failures) = failing_barrier();
        let (queue, _lanes) = Queue::open_with(
            dir.path(),
            &config(128 << 20),
            barrier,
            Repacking::WhenWorthIt,
        )
        .expect("opened");
        failures.store(1, Ordering::Release);
        let letters = queue.dead_letters();
        assert!(letters.bury(vec![(7, 0, letter(b"poison"))]).await.is_err());
        for _ in 0..2 {
            letters
                .bury(vec![(7, 0, letter(b"poison"))])
                .await
                .expect("buried");
        }
        assert_eq!(letters.events(), 1);
        assert_eq!(letters.all().await, [letter(b"poison")]);
        queue.close().await;
    });
}

#[test]
fn after_close_nothing_is_accepted_and_closing_again_does_nothing() {
    runtime().block_on(async {
        let dir = tempdir();
        let (queue, _lanes) = open(dir.path(), 1);
        let lane = queue.lane(&name(0)).expect("a lane");
        within(queue.close()).await;
        within(queue.close()).await;
        within(queue.ended()).await;
        assert_eq!(
            append(&queue, &lane, &[b"late"]).await,
            Err(AppendError::Closed)
        );
        assert!(
            queue
                .dead_letters()
                .bury(vec![(0, 0, letter(b"late"))])
                .await
                .is_err()
        );
    });
}

/// Something bad that happens to a file between two processes.
type Damage = fn(&Path);

/// Several volumes hold a lane's events; the second is damaged. Of the others nothing may be missing.
#[test]
fn a_damaged_volume_costs_what_is_in_it_and_nothing_else() {
    let cases: [(&str, Damage); 12] = [
        ("nothing is wrong", |_| {}),
        ("db is empty", |v| write(&v.join("db"), b"")),
        ("db is cut in half", |v| cut(&v.join("db"), 2)),
        ("db is cut to a few bytes", |v| cut(&v.join("db"), 10_000)),
        ("db is garbage", |v| {
            write(&v.join("db"), &event(9, 9, 700_000))
        }),
        ("db has flipped bits at its start", |v| {
            flip(&v.join("db"), |at| at < 64)
        }),
        ("db has a flipped bit in every page", |v| {
            flip(&v.join("db"), |at| at % 4096 == 77)
        }),
        ("db is zeroed in the middle", |v| zero(&v.join("db"))),
        ("db is gone", |v| {
            fs::remove_file(v.join("db")).expect("removed")
        }),
        ("db is a directory", |v| {
            fs::remove_file(v.join("db")).expect("removed");
            fs::create_dir(v.join("db")).expect("made");
        }),
        ("conf and snapshots are garbage", |v| {
            for file in files_of(v) {
                let name = file
                    .file_name()
                    .and_then(|n| n.to_str())
                    .unwrap_or_default();
                if name == "conf" || name.starts_with("snap.") {
                    write(&file, b"garbage");
                }
            }
        }),
        ("all of it is gone", |v| {
            fs::remove_dir_all(v).expect("removed")
        }),
    ];
    runtime().block_on(async {
        let original = tempdir();
        let numbers = three_volumes(original.path()).await;
        for summary in [true, false] {
            for (what, damage) in cases {
                let dir = tempdir();
                copy_spool(original.path(), dir.path());
                let volume = dir.path().join("volumes").join(numbers[1].to_string());
                if !summary {
                    fs::remove_file(volume.with_extension("summary")).expect("removed");
                }
                damage(&volume);
                let what = format!("{what}, summary: {summary}");
                survives_a_damaged_volume(dir.path(), &what).await;
            }
        }
    });
}

async fn survives_a_damaged_volume(dir: &Path, what: &str) {
    let spool = Spool::open(dir, 1).await;
    let lane = &spool.lanes[0];
    let recovered = lane.recovered_events();
    let read = texts(&spool.readers[0]).await;
    let of = |volume: usize| -> Vec<_> {
        let prefix = format!("{volume}:");
        read.iter()
            .filter(|t| t.starts_with(&prefix))
            .cloned()
            .collect()
    };
    assert_eq!(of(0), three_volumes_hold(0), "{what}");
    assert_eq!(of(2), three_volumes_hold(2), "{what}");
    let hurt = of(1);
    let whole = three_volumes_hold(1);
    assert!(
        hurt.iter().all(|t| whole.contains(t)) && hurt.len() <= whole.len(),
        "{what}"
    );
    assert!(read.is_sorted_by_key(|t| key_of(t)), "{what}: out of order");
    assert_eq!(lane.depth().events, read.len() as u64, "{what}");
    assert_eq!(lane.lost_events(), recovered - read.len() as u64, "{what}");
    let quarantined = spool.queue.usage().quarantined_volumes;
    if what.ends_with("true") {
        assert_eq!(recovered, 15, "{what}: the summary knows");
    }
    if what.starts_with("nothing") || what.starts_with("conf") {
        assert_eq!((read.len(), quarantined), (15, 0), "{what}");
    }
    spool.readers[0].settle(0..u64::MAX);
    within(spool.queue.drained()).await;
    append(&spool.queue, lane, &[b"3:0"]).await.expect("stored");
    assert_eq!(texts(&spool.readers[0]).await, ["3:0"], "{what}");
    spool.queue.close().await;
    drop(spool);

    let spool = Spool::open(dir, 1).await;
    let kept = spool.queue.usage().quarantined_volumes;
    let is_there_to_keep = !what.starts_with("all");
    let expected = if recovered > read.len() as u64 && is_there_to_keep {
        1
    } else {
        quarantined
    };
    assert_eq!(kept, expected, "{what}: a volume that lost events is kept");
    assert_eq!(texts(&spool.readers[0]).await, ["3:0"], "{what}");
    spool.queue.close().await;
}

/// What a lane has settled of the volume it stands in was once forgotten at the second start after the first, when an older
/// volume that another lane holds contained something of it too: it then counted events that were not there, as lost.
#[test]
fn a_lane_in_the_middle_of_a_volume_counts_right_at_every_start_though_an_older_volume_is_held() {
    runtime().block_on(async {
        let dir = tempdir();
        let spool = Spool::open(dir.path(), 128 << 20).await;
        for lane in &spool.lanes[..2] {
            append(&spool.queue, lane, &[b"old"]).await.expect("stored");
        }
        spool.queue.close().await;
        drop(spool);
        let spool = Spool::open(dir.path(), 128 << 20).await;
        append(
            &spool.queue,
            &spool.lanes[0],
            &[b"0", b"1", b"2", b"3", b"4"],
        )
        .await
        .expect("stored");
        spool.queue.close().await;
        drop(spool);
        for left in [
            ["0", "1", "2", "3", "4"].as_slice(),
            &["2", "3", "4"],
            &["3", "4"],
            &["4"],
        ] {
            let spool = Spool::open(dir.path(), 128 << 20).await;
            let read = texts(&spool.readers[0]).await;
            let settled = usize::from(read[0] == "old");
            assert_eq!(read[settled..], *left);
            assert_eq!(spool.lanes[0].depth().events, read.len() as u64);
            assert_eq!(spool.lanes[0].lost_events(), 0);
            spool.readers[0].settle(0..1 + 2 * settled as u64);
            spool.queue.close().await;
        }
    });
}

/// A lane whose lost events were the last ones has nothing left to settle; that too is drained.
#[test]
fn what_is_delivered_though_it_was_dropped_meanwhile_counts_as_delivered_only() {
    runtime().block_on(async {
        let dir = tempdir();
        let config = Config {
            max_bytes: ByteSize::mib(2),
            when_full: WhenFull::DropOldest,
            ..config(1 << 20)
        };
        let (queue, mut new) = Queue::open(dir.path(), &config).expect("opened");
        let lane = queue.lane(&name(0)).expect("few lanes");
        let reader = within(new.next()).await;
        // Noise, or it would take no room.
        let mut state = 1u64;
        let mut noise = || {
            let byte = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            };
            std::iter::repeat_with(byte)
                .take(50_000)
                .collect::<Vec<_>>()
        };
        let mut accepted = 0;
        while lane.dropped_events() == 0 {
            // Some of what is dropped has been read, and a call of it is under way.
            if accepted == 4 {
                let reading = reader.read(1).await.expect("a good disk");
                assert_eq!(in_order(&reading).len(), 1);
            }
            append(&queue, &lane, &[&noise()]).await.expect("stored");
            accepted += 1;
        }
        let dropped = lane.dropped_events();
        assert_eq!(lane.depth().events, accepted - dropped);
        for _ in 0..2 {
            reader.settle(0..1);
            assert_eq!(lane.dropped_events(), dropped - 1);
            assert_eq!(lane.depth().events, accepted - dropped);
        }
        let reading = reader.read(usize::MAX).await.expect("a good disk");
        assert_eq!(in_order(&reading).len() as u64, accepted - dropped);
        assert_eq!(lane.lost_events(), 0);
        queue.close().await;
    });
}

/// Events that compress as analytics does: two thirds of each are in all of them.
fn singles(numbers: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    let of = |n| {
        let mut bytes = format!("0:{n}\n").into_bytes();
        bytes.extend(event(0, n, 100));
        bytes.extend([b'-'; 400]);
        bytes
    };
    numbers.map(of).collect()
}

#[test]
fn small_records_become_full_ones_and_each_event_is_still_read_once_and_in_order() {
    runtime().block_on(async {
        const SINGLES: usize = 3_000;
        let dir = tempdir();
        let spool = Spool::open(dir.path(), 1 << 20).await;
        for event in singles(0..SINGLES) {
            append(&spool.queue, &spool.lanes[0], &[&event])
                .await
                .expect("stored");
        }
        until(|| spool.queue.usage().repacked_volumes >= 1).await;
        spool.queue.close().await;
        drop(spool);
        // The volume that was written last is sealed now. Full records take a fifth of the small ones.
        let spool = Spool::open(dir.path(), 1 << 20).await;
        // What has been read by then stays as it is.
        let first = within(spool.readers[0].read(50_000)).await;
        let first = texts_in(&first.expect("a good disk"));
        until(|| spool.queue.usage().disk_bytes <= 3 * 256 * 1024).await;

        let texts_of = |numbers: std::ops::Range<usize>| numbers.map(|n| format!("0:{n}"));
        let rest = texts(&spool.readers[0]).await;
        assert!(first.len() < SINGLES / 2, "{}", first.len());
        assert!(first.into_iter().chain(rest).eq(texts_of(0..SINGLES)));
        // Settled up to within a full record.
        spool.readers[0].settle(0..100);
        spool.queue.close().await;
        drop(spool);
        let spool = Spool::open(dir.path(), 1 << 20).await;
        assert_eq!(spool.lanes[0].depth().events as usize, SINGLES - 100);
        let read = texts(&spool.readers[0]).await;
        assert!(read.into_iter().eq(texts_of(100..SINGLES)));
        assert_eq!(spool.lanes[0].lost_events(), 0);
        spool.readers[0].settle(0..SINGLES as u64);
        within(spool.queue.drained()).await;
        spool.queue.close().await;
    });
}

/// Its cursor rests behind its last record, which once lay before the last of the small ones that had become it.
#[test]
fn a_lane_whose_merged_records_are_settled_leaves_the_volume_to_the_others() {
    runtime().block_on(async {
        let dir = tempdir();
        let config = config(128 << 20);
        let opened = Queue::open_with(dir.path(), &config, Barrier::os(), Repacking::WhenWorthIt);
        let (queue, new) = opened.expect("opened");
        for number in 0..2 {
            let lane = queue.lane(&name(number)).expect("few lanes");
            for event in singles(0..500) {
                append(&queue, &lane, &[&event]).await.expect("stored");
            }
        }
        queue.close().await;
        drop((queue, new));
        let spool = Spool::open(dir.path(), 128 << 20).await;
        until(|| spool.queue.usage().repacked_volumes == 1).await;
        let number = volumes(dir.path())[0];
        assert_eq!(texts(&spool.readers[0]).await.len(), 500);
        spool.readers[0].settle(0..500);
        let summary = dir.path().join(format!("volumes/{number}.summary"));
        let key = |lane: usize| format!("\"key\":\"{}\"", name(lane).expose_key());
        let holds = |lane| fs::read_to_string(&summary).is_ok_and(|s| s.contains(&key(lane)));
        assert!(holds(1));
        until(|| !holds(0)).await;
        assert_eq!(texts(&spool.readers[1]).await.len(), 500);
        spool.queue.close().await;
    });
}

/// A volume that was dropped while it was copied once came back with the copy, and its events were queued again.
#[test]
fn a_copy_of_a_volume_that_was_dropped_meanwhile_does_not_take_its_place() {
    runtime().block_on(async {
        let (dir, aside) = (tempdir(), tempdir());
        let config = Config {
            max_bytes: ByteSize::mib(2),
            when_full: WhenFull::DropOldest,
            ..config(1 << 20)
        };
        let (queue, new) = Queue::open(dir.path(), &config).expect("opened");
        let lane = queue.lane(&name(0)).expect("few lanes");
        let volume = |number: u64| dir.path().join("volumes").join(number.to_string());
        let mut copied = None;
        for number in 0.. {
            if lane.dropped_events() > 0 {
                break;
            }
            if let ([oldest, _], None) = (&volumes(dir.path())[..], copied) {
                copy_dir(&volume(*oldest), aside.path()).expect("copied");
                copied = Some(*oldest);
            }
            let noise = event(0, number, 50_000);
            append(&queue, &lane, &[&noise]).await.expect("stored");
        }
        let depth = lane.depth();
        queue.close().await;
        drop((queue, lane, new));
        let copied = copied.expect("two volumes");
        assert!(!volumes(dir.path()).contains(&copied));
        let copy = volume(copied).with_extension("repacked");
        copy_dir(aside.path(), &copy).expect("left by a kill");
        let (queue, _new) = Queue::open(dir.path(), &config).expect("opened");
        let lane = queue.lane(&name(0)).expect("few lanes");
        assert_eq!(lane.depth(), depth);
        assert!(!copy.exists());
        queue.close().await;
    });
}

/// A letter names its event by its place in a record: were that record merged with others, the event would be sent again.
#[test]
fn small_records_with_a_dead_letter_of_an_earlier_process_stay_as_they_are() {
    runtime().block_on(async {
        const SINGLES: usize = 1_500;
        let dir = tempdir();
        let config = config(128 << 20);
        let open = |repacking| Queue::open_with(dir.path(), &config, Barrier::os(), repacking);
        let (queue, mut new) = open(Repacking::WhenWorthIt).expect("opened");
        let lane = queue.lane(&name(0)).expect("few lanes");
        let reader = within(new.next()).await;
        for event in singles(0..SINGLES) {
            append(&queue, &lane, &[&event]).await.expect("stored");
        }
        let reading = within(reader.read(1)).await.expect("a good disk");
        let record = &reading.records[0];
        let mut buried = letter(b"0:0");
        buried.accepted_at_ms = record.accepted_at_ms;
        let buried = vec![(record.position, 0, buried)];
        queue.dead_letters().bury(buried).await.expect("buried");
        queue.close().await;
        drop((queue, lane, new, reader));

        let spool = Spool::open(dir.path(), 1).await;
        // The volume in which more waits is looked at later: once that is repacked, this one was passed over.
        let others = singles(0..SINGLES + 1);
        let others: Vec<_> = others.iter().map(Vec::as_slice).collect();
        append(&spool.queue, &spool.lanes[1], &others)
            .await
            .expect("stored");
        until(|| spool.queue.usage().repacked_volumes == 1).await;
        let read = texts(&spool.readers[0]).await;
        assert_eq!(read.len(), SINGLES - 1);
        assert_eq!(read[0], "0:1");
        spool.queue.close().await;
    });
}

/// A crash between any two steps of putting a copy in a volume's place.
#[test]
fn a_volume_is_whole_wherever_a_crash_met_its_repacking() {
    runtime().block_on(async {
        let dir = tempdir();
        let numbers = three_volumes(dir.path()).await;
        let path = dir.path().join("volumes").join(numbers[1].to_string());
        let [copy, old] = ["repacked", "deleted"].map(|kind| path.with_extension(kind));
        for (step, has_moved) in [("copying", false), ("swapping", true)] {
            if has_moved {
                copy_dir(&path, &copy).expect("copied");
                fs::rename(&path, &old).expect("renamed");
            } else {
                fs::create_dir(&copy).expect("made");
                write(&copy.join("db"), b"half a copy");
            }
            let spool = Spool::open(dir.path(), 1).await;
            assert_eq!(spool.queue.depth().events, 15, "{step}");
            let reading = spool.readers[0]
                .read(usize::MAX)
                .await
                .expect("a good disk");
            assert_eq!(in_order(&reading).len(), 15, "{step}");
            spool.queue.close().await;
            // Not before: this process may repack it too.
            assert!(!copy.exists() && !old.exists(), "{step}");
            drop(spool);
        }
    });
}

#[test]
fn losing_the_last_events_drains_the_queue_and_frees_their_volumes() {
    runtime().block_on(async {
        let dir = tempdir();
        let numbers = three_volumes(dir.path()).await;
        for number in &numbers {
            let volume = dir.path().join("volumes").join(number.to_string());
            fs::remove_file(volume.join("db")).expect("removed");
        }
        let spool = Spool::open(dir.path(), 1).await;
        assert_eq!(spool.queue.depth().events, 15);
        let drained = within(spool.queue.drained());
        let read = texts(&spool.readers[0]);
        let ((), read) = futures_util::future::join(drained, read).await;
        assert!(read.is_empty());
        assert_eq!(spool.lanes[0].lost_events(), 15);
        until(|| volumes(dir.path()).iter().all(|v| !numbers.contains(v))).await;
        spool.queue.close().await;
    });
}

/// Damage found while a volume is still being written must not take what is appended afterwards along.
#[test]
fn what_is_appended_after_the_active_volume_broke_is_kept() {
    runtime().block_on(async {
        let dir = tempdir();
        let spool = Spool::open(dir.path(), 128 << 20).await;
        let lane = &spool.lanes[0];
        // More than sled keeps in memory, so that reading has to ask the disk.
        for round in 0..12 {
            let events: Vec<_> = (0..64)
                .map(|n| event(0, round * 64 + n, 32 * 1024))
                .collect();
            let events: Vec<_> = events.iter().map(Vec::as_slice).collect();
            append(&spool.queue, lane, &events).await.expect("stored");
        }
        let active = volumes(dir.path());
        let db = dir
            .path()
            .join("volumes")
            .join(active[0].to_string())
            .join("db");
        damage_in_place(&db);
        let before = spool.readers[0]
            .read(usize::MAX)
            .await
            .expect("a good disk");
        let before: u64 = before.records.iter().map(|r| r.len() as u64).sum();
        let lost = lane.lost_events();
        assert!(lost > 0, "the damage was found");
        assert_eq!(before + lost, 768);
        for text in ["a", "b"] {
            append(&spool.queue, lane, &[text.as_bytes()])
                .await
                .expect("stored");
            assert_eq!(texts(&spool.readers[0]).await, [text]);
        }
        assert_eq!(lane.lost_events(), lost);
        assert_eq!(lane.depth().events, before + 2);
        spool.queue.close().await;
        drop(spool);
        let spool = Spool::open(dir.path(), 1).await;
        assert_eq!(texts(&spool.readers[0]).await, ["a", "b"]);
        spool.queue.close().await;
    });
}

#[test]
fn damaged_cursors_and_summaries_cost_a_second_delivery_and_nothing_else() {
    let (cursors, previous) = ("cursors", "cursors.previous");
    // What is damaged, how many events are expected again at least and at most.
    let cases: [(&[&str], usize, usize); 4] = [
        (&[], 11, 11),
        (&["summary"], 11, 11),
        (&[cursors], 11, 15),
        (&[cursors, previous, "summary"], 15, 15),
    ];
    runtime().block_on(async {
        let original = tempdir();
        let numbers = three_volumes(original.path()).await;
        let spool = Spool::open(original.path(), 1).await;
        assert_eq!(texts(&spool.readers[0]).await.len(), 15);
        spool.readers[0].settle(0..4);
        spool.queue.close().await;
        drop(spool);
        for (damaged, least, most) in cases {
            for garbage in [
                &b""[..],
                b"garbage",
                b"segspool cursors 1 crc32c=00000000\n{}",
            ] {
                let dir = tempdir();
                copy_spool(original.path(), dir.path());
                for what in damaged {
                    let paths = match *what {
                        "summary" => numbers
                            .iter()
                            .map(|n| dir.path().join(format!("volumes/{n}.summary")))
                            .collect(),
                        file => vec![dir.path().join(file)],
                    };
                    paths.iter().for_each(|path| write(path, garbage));
                }
                let spool = Spool::open(dir.path(), 1).await;
                let depth = spool.queue.depth().events as usize;
                let read = texts(&spool.readers[0]).await;
                assert_eq!(read.len(), depth, "{damaged:?}");
                assert!((least..=most).contains(&depth), "{damaged:?}: {depth}");
                assert_eq!(spool.lanes[0].lost_events(), 0, "{damaged:?}");
                assert_eq!(read.last().map(String::as_str), Some("2:4"), "{damaged:?}");
                spool.queue.close().await;
            }
        }
    });
}

/// Another version's spool is not touched: what it means is not known here.
#[test]
fn a_spool_of_an_unknown_format_is_refused_and_left_as_it_is() {
    runtime().block_on(async {
        let dir = tempdir();
        three_volumes(dir.path()).await;
        let format = dir.path().join("format");
        let good = fs::read(&format).expect("read");
        for other in ["0\n", "1\n", "3\n", "17"] {
            write(&format, other.as_bytes());
            let refused = Queue::open(dir.path(), &config(1));
            assert!(
                matches!(refused, Err(OpenError::Format { .. })),
                "{refused:?}"
            );
        }
        // What is no number no version has written.
        for damaged in [&b""[..], b"nonsense", b"\xff\xfe"] {
            write(&format, damaged);
            let spool = Spool::open(dir.path(), 1).await;
            assert_eq!(fs::read(&format).expect("read"), good);
            spool.queue.close().await;
        }
        fs::remove_file(&format).expect("removed");
        write(&dir.path().join("format.new"), b"");
        let spool = Spool::open(dir.path(), 1).await;
        assert_eq!(fs::read(&format).expect("read"), good);
        assert_eq!(texts(&spool.readers[0]).await.len(), 15);
        spool.queue.close().await;
    });
}

#[test]
fn dead_letters_that_cannot_be_read_are_set_aside_and_new_ones_are_kept() {
    let cases: [(&str, Damage); 4] = [
        ("db is garbage", |d| {
            write(&d.join("db"), &event(9, 9, 700_000))
        }),
        ("db is empty", |d| write(&d.join("db"), b"")),
        ("db is a directory", |d| {
            fs::remove_file(d.join("db")).expect("removed");
            fs::create_dir(d.join("db")).expect("made");
        }),
        ("it is a file", |d| {
            fs::remove_dir_all(d).expect("removed");
            write(d, b"a file");
        }),
    ];
    runtime().block_on(async {
        for (what, damage) in cases {
            let dir = tempdir();
            let (queue, lanes) = open(dir.path(), 1);
            queue
                .dead_letters()
                .bury(vec![(1, 0, letter(b"old"))])
                .await
                .expect("buried");
            queue.close().await;
            drop((queue, lanes));
            damage(&dir.path().join("dead-letters"));
            let spool = Spool::open(dir.path(), 1).await;
            append(&spool.queue, &spool.lanes[0], &[b"event"])
                .await
                .expect("stored");
            let letters = spool.queue.dead_letters();
            let buried = within(letters.bury(vec![(2, 0, letter(b"new"))])).await;
            assert_eq!(buried, Ok(()), "{what}");
            assert_eq!(letters.all().await.last(), Some(&letter(b"new")), "{what}");
            assert_eq!(
                letters.events() as usize,
                letters.all().await.len(),
                "{what}"
            );
            spool.queue.close().await;
        }
    });
}

/// So many letters of 7 kB, each with a text of its own.
fn letters_of(numbers: std::ops::Range<u32>) -> Vec<(Position, u32, DeadLetter)> {
    let letters = numbers.map(|n| (7, n, letter(&event(0, n as usize, 7_000))));
    letters.collect()
}

#[test]
fn dead_letters_that_take_far_too_much_disk_are_written_anew_and_none_is_lost() {
    runtime().block_on(async {
        let dir = tempdir();
        let store = dir.path().join("dead-letters");
        let (queue, lanes) = open(dir.path(), 1);
        for start in (0..6_000).step_by(500) {
            let letters = letters_of(start..start + 500);
            let buried = queue.dead_letters().bury(letters).await;
            buried.expect("buried");
        }
        let full = disk_bytes(&store);
        assert!(full > 16 << 20, "{full}");
        let all = queue.dead_letters();
        let (mut after, mut removed) = (None, 0);
        while removed < 5_900 {
            let portion = all.read(after, &Filter::default(), 100).await;
            let portion = portion.expect("a good disk");
            let ids: Vec<_> = portion.letters.iter().map(|(id, _)| *id).collect();
            after = portion.next;
            removed += all.change(ids, Vec::new()).await.expect("a good disk");
        }
        let kept: Vec<_> = letters_of(5_900..6_000).into_iter().map(|l| l.2).collect();
        assert_eq!(all.all().await, kept);
        let left = disk_bytes(&store);
        assert!(left < full / 2, "the disk is not back: {left} of {full}");
        queue.close().await;
        drop((queue, lanes));

        // What a crash may leave: the new store complete or not, the old one under either name.
        let (new, old) = (
            dir.path().join("dead-letters.new"),
            dir.path().join("dead-letters.old"),
        );
        for what in [
            "nothing else",
            "half a new one",
            "the old one aside",
            "both",
        ] {
            match what {
                "half a new one" => fs::create_dir(&new).expect("made"),
                "the old one aside" => {
                    fs::rename(&store, &old).expect("renamed");
                    fs::create_dir(&new).expect("made");
                }
                "both" => fs::create_dir(&old).expect("made"),
                _ => {}
            }
            let (queue, lanes) = open(dir.path(), 1);
            assert_eq!(queue.dead_letters().all().await, kept, "{what}");
            assert_eq!(queue.dead_letters().events(), 100, "{what}");
            queue.close().await;
            drop((queue, lanes));
            assert!(!new.exists() && !old.exists(), "{what}");
        }
    });
}

fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = files_of(dir).into_iter();
    files
        .map(|file| fs::metadata(file).map_or(0, |m| m.blocks() * 512))
        .sum()
}

#[test]
fn letters_buried_together_are_all_buried_or_none_and_one_buried_again_is_the_later_one() {
    runtime().block_on(async {
        let dir = tempdir();
        let config = Config {
            dead_letter_max_bytes: ByteSize::kib(100),
            ..config(1)
        };
        let (queue, _lanes) = Queue::open(dir.path(), &config).expect("opened");
        let letters = queue.dead_letters();
        let too_many = letters.bury(letters_of(0..20)).await;
        assert_eq!(too_many, Err(BuryError::Full));
        assert_eq!((letters.events(), letters.all().await.len()), (0, 0));
        letters.bury(letters_of(0..10)).await.expect("buried");
        let mut again = letters_of(9..10);
        again[0].2 = letter(b"short");
        letters.bury(again).await.expect("buried");
        let all = letters.all().await;
        assert_eq!((letters.events(), all.len()), (10, 10));
        assert_eq!(
            all[9],
            letter(b"short"),
            "nothing of the longer one is left"
        );
        queue.close().await;
    });
}

#[test]
fn foreign_files_among_the_volumes_stop_nothing_and_stay() {
    runtime().block_on(async {
        let dir = tempdir();
        let numbers = three_volumes(dir.path()).await;
        let next = numbers[2] + 1;
        let inside = dir.path().join("volumes");
        let files: Vec<_> = (next..next + 4)
            .map(|n| n.to_string())
            .chain(["notes.txt", "old.deleted", "my.summary", "x.summary.new"].map(str::to_owned))
            .map(|name| inside.join(name))
            .collect();
        files.iter().for_each(|path| write(path, b"foreign"));
        let dirs: Vec<_> = [
            "007",
            "+1",
            "lost+found",
            "18446744073709551615",
            "mine.deleted",
        ]
        .iter()
        .map(|name| inside.join(name))
        .collect();
        dirs.iter()
            .for_each(|path| fs::create_dir(path).expect("made"));
        let spool = Spool::open(dir.path(), 1).await;
        assert_eq!(texts(&spool.readers[0]).await.len(), 15);
        append(&spool.queue, &spool.lanes[0], &[b"more"])
            .await
            .expect("stored");
        spool.readers[0].settle(0..15);
        spool.queue.close().await;
        for path in files.iter().chain(&dirs) {
            assert!(path.exists(), "{}", path.display());
        }
    });
}

/// A number that is used again would meet its predecessor in quarantine.
#[test]
fn volumes_that_break_one_after_another_are_all_kept_in_quarantine() {
    runtime().block_on(async {
        let dir = tempdir();
        for round in 1..=3 {
            let numbers = three_volumes(dir.path()).await;
            for number in numbers {
                let volume = dir.path().join("volumes").join(number.to_string());
                fs::remove_file(volume.join("db")).expect("removed");
                fs::create_dir(volume.join("db")).expect("made");
                fs::remove_file(volume.with_extension("summary")).expect("removed");
            }
            let _ = fs::remove_file(dir.path().join("cursors"));
            let _ = fs::remove_file(dir.path().join("cursors.previous"));
            let (queue, lanes) = open(dir.path(), 1);
            assert_eq!(queue.usage().quarantined_volumes, 3 * round);
            assert_eq!(queue.depth().events, 0);
            queue.close().await;
            drop((queue, lanes));
            assert!(volumes(dir.path()).is_empty(), "{round}");
        }
    });
}

// ---- tools ----

/// An open queue with its lanes and their readers.
struct Spool {
    queue: Queue,
    lanes: Vec<Arc<Lane>>,
    readers: Vec<LaneReader>,
    _new: NewLanes,
}

impl Spool {
    async fn open(dir: &Path, volume_bytes: u64) -> Spool {
        let (config, barrier) = (config(volume_bytes), Barrier::synced());
        let opened = Queue::open_with(dir, &config, barrier, Repacking::Always);
        let (queue, mut new) = opened.expect("opened");
        let lanes: Vec<_> = (0..LANES)
            .map(|n| queue.lane(&name(n)).expect("few lanes"))
            .collect();
        let mut readers = BTreeMap::new();
        while readers.len() < LANES {
            let reader = within(new.next()).await;
            let number = lanes.iter().position(|l| l.id() == reader.lane().id());
            readers.insert(number.expect("one of the lanes"), reader);
        }
        Spool {
            queue,
            lanes,
            readers: readers.into_values().collect(),
            _new: new,
        }
    }
}

/// A closed spool with three volumes that hold five events of lane 0 each, `<volume>:<event>` and padding.
async fn three_volumes(dir: &Path) -> Vec<u64> {
    let spool = Spool::open(dir, 1).await;
    for volume in 0..3 {
        let events: Vec<_> = (0..5).map(|n| padded(volume, n)).collect();
        let events: Vec<_> = events.iter().map(Vec::as_slice).collect();
        append(&spool.queue, &spool.lanes[0], &events)
            .await
            .expect("stored");
    }
    spool.queue.close().await;
    let numbers = volumes(dir);
    assert_eq!(numbers.len(), 3);
    numbers
}

fn three_volumes_hold(volume: usize) -> Vec<String> {
    (0..5).map(|n| format!("{volume}:{n}")).collect()
}

/// `<volume>:<event>`, a line feed, and bytes that do not compress.
fn padded(volume: usize, number: usize) -> Vec<u8> {
    let mut bytes = format!("{volume}:{number}\n").into_bytes();
    bytes.extend(event(volume, number, 12_000));
    bytes
}

fn key_of(text: &str) -> (u32, u32) {
    let (volume, number) = text.split_once(':').expect("volume and number");
    let parse = |s: &str| s.parse().expect("a number");
    (parse(volume), parse(number))
}

/// All that can be read now: each event up to its first line feed.
async fn texts(reader: &LaneReader) -> Vec<String> {
    texts_in(&within(reader.read(usize::MAX)).await.expect("a good disk"))
}

fn texts_in(reading: &Reading) -> Vec<String> {
    let events = reading
        .records
        .iter()
        .flat_map(|r| (0..r.len()).map(|i| r.event(i)));
    events
        .map(|e| String::from_utf8_lossy(e.split(|b| *b == b'\n').next().unwrap_or(e)).into_owned())
        .collect()
}

async fn append(
    queue: &Queue,
    lane: &Arc<Lane>,
    events: &[&[u8]],
) -> Result<Durability, AppendError> {
    within(queue.append(vec![(Arc::clone(lane), run(events))])).await
}

fn run(events: &[&[u8]]) -> Run {
    let mut run = Run::default();
    events.iter().for_each(|e| run.push(e));
    run
}

/// The event `number` of a lane: `len` bytes that do not compress, four at least; no two are equal.
fn event(lane: usize, number: usize, len: usize) -> Vec<u8> {
    let mut state = (number as u64) << 8 | lane as u64 | 1 << 63;
    let mut bytes = (number as u32).to_le_bytes().to_vec();
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn letter(event: &[u8]) -> DeadLetter {
    DeadLetter {
        lane: Some(name(0)),
        call: None,
        code: "refused".into(),
        reason: "the destination refused it".into(),
        status: Some(400),
        answer: "no".into(),
        attempts: 1,
        accepted_at_ms: 1,
        buried_at_ms: 2,
        event: event.to_vec(),
    }
}

fn name(lane: usize) -> LaneName {
    LaneName::new("segment", format!("write-key-{lane}"))
}

fn config(volume_bytes: u64) -> Config {
    Config {
        volume_bytes: ByteSize::b(volume_bytes),
        min_free_disk: ByteSize::b(0),
        ..Config::default()
    }
}

fn open(dir: &Path, volume_bytes: u64) -> (Queue, NewLanes) {
    Queue::open(dir, &config(volume_bytes)).expect("opened")
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}

fn tempdir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it does not hang")
}

/// For what has no event: the keeper gives disk back when it gets to it.
async fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "it takes too long");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The numbers of the volumes on disk.
fn volumes(dir: &Path) -> Vec<u64> {
    let names = files_of(&dir.join("volumes"));
    let numbers = names
        .iter()
        .filter(|path| path.is_dir())
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_unstable();
    numbers
}

fn files_of(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory");
    entries.map(|e| e.expect("an entry").path()).collect()
}

/// Copies a data directory as a crash would leave it; starts over when the keeper moves a file away meanwhile. The cursors
/// come first: newer ones than the volumes would be as good, older ones are what a crash may leave.
fn copy_spool(from: &Path, to: &Path) {
    let deadline = Instant::now() + PATIENCE;
    // A grave goes once the cursors are saved: a copy made meanwhile would hold the older cursors without it. And a volume that is
    // repacked meanwhile would be copied by half.
    let moving = || {
        let files = ["cursors", "dead-letters/db"].map(|file| from.join(file));
        let volumes = files_of(&from.join("volumes")).into_iter();
        let all: BTreeMap<_, _> = volumes
            .chain(files)
            .map(|path| {
                let content = fs::read(&path).unwrap_or_default();
                (path, content)
            })
            .collect();
        all
    };
    loop {
        let before = moving();
        match copy_dir(from, to) {
            Ok(()) if moving() == before => return,
            Ok(()) => fs::remove_dir_all(to).expect("removed"),
            Err(e) if e.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                fs::remove_dir_all(to).expect("removed");
            }
            Err(e) => panic!("failed to copy: {e}"),
        }
    }
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let entries: io::Result<Vec<_>> = fs::read_dir(from)?.map(|e| Ok(e?.path())).collect();
    let mut paths = entries?;
    paths.sort_unstable();
    for path in paths {
        let to = to.join(path.file_name().expect("an entry has a name"));
        if path.is_dir() {
            copy_dir(&path, &to)?;
        } else {
            fs::copy(&path, &to)?;
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("written");
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("read");
    change(&mut bytes);
    write(path, &bytes);
}

fn cut(path: &Path, divisor: usize) {
    change(path, |bytes| bytes.truncate(bytes.len() / divisor));
}

fn flip(path: &Path, which: fn(usize) -> bool) {
    change(path, |bytes| {
        for (_, byte) in bytes.iter_mut().enumerate().filter(|(at, _)| which(*at)) {
            *byte ^= 0x10;
        }
    });
}

fn zero(path: &Path) {
    change(path, |bytes| {
        let (start, end) = (bytes.len() / 20, bytes.len() / 10);
        bytes[start..end].fill(0);
    });
}

/// Overwrites a file that somebody has open, without making it another file.
fn damage_in_place(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("opened");
    let len = file.metadata().expect("its length").len();
    let noise = event(9, 9, 4096);
    for at in (0..len / 2).step_by(4096) {
        file.write_all_at(&noise, at).expect("written");
    }
}
