//! The node, the sandboxes on it, and what happens to them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::agreement::{self, Look, Place};
use super::harness::{Attachment, CniRuntime, Netns, Options, PodwireNode, Prefix, Switch, Wire, cni_dir, wait_until};
use super::model::{Answered, Call, Model, Promise, name};

/// How many sandboxes there can be at once.
const SLOTS: usize = 12;

/// The last address of the IPv4 range that pods can have.
const LAST: u8 = 32;

/// What is in every configuration here. The quarantine is short, so that addresses come round again.
const IPAM: &str = "[ipam]\nexclude = [\"10.244.1.33-10.244.1.254\"]\nquarantine_s = 1\n";

const PROMISE: Promise = Promise { capacity: LAST as usize, quarantine: Duration::from_secs(1) };

/// How long all may take to agree once nothing happens any more.
const PATIENCE: Duration = Duration::from_secs(15);

/// Longer than a plugin takes, in microseconds: when one is killed.
const LIFE_US: u64 = 20_000;

/// What happens to the daemon while plugins ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    None,
    /// It is killed and started again.
    Kill,
    /// It ends by SIGTERM and is started again.
    Stop,
    /// It is away all the time.
    Away,
    /// It gets another configuration.
    Reload(Options),
}

/// A sandbox: a container's namespace and interfaces.
struct Slot {
    netns: Option<Netns>,
    container: Option<Container>,
}

struct Container {
    attachments: Vec<Attachment>,
    /// Its namespace was removed without a DEL.
    is_abandoned: bool,
}

pub struct Site {
    rng: fastrand::Rng,
    node: PodwireNode,
    runtime: CniRuntime,
    slots: Vec<Slot>,
    model: Model,
    containers: usize,
    steps: usize,
    started: Instant,
    /// What has happened, for people.
    history: Vec<String>,
    prefix: Prefix,
}

impl Site {
    pub fn new(seed: u64) -> Self {
        let prefix = Prefix::fresh();
        let switch = Switch::new(&prefix, Wire::default());
        let host = switch.host(&prefix, 'a', 1);
        let node = PodwireNode::start(&prefix, host, ways()[0], Vec::new());
        let plugin = json!({
            "type": "podwire",
            "runtimeDir": node.runtime_dir(),
            "capabilities": { "ips": true, "mac": true },
        });
        let list = json!({ "cniVersion": "1.1.0", "name": "churn", "plugins": [plugin] });
        let runtime = CniRuntime::new(vec![cni_dir(&prefix)], list);
        let slots = (0..SLOTS).map(|_| Slot { netns: None, container: None }).collect();
        Self {
            rng: fastrand::Rng::with_seed(seed),
            node,
            runtime,
            slots,
            model: Model::new(PROMISE),
            containers: 0,
            steps: 0,
            started: Instant::now(),
            history: Vec::new(),
            prefix,
        }
    }

    pub fn steps(&self) -> usize {
        self.steps
    }

    /// A few sandboxes at once, and sometimes something that happens to the daemon meanwhile.
    pub fn round(&mut self) {
        if self.rng.u8(..100) < 5 {
            return self.collect();
        }
        let disturbance = self.disturbance();
        let mut numbers: Vec<usize> = (0..SLOTS).collect();
        self.rng.shuffle(&mut numbers);
        numbers.truncate(self.rng.usize(1..=5));
        let chains: Vec<Vec<Planned>> = numbers.into_iter().flat_map(|number| self.plan(number)).collect();
        let round = self.carry_out(chains, disturbance);
        self.take(&round, disturbance);
    }

    /// GC with some of what is attached as all that is still wanted.
    fn collect(&mut self) {
        let wanted: Vec<Attachment> = self
            .slots
            .iter()
            .filter_map(|slot| slot.container.as_ref())
            .filter(|container| !container.is_abandoned)
            .flat_map(|container| container.attachments.clone())
            .filter(|attachment| self.model.is_sure(attachment))
            .collect();
        let wanted = wanted.into_iter().filter(|_| self.rng.u8(..100) < 85).collect();
        let planned = Planned { call: Call::Gc(wanted), within: None };
        let disturbance = if self.rng.u8(..10) == 0 { Disturbance::Kill } else { Disturbance::None };
        let round = self.carry_out(vec![vec![planned]], disturbance);
        self.take(&round, disturbance);
    }

