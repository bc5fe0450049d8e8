//! The behaviour of the whole, over real sockets and a real disk. One file a behaviour.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod browser;
mod captures;
mod connections;
mod delivery;
mod demo;
mod house;
mod ingest;
mod invariants;
mod life;
mod listeners;
mod network;
mod oauth;
mod outages;
mod pixel;
mod trace;
mod verdicts;
