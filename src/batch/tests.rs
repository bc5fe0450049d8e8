use super::*;

fn record(first: u64, events: &[String]) -> Record {
    let mut ends = Vec::new();
    let mut bytes = Vec::new();
    for event in events {
        bytes.extend_from_slice(event.as_bytes());
        ends.push(bytes.len() as u32);
    }
    Record {
        position: 100 + first,
        accepted_at_ms: 7,
        first,
        skipped: 0,
        bytes: bytes.into(),
        ends,
    }
}

fn assembler(body_bytes_max: usize, events_max: usize) -> (Assembler, Envelope) {
    let envelope = Envelope::segment("a \"key\"");
    let limits = Limits {
        body_bytes_max,
        events_max,
    };
    (Assembler::new(limits, envelope.bytes()), envelope)
}

fn now() -> Timestamp {
    "2026-11-23T14:00:00Z".parse().expect("a timestamp")
}

#[test]
fn a_body_is_the_stored_events_joined_in_their_envelope() {
    let (mut assembler, envelope) = assembler(500_000, 2500);
    assembler.push(record(0, &["{\"a\":1}".into(), "{\"b\": 2}".into()]));
    assembler.push(record(2, &["{}".into()]));
    let batch = assembler.take().expect("a batch");
    let body = envelope.body(&batch, now());
    let expected = r#"{"batch":[{"a":1},{"b": 2},{}],"sentAt":"2026-11-23T14:00:00.000Z","writeKey":"a \"key\""}"#;
    assert_eq!(body, expected);
    assert_eq!(batch.ordinals(), 0..3);
    assert_eq!(body.len(), envelope.body_bytes(&batch));
    assert!(assembler.take().is_none());
}

#[test]
fn no_body_passes_the_limit_and_none_could_have_taken_one_more_event() {
    let events: Vec<String> = (0..500)
        .map(|i| format!("{{\"n\":\"{}\"}}", "x".repeat(i * 37 % 300)))
        .collect();
    for (body_bytes_max, events_max) in [(1_000, 2500), (4_096, 2500), (20_000, 9), (500_000, 2500)]
    {
        let (mut assembler, envelope) = assembler(body_bytes_max, events_max);
        for (n, chunk) in events.chunks(7).enumerate() {
            assembler.push(record(n as u64 * 7, chunk));
        }
        let mut sent = Vec::new();
        while let Some(batch) = assembler.take() {
            assert_eq!(batch.ordinals().start as usize, sent.len());
            let body = envelope.body(&batch, now());
            sent.extend(
                batch
                    .events()
                    .map(|e| String::from_utf8(e.to_vec()).expect("text")),
            );
            assert!(body.len() <= body_bytes_max && batch.len() <= events_max);
            if let Some(next) = events.get(sent.len()) {
                assert!(batch.len() == events_max || body.len() + 1 + next.len() > body_bytes_max);
            }
        }
        assert_eq!(sent, events);
    }
}

#[test]
fn an_event_over_the_limit_goes_alone() {
    let (mut assembler, _) = assembler(200, 10);
    assembler.push(record(0, &["{}".into(), "x".repeat(1_000), "{}".into()]));
    let lens: Vec<_> = std::iter::from_fn(|| assembler.take())
        .map(|b| b.len())
        .collect();
    assert_eq!(lens, [1, 1, 1]);
}

#[test]
fn what_is_put_down_is_named_so_that_it_can_be_read_again() {
    let (mut assembler, _) = assembler(200, 2);
    assert_eq!(assembler.put_down(), None);
    assembler.push(record(0, &["0".into(), "1".into(), "2".into()]));
    assembler.push(record(5, &["5".into(), "6".into()]));
    assert_eq!(assembler.take().expect("a batch").ordinals(), 0..2);
    assert_eq!(assembler.put_down(), Some(2..7), "3 and 4 are settled");
    assert!(assembler.is_empty() && assembler.take().is_none());
    assembler.push(record(2, &["2".into()]));
    assembler.push(record(5, &["5".into(), "6".into()]));
    let batches: Vec<_> = std::iter::from_fn(|| assembler.take())
        .map(|batch| (batch.ordinals(), batch.len()))
        .collect();
    assert_eq!(batches, [(2..6, 2), (6..7, 1)]);
}

#[test]
fn what_is_missing_for_a_full_batch_counts_what_could_be_read() {
    let (mut assembler, envelope) = assembler(1_000, 10);
    let room = 1_000 - envelope.bytes();
    assert_eq!(assembler.missing_bytes(0, 0), room);
    assembler.push(record(0, &["x".repeat(100)]));
    assert_eq!(assembler.missing_bytes(0, 0), room - 100);
    assert_eq!(assembler.missing_bytes(1, 100), room - 201);
    assert_eq!(assembler.missing_bytes(1, 5_000), 0);
    assert_eq!(assembler.missing_bytes(9, 9), 0);
}
