//! What the configuration says, and what the daemon says of itself.

use super::evidence::{Configured, Daemon, Evidence};
use super::finding::Opinion;
use crate::control::api::{DataplaneState, Path};
use crate::control::view::WorkerStatus;

pub(super) fn config(evidence: &Evidence) -> Vec<Opinion> {
    vec![match &evidence.config {
        Configured::No => Opinion::note(
            "no configuration was named, and no daemon names one",
            "uplink, cores and overlay are not looked at, because nothing says which they are",
        )
        .advice("name it: podwire doctor --config FILE"),
        Configured::Bad(file, error) => {
            Opinion::error(format!("{}: {error}", file.display()), "a daemon cannot start with this file")
                .advice(format!("repair what `podwire config check {}` names", file.display()))
        }
        Configured::Valid(file, config) if config.warnings.is_empty() => {
            Opinion::ok(format!("{} is valid", file.display()))
        }
        Configured::Valid(file, config) => {
            let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
            Opinion::note(
                format!("{}: {}", file.display(), warnings.join("; ")),
                "it works, but is hardly what was meant",
            )
            .advice("change what is named")
        }
    }]
}

pub(super) fn daemon(evidence: &Evidence) -> Vec<Opinion> {
    vec![match &evidence.daemon {
        Daemon::Away(why) => Opinion::note(why, "what only a daemon knows is not looked at")
            .advice("start it: podwire run --config FILE"),
        Daemon::Ill(why) => Opinion::error(why, "the daemon does not do its work; the pods keep what they have")
            .advice("look into its log, and start it anew: the pods stay attached"),
        Daemon::Well { status, .. } => match &status.config.last_error {
            None => Opinion::ok(format!("podwire {} runs, configuration {}", status.version, status.config.generation)),
            Some(error) => Opinion::warning(
                format!("it goes on with an earlier configuration: {}", error.replace('\n', " ")),
                "the file as it is now was refused",
            )
            .advice(format!("repair what `podwire config check {}` names", status.config.file.display())),
        },
    }]
}

pub(super) fn data_plane(evidence: &Evidence) -> Vec<Opinion> {
    let Some(status) = evidence.daemon.status() else {
        return vec![Opinion::ok("it runs where the daemon runs")];
    };
    let report = &status.dataplane;
    let reason = report.reason.clone().unwrap_or_default();
    vec![match report.state {
        DataplaneState::Kernel => Opinion::ok("off, as configured"),
        DataplaneState::Running if reason.is_empty() => Opinion::ok("it runs"),
        DataplaneState::Running => Opinion::warning(reason, "a change was not taken over by the data plane")
            .advice("it is tried again; if it stays so, start the daemon anew"),
        DataplaneState::Failed => Opinion::error(reason, "no worker runs; the kernel path carries all packets, slower")
            .advice("put right what is named: it is tried again by itself"),
    }]
}

pub(super) fn peer_path(evidence: &Evidence) -> Vec<Opinion> {
    let Some(status) = evidence.daemon.status() else {
        return vec![Opinion::ok("known where the daemon runs")];
    };
    let slow = |reason: &str, name: &str| {
        Opinion::warning(format!("{name}: {reason}"), "its packets take the kernel path, which is slower")
            .advice("put right what is named; `podwire routes` shows each prefix")
    };
    let running = status.dataplane.state == DataplaneState::Running;
    let slow: Vec<_> = status
        .peers
        .iter()
        .filter(|peer| running && peer.path == Path::Kernel)
        .map(|peer| slow(peer.reason.as_deref().unwrap_or("no reason given"), &peer.name))
        .collect();
    if slow.is_empty() { vec![Opinion::ok(format!("{} peer(s)", status.peers.len()))] } else { slow }
}

pub(super) fn worker_health(evidence: &Evidence) -> Vec<Opinion> {
    let figures = evidence.daemon.status().and_then(|status| status.dataplane.figures.as_ref());
    let Some(figures) = figures else { return vec![Opinion::ok("no worker runs")] };
    let ill: Vec<_> = figures.workers.iter().filter_map(worker).collect();
    if ill.is_empty() { vec![Opinion::ok(format!("{} worker(s) well", figures.workers.len()))] } else { ill }
}

