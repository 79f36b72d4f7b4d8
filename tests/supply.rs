//! Where dependencies come from and under which licences, as `deny.toml` says. `cargo deny check` looks at more; this
//! needs neither that program nor a network.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::process::Command;

use serde_json::Value;

/// What is built for the one target that there is.
const METADATA: [&str; 6] =
    ["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", "x86_64-unknown-linux-gnu"];

fn policy() -> toml::Table {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml");
    fs::read_to_string(path).expect("deny.toml").parse().expect("TOML")
}

fn texts(policy: &toml::Table, section: &str, key: &str) -> BTreeSet<String> {
    let list = policy[section][key].as_array().expect("a list");
    list.iter().map(|text| text.as_str().expect("a string").to_owned()).collect()
}

/// The packages that are built, ours not among them.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO")).args(METADATA).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let nodes = metadata["resolve"]["nodes"].as_array().expect("nodes");
    let built: HashSet<_> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().expect("packages").iter();
    let is_theirs =
        |package: &&Value| package["id"].as_str().is_some_and(|id| built.contains(id)) && !package["source"].is_null();
    packages.filter(is_theirs).cloned().collect()
}

/// Whether an SPDX expression (SPDX 2.3, annex D) can be met with the allowed licences. `/` is `OR` of old.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any(&mut words, allowed);
    assert!(words.next().is_none(), "{expression}");
    met
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let met = any(words, allowed);
        assert_eq!(words.next(), Some(")"));
        return met;
    }
    let mut licence = words.next().expect("a licence").to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        licence = format!("{licence} WITH {}", words.next().expect("an exception"));
    }
    allowed.contains(&licence)
}

#[test]
fn expressions_are_met_by_the_licences_that_they_ask_for() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for met in
        ["MIT", "MIT/GPL-3.0", "GPL-3.0 OR MIT AND ISC", "(GPL-3.0 OR MIT) AND ISC", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "Apache-2.0"] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}

#[test]
fn dependencies_have_licences_and_sources_that_are_allowed() {
    let policy = policy();
    let (licences, registries) = (texts(&policy, "licenses", "allow"), texts(&policy, "sources", "allow-registry"));
    let registries: BTreeSet<_> = registries.into_iter().map(|url| format!("registry+{url}")).collect();
    let packages = packages();
    assert!(packages.len() > 100, "{}", packages.len());
    for package in packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        assert!(is_met(text("license"), &licences), "{} {}: {}", text("name"), text("version"), text("license"));
        assert!(registries.contains(text("source")), "{}: {}", text("name"), text("source"));
    }
}