    fn disturbance(&mut self) -> Disturbance {
        match self.rng.u8(..100) {
            0..=3 => Disturbance::Kill,
            4..=5 => Disturbance::Stop,
            6 => Disturbance::Away,
            7..=8 => Disturbance::Reload(self.rng.choice(ways()).expect("some")),
            _ => Disturbance::None,
        }
    }

    /// What is to be done with one sandbox: chains of calls that may run at the same time.
    fn plan(&mut self, number: usize) -> Vec<Vec<Planned>> {
        let Some(container) = &self.slots[number].container else { return self.plan_add(number) };
        let (attachments, is_abandoned) = (container.attachments.clone(), container.is_abandoned);
        let is_sure = attachments.iter().all(|attachment| self.model.is_sure(attachment));
        let each = |call: fn(Attachment) -> Call| -> Vec<Vec<Planned>> {
            attachments.iter().map(|at| vec![Planned { call: call(at.clone()), within: None }]).collect()
        };
        match self.rng.u8(..100) {
            0..=14 if is_sure => each(Call::Check),
            15..=20 if is_sure => each(Call::AddAgain),
            21..=25 if is_sure => self.abandon(number),
            // Left to GC, or to the daemon's own look.
            0..=25 => Vec::new(),
            _ => attachments.into_iter().map(|at| self.plan_del(at, is_abandoned)).collect(),
        }
    }

    fn plan_add(&mut self, number: usize) -> Vec<Vec<Planned>> {
        if self.rng.u8(..100) < 5 {
            let attachment = Attachment {
                container: format!("never{}", self.rng.u32(..)),
                ifname: "eth0".into(),
                netns: self.slots[number].netns.as_ref().map(Netns::path),
                ..Attachment::default()
            };
            let call = if self.rng.bool() { Call::Del(attachment) } else { Call::Check(attachment) };
            return vec![vec![Planned { call, within: None }]];
        }
        let netns = self.slots[number].netns.get_or_insert_with(|| self.prefix.netns(&format!("pod{number}"))).path();
        self.containers += 1;
        let container = format!("c{}", self.containers);
        let mut attachments = Vec::new();
        for ifname in ["eth0", "net1"].into_iter().take(self.rng.usize(1..=2)) {
            attachments.push(Attachment {
                container: container.clone(),
                netns: Some(netns.clone()),
                ifname: ifname.into(),
                args: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=churn;K8S_POD_NAME=pod{number}"),
                capabilities: self.wishes(),
            });
        }
        self.slots[number].container = Some(Container { attachments: attachments.clone(), is_abandoned: false });
        let planned = attachments.into_iter().map(|at| Planned { call: Call::Add(at), within: self.life() });
        let chain: Vec<Planned> = planned.collect();
        // Runtimes add the interfaces of a container one after the other, or all at once.
        if self.rng.bool() { vec![chain] } else { chain.into_iter().map(|planned| vec![planned]).collect() }
    }

    fn plan_del(&mut self, mut attachment: Attachment, is_abandoned: bool) -> Vec<Planned> {
        if is_abandoned && self.rng.bool() || self.rng.u8(..5) == 0 {
            attachment.netns = None;
        }
        let once = Planned { call: Call::Del(attachment), within: self.life() };
        let twice = Planned { within: None, ..once.clone() };
        if once.within.is_none() && self.rng.u8(..6) == 0 { vec![once, twice] } else { vec![once] }
    }

    /// How long a plugin lives, if it is to be killed.
    fn life(&mut self) -> Option<Duration> {
        (self.rng.u8(..100) < 7).then(|| Duration::from_micros(self.rng.u64(..LIFE_US)))
    }

    /// What a pod asks for by name.
    fn wishes(&mut self) -> Map<String, Value> {
        let mut wishes = Map::new();
        if self.rng.u8(..100) < 15 {
            wishes.insert("ips".into(), json!([self.model.free_address(&mut self.rng, LAST)]));
        }
        if self.rng.u8(..100) < 10 {
            let [a, b, c] = [(); 3].map(|()| self.rng.u8(..));
            wishes.insert("mac".into(), format!("02:00:00:{a:02x}:{b:02x}:{c:02x}").into());
        }
        wishes
    }

