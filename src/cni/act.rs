//! Doing what a call asks, by asking the daemon.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::call::{Add, Call, Check};
use super::config::Network;
use super::environment::Attachment;
use super::failure::{Code, Failure};
use super::version::Version;
use super::within;
use crate::control::api::{Ready, Refusal, RefusalKind, Reply, Request};
use crate::control::client::{self, ClientError};
use crate::control::notes;

/// How long the daemon may take. Runtimes may wait for a plugin without end, and some do.
const PATIENCE: Duration = Duration::from_secs(20);

/// STATUS warns when fewer addresses of a range than this are free,
const FEWEST_FREE: u64 = 2;
/// or less than one of this many.
const FREE_SHARE: u64 = 50;

/// Why the daemon has not done what it was asked.
enum NotDone {
    /// It has not answered, and may do it later or not at all.
    Away(String),
    Refused(Refusal),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    cni_version: &'static str,
    supported_versions: [&'static str; Version::ALL.len()],
}

impl Call {
    /// What to print, which is nothing for most.
    pub(super) fn carry_out(self) -> Result<String, Failure> {
        match self {
            Self::Version(version) => versions(version),
            Self::Add(add) => add.carry_out(),
            Self::Del(network, attachment) => detach(&network, &attachment),
            Self::Check(check) => check.carry_out(),
            Self::Status(network) => status(&network),
            Self::Gc(network, valid) => collect(network, &valid),
        }
    }
}

fn versions(version: Version) -> Result<String, Failure> {
    let supported_versions = Version::ALL.map(Version::as_str);
    printable(serde_json::to_string(&Versions { cni_version: version.as_str(), supported_versions }))
}

impl Add {
    fn carry_out(self) -> Result<String, Failure> {
        let pod = match ask(&self.network.runtime_dir, Request::PodsAttach(self.request())) {
            Ok(Reply::Attached(pod)) => pod,
            Ok(other) => return Err(unexpected(&other)),
            Err(why) => return Err(self.failure(why)),
        };
        let Self { network, netns, dns, previous, .. } = self;
        printable(previous.extended(&pod, &netns, dns).into_json(network.version))
    }

