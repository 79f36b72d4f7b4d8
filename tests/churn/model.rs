//! Who must have what: what the answers of plugins leave no doubt of, and what may be either way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::harness::{Attachment, CniError};

/// "Try again later" (CNI specification 1.1.0, section 5, "Error").
const TRY_AGAIN: u32 = 11;

/// What is asked of the plugin.
#[derive(Clone, Debug)]
pub enum Call {
    Add(Attachment),
    /// ADD of what may be attached already.
    AddAgain(Attachment),
    Del(Attachment),
    Check(Attachment),
    /// All attachments that the runtime still wants.
    Gc(Vec<Attachment>),
}

/// A call and what came of it.
#[derive(Clone, Debug)]
pub struct Answered {
    pub call: Call,
    pub began: Instant,
    pub ended: Instant,
    /// `None` when the plugin was killed.
    pub answer: Option<Result<Value, CniError>>,
}

/// What an attachment was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub addresses: BTreeSet<IpAddr>,
    pub mac: String,
    pub attachment: Key,
}

/// Container and interface.
pub type Key = (String, String);

/// What the node promises and the model checks.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// How many IPv4 addresses pods can have at once.
    pub capacity: usize,
    /// An address is not given again before, unless it is asked for.
    pub quarantine: Duration,
}

#[derive(Debug)]
pub struct Model {
    promise: Promise,
    /// What is attached, by the pod's name.
    sure: BTreeMap<String, Held>,
    /// Names that may be attached or not: somebody was killed before he had said.
    open: BTreeSet<String>,
    /// Names that are to be detached, as soon as the daemon has time for it.
    leaving: BTreeSet<String>,
    /// When the DEL began that freed an address.
    freed: BTreeMap<IpAddr, Instant>,
}

/// The pod's name for the daemon.
pub fn name(attachment: &Attachment) -> String {
    format!("{}:{}", attachment.container, attachment.ifname)
}

impl Model {
    pub fn new(promise: Promise) -> Self {
        Self { promise, sure: BTreeMap::new(), open: BTreeSet::new(), leaving: BTreeSet::new(), freed: BTreeMap::new() }
    }

    pub fn sure(&self) -> &BTreeMap<String, Held> {
        &self.sure
    }

    pub fn is_sure(&self, attachment: &Attachment) -> bool {
        self.sure.contains_key(&name(attachment))
    }

    /// Whether the daemon may know this name.
    pub fn allows(&self, name: &str) -> bool {
        self.sure.contains_key(name) || self.open.contains(name)
    }

    /// An address that nobody is known to have, of those that end in 1 to `last`.
    pub fn free_address(&self, rng: &mut fastrand::Rng, last: u8) -> IpAddr {
        let taken: BTreeSet<_> = self.sure.values().flat_map(|held| &held.addresses).collect();
        loop {
            let address = IpAddr::from([10, 244, 1, rng.u8(1..=last)]);
            if !taken.contains(&address) {
                return address;
            }
        }
    }

    /// The namespace of this attachment was removed without a DEL: the daemon may notice, or not.
    pub fn abandon(&mut self, attachment: &Attachment) {
        self.doubt(&name(attachment), Instant::now());
    }

    /// Nothing happens any more, and the daemon remembers these names: what it does not remember is gone for good.
    pub fn settle(&mut self, remembered: &BTreeSet<String>) {
        self.open.retain(|name| remembered.contains(name));
        self.leaving.clear();
    }

