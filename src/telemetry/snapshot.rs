//! What the control loop is asked for the metrics, at most a few times a second however often they are scraped.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::control::api::{Pod, Ready, Reply, Request, Stats, Status};
use crate::control::server::{Answer, Call};

/// How long the control loop may take for all its answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a snapshot serves. The control loop works for scrapers at most once in this time.
const LIFETIME: Duration = Duration::from_millis(250);

/// The node at one moment, as the command line's users are told of it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub status: Status,
    pub stats: Stats,
    pub pods: Vec<Pod>,
    pub ready: Ready,
    /// How long the control loop took to tell it.
    pub took: Duration,
}

/// Why there is no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSnapshot {
    #[error("the daemon's control loop has not answered for {} s", PATIENCE.as_secs())]
    Silent,
    #[error("the daemon is stopping")]
    Stopping,
    #[error("the daemon answers something else than it was asked")]
    Refused,
}

/// Where snapshots come from.
#[derive(Debug)]
pub struct Source {
    calls: mpsc::Sender<Call>,
    last: Mutex<Option<(Instant, Arc<Snapshot>)>>,
}

impl Source {
    pub fn new(calls: mpsc::Sender<Call>) -> Self {
        Self { calls, last: Mutex::default() }
    }

    /// The node as it is now, or was a moment ago. Who comes while the control loop is asked waits for that answer.
    pub async fn snapshot(&self) -> Result<Arc<Snapshot>, NoSnapshot> {
        let mut last = self.last.lock().await;
        if let Some((at, snapshot)) = &*last
            && at.elapsed() < LIFETIME
        {
            return Ok(Arc::clone(snapshot));
        }
        let taken = timeout(PATIENCE, self.take()).await.unwrap_or(Err(NoSnapshot::Silent));
        let snapshot = Arc::new(taken?);
        *last = Some((Instant::now(), Arc::clone(&snapshot)));
        Ok(snapshot)
    }

    async fn take(&self) -> Result<Snapshot, NoSnapshot> {
        let begin = Instant::now();
        let answers = (
            self.ask(Request::Status).await?,
            self.ask(Request::Stats).await?,
            self.ask(Request::PodsList).await?,
            self.ask(Request::Ready).await?,
        );
        let (Reply::Status(status), Reply::Stats(figures), Reply::Pods(pods), Reply::Ready(ready)) = answers else {
            return Err(NoSnapshot::Refused);
        };
        Ok(Snapshot { status: *status, stats: *figures, pods, ready, took: begin.elapsed() })
    }

    async fn ask(&self, request: Request) -> Result<Reply, NoSnapshot> {
        let (tell, told) = oneshot::channel();
        self.calls.send((request, tell)).await.map_err(|_| NoSnapshot::Stopping)?;
        match told.await {
            Ok(Answer::Reply(reply)) => Ok(reply),
            Ok(Answer::Trace(_)) => Err(NoSnapshot::Refused),
            Err(_) => Err(NoSnapshot::Stopping),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_control_loop_that_does_not_answer_is_not_waited_for_without_end() {
        let (calls, mut held) = mpsc::channel(1);
        let source = Source::new(calls);
        assert_eq!(source.snapshot().await.unwrap_err(), NoSnapshot::Silent);
        held.recv().await.expect("it was asked");
        drop(held);
        assert_eq!(source.snapshot().await.unwrap_err(), NoSnapshot::Stopping);
    }
}
