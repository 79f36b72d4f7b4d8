//! What the log is told of what control puts right: each repair once, and of what repeats itself less and less.
//!
//! Two tools that fight over an object, or a peer that comes and goes, must not fill the log. An object that was told
//! of [`PLAIN`] times is then told of with the word that somebody keeps changing it, and after that only when a silence
//! has passed, which doubles each time. An object that was left alone for [`MEMORY`] starts anew.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::plan::{Action, Change, Object, ObjectChange};

const PLAIN: u32 = 3;
const MEMORY: Duration = Duration::from_secs(600);
const FIRST_SILENCE: Duration = Duration::from_secs(60);
const LAST_SILENCE: Duration = Duration::from_secs(3600);

/// More changes of one kind than this, made at once, are told of as one.
const MANY: usize = 8;

/// What was told, and when.
#[derive(Debug, Default)]
pub struct Journal(HashMap<String, Page>);

/// What is remembered of one object.
#[derive(Debug)]
struct Page {
    first: Instant,
    last: Instant,
    times: u32,
    silent_until: Instant,
    silence: Duration,
}

/// How to tell of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    Plain,
    /// With the word that this is the `times`-th time.
    Again {
        times: u32,
        within: Duration,
    },
    Not,
}

impl Journal {
    /// Notes that `subject` needs telling, and says how.
    pub fn note(&mut self, subject: &str, now: Instant) -> Telling {
        self.0.retain(|_, page| now < page.last.max(page.silent_until) + MEMORY);
        let Some(page) = self.0.get_mut(subject) else {
            let page = Page { first: now, last: now, times: 1, silent_until: now, silence: FIRST_SILENCE };
            self.0.insert(subject.to_owned(), page);
            return Telling::Plain;
        };
        page.times += 1;
        page.last = now;
        if page.times <= PLAIN {
            return Telling::Plain;
        }
        if now < page.silent_until {
            return Telling::Not;
        }
        page.silent_until = now + page.silence;
        page.silence = (page.silence * 2).min(LAST_SILENCE);
        Telling::Again { times: page.times, within: now - page.first }
    }

    /// Tells the log of changes that were made at once.
    pub fn tell_changes(&mut self, changes: &[Change], now: Instant) {
        let mut kinds: HashMap<Kind, usize> = HashMap::new();
        for kind in changes.iter().filter_map(kind) {
            *kinds.entry(kind).or_default() += 1;
        }
        kinds.retain(|_, count| *count > MANY);
        for ((action, what, device), count) in &kinds {
            let change = format!("{action} {count} {what} dev {device}");
            self.tell_change(&format!("{action} {what} dev {device}"), &change, now);
        }
        for change in changes.iter().filter(|change| kind(change).is_none_or(|kind| !kinds.contains_key(&kind))) {
            self.tell_change(&subject(change), change, now);
        }
    }

    fn tell_change(&mut self, subject: &str, change: &dyn fmt::Display, now: Instant) {
        match self.note(subject, now) {
            Telling::Plain => tracing::info!(%change, "kernel path"),
            Telling::Again { times, within } => {
                let secs = within.as_secs_f64();
                tracing::warn!(%change, "kernel path: somebody keeps changing it: made {times} times in {secs:.1} s");
            }
            Telling::Not => {}
        }
    }

    /// Tells the log of something of the data plane that somebody else had undone.
    pub fn tell_repair(&mut self, repair: &str, now: Instant) {
        match self.note(repair, now) {
            Telling::Plain => tracing::warn!("{repair}"),
            Telling::Again { times, within } => {
                tracing::warn!("{repair} ({times} times in {:.1} s)", within.as_secs_f64());
            }
            Telling::Not => {}
        }
    }

    /// Tells the log that a pod's packets take another path.
    pub fn tell_path(&mut self, pod: &str, path: &str, now: Instant) {
        match self.note(&format!("path of {pod}"), now) {
            Telling::Plain => tracing::info!(pod, "{path}"),
            Telling::Again { times, within } => {
                tracing::info!(pod, "{path} (it has changed {times} times in {} s)", within.as_secs());
            }
            Telling::Not => {}
        }
    }

