use std::path::absolute;

use super::args::{Args, Migrate, MigrateVerb};
use super::table::Table;
use super::{CliError, output};
use crate::config::Config;
use crate::control::migrate::{Migration, PodFate, Task, from_flannel, to_flannel};

/// `podwire migrate`.
pub(super) fn run(args: &Args, verb: &MigrateVerb) -> Result<(), CliError> {
    let (MigrateVerb::FromFlannel(migrate) | MigrateVerb::ToFlannel(migrate)) = verb;
    let Migrate { config, yes, dry_run: _, cni_state, conf_dir, subnet_env } = migrate;
    let config = Config::load(config)?;
    let task = Task {
        config: &config,
        runtime_dir: absolute(&args.runtime_dir)?,
        cni_state: absolute(cni_state)?,
        conf_dir: absolute(conf_dir)?,
        subnet_env: absolute(subnet_env)?,
        acts: *yes,
    };
    let migration = match verb {
        MigrateVerb::FromFlannel(_) => from_flannel(&task),
        MigrateVerb::ToFlannel(_) => to_flannel(&task),
    }?;
    output::print(args.output, &migration, text)?;
    let Migration { obstacles, failures, .. } = &migration;
    if !failures.is_empty() {
        return Err(CliError::Refused(format!(
            "{} thing(s) could not be done; repair what is named and run it again:\n  {}",
            failures.len(),
            failures.join("\n  ")
        )));
    }
    match obstacles.len() {
        0 => Ok(()),
        _ => Err(CliError::Refused(format!("it cannot be done as long as:\n  {}", obstacles.join("\n  ")))),
    }
}

fn text(migration: &Migration) -> String {
    let Migration { done, changes, pods, left, next, .. } = migration;
    if changes.is_empty() && pods.is_empty() {
        return "nothing to migrate\n".to_owned();
    }
    let mut text = String::new();
    let mut list = |title: &str, lines: &[String]| {
        if !lines.is_empty() {
            text = format!("{text}{title}:\n  {}\n", lines.join("\n  "));
        }
    };
    list(if *done { "done" } else { "would be done" }, changes);
    list("stays", left);
    list("then", next);
    if !pods.is_empty() {
        text = format!("{text}\n{}", table(pods));
    }
    if !done {
        text += "\nnothing was changed; --yes does it\n";
    }
    text
}

fn table(pods: &[PodFate]) -> Table {
    let mut table = Table::new(["POD", "ADDRESSES", "FATE", "WHY"]);
    for pod in pods {
        let PodFate { addresses, must_restart, .. } = pod;
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let fate = if must_restart.is_some() { "must restart" } else { "goes on" };
        table.row([
            pod.label().to_owned(),
            addresses.join(" "),
            fate.to_owned(),
            must_restart.clone().unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_becomes_of_each_pod_and_that_a_plan_is_none_but_a_plan() {
        assert_eq!(text(&Migration::default()), "nothing to migrate\n");
        let pod = |name: &str, why: Option<&str>| PodFate {
            name: name.into(),
            workload: None,
            addresses: vec!["10.244.1.5".parse().unwrap()],
            must_restart: why.map(str::to_owned),
        };
        let pods = vec![pod("a:eth0", None), pod("b:eth0", Some("it has a bridge of its own"))];
        let planned = Migration { changes: vec!["remove cni0".into()], pods, ..Migration::default() };
        let said = text(&planned);
        assert!(said.starts_with("would be done:\n  remove cni0\n") && said.ends_with("--yes does it\n"), "{said}");
        assert!(said.contains("goes on") && said.contains("must restart  it has a bridge of its own"), "{said}");
        assert!(text(&Migration { done: true, ..planned }).starts_with("done:\n"));
    }
}
