use std::cmp::Reverse;
use std::io;

use serde::Serialize;

use super::args::{Args, Doctor, Format};
use super::{CliError, output};
use crate::doctor::{Evidence, Finding, Fix, Severity, Subject, evidence, examine};

/// Columns of the text.
const WIDTH: usize = 80;
const INDENT: &str = "  ";

/// What a program is told.
#[derive(Serialize)]
struct Report<'a> {
    /// The worst of all.
    severity: Severity,
    findings: &'a [Finding],
}

/// `podwire doctor`.
pub(super) fn run(args: &Args, verb: &Doctor) -> Result<(), CliError> {
    let subject =
        Subject { runtime_dir: args.runtime_dir.clone(), config: verb.config.clone(), cni_dir: verb.cni_dir.clone() };
    let seen = evidence(&subject);
    let findings = examine(&seen);
    if args.output == Format::Json {
        let severity = findings.iter().map(|finding| finding.opinion.severity).max().unwrap_or(Severity::Ok);
        let report = Report { severity, findings: &findings };
        output::write(serde_json::to_string_pretty(&report).map_err(io::Error::from)? + "\n")?;
    } else if verb.fix {
        output::write(script(&findings, &tune(&seen)))?;
    } else {
        output::write(text(&findings, verb.all))?;
    }
    match count(&findings, Severity::Error) {
        0 => Ok(()),
        errors => Err(CliError::Refused(format!("{errors} error(s) were found"))),
    }
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.opinion.severity == severity).count()
}

/// The word for a severity.
fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// The findings for people, the worst first; what is well only if `all` is asked for.
fn text(findings: &[Finding], all: bool) -> String {
    let mut shown: Vec<_> = findings.iter().filter(|finding| all || finding.opinion.severity > Severity::Ok).collect();
    shown.sort_by_key(|finding| Reverse(finding.opinion.severity));
    let mut lines: Vec<String> = shown.into_iter().flat_map(lines).collect();
    let [errors, warnings, notes, well] =
        [Severity::Error, Severity::Warning, Severity::Note, Severity::Ok].map(|severity| count(findings, severity));
    lines.push(format!("{errors} error(s), {warnings} warning(s), {notes} note(s), {well} check(s) well\n"));
    lines.join("\n")
}

fn lines(Finding { id, opinion }: &Finding) -> Vec<String> {
    let mut lines = wrap(&format!("{} {id}: ", word(opinion.severity)), &opinion.evidence);
    lines.extend(wrap(INDENT, &opinion.meaning));
    match &opinion.fix {
        // A command is copied whole.
        Some(Fix::Command(line)) => lines.push(format!("{INDENT}fix: {line}")),
        Some(Fix::Advice(advice)) => lines.extend(wrap(&format!("{INDENT}fix: "), advice)),
        Some(Fix::Tuning(profile)) => lines.push(format!("{INDENT}fix: tuning/tune {}", profile.name())),
        None => {}
    }
    lines
}

/// Words after a lead, in lines of at most [`WIDTH`] unless one word is longer; none without words.
fn wrap(lead: &str, words: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut line, mut begun) = (lead.to_owned(), false);
    for word in words.split_whitespace() {
        if begun && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(std::mem::replace(&mut line, INDENT.to_owned()));
        } else if begun {
            line.push(' ');
        }
        line += word;
        begun = true;
    }
    lines.extend(begun.then_some(line));
    lines
}

/// The command that applies the profile of this node.
fn tune(evidence: &Evidence) -> String {
    let apply = format!("tuning/tune {} --apply", evidence.profile().name());
    match evidence.tuned() {
        Some((uplink, cores)) => format!("{apply} --uplink {uplink} --cores {cores}"),
        None => apply,
    }
}

/// A script of all fixes: commands as they are, the rest as comments.
fn script(findings: &[Finding], tune: &str) -> String {
    let bad: Vec<_> = findings.iter().filter(|finding| finding.opinion.severity > Severity::Ok).collect();
    let step = |Finding { id, opinion }: &Finding| {
        let what = format!("# {} {id}: {}", word(opinion.severity), opinion.evidence.replace('\n', " "));
        let how = match &opinion.fix {
            Some(Fix::Command(line)) => line.clone(),
            Some(Fix::Advice(advice)) => format!("# by hand: {advice}"),
            Some(Fix::Tuning(_)) => "# set by tuning/tune, below".to_owned(),
            None => "# nothing to do".to_owned(),
        };
        format!("{what}\n{how}\n")
    };
    let head =
        "#!/bin/sh\n# What `podwire doctor` would change. Review it, then run it as root on the node.\n".to_owned();
    let mut parts: Vec<_> = std::iter::once(head).chain(bad.iter().copied().map(step)).collect();
    if bad.iter().any(|finding| matches!(finding.opinion.fix, Some(Fix::Tuning(_)))) {
        parts.push(format!("# `tuning/tune --undo` takes it back.\n{tune}\n"));
    }
    parts.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Opinion, Profile};

    fn findings() -> Vec<Finding> {
        let long = "a word and ".repeat(12);
        vec![
            Finding { id: "fine", opinion: Opinion::ok("nothing") },
            Finding { id: "slow", opinion: Opinion::note(long, "it costs\ntime").tuning(Profile::Throughput) },
            Finding { id: "bad", opinion: Opinion::error("eth0 is down", "no packet").command("ip link set eth0 up") },
            Finding { id: "odd", opinion: Opinion::warning("odd", "hm").advice("look") },
        ]
    }

    #[test]
    fn text_begins_with_the_worst_and_fits_a_terminal() {
        let shown = text(&findings(), false);
        assert!(
            shown.starts_with("error bad: eth0 is down\n  no packet\n  fix: ip link set eth0 up\nwarning odd"),
            "{shown}"
        );
        assert!(shown.lines().all(|line| line.chars().count() <= WIDTH) && !shown.contains("fine"), "{shown}");
        assert!(shown.ends_with("1 error(s), 1 warning(s), 1 note(s), 1 check(s) well\n"), "{shown}");
        assert!(text(&findings(), true).contains("ok fine: nothing\n"));
    }

    #[test]
    fn a_script_runs_commands_and_says_the_rest_in_comments() {
        let script = script(&findings(), "tuning/tune throughput --apply");
        let lines: Vec<_> = script.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert_eq!(lines, ["ip link set eth0 up", "tuning/tune throughput --apply"]);
        assert!(script.contains("# by hand: look\n"), "{script}");
    }
}