    /// Takes in what came of a round. `is_disturbed` when the daemon was not there all the time. Returns what the node
    /// has done wrong.
    pub fn apply(&mut self, round: &[Answered], is_disturbed: bool) -> Vec<String> {
        let mut faults = Vec::new();
        let before: BTreeSet<IpAddr> = self.addresses();
        let was_doubtful = self.is_doubtful();
        // Parallel calls are of different containers, so that their order matters for addresses only.
        for answered in round.iter().filter(|answered| !matches!(answered.call, Call::Add(_))) {
            faults.extend(self.apply_other(answered, is_disturbed));
        }
        let adds: Vec<_> = round.iter().filter_map(|answered| Some((answered, answered.added()?))).collect();
        for (answered, attachment) in &adds {
            if let Some(Ok(result)) = &answered.answer {
                faults.extend(self.hold(attachment, result, answered));
            }
        }
        let is_open = |answered: &Answered| match answered.answer {
            None => true,
            Some(Err(_)) => is_disturbed,
            Some(Ok(_)) => false,
        };
        for (answered, attachment) in adds.iter().filter(|(answered, _)| is_open(answered)) {
            self.doubt(&name(attachment), answered.began);
        }
        // An address may have been with a pod that was in doubt before the round and is gone after it, or the other way.
        let is_doubtful = was_doubtful || self.is_doubtful();
        for (answered, attachment) in adds.iter().filter(|(answered, _)| !is_open(answered)) {
            if let Some(Err(error)) = &answered.answer
                && !self.may_refuse(attachment, error, &before, is_doubtful, adds.len())
            {
                faults.push(format!("ADD {}: {error}", name(attachment)));
            }
        }
        faults.extend(self.shared_addresses());
        faults
    }

    fn apply_other(&mut self, answered: &Answered, is_disturbed: bool) -> Option<String> {
        let Answered { call, answer, began, .. } = answered;
        match (call, answer) {
            (Call::AddAgain(attachment), Some(Ok(_))) => Some(format!("ADD {} succeeds twice", name(attachment))),
            (Call::Del(attachment), Some(Ok(_))) => {
                self.forget(&name(attachment), *began, is_disturbed);
                None
            }
            (Call::Del(attachment), Some(Err(error))) => Some(format!("DEL {}: {error}", name(attachment))),
            (Call::Del(attachment), None) => {
                self.doubt_known(&name(attachment), *began);
                None
            }
            (Call::Check(attachment), Some(answer)) if !is_disturbed => {
                let name = name(attachment);
                match answer {
                    Err(error) if self.sure.contains_key(&name) => Some(format!("CHECK {name}: {error}")),
                    Ok(_) if !self.allows(&name) => Some(format!("CHECK {name} succeeds, but it is not attached")),
                    _ => None,
                }
            }
            (Call::Gc(wanted), answer) => {
                let wanted: BTreeSet<String> = wanted.iter().map(name).collect();
                let known = self.sure.keys().chain(&self.open).filter(|name| !wanted.contains(*name));
                let others: Vec<String> = known.cloned().collect();
                let is_done = matches!(answer, Some(Ok(_)));
                for name in others {
                    if is_done { self.forget(&name, *began, is_disturbed) } else { self.doubt(&name, *began) }
                }
                match answer {
                    Some(Err(error)) if !is_disturbed => Some(format!("GC: {error}")),
                    _ => None,
                }
            }
            (Call::Add(_) | Call::AddAgain(_) | Call::Check(_), _) => None,
        }
    }

    /// Takes in what ADD says that an attachment has.
    fn hold(&mut self, attachment: &Attachment, result: &Value, answered: &Answered) -> Vec<String> {
        let held = Held::new(attachment, result);
        let (name, mut faults) = (name(attachment), Vec::new());
        let wanted = attachment.capabilities.get("ips").and_then(Value::as_array);
        let wanted: Option<BTreeSet<IpAddr>> =
            wanted.map(|ips| ips.iter().map(|ip| ip.as_str().expect("text").parse().expect("an address")).collect());
        if wanted.as_ref().is_some_and(|wanted| *wanted != held.addresses) {
            faults.push(format!("{name} wanted {wanted:?} and has {:?}", held.addresses));
        }
        if attachment.capabilities.get("mac").is_some_and(|mac| *mac != *held.mac) {
            faults.push(format!("{name} has the MAC {}: {attachment:?}", held.mac));
        }
        if wanted.is_none() {
            for address in &held.addresses {
                let age = self.freed.get(address).map(|freed| answered.ended.saturating_duration_since(*freed));
                if age.is_some_and(|age| age < self.promise.quarantine) {
                    faults.push(format!("{name} has {address}, which was freed {age:?} ago"));
                }
            }
        }
        self.open.remove(&name);
        self.sure.insert(name, held);
        faults
    }