    /// Removes a sandbox's namespace as a machine's owner might, and tells nobody.
    fn abandon(&mut self, number: usize) -> Vec<Vec<Planned>> {
        let slot = &mut self.slots[number];
        if let (Some(container), Some(netns)) = (&mut slot.container, slot.netns.take()) {
            container.is_abandoned = true;
            container.attachments.iter().for_each(|attachment| self.model.abandon(attachment));
            netns.remove();
        }
        self.steps += 1;
        self.note(&format!("namespace {number} is removed"));
        Vec::new()
    }

    /// Runs chains of calls at the same time, in the node's namespace.
    fn carry_out(&mut self, chains: Vec<Vec<Planned>>, disturbance: Disturbance) -> Vec<Answered> {
        let delay = Duration::from_micros(self.rng.u64(..LIFE_US));
        self.steps += chains.iter().map(Vec::len).sum::<usize>() + usize::from(disturbance != Disturbance::None);
        self.note(&format!("{disturbance:?} after {delay:?}"));
        if disturbance == Disturbance::Away {
            self.node.stop();
        }
        let (netns, runtime, node) = (self.node.host.netns.clone(), &self.runtime, &mut self.node);
        let round = thread::scope(|scope| {
            let run = |chain: Vec<Planned>| chain.into_iter().map(|planned| planned.run(runtime)).collect::<Vec<_>>();
            let netns = &netns;
            let threads: Vec<_> =
                chains.into_iter().map(|chain| scope.spawn(move || netns.within(|| run(chain)))).collect();
            if matches!(disturbance, Disturbance::Kill | Disturbance::Stop | Disturbance::Reload(_)) {
                thread::sleep(delay);
            }
            match disturbance {
                Disturbance::None | Disturbance::Away => {}
                Disturbance::Kill => {
                    node.kill();
                    node.launch();
                }
                Disturbance::Stop => {
                    node.stop();
                    node.launch();
                }
                Disturbance::Reload(options) => node.set_options(options),
            }
            threads.into_iter().flat_map(|thread| thread.join().expect("a runtime does not panic")).collect()
        });
        if disturbance == Disturbance::Away {
            self.node.launch();
        }
        round
    }

    /// Takes in what came of a round, and forgets the containers that are gone.
    fn take(&mut self, round: &[Answered], disturbance: Disturbance) {
        for answered in round {
            let line = format!("{} ms: {}", answered.took_ms(), answered.describe());
            self.note(&line);
        }
        let is_disturbed = matches!(disturbance, Disturbance::Kill | Disturbance::Stop | Disturbance::Away);
        let faults = self.model.apply(round, is_disturbed);
        assert!(faults.is_empty(), "{faults:#?}\n{}", self.recent());
        for slot in &mut self.slots {
            let Some(container) = &mut slot.container else { continue };
            container.attachments.retain(|attachment| self.model.allows(&name(attachment)));
            if !container.attachments.is_empty() {
                continue;
            }
            slot.container = None;
            // What a daemon that was away has yet to remove would be in the way of the next sandbox.
            if (is_disturbed || self.rng.bool())
                && let Some(netns) = slot.netns.take()
            {
                netns.remove();
            }
        }
    }

    /// Waits until everything agrees; panics with what does not.
    #[track_caller]
    pub fn assert_agreement(&mut self) {
        let mut last = Look { remembered: BTreeSet::new(), faults: Vec::new() };
        let agreed = wait_until(PATIENCE, || {
            last = self.look();
            last.faults.is_empty()
        });
        assert!(agreed, "no agreement after {} steps: {:#?}\n{}", self.steps, last.faults, self.recent());
        self.model.settle(&last.remembered);
        let faults = agreement::unreachable(&self.node.host.netns, &self.places(), &self.model);
        assert!(faults.is_empty(), "after {} steps: {faults:#?}\n{}", self.steps, self.recent());
        self.note(&format!("agreement over {} pods", last.remembered.len()));
    }

    /// Removes what there is: half of it by DEL, the rest by a GC that wants nothing.
    pub fn remove_all(&mut self) {
        let numbers = (0..SLOTS).filter(|number| number % 2 == 0);
        let containers: Vec<_> = numbers.filter_map(|number| self.slots[number].container.as_ref()).collect();
        let attachments = containers.iter().flat_map(|container| &container.attachments);
        let chains = attachments.map(|at| vec![Planned { call: Call::Del(at.clone()), within: None }]).collect();
        let mut round = self.carry_out(chains, Disturbance::None);
        let all = Planned { call: Call::Gc(Vec::new()), within: None };
        round.extend(self.carry_out(vec![vec![all]], Disturbance::None));
        self.take(&round, Disturbance::None);
    }

