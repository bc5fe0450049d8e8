//! Any bytes, as the query or the body of a pixel call may hold them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use segspool_fuzz::check_fields;

fuzz_target!(|fields: &[u8]| check_fields(fields));
