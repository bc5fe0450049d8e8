//! Any bytes, as a client may send them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use segspool_fuzz::check_body;

fuzz_target!(|body: &[u8]| check_body(body));