    /// Panics unless the node is as it was before its first pod.
    #[track_caller]
    pub fn assert_nothing_left(&mut self) {
        self.assert_agreement();
        assert!(self.model.sure().is_empty(), "{:?}", self.model.sure());
        let Look { remembered, .. } = self.look();
        assert!(remembered.is_empty(), "{remembered:?}");
        self.node.cli("ipam check");
    }

    pub fn report(&self) {
        println!(
            "{} steps with {} containers in {:.1} s",
            self.steps,
            self.containers,
            self.started.elapsed().as_secs_f64()
        );
    }

    fn look(&self) -> Look {
        let abandoned = self.containers().filter(|container| container.is_abandoned);
        let ended = abandoned.flat_map(|container| container.attachments.iter().map(name)).collect();
        agreement::look(&self.node, &self.model, &self.places(), &ended)
    }

    fn places(&self) -> Vec<Place<'_>> {
        let attachments = |slot: &Slot| match &slot.container {
            Some(container) => container.attachments.iter().map(|at| (name(at), at.ifname.clone())).collect(),
            None => Vec::new(),
        };
        self.slots.iter().map(|slot| (slot.netns.as_ref(), attachments(slot))).collect()
    }

    fn containers(&self) -> impl Iterator<Item = &Container> {
        self.slots.iter().filter_map(|slot| slot.container.as_ref())
    }

    fn note(&mut self, line: &str) {
        self.history.push(format!("{:.3} {line}", self.started.elapsed().as_secs_f64()));
    }

    /// The last of what has happened.
    fn recent(&self) -> String {
        let mut text = String::new();
        for line in self.history.iter().rev().take(150).rev() {
            writeln!(text, "{line}").expect("a string");
        }
        text
    }
}

/// The configurations that the daemon is given.
fn ways() -> [Options; 3] {
    let adaptive = Options { sections: IPAM, ..Options::ADAPTIVE };
    [adaptive, Options { masquerade: true, ..adaptive }, Options { sections: IPAM, ..Options::KERNEL }]
}

/// A call, and after how long its plugin is killed, if it is.
#[derive(Clone, Debug)]
struct Planned {
    call: Call,
    within: Option<Duration>,
}

impl Planned {
    fn run(self, runtime: &CniRuntime) -> Answered {
        let began = Instant::now();
        let answer = match (&self.call, self.within) {
            (Call::Add(at) | Call::AddAgain(at), None) => Some(runtime.add(at)),
            (Call::Add(at) | Call::AddAgain(at), Some(life)) => runtime.add_within(at, life),
            (Call::Del(at), None) => Some(runtime.del(at).map(|()| Value::Null)),
            (Call::Del(at), Some(life)) => runtime.del_within(at, life).map(|done| done.map(|()| Value::Null)),
            (Call::Check(at), _) => Some(runtime.check(at).map(|()| Value::Null)),
            (Call::Gc(wanted), _) => Some(runtime.gc(&wanted.iter().collect::<Vec<_>>()).map(|()| Value::Null)),
        };
        Answered { call: self.call, began, ended: Instant::now(), answer }
    }
}

impl Answered {
    fn took_ms(&self) -> u128 {
        self.ended.saturating_duration_since(self.began).as_millis()
    }

    /// For the history.
    fn describe(&self) -> String {
        let call = match &self.call {
            Call::Add(at) => format!("ADD {} {:?}", name(at), at.capabilities),
            Call::AddAgain(at) => format!("ADD again {}", name(at)),
            Call::Del(at) => format!("DEL {}{}", name(at), if at.netns.is_none() { " without namespace" } else { "" }),
            Call::Check(at) => format!("CHECK {}", name(at)),
            Call::Gc(wanted) => format!("GC but {:?}", wanted.iter().map(name).collect::<Vec<_>>()),
        };
        match &self.answer {
            None => format!("{call}: killed"),
            Some(Ok(Value::Null)) => format!("{call}: done"),
            Some(Ok(result)) => format!("{call}: {}", result["ips"]),
            Some(Err(error)) => format!("{call}: {error}"),
        }
    }
}
