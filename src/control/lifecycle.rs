//! Opens, starts, feeds and stops the data plane, and tries again when it fails. Whatever happens here,
//! the kernel path carries the pods meanwhile.
//!
//! The programs are loaded when first wanted and follow every view from then on; the workers run under
//! them when they can.

use std::error::Error;
use std::time::{Duration, Instant};

use super::api::{DataplaneReport, DataplaneState, Tallies};
use super::trace::{Plan, Sources};
use super::view::{DataplaneStatus, FrameLedger, Settings, VerdictRow, View};
use crate::worker::Fault;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Workers that ran this long before they failed are started again as if they had never failed.
const STEADY: Duration = Duration::from_secs(60);

/// A data plane, as control sees it. What it has attached stays when it is dropped.
pub trait Engine {
    /// Takes over a new desired state, whether workers run or not; what did not change is not touched. While
    /// workers run, the settings are those that they were started with.
    fn update(&mut self, settings: &Settings, view: &View) -> Result<(), Box<dyn Error>>;
    /// Starts the workers, of which none runs, for the state that was last taken over. After an error none runs.
    fn start(&mut self, settings: &Settings, view: &View) -> Result<(), Box<dyn Error>>;
    /// Repairs what others have detached, frees what the workers no longer read, and tells when they can no
    /// longer work; wants to be called about every 100 ms.
    fn maintain(&mut self) -> Result<(), Box<dyn Error>>;
    fn status(&self) -> DataplaneStatus;
    /// Has packets traced, until either end lets go; one trace at a time.
    fn trace(&mut self, plan: &Plan) -> Result<Sources, Box<dyn Error>>;
    /// Has a worker suffer, for a test.
    fn provoke(&self, worker: u16, fault: Fault) -> Result<(), Box<dyn Error>>;
    /// Hands over to the kernel path, ends the workers and gives the final figures.
    fn stop(&mut self) -> DataplaneStatus;
}

/// How a data plane is opened: without workers, in the place of what an earlier one has attached.
pub type Starter = fn(&Settings, &View) -> Result<Box<dyn Engine>, Box<dyn Error>>;

/// What the data plane should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    Running(Box<Settings>),
    /// Kernel path only, as configured.
    Off,
    /// Workers cannot run as things are.
    Impossible {
        reason: String,
        /// What the programs are to know meanwhile, unless even that cannot be told.
        settings: Option<Box<Settings>>,
    },
}

/// Loaded programs, and what they were last told.
struct Steering {
    engine: Box<dyn Engine>,
    /// As told last.
    settings: Settings,
    /// As taken over last.
    view: Option<View>,
    /// Why the last change was not taken over.
    fault: Option<String>,
}

enum State {
    Off,
    Running { settings: Box<Settings>, since: Instant },
    Failed { wanted: Wanted, reason: String, next: Instant },
}

/// The data plane over time: off, running or failed.
pub struct Lifecycle {
    open: Starter,
    steering: Option<Steering>,
    state: State,
    /// What failed last, and the delay after it.
    failed: Option<(Wanted, Duration)>,
    retired: Retired,
    /// The programs are to be loaded anew as soon as that is possible.
    is_outdated: bool,
}

/// What data planes that have stopped counted, all together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    pub tallies: Tallies,
    /// Of programs that are not attached any more.
    pub verdicts: Vec<VerdictRow>,
}

impl Retired {
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
    pub fn new(open: Starter) -> Self {
        Self { open, steering: None, state: State::Off, failed: None, retired: Retired::default(), is_outdated: false }
    }

    /// Brings the data plane to what is wanted: opens it, starts workers, starts them anew when a setting
    /// differs, updates, stops. A start that failed is not repeated before [`Lifecycle::next_try`], unless
    /// something else is wanted.
    pub fn drive(&mut self, wanted: &Wanted, view: &View, now: Instant) {
        if let Wanted::Running(_) | Wanted::Impossible { settings: Some(_), .. } = wanted
            && std::mem::take(&mut self.is_outdated)
        {
            self.stop();
            self.steering = None;
        }
        match wanted {
            Wanted::Off => self.close(),
            Wanted::Impossible { reason, settings } => {
                self.halt();
                let opened = match settings {
                    Some(settings) if self.may_try(wanted, now) => self.open(settings, view),
                    _ => Ok(()),
                };
                self.update(settings.as_deref(), view);
                let reason = opened.map_or_else(|error| format!("{reason}; {error}"), |()| reason.clone());
                self.fail(wanted, reason, now);
            }
            Wanted::Running(settings) => {
                if !self.runs_with(settings) && self.may_try(wanted, now) {
                    self.halt();
                    self.start(settings, view, now);
                } else {
                    self.update(Some(settings), view);
                }
            }
        }
    }

