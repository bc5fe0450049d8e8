//! Batches of messages that are nearly valid, written with every oddity that JSON allows: what random bytes seldom reach.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use segspool_fuzz::check_body;
use segspool_fuzz::event::limits::EVENT_BYTES_MAX;
use segspool_fuzz::event::{Code, decode_batch};

fuzz_target!(|request: Request| {
    let mut body = String::new();
    request.write(&mut body);
    if let Err(rejection) = decode_batch(body.as_bytes()) {
        assert_eq!(rejection.code(), Code::EmptyBatch, "{rejection}: {body}");
    }
    check_body(body.as_bytes());

    if let Some(message) = request.messages.first() {
        let mut body = String::new();
        message.write(&mut body);
        check_body(body.as_bytes());
    }
});

#[derive(Debug, Arbitrary)]
struct Request {
    context: Value,
    integrations: Value,
    write_key: Value,
    sent_at: Value,
    messages: Vec<Message>,
    space: Space,
}

impl Request {
    /// The batch stands between the others, so that cutting it ends neither first nor last.
    fn write(&self, out: &mut String) {
        let space = self.space.text();
        *out += &format!("{space}{{{space}\"context\":{space}");
        self.context.write(out);
        *out += ",\"writeKey\":";
        self.write_key.write(out);
        *out += ",\"sentAt\":";
        self.sent_at.write(out);
        *out += &format!(",\"batch\"{space}:[");
        separated(&self.messages, space, out, Message::write);
        *out += &format!("]{space},\"integrations\":");
        self.integrations.write(out);
        *out += &format!("{space}}}{space}");
    }
}

#[derive(Debug, Arbitrary)]
struct Message {
    /// What makes it valid, which what is odd may undo.
    base: Base,
    odd: Vec<Member>,
    space: Space,
}

#[derive(Debug, Arbitrary)]
enum Base {
    None,
    Track,
    Identify,
    Page,
    Screen,
    Group,
    Alias,
}

impl Message {
    fn write(&self, out: &mut String) {
        let space = self.space.text();
        let base = match self.base {
            Base::None => "",
            Base::Track => r#""type":"track","userId":"u","event":"E""#,
            Base::Identify => r#""anonymousId":"a","type":"identify""#,
            Base::Page => r#""type":"page","userId":"u""#,
            Base::Screen => r#""type":"screen","userId":"u""#,
            Base::Group => r#""type":"group","userId":"u","groupId":"g""#,
            Base::Alias => r#""type":"alias","userId":"u","previousId":"p""#,
        };
        *out += "{";
        *out += base;
        if !base.is_empty() && !self.odd.is_empty() {
            *out += ",";
        }
        separated(&self.odd, space, out, Member::write);
        *out += "}";
    }
}

#[derive(Debug, Arbitrary)]
struct Member {
    key: Key,
    value: Value,
    space: Space,
}

impl Member {
    fn write(&self, out: &mut String) {
        self.key.write(out);
        *out += &format!("{0}:{0}", self.space.text());
        self.value.write(out);
    }
}

