//! Starts, feeds and stops the data plane, and tries again when it fails. Whatever happens here,
//! the kernel path carries the pods meanwhile.

use std::error::Error;
use std::time::{Duration, Instant};

use super::api::{DataplaneReport, DataplaneState, Tallies};
use super::view::{DataplaneStatus, FrameLedger, Settings, VerdictRow, View};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// A running data plane, as control sees it.
pub trait Engine {
    /// Takes over a new desired state; what did not change is not touched.
    fn update(&mut self, view: &View) -> Result<(), Box<dyn Error>>;
    /// Frees what the workers no longer read, and tells when they can no longer work; wants to be called about
    /// every 100 ms.
    fn maintain(&mut self) -> Result<(), Box<dyn Error>>;
    fn status(&self) -> DataplaneStatus;
    /// Hands over to the kernel path, ends the workers and gives their final figures.
    fn stop(self: Box<Self>) -> DataplaneStatus;
}

/// How a data plane is started.
pub type Starter = fn(&Settings) -> Result<Box<dyn Engine>, Box<dyn Error>>;

/// What the data plane should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    Running(Box<Settings>),
    /// Kernel path only, as configured.
    Off,
    /// It cannot be started as things are; carries the reason.
    Impossible(String),
}

enum State {
    Off,
    Running { engine: Box<dyn Engine>, settings: Box<Settings>, view: View, fault: Option<String> },
    Failed { wanted: Wanted, reason: String, next: Instant, delay: Duration },
}

/// The data plane over time: off, running or failed.
pub struct Lifecycle {
    start: Starter,
    state: State,
    retired: Retired,
}

/// What data planes that have stopped counted, all together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    pub tallies: Tallies,
    pub verdicts: Vec<VerdictRow>,
}

impl Retired {
    fn add(&mut self, last: DataplaneStatus) {
        for worker in &last.workers {
            self.tallies.add(&worker.counts, &worker.drops);
        }
        self.verdicts = self.with(last.verdicts);
    }

    /// These verdicts and `running`'s, added row by row.
    pub fn with(&self, mut running: Vec<VerdictRow>) -> Vec<VerdictRow> {
        for old in &self.verdicts {
            match running.iter_mut().find(|row| (&row.program, &row.verdict) == (&old.program, &old.verdict)) {
                Some(row) => row.packets += old.packets,
                None => running.push(old.clone()),
            }
        }
        running
    }
}

impl Lifecycle {
    /// Off, until driven.
    pub fn new(start: Starter) -> Self {
        Self { start, state: State::Off, retired: Retired::default() }
    }

    /// Brings the data plane to what is wanted: starts, restarts when a setting differs, updates,
    /// stops. A start that failed is not repeated before [`Lifecycle::next_try`], unless
    /// something else is wanted.
    pub fn drive(&mut self, wanted: &Wanted, view: &View, now: Instant) {
        match wanted {
            Wanted::Off => self.stop(),
            Wanted::Impossible(reason) => {
                self.halt();
                self.fail(wanted, reason.clone(), now);
            }
            Wanted::Running(settings) => {
                let same = matches!(&self.state, State::Running { settings: current, .. } if current == settings);
                if same {
                    self.update(view);
                } else if self.may_try(wanted, now) {
                    self.halt();
                    self.start(settings, view, now);
                }
            }
        }
    }

    /// Stops the data plane and keeps its final figures.
    pub fn stop(&mut self) {
        self.halt();
        self.state = State::Off;
    }