    /// Stops the workers and keeps their final figures. The programs stay as they are.
    pub fn stop(&mut self) {
        self.halt();
        self.state = State::Off;
    }

    /// Has the next [`Lifecycle::drive`] that can load programs load them anew, and take over from the old ones, which
    /// follow every view until then.
    pub fn renew(&mut self) {
        self.is_outdated = self.steering.is_some();
    }

    /// Stops the workers and lets go of the programs, which are to be detached; their counts are kept.
    pub fn close(&mut self) {
        self.stop();
        self.failed = None;
        if let Some(steering) = self.steering.take() {
            self.retired.verdicts = self.retired.with(steering.engine.status().verdicts);
        }
    }

    /// When a failed start is to be tried again.
    pub fn next_try(&self) -> Option<Instant> {
        match &self.state {
            State::Failed { next, .. } => Some(*next),
            _ => None,
        }
    }

    /// Whether workers run.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Whether programs are loaded, so that [`Lifecycle::maintain`] has something to do.
    pub fn is_open(&self) -> bool {
        self.steering.is_some()
    }

    /// Whether the programs did not take over the last change.
    pub fn has_fault(&self) -> bool {
        self.steering.as_ref().is_some_and(|steering| steering.fault.is_some())
    }

    /// Passes on the periodic call of [`Engine::maintain`]. Workers that cannot go on are stopped, and started again
    /// after a delay, which grows when they fail again soon.
    pub fn maintain(&mut self, now: Instant) {
        let Some(steering) = &mut self.steering else { return };
        let maintained = steering.engine.maintain();
        let State::Running { settings, since } = &self.state else { return };
        if now.saturating_duration_since(*since) >= STEADY {
            self.failed = None;
        }
        if let Err(error) = maintained {
            let wanted = Wanted::Running(settings.clone());
            self.halt();
            self.fail(&wanted, error.to_string(), now);
        }
    }

    /// Has packets traced.
    pub fn trace(&mut self, plan: &Plan) -> Result<Sources, Box<dyn Error>> {
        let none = "no data plane is there to be traced; `podwire status` says why";
        self.steering.as_mut().ok_or(none)?.engine.trace(plan)
    }

    /// Has a running worker suffer.
    pub fn provoke(&self, worker: u16, fault: Fault) -> Result<(), Box<dyn Error>> {
        self.steering.as_ref().ok_or("no data plane runs")?.engine.provoke(worker, fault)
    }

    /// What the running workers carry.
    pub fn view(&self) -> Option<&View> {
        self.steering.as_ref().filter(|_| self.is_running())?.view.as_ref()
    }

    /// Figures of the loaded programs, and of the workers if they run.
    pub fn figures(&self) -> Option<DataplaneStatus> {
        self.steering.as_ref().map(|steering| steering.engine.status())
    }

    /// What workers and programs counted that are not there any more.
    pub fn retired(&self) -> &Retired {
        &self.retired
    }

    pub fn report(&self, now: Instant) -> DataplaneReport {
        let fault = self.steering.as_ref().and_then(|steering| steering.fault.clone());
        let (state, reason, retry_secs) = match &self.state {
            State::Off => (DataplaneState::Kernel, Some("mode = \"kernel\"".to_owned()), None),
            State::Running { .. } => (DataplaneState::Running, fault, None),
            State::Failed { reason, next, .. } => {
                let wait = next.saturating_duration_since(now).as_secs();
                (DataplaneState::Failed, Some(reason.clone()), Some(wait))
            }
        };
        DataplaneReport { state, reason, retry_secs, figures: self.figures().filter(|_| self.is_running()) }
    }

