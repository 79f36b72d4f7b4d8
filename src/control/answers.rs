//! Which method of the node answers which request.

use std::time::Instant;

use super::api::{Refusal, Reply, Request};
use super::netns::{Netns, NetnsId};
use super::node::Node;
use super::server::Answer;

impl Node {
    /// Answers one request.
    pub fn answer(&mut self, request: Request, now: Instant) -> Answer {
        match request {
            Request::Trace(ask) => match self.begin_trace(&ask) {
                Ok(session) => Answer::Trace(session),
                Err(refusal) => Answer::Reply(Reply::Error(refusal)),
            },
            request => Answer::Reply(self.reply(request, now)),
        }
    }

    fn reply(&mut self, request: Request, now: Instant) -> Reply {
        match request {
            Request::Status => {
                self.prober.look(now);
                Reply::Status(Box::new(self.status(now)))
            }
            Request::Stats => Reply::Stats(Box::new(self.stats())),
            Request::Routes => Reply::Routes(self.routes()),
            Request::Lookup { address } => match self.lookup(address) {
                Ok(found) => Reply::Lookup(found),
                Err(error) => Reply::Error(Refusal::internal(format!("cannot ask the kernel for routes: {error}"))),
            },
            Request::PodsList => Reply::Pods(self.pods()),
            Request::PodsAttach(pod) => reply(self.attach(pod, now), Reply::Attached),
            Request::PodsDetach { name, network: Some(network) } if self.is_of_others(&name, &network) => {
                Reply::Detached { found: false }
            }
            Request::PodsDetach { name, .. } => reply(self.detach(&name, now), |found| Reply::Detached { found }),
            Request::PodsCheck { name } => reply(self.check(&name), Reply::Checked),
            Request::PodsCollect { network, keep } => {
                reply(self.collect(&network, &keep, now), |removed| Reply::Collected { removed })
            }
            Request::Trace(_) => Reply::Error(Refusal::internal("a trace is not answered by one reply")),
            Request::Ready => Reply::Ready(self.ready()),
            Request::Ipam(ask) => reply(self.answer_ipam(ask), Reply::Ipam),
            Request::Leave { netns } => may_leave(netns),
            Request::Fault(provocation) => match self.provoke(provocation) {
                Ok(()) => Reply::Provoked,
                Err(error) => Reply::Error(Refusal::invalid(error.to_string())),
            },
        }
    }
}

fn reply<T, E: Into<Refusal>>(outcome: Result<T, E>, done: impl FnOnce(T) -> Reply) -> Reply {
    outcome.map_or_else(|error| Reply::Error(error.into()), done)
}

/// Whether the client that asks the daemon to leave stands where the daemon's work is.
fn may_leave(netns: NetnsId) -> Reply {
    match Netns::current().and_then(|current| current.id()) {
        Ok(own) if own == netns => Reply::Leaving,
        Ok(_) => Reply::Error(Refusal::invalid(format!(
            "it runs in another network namespace; enter it first: nsenter --net=/proc/{}/ns/net",
            std::process::id()
        ))),
        Err(error) => {
            Reply::Error(Refusal::internal(format!("cannot tell which network namespace it runs in: {error}")))
        }
    }
}