    fn failure(&self, why: NotDone) -> Failure {
        let message = format!("cannot add {}", self.attachment);
        match why {
            NotDone::Refused(Refusal { kind: RefusalKind::Invalid, text }) if !self.by_config => {
                let message =
                    format!("{message}: one of CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS, CNI_ARGS is not usable");
                Failure::new(Code::InvalidEnvironment, message).with_details(text)
            }
            why => why.failure(message, &self.netns),
        }
    }
}

impl Check {
    fn carry_out(self) -> Result<String, Failure> {
        let message = format!("{} is not as it was added", self.attachment);
        let pod = match ask(&self.network.runtime_dir, Request::PodsCheck { name: self.attachment.name() }) {
            Ok(Reply::Checked(pod)) => pod,
            Ok(other) => return Err(unexpected(&other)),
            Err(NotDone::Refused(Refusal { kind: RefusalKind::Internal, text })) => {
                return Err(Failure::new(Code::Broken, message).with_details(text));
            }
            Err(why) => return Err(why.failure(format!("cannot check {}", self.attachment), &self.netns)),
        };
        if pod.owner.as_ref().is_none_or(|owner| owner.network != self.network.name) {
            let message = format!("{} is not in network {}", self.attachment, self.network.name);
            return Err(Failure::new(Code::UnknownContainer, message));
        }
        match self.difference(&pod).or(pod.problem) {
            Some(difference) => Err(Failure::new(Code::Broken, message).with_details(difference)),
            None => Ok(String::new()),
        }
    }
}

/// Detaches now, or has the daemon do it when it is there again. That there is nothing to detach is success.
fn detach(network: &Network, attachment: &Attachment) -> Result<String, Failure> {
    let name = attachment.name();
    let request = Request::PodsDetach { name: name.clone(), network: Some(network.name.clone()) };
    let away = match ask(&network.runtime_dir, request) {
        Ok(Reply::Detached { .. }) | Err(NotDone::Refused(Refusal { kind: RefusalKind::NotFound, .. })) => {
            return Ok(String::new());
        }
        Ok(other) => return Err(unexpected(&other)),
        Err(NotDone::Refused(Refusal { kind: RefusalKind::NotReady, text }) | NotDone::Away(text)) => text,
        Err(why) => return Err(why.failure(format!("cannot remove {attachment}"), Path::new("/"))),
    };
    match notes::leave(&network.runtime_dir, &name) {
        Ok(()) => Ok(String::new()),
        Err(error) => {
            let message = format!("cannot leave a note to remove {attachment}: {error}");
            Err(Failure::new(Code::InputOutput, message).with_details(away))
        }
    }
}

fn status(network: &Network) -> Result<String, Failure> {
    let unavailable = |why: String| Failure::new(Code::Unavailable, "no pod can be added").with_details(why);
    let ready = match ask(&network.runtime_dir, Request::Ready) {
        Ok(Reply::Ready(ready)) => ready,
        Ok(other) => return Err(unexpected(&other)),
        Err(why) => return Err(unavailable(why.to_string())),
    };
    if let Some(problem) = &ready.problem {
        return Err(unavailable(problem.clone()));
    }
    match shortage(&ready) {
        Some((0, shortage)) => Err(unavailable(shortage)),
        Some((_, shortage)) => Err(Failure::new(Code::Limited, shortage)),
        None => Ok(String::new()),
    }
}

/// How many addresses are left of the fullest range that is nearly used up, and what to say of it.
fn shortage(ready: &Ready) -> Option<(u64, String)> {
    let short = ready.ranges.iter().filter(|range| range.free < FEWEST_FREE.max(range.capacity / FREE_SHARE));
    let short = short.min_by_key(|range| range.free)?;
    Some((short.free, format!("only {} of {} addresses of {} are free", short.free, short.capacity, short.cidr)))
}

fn collect(network: Network, valid: &[Attachment]) -> Result<String, Failure> {
    let Network { name, runtime_dir, .. } = network;
    let message = format!("cannot collect what is left of network {name}");
    let keep = valid.iter().map(Attachment::name).collect();
    match ask(&runtime_dir, Request::PodsCollect { network: name, keep }) {
        Ok(Reply::Collected { .. }) => Ok(String::new()),
        Ok(other) => Err(unexpected(&other)),
        Err(why) => Err(why.failure(message, Path::new("/"))),
    }
}

fn ask(dir: &Path, request: Request) -> Result<Reply, NotDone> {
    let dir: PathBuf = dir.into();
    match within(PATIENCE, move || client::call(&dir, request)) {
        Some(Ok(reply)) => Ok(reply),
        Some(Err(ClientError::Refused(refusal))) => Err(NotDone::Refused(refusal)),
        Some(Err(error)) => Err(NotDone::Away(error.to_string())),
        None => Err(NotDone::Away(format!("the daemon has not answered for {} s; see its log", PATIENCE.as_secs()))),
    }
}

impl NotDone {
    /// What to tell of it; `netns` is that of the pod.
    fn failure(&self, message: String, netns: &Path) -> Failure {
        let code = match self {
            Self::Away(_) => Code::TryAgainLater,
            Self::Refused(refusal) => match refusal.kind {
                RefusalKind::NotReady | RefusalKind::Exhausted => Code::TryAgainLater,
                RefusalKind::Invalid => Code::InvalidConfig,
                RefusalKind::NotFound => Code::UnknownContainer,
                RefusalKind::Namespace if !netns.exists() => Code::UnknownContainer,
                RefusalKind::Namespace => Code::InputOutput,
                RefusalKind::Taken => Code::Taken,
                RefusalKind::Internal => Code::Internal,
            },
        };
        Failure::new(code, message).with_details(self)
    }
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) => f.write_str(why),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::new(Code::Internal, "the daemon answered something else than was asked").with_details(format!("{reply:?}"))
}

fn printable(text: serde_json::Result<String>) -> Result<String, Failure> {
    text.map_err(|error| Failure::new(Code::Internal, "the answer cannot be printed").with_details(error))
}
