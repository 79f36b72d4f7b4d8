use std::fmt::Write as _;

use super::args::{Args, Uninstall};
use super::{CliError, output};
use crate::control::uninstall::{Extent, Uninstalled, uninstall};

/// `podwire uninstall`.
pub(super) fn run(args: &Args, verb: &Uninstall) -> Result<(), CliError> {
    let extent = if verb.keep_kernel { Extent::DataPlane } else { Extent::All { despite_pods: verb.yes } };
    let removal = uninstall(&args.runtime_dir, extent)?;
    output::print(args.output, &removal, text)?;
    match removal.failures.len() {
        0 => Ok(()),
        failures => Err(CliError::Refused(format!(
            "{failures} thing(s) could not be removed; repair what is named and run it again:\n  {}",
            removal.failures.join("\n  ")
        ))),
    }
}

fn text(removal: &Uninstalled) -> String {
    let mut text = String::new();
    if removal.stopped_daemon {
        text += "stopped the daemon\n";
    }
    for line in removal.changes.iter().chain(&removal.left) {
        text = text + line + "\n";
    }
    if text.is_empty() && removal.failures.is_empty() {
        text += "nothing to remove\n";
    }
    if !removal.pods.is_empty() {
        let fate = if removal.pods_stay { "go on by the kernel path" } else { "have lost their network" };
        let (count, names) = (removal.pods.len(), removal.pods.join(", "));
        writeln!(text, "{count} pod(s) {fate}: {names}").expect("a string takes any text");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removal(pods_stay: bool) -> Uninstalled {
        Uninstalled { pods: vec!["web".into(), "db".into()], pods_stay, ..Uninstalled::default() }
    }

    #[test]
    fn says_what_was_removed_and_what_became_of_the_pods() {
        assert_eq!(text(&Uninstalled::default()), "nothing to remove\n");
        assert_eq!(text(&removal(true)), "nothing to remove\n2 pod(s) go on by the kernel path: web, db\n");
        let changes = vec!["delete device podwire.1".into()];
        let all = Uninstalled { stopped_daemon: true, changes, ..removal(false) };
        let expected = "stopped the daemon\ndelete device podwire.1\n2 pod(s) have lost their network: web, db\n";
        assert_eq!(text(&all), expected);
    }
}