fn worker(worker: &WorkerStatus) -> Option<Opinion> {
    let WorkerStatus { worker: number, core, .. } = worker;
    if !worker.frames.is_balanced() {
        return Some(
            Opinion::error(
                format!("worker {number}: {:?} does not add up", worker.frames),
                "packet memory leaked: the worker will run out of it",
            )
            .advice("start the daemon anew, and report this"),
        );
    }
    let what = match (&worker.probation, worker.fresh, worker.pinned) {
        (Some(probation), ..) => format!("on probation ({:?})", probation.reason).to_lowercase(),
        (None, false, _) => "gives no sign of life".to_owned(),
        (None, true, false) => format!("is not bound to core {core}"),
        (None, true, true) => return None,
    };
    Some(
        Opinion::warning(
            format!("worker {number} on core {core} {what}"),
            "the kernel path carries its packets until it is well, or other cores interfere with it",
        )
        .advice("give the worker a core that nothing else uses: see shared-cores and isolated-cores"),
    )
}

pub(super) fn node_problem(evidence: &Evidence) -> Vec<Opinion> {
    let problems = evidence.daemon.status().map(|status| status.problems.clone()).unwrap_or_default();
    let opinion = |problem| {
        Opinion::warning(problem, "the daemon could not bring this to what the configuration asks for")
            .advice("put right what is named: the daemon looks again by itself")
    };
    problems.into_iter().map(opinion).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample;

    /// What a check says of a healthy node after a change.
    #[track_caller]
    fn says(check: fn(&Evidence) -> Vec<Opinion>, change: impl Fn(&mut Evidence), severity: Severity, word: &str) {
        sample::assert_says(check, change, severity, word);
    }

    fn status(evidence: &mut Evidence) -> &mut crate::control::api::Status {
        match &mut evidence.daemon {
            Daemon::Well { status, .. } => status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_configuration_that_is_missing_or_refused_is_named() {
        says(config, |e| e.config = Configured::No, Severity::Note, "no configuration");
        let refused = |e: &mut Evidence| e.config = Configured::Bad("/etc/p.toml".into(), "no node.name".into());
        says(config, refused, Severity::Error, "/etc/p.toml: no node.name");
    }

    #[test]
    fn a_daemon_is_away_ill_or_goes_on_with_an_older_file() {
        says(daemon, |e| e.daemon = Daemon::Away("none answers".into()), Severity::Note, "none answers");
        says(daemon, |e| e.daemon = Daemon::Ill("no answer for 30 s".into()), Severity::Error, "30 s");
        says(daemon, |e| status(e).config.last_error = Some("bad\nfile".into()), Severity::Warning, "bad file");
    }

    #[test]
    fn a_data_plane_that_failed_gives_its_reason() {
        let fail = |e: &mut Evidence| {
            status(e).dataplane.state = DataplaneState::Failed;
            status(e).dataplane.reason = Some("eth0 is down".into());
        };
        says(data_plane, fail, Severity::Error, "eth0 is down");
        says(data_plane, |e| status(e).dataplane.reason = Some("map full".into()), Severity::Warning, "map full");
        says(data_plane, |e| status(e).dataplane.state = DataplaneState::Kernel, Severity::Ok, "off");
    }

    #[test]
    fn peers_workers_and_problems_are_told_one_by_one() {
        let slow = |e: &mut Evidence| {
            status(e).peers[0].path = Path::Kernel;
            status(e).peers[0].reason = Some("not resolved".into());
        };
        says(peer_path, slow, Severity::Warning, "node-b: not resolved");
        let worker = |e: &mut Evidence, change: fn(&mut WorkerStatus)| {
            change(&mut status(e).dataplane.figures.as_mut().unwrap().workers[0]);
        };
        says(worker_health, |e| worker(e, |w| w.fresh = false), Severity::Warning, "no sign of life");
        says(worker_health, |e| worker(e, |w| w.pinned = false), Severity::Warning, "not bound to core 1");
        says(worker_health, |e| worker(e, |w| w.frames.total = 9), Severity::Error, "add up");
        says(node_problem, |e| status(e).problems = vec!["pod web: gone".into()], Severity::Warning, "pod web");
    }
}
