//! All lanes of the queue. New ones are announced to whoever delivers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::cursors::Stand;
use super::lane::Lane;
use super::name::{LaneId, LaneName};

/// Every lane costs memory and a line in the cursors for as long as the process lives; a client that invents write keys must
/// not exhaust either.
const LANES_MAX: usize = 65_536;

/// All lanes, by their identity. New ones are announced to whoever delivers.
pub(super) struct Lanes {
    by_id: Mutex<HashMap<LaneId, Arc<Lane>>>,
    announce: mpsc::UnboundedSender<Arc<Lane>>,
}

impl Lanes {
    pub(super) fn new(announce: mpsc::UnboundedSender<Arc<Lane>>) -> Lanes {
        Lanes {
            by_id: Mutex::default(),
            announce,
        }
    }

    /// The lane of that name, made if it is new; `None` where [`LANES_MAX`] lanes exist already.
    pub(super) fn lane(&self, name: &LaneName) -> Option<Arc<Lane>> {
        self.lane_or(name, || Lane::new(name.clone(), Stand::default()))
    }

    pub(super) fn lane_or(&self, name: &LaneName, new: impl FnOnce() -> Lane) -> Option<Arc<Lane>> {
        let mut by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = by_id.get(&name.id()) {
            return Some(Arc::clone(lane));
        }
        if by_id.len() >= LANES_MAX {
            return None;
        }
        let lane = Arc::new(new());
        by_id.insert(lane.id(), Arc::clone(&lane));
        // Without a receiver nobody delivers: a spool that is only written to.
        let _ = self.announce.send(Arc::clone(&lane));
        Some(lane)
    }

    /// The lane with that identity.
    pub(super) fn find(&self, id: LaneId) -> Option<Arc<Lane>> {
        let by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        by_id.get(&id).cloned()
    }

    /// All of them, in no order.
    pub(super) fn all(&self) -> Vec<Arc<Lane>> {
        let by_id = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        by_id.values().cloned().collect()
    }
}