    fn runs_with(&self, settings: &Settings) -> bool {
        matches!(&self.state, State::Running { settings: current, .. } if **current == *settings)
    }

    fn may_try(&self, wanted: &Wanted, now: Instant) -> bool {
        match &self.state {
            State::Failed { wanted: failed, next, .. } => failed != wanted || now >= *next,
            _ => true,
        }
    }

    fn start(&mut self, settings: &Settings, view: &View, now: Instant) {
        let opened = self.open(settings, view);
        self.update(Some(settings), view);
        let started = opened.and_then(|()| match &mut self.steering {
            Some(steering) => steering.engine.start(settings, view),
            None => Ok(()),
        });
        match started {
            Ok(()) => {
                tracing::info!(uplink = settings.uplink_name, mode = %settings.mode, "the data plane runs");
                self.state = State::Running { settings: Box::new(settings.clone()), since: now };
            }
            Err(error) => self.fail(&Wanted::Running(Box::new(settings.clone())), error.to_string(), now),
        }
    }

    /// Loads the programs, unless they are.
    fn open(&mut self, settings: &Settings, view: &View) -> Result<(), Box<dyn Error>> {
        if self.steering.is_none() {
            let engine = (self.open)(settings, view)?;
            self.steering = Some(Steering { engine, settings: settings.clone(), view: None, fault: None });
        }
        Ok(())
    }

    /// Brings loaded programs, and the workers under them, to the view; without new settings by those that they have.
    fn update(&mut self, new_settings: Option<&Settings>, new_view: &View) {
        let Some(Steering { engine, settings, view, fault }) = &mut self.steering else { return };
        let is_same = new_settings.is_none_or(|new| new == settings) && view.as_ref() == Some(new_view);
        if is_same && fault.is_none() {
            return;
        }
        if let Some(new_settings) = new_settings {
            settings.clone_from(new_settings);
        }
        match engine.update(settings, new_view) {
            Ok(()) => {
                *view = Some(new_view.clone());
                *fault = None;
            }
            Err(error) => {
                let error = error.to_string();
                if fault.as_ref() != Some(&error) {
                    tracing::error!(error, "the data plane did not take over a change; it is tried again");
                }
                *fault = Some(error);
            }
        }
    }

    /// Ends running workers; the figures go to `retired` and to the log. A failed state stays, for its delay.
    fn halt(&mut self) {
        let (true, Some(steering)) = (self.is_running(), &mut self.steering) else { return };
        let last = steering.engine.stop();
        tracing::info!("the data plane has stopped; the kernel path carries the pods");
        log_figures(&last);
        for worker in &last.workers {
            self.retired.tallies.add(&worker.counts, &worker.drops);
        }
        self.state = State::Off;
    }