    /// Tells the log that something is as it should be again.
    pub fn tell_cure(&mut self, cure: &str, now: Instant) {
        match self.note(cure, now) {
            Telling::Plain => tracing::info!("{cure}"),
            Telling::Again { times, within } => {
                tracing::info!("{cure} (it comes and goes, {times} times in {} s)", within.as_secs());
            }
            Telling::Not => {}
        }
    }

    /// Tells the log of something that is wrong.
    pub fn tell_problem(&mut self, problem: &str, now: Instant) {
        match self.note(problem, now) {
            Telling::Plain => tracing::error!("{problem}"),
            Telling::Again { times, within } => {
                tracing::error!("{problem} (it comes and goes, {times} times in {} s)", within.as_secs());
            }
            Telling::Not => {}
        }
    }
}

/// An action, the plural of what it was done to, and the device.
type Kind<'c> = (Action, &'static str, &'c str);

/// What changes of many objects have in common.
fn kind(change: &Change) -> Option<Kind<'_>> {
    let Change::Object(ObjectChange { action, object, device }) = change else { return None };
    let what = match object {
        Object::Address(_) => "addresses",
        Object::Neighbour(_) => "neighbours",
        Object::Fdb(_) => "fdb entries",
        Object::Route(_) => "routes",
        Object::Rule(_) => "rules",
    };
    Some((*action, what, device))
}

/// What a change was made to, whatever the change.
fn subject(change: &Change) -> String {
    match change {
        Change::Sysctl(changed) => changed.key.clone(),
        Change::SetDevice { .. }
        | Change::RenameDevice { .. }
        | Change::CompleteChecksums { .. }
        | Change::CreateDevice { .. }
        | Change::DeleteDevice { .. } => change.to_string(),
        Change::Object(ObjectChange { object, device, .. }) => format!("{object} dev {device}"),
        Change::InPod { pod, change } => format!("pod {pod}: {}", subject(change)),
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::super::netlink::{MAIN_TABLE, Route, RouteKind};
    use super::*;

    #[test]
    fn what_repeats_itself_is_told_less_and_less_and_anew_after_a_long_rest() {
        let (mut journal, begin) = (Journal::default(), Instant::now());
        let mut told = Vec::new();
        for second in 0..7200 {
            let now = begin + Duration::from_secs(second);
            if journal.note("route", now) != Telling::Not {
                told.push(second);
            }
        }
        assert_eq!(told, [0, 1, 2, 3, 63, 183, 423, 903, 1863, 3783]);
        assert_eq!(journal.note("another", begin), Telling::Plain);
        let later = begin + Duration::from_secs(7200) + LAST_SILENCE + MEMORY;
        assert_eq!(journal.note("route", later), Telling::Plain);
    }

    #[test]
    fn the_word_says_how_often() {
        let (mut journal, begin) = (Journal::default(), Instant::now());
        for _ in 0..PLAIN {
            assert_eq!(journal.note("route", begin), Telling::Plain);
        }
        let within = Duration::from_secs(9);
        assert_eq!(journal.note("route", begin + within), Telling::Again { times: PLAIN + 1, within });
    }
    #[test]
    fn swarms_repeat_themselves_less_and_less_too_whatever_their_size() {
        let (mut journal, begin) = (Journal::default(), Instant::now());
        let swarm = |count: u8| -> Vec<Change> {
            let route = |n| Route {
                table: MAIN_TABLE,
                destination: IpNet::new([10, 0, n, 0].into(), 24).unwrap(),
                kind: RouteKind::Unreachable,
                source: None,
            };
            let change = |n| ObjectChange { action: Action::Add, object: Object::Route(route(n)), device: "x".into() };
            (0..count).map(|n| Change::Object(change(n))).collect()
        };
        for count in 10..20 {
            journal.tell_changes(&swarm(count), begin);
        }
        assert_eq!(journal.0.keys().collect::<Vec<_>>(), ["add routes dev x"]);
        assert_eq!(journal.0["add routes dev x"].times, 10);
    }
}
