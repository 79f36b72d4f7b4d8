use std::error::Error;
use std::sync::Arc;

use super::{Dataplane, Workers};
use crate::control::trace::{Plan, Sources, Tie};
use crate::trace::Feed;

/// What a trace is told when the data plane that it looks at goes.
const GONE: &str = "the data plane was stopped or started again";

/// Who looks at this data plane.
#[derive(Debug, Default)]
pub struct Traced {
    trace: Option<(Tie, Vec<Arc<Feed>>)>,
    /// What nobody reads any more is kept until the workers have let go of it: they are not to spend their time on
    /// freeing memory.
    retired: Vec<Arc<Feed>>,
}

impl Traced {
    /// Ends the trace, since the data plane goes.
    pub fn cut(&mut self) {
        if let Some((tie, feeds)) = self.trace.take() {
            tie.cut(GONE);
            self.retired.extend(feeds);
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Dataplane {
    pub(super) fn begin_trace(&mut self, plan: &Plan) -> Result<Sources, Box<dyn Error>> {
        self.look_after_trace();
        if self.traced.trace.is_some() {
            return Err("a trace runs already, and there can be one at a time; end that one first".into());
        }
        let programs = self.steer.tap(plan.verdicts)?;
        let tie = Tie::default();
        let feeds = self.workers.as_ref().map_or_else(|| Ok(Vec::new()), |workers| workers.trace(plan))?;
        self.traced.trace = Some((tie.clone(), feeds.clone()));
        Ok(Sources { feeds, programs, tie })
    }

    /// Ends a trace whose other end has let go.
    pub(super) fn look_after_trace(&mut self) {
        let Traced { trace, retired } = &mut self.traced;
        let is_heard = || self.workers.as_ref().is_none_or(Workers::end_trace);
        if let Some((_, feeds)) = trace.take_if(|(tie, _)| tie.is_loose() && is_heard()) {
            retired.extend(feeds);
        }
        retired.retain(|feed| Arc::strong_count(feed) > 1);
    }
}
