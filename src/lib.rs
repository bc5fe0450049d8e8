//! A durable local spool for Segment events.
//!
//! The daemon in [`daemon`] runs beside applications. They post events to localhost exactly as they would to Segment; every
//! event is on disk before it is answered, and leaves it only when Segment has taken it. The way of an event:
//!
//! ```text
//! app ──▶ server ──▶ ingest ──▶ queue ──▶ batch ──▶ deliver ──▶ Segment
//!                    event                                └──▶ dead letters
//! ```
//!
//! A module imports only from layers below its own, `mask` and `words` lowest: [`event`], [`queue`] and [`stats`]; then [`ingest`] and [`batch`]; then
//! [`deliver`] and [`profiles`]; then [`server`]; then [`config`], [`daemon`] and [`cli`]. [`stand_in`], the pretend Segment, stands apart.

mod mask;
mod words;

pub mod event;
pub mod queue;
pub mod stats;

pub mod batch;
pub mod ingest;

pub mod deliver;
pub mod profiles;

pub mod server;

pub mod config;

pub mod daemon;

pub mod cli;

pub mod stand_in;
