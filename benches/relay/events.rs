//! Events as a web shop's server sends them: keys and names repeat, ids, users, prices and pages are random. The same seed
//! makes the same events.

use std::io::Write;

/// What every event takes as JSON.
pub(crate) const EVENT_BYTES: usize = 600;
/// What Segment's SDKs send at most in a call, by count.
pub(crate) const BATCH_EVENTS: usize = 100;

/// Digits of a `messageId` that [`number`] replaces.
pub(crate) const NUMBER_DIGITS: usize = 16;

const USERS: u64 = 20_000;
const PAGES: u64 = 50_000;

const NAMES: [&str; 5] = [
    "Product Viewed",
    "Product Added",
    "Checkout Started",
    "Order Completed",
    "Coupon Applied",
];
/// What sends them: words that come again and again, as in the contexts of real events.
const AGENTS: [&str; 3] = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:145.0) Gecko/20100101 Firefox/145.0",
];
const WORDS: [&str; 16] = [
    "oak", "linen", "table", "lamp", "brass", "walnut", "chair", "shelf", "small", "round",
    "green", "white", "ceramic", "vase", "throw", "mirror",
];

/// Makes events.
#[derive(Debug)]
pub(crate) struct Events {
    chance: u64,
}

impl Events {
    /// Those of a seed.
    pub(crate) fn new(seed: u64) -> Events {
        Events { chance: seed }
    }

    /// Writes one event, and returns where the digits begin that [`number`] is to replace.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let (user, page) = (mix(self.random() % USERS), self.random() % PAGES);
        let (price, cart, rest) = (self.random() % 100_000, self.random(), self.random());
        let name = NAMES[(self.random() % NAMES.len() as u64) as usize];
        let agent = AGENTS[(self.random() % AGENTS.len() as u64) as usize];
        let ip = rest.to_le_bytes();
        put(
            out,
            format_args!(
                r#"{{"anonymousId":null,"context":{{"ip":"10.{}.{}.{}","library":{{"name":"analytics-python","version":"2.4.0"}},"locale":"de-DE","page":{{"path":"/shop/item/{page}"}},"userAgent":"{agent}"}},"event":"{name}","integrations":{{}},"messageId":""#,
                ip[0], ip[1], ip[2],
            ),
        );
        let digits = out.len();
        put(
            out,
            format_args!(
                r#"{:016x}{rest:016x}","properties":{{"cart_id":"{cart:016x}","currency":"EUR","price":{}.{:02},"product_id":"sku-{page}","quantity":{},"title":""#,
                0,
                price / 100,
                price % 100,
                1 + ip[3] % 4,
            ),
        );
        let title = out.len();
        put(
            out,
            format_args!(
                r#""}},"timestamp":"2026-11-23T14:{:02}:{:02}.{:03}Z","type":"track","userId":"{user:016x}{:016x}"}}"#,
                ip[4] % 60,
                ip[5] % 60,
                u16::from(ip[6]) * 3,
                mix(user),
            ),
        );
        let missing = (start + EVENT_BYTES).saturating_sub(out.len());
        let words = self.words(missing);
        out.splice(title..title, words);
        assert_eq!(out.len() - start, EVENT_BYTES, "an event has its size");
        digits
    }

    fn words(&mut self, bytes: usize) -> Vec<u8> {
        let mut words = Vec::with_capacity(bytes + 8);
        while words.len() < bytes {
            let word = WORDS[(self.random() % WORDS.len() as u64) as usize];
            words.extend_from_slice(word.as_bytes());
            words.push(b' ');
        }
        words.truncate(bytes);
        words
    }

    fn random(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.chance)
    }
}

/// Writes digits that no other number has, and that look random.
pub(crate) fn number(digits: &mut [u8], number: u64) {
    let mixed = mix(number);
    for (place, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(mixed >> (place * 4)) as usize & 15];
    }
}

/// SplitMix64's last step: no two numbers have the same answer.
fn mix(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes every byte");
}
