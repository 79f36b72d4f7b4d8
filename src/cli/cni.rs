use std::path::absolute;
use std::time::Duration;

use super::args::{Args, CniInstall, CniPlace, CniVerb};
use super::{CliError, output};
use crate::cni::install::{Installed, Place, Plan, Removed, install, remove};

/// `podwire cni`.
pub(super) fn run(args: &Args, verb: &CniVerb) -> Result<(), CliError> {
    match verb {
        CniVerb::Install(CniInstall { place, name, chain, cni_version, wait }) => {
            let plan = Plan {
                name: name.clone(),
                version: *cni_version,
                chain: chain.iter().filter(|kind| !kind.is_empty()).cloned().collect(),
                runtime_dir: absolute(&args.runtime_dir)?,
                patience: Duration::from_secs(*wait),
            };
            let installed = install(&self::place(place)?, &plan)?;
            warn(&installed.warnings);
            Ok(output::print(args.output, &installed, installed_text)?)
        }
        CniVerb::Remove(place) => {
            let removed = remove(&self::place(place)?)?;
            warn(&removed.warnings);
            Ok(output::print(args.output, &removed, removed_text)?)
        }
    }
}

fn place(place: &CniPlace) -> Result<Place, CliError> {
    let CniPlace { bin_dir, conf_dir, file } = place;
    Ok(Place { bin_dir: absolute(bin_dir)?, conf_dir: absolute(conf_dir)?, file: file.clone() })
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

fn installed_text(installed: &Installed) -> String {
    let Installed { binary, conflist, changed, .. } = installed;
    let line = |path| {
        let fate = if changed.contains(path) { "wrote" } else { "unchanged:" };
        format!("{fate} {}\n", path.display())
    };
    line(binary) + &line(conflist)
}

fn removed_text(removed: &Removed) -> String {
    if removed.removed.is_empty() {
        return "nothing to remove\n".to_owned();
    }
    let lines: Vec<_> = removed.removed.iter().map(|path| format!("removed {}\n", path.display())).collect();
    lines.concat()
}
