//! A durable local spool for Segment events.

pub mod batch;
pub mod deliver;
pub mod event;
pub mod queue;
pub mod stand_in;
pub mod stats;
