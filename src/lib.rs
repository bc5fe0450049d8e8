//! A durable local spool for Segment events.
