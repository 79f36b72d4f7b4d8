//! Waits of the control loop: each ends when there may be something to do.

use std::future::pending;
use std::io;
use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;

use super::kubernetes::Source;
use super::netlink::{Monitor, News, RulesetMonitor, RulesetNews};
use super::pod_news::PodNews;
use super::watch::DirWatch;

/// Tells when a socket becomes readable.
pub fn readiness<T: AsRawFd>(socket: T) -> io::Result<AsyncFd<T>> {
    #[allow(
        deprecated,
        reason = "its successor is unsafe; each socket owns its one descriptor for as long as it lives"
    )]
    AsyncFd::new(socket)
}

/// Waits until something in the directory has changed; forever when it is not watched.
pub async fn touched(watch: Option<&DirWatch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => pending().await,
    }
}

/// Waits until the Kubernetes API has told something.
pub async fn told(source: Option<&mut Source>) {
    match source {
        Some(source) => source.changed().await,
        None => pending().await,
    }
}

/// Waits until the kernel's state may have changed.
pub async fn news(monitor: &mut AsyncFd<Monitor>) {
    loop {
        let Ok(mut ready) = monitor.readable_mut().await else { return pending().await };
        let found = ready.get_inner_mut().drain();
        ready.clear_ready();
        match found {
            Ok(News::Nothing) => {}
            Ok(News::Changed) => return,
            Ok(News::Overflow) => {
                return tracing::debug!("notifications of the kernel were lost, which a look makes good");
            }
            Err(error) => return tracing::warn!(%error, "a notification of the kernel cannot be read"),
        }
    }
}

/// Waits until something may have been heard of a pod.
pub async fn pod_news(news: Option<&mut AsyncFd<PodNews>>) {
    let Some(news) = news else { return pending().await };
    let Ok(mut ready) = news.readable().await else { return pending().await };
    ready.clear_ready();
}

/// Waits until nftables may have changed.
pub async fn ruleset_news(monitor: Option<&mut AsyncFd<RulesetMonitor>>) -> RulesetNews {
    let Some(monitor) = monitor else { return pending().await };
    loop {
        let Ok(mut ready) = monitor.readable_mut().await else { return pending().await };
        let found = ready.get_inner_mut().drain();
        ready.clear_ready();
        match found {
            Ok(news) if news.is_empty() => {}
            Ok(news) => return news,
            Err(error) => {
                tracing::warn!(%error, "a notification of nftables cannot be read");
                return RulesetNews::ALL;
            }
        }
    }
}
