//! Keeps `deploy/manual/` as true as the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;

use super::args::Args;
use crate::control::api::Cause;
use crate::counters::DropReason;
use crate::doctor;
use crate::steer::Verdict;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manual(page: &str) -> String {
    read(&root().join("deploy/manual").join(page))
}

/// The cells of each row below a heading, up to the next one: `| a | b |`, the titles left out.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let lines = page.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.starts_with('#'));
    let rows = lines.filter(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

/// Each entry of the code has its row, in the code's words, and each row its entry.
#[track_caller]
fn assert_explained(heading: &str, entries: &[(&str, Option<&str>)]) {
    let rows = rows(&manual("troubleshoot.md"), heading);
    let named: Vec<_> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let known: Vec<_> = entries.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, known, "{heading}: left what is written, right what the code has");
    for (row, (name, help)) in rows.iter().zip(entries) {
        assert!(row.len() == 3 && row.iter().all(|cell| !cell.is_empty()), "{name} needs a meaning and an advice");
        assert!(help.is_none_or(|help| help == row[1]), "{name}: the code says {help:?}");
    }
}

#[test]
fn each_drop_reason_is_explained() {
    let entries: Vec<_> = DropReason::ALL.iter().map(|reason| (reason.label(), Some(reason.help()))).collect();
    assert_explained("## Drop reasons", &entries);
}

#[test]
fn each_verdict_is_explained() {
    let entries: Vec<_> = Verdict::ALL.iter().map(|verdict| (verdict.label(), Some(verdict.help()))).collect();
    assert_explained("## Verdicts of the programs", &entries);
}

#[test]
fn each_cause_of_a_peers_silence_is_explained() {
    let entries: Vec<_> = Cause::ALL.iter().map(|cause| (cause.label(), None)).collect();
    assert_explained("## Peers that do not answer", &entries);
}

#[test]
fn each_finding_of_the_doctor_is_explained() {
    let entries: Vec<_> = doctor::checks().map(|id| (id, None)).collect();
    assert_explained("## Findings of the doctor", &entries);
}

#[test]
fn each_key_of_the_configuration_is_explained() {
    let page = manual("configure.md");
    let written: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next()?.split_once('.'))
        .map(|(_, key)| key.to_owned())
        .collect();
    // A key is asked for by a method of a section, with its name first.
    let source = read(&root().join("src/config/parse.rs"));
    let asked = source.split("section.").chain(source.split("node.")).chain(source.split("cluster."));
    let known: BTreeSet<_> = asked
        .filter(|call| ["or(", "or_", "optional", "required", "list"].iter().any(|method| call.starts_with(method)))
        .filter_map(|call| call.split('(').nth(1)?.strip_prefix('"')?.split('"').next())
        .map(str::to_owned)
        .collect();
    assert!(known.contains("stale_ms") && known.contains("masquerade") && known.contains("uplink"), "{known:?}");
    assert_eq!(written, known);
}

/// The pages for users.
fn pages() -> Vec<PathBuf> {
    let manual = fs::read_dir(root().join("deploy/manual")).unwrap().map(|entry| entry.unwrap().path());
    manual
        .filter(|path| path.is_file())
        .chain(["README.md", "tuning/README.md"].map(|page| root().join(page)))
        .collect()
}

/// The texts of the sources below a directory.
fn sources(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let texts = entries.flat_map(|path| match path.extension() {
        _ if path.is_dir() => sources(&path),
        Some(extension) if extension == "rs" => vec![read(&path)],
        _ => Vec::new(),
    });
    texts.collect()
}

#[test]
fn each_sharp_edge_of_flannel_has_a_test_or_a_reason() {
    let rows = rows(&manual("flannel.md"), "## Sharp edges");
    let code = [sources(&root().join("src")), sources(&root().join("tests"))].concat();
    assert_eq!(rows.len(), 12);
    for (row, number) in rows.iter().zip(1..) {
        assert!(row.len() == 3 && row[0].starts_with(&format!("{number}. ")), "{row:?}");
        let tests: Vec<_> = row[2].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty() || row[1].contains("no test: "), "{row:?}");
        for test in tests {
            assert!(code.iter().any(|text| text.contains(test)), "there is no test {test}");
        }
    }
}

/// What a shell makes of a line: its words, up to a comment or an operator.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        let word = words.last_mut().expect("never empty");
        match (quote, c) {
            (Some(open), _) if open == c => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '|' | '>' | '&' | ';' | '#') => break,
            (None, ' ') => words.push(String::new()),
            _ => word.push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The command lines of a page: in blocks of code, and between backquotes, without what is optional.
fn commands(page: &str) -> Vec<String> {
    let mut blocks = page.split("```");
    let mut commands = Vec::new();
    while let Some(text) = blocks.next() {
        let spans = text.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " "));
        let required = spans.map(|span| span.split(" [").next().unwrap_or_default().to_owned());
        commands.extend(required.filter(|span| span.starts_with("podwire ")));
        let code = blocks.next().unwrap_or_default();
        let lines = code.lines().map(|line| line.trim().trim_start_matches("$ "));
        commands.extend(lines.filter(|line| line.starts_with("podwire ")).map(str::to_owned));
    }
    commands
}

#[test]
fn each_command_line_of_the_pages_is_one() {
    let mut seen = 0;
    for page in pages() {
        for command in commands(&read(&page)) {
            let parsed = Args::try_parse_from(words(&command));
            // Text that names a verb, not a command with all that it needs.
            let is_name = |error: &clap::Error| {
                use clap::error::ErrorKind::{
                    DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, MissingRequiredArgument, MissingSubcommand,
                };
                let whole = [MissingRequiredArgument, MissingSubcommand, DisplayHelpOnMissingArgumentOrSubcommand];
                error.kind() == DisplayHelp || whole.contains(&error.kind())
            };
            let fault = parsed.err().filter(|error| !is_name(error));
            assert!(fault.is_none(), "{}: {command}\n{}", page.display(), fault.unwrap());
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen} command lines were found");
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in pages() {
        for target in read(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let there = file.is_empty() || file.contains("://") || page.parent().unwrap().join(file).exists();
            assert!(there, "{}: {target}", page.display());
        }
    }
}

#[test]
fn a_shell_line_ends_at_its_operators() {
    assert_eq!(words("podwire top --once | jq '.a | .b'  # c"), ["podwire", "top", "--once"]);
    assert_eq!(words("podwire pods detach --name 'a b' && true"), ["podwire", "pods", "detach", "--name", "a b"]);
}