    /// When a failed start is to be tried again.
    pub fn next_try(&self) -> Option<Instant> {
        match &self.state {
            State::Failed { next, .. } => Some(*next),
            _ => None,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Whether a running data plane did not take over the last change.
    pub fn has_fault(&self) -> bool {
        matches!(self.state, State::Running { fault: Some(_), .. })
    }

    /// Passes on the periodic call of [`Engine::maintain`]. A data plane that cannot go on is stopped, and started
    /// again after a delay.
    pub fn maintain(&mut self, now: Instant) {
        let State::Running { engine, settings, .. } = &mut self.state else { return };
        if let Err(error) = engine.maintain() {
            let wanted = Wanted::Running(settings.clone());
            self.halt();
            self.fail(&wanted, error.to_string(), now);
        }
    }

    /// What the running data plane carries.
    pub fn view(&self) -> Option<&View> {
        match &self.state {
            State::Running { view, .. } => Some(view),
            _ => None,
        }
    }

    /// Figures of the running data plane.
    pub fn figures(&self) -> Option<DataplaneStatus> {
        match &self.state {
            State::Running { engine, .. } => Some(engine.status()),
            _ => None,
        }
    }

    /// What the data planes before the running one counted.
    pub fn retired(&self) -> &Retired {
        &self.retired
    }

    pub fn report(&self, now: Instant) -> DataplaneReport {
        let (state, reason, retry_secs) = match &self.state {
            State::Off => (DataplaneState::Kernel, Some("mode = \"kernel\"".to_owned()), None),
            State::Running { fault, .. } => (DataplaneState::Running, fault.clone(), None),
            State::Failed { reason, next, .. } => {
                let wait = next.saturating_duration_since(now).as_secs();
                (DataplaneState::Failed, Some(reason.clone()), Some(wait))
            }
        };
        DataplaneReport { state, reason, retry_secs, figures: self.figures() }
    }

    fn may_try(&self, wanted: &Wanted, now: Instant) -> bool {
        match &self.state {
            State::Failed { wanted: failed, next, .. } => failed != wanted || now >= *next,
            _ => true,
        }
    }

    fn start(&mut self, settings: &Settings, view: &View, now: Instant) {
        match (self.start)(settings) {
            Ok(engine) => {
                tracing::info!(uplink = settings.uplink_name, mode = %settings.mode, "the data plane runs");
                let (settings, view_now) = (Box::new(settings.clone()), View::default());
                self.state = State::Running { engine, settings, view: view_now, fault: None };
                self.update(view);
            }
            Err(error) => self.fail(&Wanted::Running(Box::new(settings.clone())), error.to_string(), now),
        }
    }

    fn update(&mut self, new: &View) {
        let State::Running { engine, view, fault, .. } = &mut self.state else { return };
        if view == new && fault.is_none() {
            return;
        }
        match engine.update(new) {
            Ok(()) => {
                *view = new.clone();
                *fault = None;
            }
            Err(error) => {
                tracing::error!(%error, "the data plane did not take over a change; it is tried again");
                *fault = Some(error.to_string());
            }
        }
    }

    /// Ends a running engine; the figures go to `retired` and to the log. A failed state stays, for its delay.
    fn halt(&mut self) {
        if !self.is_running() {
            return;
        }
        let State::Running { engine, .. } = std::mem::replace(&mut self.state, State::Off) else { return };
        let last = engine.stop();
        tracing::info!("the data plane has stopped; the kernel path carries the pods");
        log_figures(&last);
        self.retired.add(last);
    }

    fn fail(&mut self, wanted: &Wanted, reason: String, now: Instant) {
        let delay = match &self.state {
            State::Failed { wanted: before, delay, next, .. } if before == wanted => {
                if now < *next {
                    return;
                }
                (*delay * 2).min(LAST_RETRY)
            }
            _ => FIRST_RETRY,
        };
        tracing::error!(reason, retry_secs = delay.as_secs(), "no data plane; the kernel path carries the pods");
        self.state = State::Failed { wanted: wanted.clone(), reason, next: now + delay, delay };
    }
}

/// The final figures, zeros left out.
fn log_figures(last: &DataplaneStatus) {
    for worker in &last.workers {
        let FrameLedger { total, pool, fill, tx, hands } = worker.frames;
        tracing::info!(
            worker = worker.worker,
            counts = %nonzero(worker.counts.iter().map(|(label, count)| (label.clone(), *count))),
            drops = %nonzero(worker.drops.iter().map(|(label, count)| (label.clone(), *count))),
            frames = %format_args!("{total} = pool {pool} + fill {fill} + tx {tx} + hands {hands}"),
            "final figures"
        );
    }
    let verdicts = last.verdicts.iter().map(|row| (format!("{}.{}", row.program, row.verdict), row.packets));
    tracing::info!(verdicts = %nonzero(verdicts), "final figures");
}

fn nonzero(figures: impl Iterator<Item = (String, u64)>) -> String {
    let shown: Vec<_> =
        figures.filter(|(_, count)| *count != 0).map(|(label, count)| format!("{label} {count}")).collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::config::{Mode, Xdp, ZeroCopy};
    use crate::control::view::{PodView, WorkerStatus};
    use crate::fib::LocalPod;
    use crate::ids::{IfIndex, PodId};
    use crate::wire::{Mac, Vni};

    /// Counts a poll for each pod of each update, and refuses a view of three pods.
    #[derive(Default)]
    struct Fake(u64);

    impl Engine for Fake {
        fn update(&mut self, view: &View) -> Result<(), Box<dyn Error>> {
            self.0 += view.pods.len() as u64;
            if view.pods.len() == 3 { Err("three is too many".into()) } else { Ok(()) }
        }

        fn maintain(&mut self) -> Result<(), Box<dyn Error>> {
            if self.0 == 4 { Err("four is the end".into()) } else { Ok(()) }
        }

        fn status(&self) -> DataplaneStatus {
            let worker = WorkerStatus {
                worker: 0,
                core: 1,
                pinned: true,
                load: 0.0,
                asleep: false,
                fresh: true,
                frames: FrameLedger::default(),
                counts: [("polls".to_owned(), self.0)].into(),
                drops: [].into(),
            };
            let verdict = VerdictRow {
                program: "pod_steer".into(),
                verdict: "claimed".into(),
                help: String::new(),
                packets: self.0,
            };
            DataplaneStatus { workers: vec![worker], verdicts: vec![verdict], ..DataplaneStatus::default() }
        }

        fn stop(self: Box<Self>) -> DataplaneStatus {
            self.status()
        }
    }

    /// Starts on every port but 1.
    fn start(settings: &Settings) -> Result<Box<dyn Engine>, Box<dyn Error>> {
        if settings.port == 1 { Err("port 1 is taken".into()) } else { Ok(Box::<Fake>::default()) }
    }

    fn running(port: u16) -> Wanted {
        Wanted::Running(Box::new(Settings {
            uplink: IfIndex(2),
            uplink_name: "eth0".into(),
            uplink_mac: Mac::default(),
            queues: crate::xsk::Queues { receive: 1, send: 1 },
            hub: IfIndex(3),
            vtep: IpAddr::V4(Ipv4Addr::LOCALHOST),
            vtep_mac: Mac::default(),
            vni: Vni::new(1).unwrap(),
            port,
            udp_checksum: false,
            mtu: 1450,
            mode: Mode::Busy,
            cores: vec![1],
            xdp: Xdp::Auto,
            zero_copy: ZeroCopy::Auto,
            frames: 1024,
            hub_slots: 64,
            stale_ms: 20,
            pod_cidrs: Vec::new(),
        }))
    }

    fn view(pods: u16) -> View {
        let pod = |id| LocalPod {
            id: PodId::new(id).unwrap(),
            ifindex: IfIndex(u32::from(id)),
            mac: Mac::default(),
            gateway_mac: Mac::default(),
        };
        let pods = (1..=pods).map(|id| PodView { pod: pod(id), addresses: Vec::new() }).collect();
        View { pods, ..View::default() }
    }

    fn polls(tallies: &Tallies) -> u64 {
        tallies.counts.get("polls").copied().unwrap_or(0)
    }

    #[test]
    fn an_unchanged_view_is_not_applied_again_and_a_refused_one_is() {
        let (mut life, now) = (Lifecycle::new(start), Instant::now());
        let applied = |life: &Lifecycle| life.figures().unwrap().workers[0].counts["polls"];
        life.drive(&running(2), &view(1), now);
        life.drive(&running(2), &view(1), now);
        assert_eq!((applied(&life), life.view()), (1, Some(&view(1))));
        for sum in [4, 7] {
            life.drive(&running(2), &view(3), now);
            assert_eq!((applied(&life), life.view()), (sum, Some(&view(1))));
            assert_eq!(life.report(now).reason.as_deref(), Some("three is too many"));
        }
        life.drive(&running(2), &view(2), now);
        assert_eq!((life.report(now).reason, life.view()), (None, Some(&view(2))));
    }

    #[test]
    fn a_data_plane_that_cannot_go_on_is_stopped_and_started_again_later() {
        let (mut life, now) = (Lifecycle::new(start), Instant::now());
        life.drive(&running(2), &view(4), now);
        life.maintain(now);
        assert_eq!(life.report(now).reason.as_deref(), Some("four is the end"));
        assert_eq!(life.report(now).state, DataplaneState::Failed);
        life.drive(&running(2), &view(1), now + FIRST_RETRY);
        assert!(life.is_running());
    }

    #[test]
    fn a_changed_setting_takes_a_new_data_plane_and_no_figure_is_lost() {
        let (mut life, now) = (Lifecycle::new(start), Instant::now());
        life.drive(&running(2), &view(2), now);
        life.drive(&running(3), &view(1), now);
        assert_eq!(polls(&life.retired().tallies), 2);
        life.drive(&Wanted::Off, &view(1), now);
        assert_eq!((polls(&life.retired().tallies), life.is_running()), (3, false));
        assert_eq!(life.report(now).state, DataplaneState::Kernel);
        let total = life.retired().with(Fake(4).status().verdicts);
        assert_eq!(total.iter().map(|row| row.packets).collect::<Vec<_>>(), [7]);
        assert_eq!(life.retired().with(Vec::new())[0].packets, 3);
    }

    #[test]
    fn a_failed_start_is_tried_again_later_and_later_but_at_once_with_other_settings() {
        let (mut life, begin) = (Lifecycle::new(start), Instant::now());
        let mut now = begin;
        for delay in [1, 2, 4, 8, 16, 32, 60, 60] {
            life.drive(&running(1), &view(0), now);
            let report = life.report(now);
            assert_eq!((report.state, report.retry_secs), (DataplaneState::Failed, Some(delay)));
            life.drive(&running(1), &view(0), now + Duration::from_millis(10));
            assert_eq!(life.next_try(), Some(now + Duration::from_secs(delay)), "not tried before its time");
            now += Duration::from_secs(delay);
        }
        life.drive(&running(2), &view(0), begin);
        assert!(life.is_running());
    }

    #[test]
    fn what_cannot_be_started_says_why_and_starts_as_soon_as_it_can() {
        let (mut life, now) = (Lifecycle::new(start), Instant::now());
        life.drive(&running(2), &view(1), now);
        life.drive(&Wanted::Impossible("eth0 is down".into()), &view(1), now);
        assert_eq!(life.report(now).reason.as_deref(), Some("eth0 is down"));
        assert_eq!(polls(&life.retired().tallies), 1);
        life.drive(&running(2), &view(1), now);
        assert!(life.is_running());
    }
}
