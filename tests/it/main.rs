//! The behaviour of the whole, over real sockets and a real disk. One file a behaviour.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod browser;
mod capacity;
mod captures;
mod command_line;
mod connections;
mod dashboard;
mod data_dir;
mod dead_letters;
mod delivery;
mod demo;
mod doctor;
mod full_disk;
mod house;
mod import;
mod ingest;
mod invariants;
mod lanes;
mod life;
mod listeners;
mod metrics;
mod network;
mod oauth;
mod on_disk;
mod outages;
mod pixel;
mod profiles;
mod reload;

mod secrets;
mod stats;
mod systemd;
mod tail;
mod terminal;
mod trace;
mod verdicts;
mod webhook_trouble;
mod webhooks;
