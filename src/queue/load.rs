//! What one lane is given of a request: a run of its own, or some events of one that it shares with other lanes.
//!
//! So an event that many lanes want is in memory once while it waits for the writer.

use std::sync::Arc;

use super::record::Run;

/// Events on their way into a lane.
#[derive(Clone, Debug)]
pub struct Load {
    run: Arc<Run>,
    /// The events by their places in the run; none for all of them.
    picked: Option<Arc<[u32]>>,
}

impl Load {
    /// Some events of a run, by their places in it: those that the run has, in the order given.
    #[must_use]
    pub fn of(run: Arc<Run>, picked: Arc<[u32]>) -> Load {
        Load {
            run,
            picked: Some(picked),
        }
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.picked.as_ref().map_or(self.run.len(), |p| p.len())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The events' bytes added up.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        match self.picked {
            None => self.run.byte_len(),
            Some(_) => self.iter().map(<[u8]>::len).sum(),
        }
    }

    /// The events in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        (0..self.len()).filter_map(|n| match &self.picked {
            None => self.run.event(n),
            Some(picked) => self.run.event(picked[n] as usize),
        })
    }
}

impl From<Run> for Load {
    fn from(run: Run) -> Load {
        Load {
            run: Arc::new(run),
            picked: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_a_whole_run_or_the_events_that_were_picked() {
        let mut run = Run::default();
        for event in ["zero", "one", "two"] {
            run.push(event.as_bytes());
        }
        let events = |load: &Load| load.iter().map(<[u8]>::to_vec).collect::<Vec<_>>().concat();
        let picked = Load::of(Arc::new(run.clone()), Arc::from([0, 2]));
        assert_eq!(events(&picked), b"zerotwo");
        assert_eq!((picked.len(), picked.byte_len()), (2, 7));
        let whole = Load::from(run);
        assert_eq!(events(&whole), b"zeroonetwo");
        assert_eq!((whole.len(), whole.byte_len()), (3, 10));
    }
}
