//! A durable local spool for Segment events.

pub mod event;
