//! The findings for people.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use super::findings::{Findings, Reach, Throughput};
use super::harness::{Cluster, Pod, binary};

/// Tables of what was found, 100 columns at most.
pub struct Report<'a>(pub &'a Findings);

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Findings { podwire, kernel, capture, bad_checksums, kernel_mode, .. } = self.0;
        writeln!(f, "\npodwire {podwire} on Linux {kernel}")?;
        heading(f, "Who reaches whom (row to column; 4 = IPv4, 6 = IPv6, - = no answer)")?;
        matrix(f, &self.0.reachability)?;
        heading(f, "Throughput")?;
        throughput(f, &self.0.throughput)?;
        heading(f, "Packets between local and remote pods, by path")?;
        for row in &self.0.paths {
            writeln!(
                f,
                "  {}  fast {:>9}  kernel {:>7}  fast {:6.2} %",
                row.node, row.fast, row.kernel, row.fast_percent
            )?;
        }
        heading(f, "On the wire between node-a and the switch")?;
        writeln!(f, "  {} frames, {} of them right VXLAN", capture.frames, capture.right)?;
        writeln!(f, "  {} outer source ports; the first frame:\n  {}", capture.source_ports, capture.example)?;
        for fault in &capture.faults {
            writeln!(f, "  wrong: {fault}")?;
        }
        heading(f, "Source addresses as the receivers saw them")?;
        for row in &self.0.addresses {
            let seen = row.seen.map_or("nothing".to_owned(), |address| address.to_string());
            writeln!(f, "  {} -> {} {}  sent from {}, seen as {seen}", row.from, row.to, row.protocol, row.own)?;
        }
        heading(f, "Traceroute")?;
        for row in &self.0.traceroute {
            let hops = row.hops.iter().map(|hop| hop.map_or("*".to_owned(), |address| address.to_string()));
            writeln!(f, "  {} -> {}  {}", row.from, row.to, hops.collect::<Vec<_>>().join("  "))?;
        }
        heading(f, "Bad checksums at receivers")?;
        writeln!(f, "  {bad_checksums}")?;
        heading(f, "The same with mode = \"kernel\"")?;
        matrix(f, &kernel_mode.reachability)?;
        throughput(f, &kernel_mode.throughput)?;
        heading(f, "Criteria")?;
        for criterion in &self.0.criteria {
            writeln!(f, "  {}  {}", if criterion.met { "met " } else { "MISS" }, criterion.name)?;
        }
        Ok(())
    }
}

fn heading(f: &mut Formatter<'_>, text: &str) -> fmt::Result {
    writeln!(f, "\n{text}")
}

fn matrix(f: &mut Formatter<'_>, rows: &[Reach]) -> fmt::Result {
    let mut names: Vec<_> = rows.iter().map(|row| row.from.as_str()).collect();
    names.dedup();
    write!(f, "      ")?;
    names.iter().try_for_each(|name| write!(f, "{name:>4}"))?;
    writeln!(f)?;
    for from in &names {
        write!(f, "  {from:>4}")?;
        for to in &names {
            let cell: String = rows.iter().filter(|row| row.from == *from && row.to == *to).map(letter).collect();
            write!(f, "{:>4}", if from == to { "." } else { &cell })?;
        }
        writeln!(f)?;
    }
    Ok(())
}

fn letter(row: &Reach) -> char {
    match (row.answered, row.address.is_ipv4()) {
        (false, _) => '-',
        (true, true) => '4',
        (true, false) => '6',
    }
}

fn throughput(f: &mut Formatter<'_>, rows: &[Throughput]) -> fmt::Result {
    for row in rows {
        let family = if row.address.is_ipv4() { "IPv4" } else { "IPv6" };
        write!(f, "  {:18}  {} -> {}  {family} {}", row.route, row.from, row.to, row.protocol)?;
        write!(f, "  {:8.3} Gbit/s", row.bits_per_second / 1e9)?;
        if row.protocol == "UDP" {
            write!(f, "  {:5.2} % lost", row.lost_percent)?;
        }
        writeln!(f)?;
    }
    Ok(())
}

/// How to enter nodes and pods that were left up.
pub struct Entrances<'a>(pub &'a Cluster);

impl Display for Entrances<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let podwire = PathBuf::from(binary());
        writeln!(f, "\nThe nodes are up. To enter them:")?;
        for node in self.0.podwire_nodes() {
            writeln!(f, "  ip netns exec {} bash", node.host.netns.name())?;
            writeln!(f, "    {} status --runtime-dir {}", podwire.display(), node.runtime_dir().display())?;
        }
        writeln!(f, "  ip netns exec {} bash", self.0.c.host.netns.name())?;
        for Pod { netns, v4, v6, .. } in self.0.pods() {
            writeln!(f, "  ip netns exec {} bash    # {v4} {v6}", netns.name())?;
        }
        writeln!(f, "To remove them: scripts/demo --clean")
    }
}
