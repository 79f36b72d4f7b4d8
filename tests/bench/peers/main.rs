//! The program behind `scripts/bench bulk`, `rate`, `latency`, `fairness` and `footprint`: podwire beside its peers.
//!
//! Each system is built anew, two nodes with one wire between them, measured, and removed before the next one, in
//! alternating rounds: machines drift. Nodes, pods and load share the machine's cores, so that ratios count, and those
//! are only told of if the rounds bear them out.

mod alone;
mod bulk;
mod fairness;
mod footprint;
#[path = "../../harness/mod.rs"]
mod harness;
mod latency;
mod load;
mod machine;
mod rate;
mod relay;
mod report;
mod routes;
mod senders;
mod systems;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use alone::Alone;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser};
use footprint::Growing;
use harness::{Wire, is_root};
use latency::{Loaded, Pictures};
use load::Load;
use machine::{Machine, as_f64};
use report::{Figures, Report};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use systems::{Rig, SYSTEMS, System};

/// Measures podwire beside its peers.
#[derive(Parser)]
#[command(name = "scripts/bench")]
enum Verb {
    /// TCP throughput, its cost in CPU time, and the latency beside it
    Bulk {
        #[command(flatten)]
        common: Common,
        /// MTU of the wire; can be repeated
        #[arg(long, value_name = "BYTES", default_values_t = [1500, 9000])]
        mtu: Vec<u32>,
        /// TCP connections at a time; can be repeated
        #[arg(long, value_name = "N", default_values_t = [1, 8, 32])]
        flows: Vec<u32>,
    },
    /// Packets a second of one node: the highest rate, and the highest without loss
    Rate {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        options: rate::Options,
    },
    /// Round trips between pods of two nodes, alone and beside loads
    Latency {
        #[command(flatten)]
        common: Common,
        /// Draw a picture of each scenario, with all systems, into this directory
        #[arg(long, value_name = "DIR")]
        svg: Option<PathBuf>,
        /// Only this scenario; can be repeated
        #[arg(long, value_name = "NAME",
              value_parser = PossibleValuesParser::new(latency::Scenario::ALL.map(latency::Scenario::stem)))]
        scenario: Vec<String>,
    },
    /// A ping-pong of a pod beside others of its node that flood, and how evenly these are served
    Fairness {
        #[command(flatten)]
        common: Common,
        /// Pods that flood; can be repeated
        #[arg(long, value_name = "N", default_values_t = [0, 1, 4, 16], value_parser = 0..=16)]
        floods: Vec<i64>,
    },
    /// CPU and memory of a node whose pods are silent, and the time to add one
    Footprint {
        #[command(flatten)]
        common: Common,
        /// Pods of the node; can be repeated
        #[arg(long, value_name = "N", default_values_t = [1, 128, 250], value_parser = 1..=250)]
        pods: Vec<i64>,
    },
}

#[derive(Args)]
struct Common {
    /// Write the figures to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seconds of each measurement (5); of each trial of a rate (1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// Rounds of all systems
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Only this system; can be repeated. The first one is what the others are measured by
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(SYSTEMS.map(|system| system.name)))]
    only: Vec<String>,
    /// Measure each podwire system also with this in its section `dataplane`; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = systems::setting)]
    set: Vec<String>,
}

impl Common {
    fn seconds(&self) -> u32 {
        self.seconds.unwrap_or(5)
    }

    /// The systems that are wanted, in the order that is wanted.
    fn systems(&self) -> Vec<System> {
        let named = |name: &String| SYSTEMS.into_iter().find(|system| system.name == name);
        let systems =
            if self.only.is_empty() { SYSTEMS.to_vec() } else { self.only.iter().filter_map(named).collect() };
        let with = |system: &System| self.set.iter().filter_map(|setting| system.with(setting)).collect::<Vec<_>>();
        systems.iter().flat_map(|system| [vec![*system], with(system)].concat()).collect()
    }

    /// Those of them that are overlays.
    fn overlays(&self) -> Vec<System> {
        self.systems().into_iter().filter(|system| !system.is_ceiling()).collect()
    }
}

