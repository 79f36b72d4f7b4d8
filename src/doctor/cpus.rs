//! The workers' CPUs.

use super::evidence::{Cpu, Evidence, IdleState};
use super::finding::Opinion;

/// What the profiles of `tuning/` leave to a core, in µs: a burst overtakes one that takes longer to wake up.
const DEEP_US: u64 = 50;

/// Asks the question of each worker's CPU; all is well when none has an answer.
fn each(evidence: &Evidence, well: &str, look: impl Fn(&Cpu) -> Option<Opinion>) -> Vec<Opinion> {
    if !evidence.has_workers() {
        return vec![Opinion::ok("no worker is configured")];
    }
    let bad: Vec<_> = evidence.cpus.workers.iter().filter_map(look).collect();
    if bad.is_empty() { vec![Opinion::ok(well)] } else { bad }
}

/// The CPUs for which the question is answered by yes, such as `2, 3`.
fn which(evidence: &Evidence, is: impl Fn(&Cpu) -> bool) -> Option<String> {
    let ids: Vec<_> = evidence.cpus.workers.iter().filter(|cpu| is(cpu)).map(|cpu| cpu.id.to_string()).collect();
    (evidence.has_workers() && !ids.is_empty()).then(|| ids.join(", "))
}

pub(super) fn worker_cores(evidence: &Evidence) -> Vec<Opinion> {
    let workers = &evidence.cpus.workers;
    each(evidence, "online, and no two are one core's hardware threads", |cpu| {
        if !evidence.cpus.online.contains(&cpu.id) {
            let seen = format!("CPU {} of dataplane.cores is not online", cpu.id);
            return Some(
                Opinion::error(seen, "its worker cannot run there").advice("choose another one, or bring it online"),
            );
        }
        let twin = workers.iter().find(|other| other.id > cpu.id && cpu.siblings.contains(&other.id))?;
        let seen = format!("CPUs {} and {} are hardware threads of one core", cpu.id, twin.id);
        Some(
            Opinion::warning(seen, "two workers share what one core can do")
                .advice("choose one hardware thread of each core in dataplane.cores"),
        )
    })
}

pub(super) fn isolated(evidence: &Evidence) -> Vec<Opinion> {
    let open = which(evidence, |cpu| !evidence.cpus.isolated.contains(&cpu.id));
    vec![match open {
        None => Opinion::ok("the scheduler keeps others off the workers' CPUs"),
        Some(ids) => Opinion::note(
            format!("the scheduler may put others on CPU {ids}"),
            "each switch to another thread costs packets, the more the busier the node is",
        )
        .advice(format!("boot with isolcpus=managed_irq,domain,{0} nohz_full={0} rcu_nocbs={0}", ids.replace(' ', ""))),
    }]
}

pub(super) fn shared(evidence: &Evidence) -> Vec<Opinion> {
    each(evidence, "nothing else runs on the workers' CPUs", |cpu| {
        let rivals = cpu.rivals.join(", ");
        (!rivals.is_empty()).then(|| {
            Opinion::warning(
                format!("on CPU {} there also run: {rivals}", cpu.id),
                "they take turns with the worker, whose packets wait or go to the kernel path meanwhile",
            )
            .advice("keep them off (taskset, CPUAffinity=, a pod's CPU limits), or isolate the CPU at boot")
        })
    })
}

pub(super) fn governor(evidence: &Evidence) -> Vec<Opinion> {
    let slow = which(evidence, |cpu| cpu.governor.as_ref().is_some_and(|governor| governor != "performance"));
    vec![match slow {
        None => Opinion::ok("performance, or not this machine's to decide"),
        Some(ids) => Opinion::note(
            format!("CPU {ids} has a frequency governor other than performance"),
            "a worker that slept begins at a low frequency: latency goes up",
        )
        .tuning(evidence.profile()),
    }]
}

pub(super) fn idle_states(evidence: &Evidence) -> Vec<Opinion> {
    let deep = |state: &&IdleState| !state.disabled && state.latency_us > DEEP_US;
    each(evidence, "no deep sleep states on the workers' CPUs", |cpu| {
        let states: Vec<_> = cpu
            .idle_states
            .iter()
            .filter(deep)
            .map(|state| format!("{} ({} µs)", state.name, state.latency_us))
            .collect();
        (!states.is_empty()).then(|| {
            Opinion::note(
                format!("CPU {} may sleep in {}", cpu.id, states.join(", ")),
                "a worker in mode adaptive wakes up that much later",
            )
            .tuning(evidence.profile())
        })
    })
}

pub(super) fn numa(evidence: &Evidence) -> Vec<Opinion> {
    let Some(home) = evidence.uplink().and_then(|uplink| uplink.numa_node) else {
        return vec![Opinion::ok("the uplink has no NUMA node of its own")];
    };
    vec![match which(evidence, |cpu| cpu.numa_node.is_some_and(|node| node != home)) {
        None => Opinion::ok(format!("the workers' CPUs are on the uplink's node {home}")),
        Some(ids) => Opinion::warning(
            format!("the uplink is on NUMA node {home}, CPU {ids} is not"),
            "each packet crosses between the nodes' memories",
        )
        .advice(format!("choose CPUs of /sys/devices/system/node/node{home}/cpulist in dataplane.cores")),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;
    use crate::doctor::evidence::Configured;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::assert_says;

    fn cpu(evidence: &mut Evidence) -> &mut Cpu {
        &mut evidence.cpus.workers[0]
    }

    #[test]
    fn cores_that_are_away_shared_or_twins_are_named() {
        assert_says(worker_cores, |e| cpu(e).id = 99, Severity::Error, "CPU 99");
        assert_says(worker_cores, |e| cpu(e).siblings = vec![1, 3], Severity::Warning, "CPUs 1 and 3");
        assert_says(isolated, |e| e.cpus.isolated = vec![2], Severity::Note, "on CPU 1");
        assert_says(shared, |e| cpu(e).rivals = vec!["nginx".into()], Severity::Warning, "CPU 1 there also run: nginx");
    }

    #[test]
    fn frequency_sleep_and_memory_nodes_are_looked_at() {
        assert_says(governor, |e| cpu(e).governor = Some("powersave".into()), Severity::Note, "CPU 1");
        let c6 = IdleState { name: "C6".into(), latency_us: 133, disabled: false };
        assert_says(idle_states, |e| cpu(e).idle_states = vec![c6.clone()], Severity::Note, "C6 (133 µs)");
        let off = IdleState { disabled: true, ..c6.clone() };
        assert_says(idle_states, |e| cpu(e).idle_states = vec![off.clone()], Severity::Ok, "no deep");
        assert_says(numa, |e| cpu(e).numa_node = Some(1), Severity::Warning, "CPU 1 is not");
    }

    #[test]
    fn without_workers_no_core_is_complained_of() {
        let kernel = |e: &mut Evidence| {
            let Configured::Valid(_, config) = &mut e.config else { panic!() };
            config.dataplane.mode = Mode::Kernel;
            e.cpus.isolated.clear();
            cpu(e).rivals = vec!["nginx".into()];
        };
        assert_says(isolated, kernel, Severity::Ok, "");
        assert_says(shared, kernel, Severity::Ok, "no worker");
    }
}