    /// Waits before the next try, each time longer if it is the same that fails.
    fn fail(&mut self, wanted: &Wanted, reason: String, now: Instant) {
        if matches!(&self.state, State::Failed { wanted: before, next, .. } if before == wanted && now < *next) {
            return;
        }
        let delay = match &self.failed {
            Some((before, delay)) if before == wanted => (*delay * 2).min(LAST_RETRY),
            _ => FIRST_RETRY,
        };
        let known = matches!(&self.state, State::Failed { reason: before, .. } if *before == reason);
        if !known {
            tracing::error!(reason, "no workers, which is tried again; the kernel path carries the pods");
        }
        self.failed = Some((wanted.clone(), delay));
        self.state = State::Failed { wanted: wanted.clone(), reason, next: now + delay };
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
    use crate::config::{Bulk, Mode, Xdp, ZeroCopy};
    use crate::control::view::{PodView, TimesStatus, WorkerStatus};
    use crate::fib::LocalPod;
    use crate::ids::{HubEnds, IfIndex, PodId};
    use crate::steer::PodPath;
    use crate::wire::{Mac, Vni};

    /// Counts a poll for each pod of each update, refuses a view of three pods, and starts on every port but 1.
    #[derive(Default)]
    struct Fake {
        updated: u64,
        runs: bool,
    }

    impl Engine for Fake {
        fn update(&mut self, settings: &Settings, view: &View) -> Result<(), Box<dyn Error>> {
            assert!(!self.runs || settings.port != 1);
            self.updated += view.pods.len() as u64;
            if view.pods.len() == 3 { Err("three is too many".into()) } else { Ok(()) }
        }

        fn start(&mut self, settings: &Settings, _: &View) -> Result<(), Box<dyn Error>> {
            assert!(!self.runs, "they are stopped first");
            self.runs = settings.port != 1;
            if self.runs { Ok(()) } else { Err("port 1 is taken".into()) }
        }

        fn maintain(&mut self) -> Result<(), Box<dyn Error>> {
            if self.runs && self.updated == 4 { Err("four is the end".into()) } else { Ok(()) }
        }

        fn status(&self) -> DataplaneStatus {
            let worker = WorkerStatus {
                worker: 0,
                core: 1,
                pinned: true,
                load: 0.0,
                times: TimesStatus::default(),
                asleep: false,
                fresh: true,
                heartbeat_age_ns: Some(0),
                probation: None,
                frames: FrameLedger::default(),
                counts: [("polls".to_owned(), self.updated)].into(),
                drops: [].into(),
            };
            let verdict = VerdictRow {
                program: "pod_steer".into(),
                verdict: "claimed".into(),
                help: String::new(),
                packets: self.updated,
            };
            let workers = if self.runs { vec![worker] } else { Vec::new() };
            DataplaneStatus { workers, verdicts: vec![verdict], ..DataplaneStatus::default() }
        }

        fn trace(&mut self, _: &Plan) -> Result<Sources, Box<dyn Error>> {
            Err("there is nothing to see".into())
        }

        fn provoke(&self, worker: u16, _: Fault) -> Result<(), Box<dyn Error>> {
            if worker == 0 { Ok(()) } else { Err("there is one worker".into()) }
        }

        fn stop(&mut self) -> DataplaneStatus {
            let last = self.status();
            self.runs = false;
            last
        }
    }

    /// Opens on every port but 0.
    fn open(settings: &Settings, _: &View) -> Result<Box<dyn Engine>, Box<dyn Error>> {
        if settings.port == 0 { Err("no memory for maps".into()) } else { Ok(Box::<Fake>::default()) }
    }

    fn running(port: u16) -> Wanted {
        Wanted::Running(Box::new(Settings {
            uplink: IfIndex(2),
            uplink_name: "eth0".into(),
            uplink_mac: Mac::default(),
            queues: crate::xsk::Queues { receive: 1, send: 1 },
            hub: HubEnds { near: IfIndex(3), far: IfIndex(4) },
            vtep: IpAddr::V4(Ipv4Addr::LOCALHOST),
            vtep_mac: Mac::default(),
            second: None,
            vni: Vni::new(1).unwrap(),
            port,
            udp_checksum: false,
            mtu: 1450,
            mode: Mode::Busy,
            cores: vec![1],
            xdp: Xdp::Auto,
            zero_copy: ZeroCopy::Auto,
            busy_poll: crate::config::BusyPoll::Auto,
            bulk: Bulk::Auto,
            frames: 1024,
            hub_slots: 64,
            pod_trains: true,
            stale_ms: 20,
            wake_pps: 0,
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
        let pods = (1..=pods).map(|id| PodView { pod: pod(id), addresses: Vec::new(), path: PodPath::Fast }).collect();
        View { pods, ..View::default() }
    }

    fn polls(tallies: &Tallies) -> u64 {
        tallies.counts.get("polls").copied().unwrap_or(0)
    }

    #[test]
    fn an_unchanged_view_is_not_applied_again_and_a_refused_one_is() {
        let (mut life, now) = (Lifecycle::new(open), Instant::now());
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
        let (mut life, now) = (Lifecycle::new(open), Instant::now());
        life.drive(&running(2), &view(4), now);
        life.maintain(now);
        assert_eq!(life.report(now).reason.as_deref(), Some("four is the end"));
        assert_eq!(life.report(now).state, DataplaneState::Failed);
        life.drive(&running(2), &view(1), now + FIRST_RETRY);
        assert!(life.is_running());
    }

    #[test]
    fn workers_that_fail_again_and_again_are_started_later_and_later_until_they_have_run_well() {
        let (mut life, mut now) = (Lifecycle::new(open), Instant::now());
        let die = |life: &mut Lifecycle, now| {
            // with programs of its own, whose fourth pod is the end
            life.steering = None;
            life.drive(&running(2), &view(4), now);
            assert!(life.is_running());
        };
        for delay in [1, 2, 4, 8, 16, 32, 60, 60] {
            die(&mut life, now);
            life.maintain(now + Duration::from_secs(1));
            now += Duration::from_secs(1 + delay);
            assert_eq!(life.next_try(), Some(now));
        }
        die(&mut life, now);
        now += STEADY;
        life.maintain(now);
        assert_eq!(life.next_try(), Some(now + FIRST_RETRY));
    }

    #[test]
    fn programs_follow_the_view_while_no_worker_runs() {
        let (mut life, now) = (Lifecycle::new(open), Instant::now());
        let down = |settings: Wanted| match settings {
            Wanted::Running(settings) => Wanted::Impossible { reason: "eth0 is down".into(), settings: Some(settings) },
            other => other,
        };
        let told = |life: &Lifecycle| life.figures().map(|figures| figures.verdicts[0].packets);
        let nothing_known = Wanted::Impossible { reason: "eth0 is gone".into(), settings: None };
        life.drive(&nothing_known, &view(1), now);
        assert_eq!(told(&life), None);
        for (wanted, pods, sum) in [
            (down(running(2)), 1, 1),
            (nothing_known, 2, 3),
            (down(running(0)), 2, 5),
            (running(1), 2, 7),
            (running(1), 1, 8),
        ] {
            life.drive(&wanted, &view(pods), now);
            assert_eq!((told(&life), life.is_running(), life.is_open()), (Some(sum), false, true), "{wanted:?}");
        }
        life.drive(&running(2), &view(1), now);
        assert!(life.is_running());
        life.renew();
        let uplink_gone = Wanted::Impossible { reason: "eth0 is gone".into(), settings: None };
        life.drive(&uplink_gone, &view(2), now);
        assert_eq!(told(&life), Some(11), "the old programs follow until there can be new ones");
        life.drive(&running(2), &view(1), now);
        assert_eq!((told(&life), life.is_running(), life.retired().verdicts.len()), (Some(1), true, 0));
    }

    #[test]
    fn programs_that_cannot_be_loaded_are_tried_again_later() {
        let (mut life, now) = (Lifecycle::new(open), Instant::now());
        life.drive(&running(0), &view(1), now);
        assert_eq!(life.report(now).reason.as_deref(), Some("no memory for maps"));
        assert_eq!((life.next_try(), life.is_open()), (Some(now + FIRST_RETRY), false));
        life.drive(&running(0), &view(1), now + FIRST_RETRY);
        assert_eq!(life.next_try(), Some(now + FIRST_RETRY * 3));
    }

    #[test]
    fn a_changed_setting_takes_a_new_data_plane_and_no_figure_is_lost() {
        let (mut life, now) = (Lifecycle::new(open), Instant::now());
        life.drive(&running(2), &view(2), now);
        life.drive(&running(3), &view(1), now);
        assert_eq!(polls(&life.retired().tallies), 2);
        life.drive(&Wanted::Off, &view(1), now);
        assert_eq!((polls(&life.retired().tallies), life.is_running()), (5, false));
        assert_eq!(life.report(now).state, DataplaneState::Kernel);
        let total = life.retired().with(Fake { updated: 4, runs: false }.status().verdicts);
        assert_eq!(total.iter().map(|row| row.packets).collect::<Vec<_>>(), [7]);
        assert_eq!(life.retired().with(Vec::new())[0].packets, 3);
    }

    #[test]
    fn a_failed_start_is_tried_again_later_and_later_but_at_once_with_other_settings() {
        let (mut life, begin) = (Lifecycle::new(open), Instant::now());
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
        let (mut life, now) = (Lifecycle::new(open), Instant::now());
        life.drive(&running(2), &view(1), now);
        life.drive(&Wanted::Impossible { reason: "eth0 is down".into(), settings: None }, &view(1), now);
        assert_eq!(life.report(now).reason.as_deref(), Some("eth0 is down"));
        assert_eq!(polls(&life.retired().tallies), 1);
        life.drive(&running(2), &view(1), now);
        assert!(life.is_running());
    }
}