#[derive(Debug, Arbitrary)]
enum Key {
    Known(Known),
    /// With its `n`th character, counted around, written as an escape.
    Escaped(Known, u8),
    Text(Text),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Known {
    Type,
    MessageId,
    Timestamp,
    OriginalTimestamp,
    SentAt,
    Context,
    Integrations,
    UserId,
    AnonymousId,
    PreviousId,
    GroupId,
    Event,
    Name,
    Category,
    Properties,
    Traits,
    WriteKey,
    Batch,
    Metadata,
}

impl Key {
    fn write(&self, out: &mut String) {
        match self {
            Key::Known(known) => *out += &format!("\"{}\"", known.name()),
            Key::Escaped(known, nth) => {
                let name = known.name();
                let nth = usize::from(*nth) % name.len();
                let escape = format!("\\u{:04x}", name.as_bytes()[nth]);
                *out += &format!("\"{}{escape}{}\"", &name[..nth], &name[nth + 1..]);
            }
            Key::Text(text) => text.write(out),
        }
    }
}

impl Known {
    fn name(self) -> &'static str {
        match self {
            Known::Type => "type",
            Known::MessageId => "messageId",
            Known::Timestamp => "timestamp",
            Known::OriginalTimestamp => "originalTimestamp",
            Known::SentAt => "sentAt",
            Known::Context => "context",
            Known::Integrations => "integrations",
            Known::UserId => "userId",
            Known::AnonymousId => "anonymousId",
            Known::PreviousId => "previousId",
            Known::GroupId => "groupId",
            Known::Event => "event",
            Known::Name => "name",
            Known::Category => "category",
            Known::Properties => "properties",
            Known::Traits => "traits",
            Known::WriteKey => "writeKey",
            Known::Batch => "batch",
            Known::Metadata => "_metadata",
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Value {
    Null,
    True,
    Number(Number),
    Text(Text),
    Array(Vec<Value>, Space),
    Object(Vec<Member>, Space),
    /// Arrays within each other, deeper than any parser that recurses would go.
    Deep(u8),
    /// A string that may be all that an event has room for.
    Long(u8),
}

impl Value {
    fn write(&self, out: &mut String) {
        match self {
            Value::Null => *out += "null",
            Value::True => *out += "true",
            Value::Number(number) => *out += number.text(),
            Value::Text(text) => text.write(out),
            Value::Array(items, space) => {
                *out += "[";
                separated(items, space.text(), out, Value::write);
                *out += "]";
            }
            Value::Object(members, space) => {
                *out += "{";
                separated(members, space.text(), out, Member::write);
                *out += "}";
            }
            Value::Deep(levels) => {
                let levels = 1 + long(*levels) / 2;
                *out += &format!("{}{}", "[".repeat(levels), "]".repeat(levels));
            }
            Value::Long(bytes) => *out += &format!("\"{}\"", "x".repeat(long(*bytes))),
        }
    }
}

/// Mostly `n`; the highest lead close below what an event may have.
fn long(n: u8) -> usize {
    match n {
        0..0xf8 => n.into(),
        0xf8.. => EVENT_BYTES_MAX - 64 * usize::from(0xff - n),
    }
}

#[derive(Debug, Arbitrary)]
enum Number {
    Zero,
    NegativeZero,
    Fraction,
    Huge,
    Long,
}

impl Number {
    fn text(&self) -> &'static str {
        match self {
            Number::Zero => "0",
            Number::NegativeZero => "-0.0E-0",
            Number::Fraction => "12.50",
            Number::Huge => "-1e+999999",
            Number::Long => "123456789012345678901234567890.123456789012345678901234567890",
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Text {
    Empty,
    Kind,
    Escapes,
    LoneSurrogate,
    Pair,
    Punctuation,
    Time(Time),
    Free(String),
}

impl Text {
    fn write(&self, out: &mut String) {
        match self {
            Text::Empty => *out += r#""""#,
            Text::Kind => *out += r#""track""#,
            Text::Escapes => *out += r#""\"\\\/\b\f\n\r\t\u0000""#,
            Text::LoneSurrogate => *out += r#""\ud800""#,
            Text::Pair => *out += r#""\ud83d\ude00 😀""#,
            Text::Punctuation => *out += r#""}{][,: \\""#,
            Text::Time(time) => *out += &format!("\"{}\"", time.text()),
            Text::Free(text) => {
                *out += &serde_json::to_string(text).expect("a string can be written as JSON");
            }
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Time {
    /// Within what a request may take on its way.
    Now,
    Behind,
    Ahead,
    Precise,
    Escaped,
    Zoned,
    Oldest,
    Newest,
    /// Without an offset, it may be any.
    Local,
}

impl Time {
    fn text(&self) -> &'static str {
        match self {
            Time::Now => "2026-11-23T11:59:59.987Z",
            Time::Behind => "2026-11-23T06:59:59-01:00",
            Time::Ahead => "2031-05-06t07:08:09,1z",
            Time::Precise => "2020-02-29T23:59:60.123456789+05:30",
            Time::Escaped => r"2026-11-22T12:00:00\u002b00:00",
            Time::Zoned => "2026-11-23T11:00:00.12345+01:00[Europe/Paris]",
            Time::Oldest => "-009999-01-03T00:00:00Z",
            Time::Newest => "9999-12-30T21:59:59.999999999Z",
            Time::Local => "2026-11-23T10:00:00",
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Space {
    None,
    Blank,
    Lines,
}

impl Space {
    fn text(&self) -> &'static str {
        match self {
            Space::None => "",
            Space::Blank => " ",
            Space::Lines => "\r\n\t ",
        }
    }
}

fn separated<T>(items: &[T], space: &str, out: &mut String, write: impl Fn(&T, &mut String)) {
    for (nth, item) in items.iter().enumerate() {
        if nth > 0 {
            *out += &format!("{space},{space}");
        }
        write(item, out);
    }
}
