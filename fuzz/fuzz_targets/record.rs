//! Any bytes, as a damaged disk may hold them in place of a record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use segspool_fuzz::check_frame;

fuzz_target!(|frame: &[u8]| check_frame(frame));