fn main() -> ExitCode {
    match run(Verb::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/bench: {error}");
            if error.kind() == io::ErrorKind::Interrupted { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}

fn run(verb: Verb) -> io::Result<()> {
    if !is_root() {
        return Err(io::Error::other("network namespaces need root"));
    }
    match verb {
        Verb::Bulk { common, mtu, flows } => bulk(&common, &mtu, &flows),
        Verb::Rate { mut common, options } => {
            common.seconds.get_or_insert(1);
            rate(&common, &options)
        }
        Verb::Latency { common, svg, scenario } => latency(&common, svg.as_deref(), &scenario),
        Verb::Fairness { common, floods } => fairness(&common, &floods),
        Verb::Footprint { common, pods } => footprint(&common, &pods),
    }
}

fn bulk(common: &Common, mtus: &[u32], flows: &[u32]) -> io::Result<()> {
    let groups: Vec<_> = mtus.iter().map(|&mtu| (mtu, bulk::Scenario::all(mtu, flows))).collect();
    let build = |system: &System, mtu| system.build(Wire { mtu, ..Wire::default() }, 2);
    let measure = |_: &System, rig: &mut Rig, scenario: bulk::Scenario| scenario.measure(rig, common.seconds());
    alternate(common, &common.overlays(), &groups, bulk::Scenario::name, build, measure)
}

fn rate(common: &Common, options: &rate::Options) -> io::Result<()> {
    let systems: Vec<_> = common.systems().into_iter().filter(|system| !system.is_mixed()).collect();
    let build = |system: &System, extent| system.build_alone(extent, options.sender);
    let measure = |_: &System, (rig, load): &mut (Alone, Load), scenario: rate::Scenario| {
        scenario.measure(rig, load, common.seconds())
    };
    alternate(common, &systems, &options.groups(), rate::Scenario::name, build, measure)
}

fn latency(common: &Common, svg: Option<&Path>, wanted: &[String]) -> io::Result<()> {
    let is_wanted = |scenario: &latency::Scenario| wanted.is_empty() || wanted.iter().any(|it| it == scenario.stem());
    let mut pictures = Pictures::default();
    let measure = |system: &System, loaded: &mut Loaded, scenario: latency::Scenario| {
        let (figures, trips) = scenario.measure(loaded, common.seconds())?;
        pictures.add(scenario, system, trips);
        Ok(figures)
    };
    let groups = [((), latency::Scenario::ALL.into_iter().filter(is_wanted).collect())];
    let build = |system: &System, ()| system.build_loaded();
    alternate(common, &common.overlays(), &groups, latency::Scenario::name, build, measure)?;
    svg.map_or(Ok(()), |dir| pictures.draw(dir))
}

fn fairness(common: &Common, floods: &[i64]) -> io::Result<()> {
    let floods: Vec<usize> = floods.iter().map(|&floods| usize::try_from(floods).expect("not negative")).collect();
    let systems: Vec<_> = common.systems().into_iter().filter(System::ends_in_kernel).collect();
    let build = |system: &System, ()| system.build_crowd();
    let measure = |_: &System, rig: &mut Rig, floods| fairness::measure(rig, floods, common.seconds());
    alternate(common, &systems, &[((), floods)], fairness::name, build, measure)
}

fn footprint(common: &Common, pods: &[i64]) -> io::Result<()> {
    let mut pods: Vec<usize> = pods.iter().map(|&pods| usize::try_from(pods).expect("positive")).collect();
    pods.sort_unstable();
    let systems: Vec<_> = common.overlays().into_iter().filter(|system| !system.is_mixed()).collect();
    let build = |system: &System, ()| system.build_growing();
    let measure = |_: &System, growing: &mut Growing, pods| footprint::measure(growing, pods, common.seconds());
    alternate(common, &systems, &[((), pods)], footprint::name, build, measure)
}

/// Measures all scenarios of each group with what was built for it, and all systems in turn. What there is is told of and
/// written also when SIGINT or SIGTERM ends it; a second one ends it at once.
fn alternate<K: Copy, S: Copy, R>(
    common: &Common,
    systems: &[System],
    groups: &[(K, Vec<S>)],
    name: impl Fn(S) -> String,
    build: impl Fn(&System, K) -> Result<R, String>,
    mut measure: impl FnMut(&System, &mut R, S) -> Result<Figures, String>,
) -> io::Result<()> {
    let Common { rounds, ref json, .. } = *common;
    let scenarios: usize = groups.iter().map(|(_, scenarios)| scenarios.len()).sum();
    let all = systems.len() * scenarios * usize::try_from(rounds).expect("few");
    eprintln!("{rounds} rounds of {} systems, {scenarios} scenarios each", systems.len());
    if scenarios == 0 {
        return Err(io::Error::other("nothing of this can be measured"));
    }
    let first = systems.first().ok_or_else(|| io::Error::other("none of the systems can be measured so"))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&interrupted))?;
        flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut report = Report::new(Machine::look(), common.seconds(), rounds, first.name);
    let (start, mut done) = (Instant::now(), 0);
    'rounds: for round in 1..=rounds {
        for system in systems {
            for (key, scenarios) in groups {
                let mut rig = guarded("built", || build(system, *key));
                for &scenario in scenarios {
                    if interrupted.load(Ordering::Relaxed) {
                        break 'rounds;
                    }
                    let name = name(scenario);
                    let outcome = match &mut rig {
                        Ok(rig) => guarded("measured", || measure(system, rig, scenario)),
                        Err(reason) => Err(reason.clone()),
                    };
                    let said = match &outcome {
                        Ok(figures) => figures.iter().map(|(measure, value)| measure.tell(*value)).collect(),
                        Err(reason) => reason.clone(),
                    };
                    eprintln!("round {round} of {rounds}: {}: {name}:{said}", system.name);
                    report.add(round, &name, system.name, outcome);
                    done += 1;
                }
            }
        }
        if let Some(file) = json {
            report.write(file)?;
        }
        let left = start.elapsed().as_secs_f64() * as_f64((all - done) as u64) / as_f64(done as u64) / 60.0;
        eprintln!("round {round} of {rounds} has ended; about {left:.0} min are left");
    }
    report.tell();
    if let Some(file) = json {
        report.write(file)?;
    }
    if interrupted.load(Ordering::Relaxed) {
        return Err(io::Error::new(io::ErrorKind::Interrupted, format!("ended after {done} of {all} measurements")));
    }
    Ok(())
}

/// What the laboratory cannot do it tells of by a panic; the other measurements go on.
fn guarded<T>(what: &str, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
        Err(format!("it could not be {what}: {}", said.unwrap_or("see the panic above")))
    })
}
