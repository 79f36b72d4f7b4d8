use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::{cpu_list, number, word};
use crate::doctor::evidence::{Cpu, Cpus, IdleState};

/// How often it is looked who runs on the workers' CPUs,
const SAMPLES: u32 = 10;
/// and how long it takes in between.
const PAUSE: Duration = Duration::from_millis(10);
/// In how many samples a thread must have been there to count: one alone may be anybody's.
const OFTEN: u32 = 3;

/// The threads of workers are called so, with their number.
const WORKER: &str = "podwire-w";

/// Of `/sys`; `workers` are the CPUs of the workers.
pub fn look(sys: &Path, workers: &[usize]) -> Cpus {
    let cpus = sys.join("devices/system/cpu");
    let mut rivals = rivals(workers);
    let cpu = |id: &usize| Cpu { rivals: rivals.remove(id).unwrap_or_default(), ..cpu(sys, *id) };
    Cpus {
        workers: workers.iter().map(cpu).collect(),
        online: cpu_list(cpus.join("online")),
        isolated: cpu_list(cpus.join("isolated")),
    }
}

fn cpu(sys: &Path, id: usize) -> Cpu {
    let dir = sys.join(format!("devices/system/cpu/cpu{id}"));
    Cpu {
        id,
        siblings: cpu_list(dir.join("topology/thread_siblings_list")),
        numa_node: numa_node(&dir),
        governor: word(dir.join("cpufreq/scaling_governor")),
        idle_states: idle_states(&dir.join("cpuidle")),
        rivals: Vec::new(),
    }
}

/// A CPU's directory has a link to its node: `node0`.
fn numa_node(dir: &Path) -> Option<usize> {
    let mut names = fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.find_map(|name| name.strip_prefix("node")?.parse().ok())
}

fn idle_states(dir: &Path) -> Vec<IdleState> {
    let state = |number: usize| {
        let dir = dir.join(format!("state{number}"));
        Some(IdleState {
            name: word(dir.join("name"))?,
            latency_us: number_of(&dir, "latency"),
            disabled: number_of(&dir, "disable") != 0,
        })
    };
    (0..).map_while(state).collect()
}

fn number_of(dir: &Path, file: &str) -> u64 {
    number(dir.join(file)).unwrap_or(0)
}

/// The threads that often ran or waited on each of `cpus`, by name.
fn rivals(cpus: &[usize]) -> BTreeMap<usize, Vec<String>> {
    let mut seen: BTreeMap<(usize, u32), (u32, String)> = BTreeMap::new();
    for _ in 0..if cpus.is_empty() { 0 } else { SAMPLES } {
        for thread in runnable(Path::new("/proc")).into_iter().filter(|thread| cpus.contains(&thread.cpu)) {
            let entry = seen.entry((thread.cpu, thread.id)).or_insert((0, thread.name));
            entry.0 += 1;
        }
        sleep(PAUSE);
    }
    let mut names: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for ((cpu, _), (_, name)) in seen.into_iter().filter(|(_, (times, _))| *times >= OFTEN) {
        names.entry(cpu).or_default().insert(name);
    }
    names.into_iter().map(|(cpu, names)| (cpu, names.into_iter().collect())).collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Thread {
    id: u32,
    name: String,
    cpu: usize,
}

/// The threads that run or want to, but for workers and this process.
fn runnable(proc: &Path) -> Vec<Thread> {
    let own = std::process::id().to_string();
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let numbers = |path: &std::path::PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name != own && name.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let tasks = entries(proc).filter(numbers).flat_map(|process| entries(&process.join("task")));
    // A thread that has ended meanwhile has no file any more.
    let threads = tasks.filter_map(|task| parse(&fs::read_to_string(task.join("stat")).ok()?));
    threads.filter(|thread| !thread.name.starts_with(WORKER)).collect()
}

/// Understands proc_pid_stat(5): the thread, if it is runnable.
fn parse(stat: &str) -> Option<Thread> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let (id, name) = head.split_once(" (")?;
    // Fields are counted from 1; the state is the third, the CPU the 39th.
    let mut fields = rest.split_whitespace();
    let runs = fields.next()? == "R";
    let cpu = fields.nth(39 - 4)?.parse().ok()?;
    runs.then_some(Thread { id: id.parse().ok()?, name: name.to_owned(), cpu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_read_as_the_kernel_shows_it() {
        let sys = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let path = sys.path().join("devices/system/cpu").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("online", "0-3\n");
        put("isolated", "2-3\n");
        put("cpu2/topology/thread_siblings_list", "2,6\n");
        put("cpu2/cpufreq/scaling_governor", "powersave\n");
        put("cpu2/node1/keep", "");
        put("cpu2/cpuidle/state0/name", "POLL\n");
        put("cpu2/cpuidle/state1/name", "C6\n");
        put("cpu2/cpuidle/state1/latency", "133\n");
        put("cpu2/cpuidle/state1/disable", "1\n");
        let cpus = look(sys.path(), &[2]);
        assert_eq!((cpus.online, cpus.isolated), (vec![0, 1, 2, 3], vec![2, 3]));
        let Cpu { siblings, numa_node, governor, idle_states, .. } = &cpus.workers[0];
        assert_eq!((siblings, *numa_node, governor.as_deref()), (&vec![2, 6], Some(1), Some("powersave")));
        let c6 = IdleState { name: "C6".into(), latency_us: 133, disabled: true };
        assert_eq!((idle_states.len(), &idle_states[1]), (2, &c6));
    }

    #[test]
    fn a_runnable_thread_is_told_by_its_state_and_cpu() {
        let fields = |state: &str| format!("{state} 1 {} 5 0 0", "0 ".repeat(34).trim_end());
        let thread = Thread { id: 42, name: "a (b) c".into(), cpu: 5 };
        assert_eq!(parse(&format!("42 (a (b) c) {}", fields("R"))), Some(thread));
        assert_eq!(parse(&format!("42 (a) {}", fields("S"))), None);
        assert_eq!(parse("42 (a"), None);
    }
}