    /// Whether ADD may fail although daemon and plugin were well.
    fn may_refuse(
        &self,
        attachment: &Attachment,
        error: &CniError,
        before: &BTreeSet<IpAddr>,
        is_doubtful: bool,
        together: usize,
    ) -> bool {
        if let Some(ips) = attachment.capabilities.get("ips").and_then(Value::as_array) {
            let now = self.addresses();
            let wanted = ips.iter().filter_map(|ip| ip.as_str()?.parse().ok());
            let is_taken = |address: IpAddr| before.contains(&address) || now.contains(&address);
            return is_doubtful || wanted.into_iter().any(is_taken);
        }
        let is_recent = |freed: &Instant| freed.elapsed() < self.promise.quarantine + Duration::from_secs(5);
        let recent = self.freed.values().filter(|freed| is_recent(freed)).count();
        let used = self.sure.len() + self.open.len() + self.leaving.len() + recent + together;
        error.code == TRY_AGAIN && used >= self.promise.capacity
    }

    /// It is attached no more, or only until the daemon finds the note of it.
    fn forget(&mut self, name: &str, began: Instant, is_later: bool) {
        if let Some(held) = self.sure.remove(name) {
            self.freed.extend(held.addresses.into_iter().map(|address| (address, began)));
        }
        self.open.remove(name);
        if is_later {
            self.leaving.insert(name.to_owned());
        }
    }

    fn doubt(&mut self, name: &str, began: Instant) {
        self.forget(name, began, false);
        self.open.insert(name.to_owned());
    }

    fn doubt_known(&mut self, name: &str, began: Instant) {
        if self.allows(name) {
            self.doubt(name, began);
        }
    }

    /// Whether there are pods of which nobody knows whether they still have addresses, and which.
    fn is_doubtful(&self) -> bool {
        !self.open.is_empty() || !self.leaving.is_empty()
    }

    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.sure.values().flat_map(|held| held.addresses.iter().copied()).collect()
    }

    fn shared_addresses(&self) -> Vec<String> {
        let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
        let mut faults = Vec::new();
        for (name, held) in &self.sure {
            for address in &held.addresses {
                if let Some(other) = owners.insert(*address, name) {
                    faults.push(format!("{address} was given to {other} and to {name}"));
                }
            }
        }
        faults
    }
}

impl Answered {
    fn added(&self) -> Option<&Attachment> {
        match &self.call {
            Call::Add(attachment) => Some(attachment),
            _ => None,
        }
    }
}

impl Held {
    /// What a result says (CNI specification 1.1.0, section 5, "ADD Success").
    fn new(attachment: &Attachment, result: &Value) -> Self {
        let ips = result["ips"].as_array().into_iter().flatten();
        let address = |ip: &Value| {
            let (address, _) = ip["address"].as_str()?.split_once('/')?;
            address.parse().ok()
        };
        let addresses: Option<BTreeSet<IpAddr>> = ips.map(address).collect();
        let inside = |interface: &&Value| interface["sandbox"].as_str().is_some_and(|path| !path.is_empty());
        let interface = result["interfaces"].as_array().into_iter().flatten().find(inside);
        let mac = interface.and_then(|interface| interface["mac"].as_str());
        Self {
            addresses: addresses
                .filter(|addresses| !addresses.is_empty())
                .unwrap_or_else(|| panic!("no IPs: {result}")),
            mac: mac.unwrap_or_else(|| panic!("no interface inside: {result}")).to_owned(),
            attachment: (attachment.container.clone(), attachment.ifname.clone()),
        }
    }
}
