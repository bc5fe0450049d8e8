//! The promises under faults: the real daemon on a real disk, killed, damaged and harried. Each torture prints its figures, and a seed
//! with which it does the same again.
//!
//! `SEGSPOOL_TORTURE_SEED` chooses the seed, `SEGSPOOL_TORTURE_ROUNDS` how often the daemon is killed, `SEGSPOOL_TORTURE_SECONDS` how
//! long the chaos lasts. Without them the run is short.

#![allow(
    clippy::print_stdout,
    reason = "the figures are for whoever runs it with --nocapture"
)]

#[path = "../support/mod.rs"]
mod support;

mod chance;
mod chaos;
mod damage;
mod kills;
