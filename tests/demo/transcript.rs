//! What operators see on node a, as a page of the manual with its pictures.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::harness::{Cluster, Options, PodwireNode, Screen, binary, iperf3, pings, wait_until};
use super::picture;

/// A live screen needs two readings for its rates.
const LOOK_AFTER: Duration = Duration::from_secs(4);

/// How long probes may take to notice something.
const NOTICE: Duration = Duration::from_secs(40);

const HEAD: &str = "# What operators see

Made by `scripts/demo --transcript DIR` on node a of its cluster, all nodes in network namespaces of one machine: what the
commands print is real, and the figures are of that machine while it did other work too.
";

/// Has node `a` tell of itself as in daily use.
const OPTIONS: Options = Options { metrics: true, sections: "[probe]\ninterval_s = 1\n", ..Options::ADAPTIVE };

/// Writes the page `tour.md` and what it shows to `dir`.
pub fn write(cluster: &mut Cluster, dir: &Path) -> io::Result<()> {
    let pictures = dir.join("pictures");
    fs::create_dir_all(&pictures)?;
    cluster.a.set_options(OPTIONS);
    let mut page = Page(HEAD.to_owned());
    let well = wait_until(NOTICE, || !cluster.a.cli("peers").contains("unknown"));
    assert!(well, "{}", cluster.a.cli("peers"));
    fs::write(pictures.join("top.svg"), picture::svg(&top(cluster)))?;
    page.section("The node, live", "`podwire top` while pod a1 sends 200 Mbit/s of UDP to pod b1.");
    page.picture("podwire top", "pictures/top.svg");
    trace(&mut page, cluster);
    peers(&mut page, cluster);
    latency(&mut page, cluster, &pictures.join("latency.svg"));
    metrics(&mut page, &cluster.a);
    fs::write(dir.join("tour.md"), page.0)
}

/// A page of Markdown.
struct Page(String);

impl Page {
    fn section(&mut self, title: &str, words: &str) {
        let _ = writeln!(self.0, "\n## {title}\n\n{words}");
    }

    fn picture(&mut self, name: &str, file: &str) {
        let _ = writeln!(self.0, "\n![{name}]({file})");
    }

    /// A command line and what it has printed.
    fn shell(&mut self, line: &str, printed: &str) {
        let printed: Vec<_> = printed.trim_end().lines().map(str::trim_end).collect();
        let _ = writeln!(self.0, "\n```\n$ {line}\n{}\n```", printed.join("\n"));
    }
}

fn top(cluster: &Cluster) -> vt100::Screen {
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let mut top = Command::new(binary());
    top.arg("top").arg("--runtime-dir").arg(cluster.a.runtime_dir());
    thread::scope(|scope| {
        scope.spawn(|| iperf3(from, to, to.v4.into(), 8, "-u -b 200M"));
        thread::sleep(LOOK_AFTER / 2);
        let screen = Screen::start(&top);
        screen.wait_for("[all]");
        thread::sleep(LOOK_AFTER);
        screen.cells()
    })
}

fn trace(page: &mut Page, cluster: &Cluster) {
    let (a, from, to) = (&cluster.a, &cluster.a.pods[0], &cluster.b.pods[0]);
    page.section("A packet on its way", "A ping of pod a1 to pod b1, before and after encapsulation, there and back.");
    let line = "trace --pod a1 --protocol icmp --count 4";
    page.shell(&format!("podwire {line}"), &traced(a, line, || _ = pings(from, to.v4.into(), "")));

    page.0 += "\nWhat the workers are not given, and why: pings with a time to live of 1, and of 3,000 bytes.\n";
    let line = "trace --pod a1 --path kernel --count 4";
    let odd = || _ = (pings(from, to.v4.into(), "-t 1 -W 1"), pings(from, to.v4.into(), "-s 3000"));
    page.shell(&format!("podwire {line}"), &traced(a, line, odd));

    page.0 += "\nWhat is dropped: pod a1 pretends to be pod c1.\n";
    let forged = cluster.c.pods[0].v4;
    from.netns.run(&format!("ip address add {forged} dev lo"));
    let line = "trace drops --count 2";
    let forge = || _ = pings(from, to.v4.into(), &format!("-I {forged} -c 2 -W 1"));
    page.shell(&format!("podwire {line}"), &traced(a, line, forge));
    from.netns.run(&format!("ip address del {forged} dev lo"));

    page.0 += "\nThe same for Wireshark and tshark, which show podwire's word as a comment.\n";
    let file = cluster.prefix.dir().join("trace.pcapng");
    traced(a, &format!("trace --pod a1 --count 4 --write {}", file.display()), || _ = pings(from, to.v6.into(), ""));
    let read = "-T fields -e frame.interface_name -e ipv6.src -e frame.comment";
    let tshark = format!("tshark -d udp.port==8472,vxlan -r {} {read}", file.display());
    let words = tshark.split_whitespace().skip(1);
    let output = Command::new("tshark").args(words).stderr(Stdio::null()).output().expect("tshark starts");
    let shown = format!("podwire trace --pod a1 --count 4 --write - | tshark -d udp.port==8472,vxlan -r - {read}");
    page.shell(&shown, &String::from_utf8_lossy(&output.stdout));
}

/// What a trace prints that is on while `act` happens, and ends by itself.
fn traced(node: &PodwireNode, line: &str, act: impl FnOnce()) -> String {
    let mut command = node.command(line);
    let mut client = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nsenter starts");
    let mut stderr = BufReader::new(client.stderr.take().expect("piped"));
    stderr.read_line(&mut String::new()).expect("it says that it is on");
    act();
    let mut printed = String::new();
    client.stdout.take().expect("piped").read_to_string(&mut printed).expect("text");
    client.wait().expect("our child");
    printed
}

fn peers(page: &mut Page, cluster: &Cluster) {
    let (a, b, switch) = (&cluster.a, &cluster.b, &cluster.switch.netns);
    page.section("Something is broken", "All is well:");
    page.shell("podwire peers", &a.cli("peers"));
    page.0 += "\nUDP port 8472 of node b is blocked on the way:\n";
    switch.run("nft add table netdev broken");
    for way in ["ingress", "egress"] {
        let hook = format!("type filter hook {way} device {} priority 0", b.host.port());
        switch.run(&format!("nft add chain netdev broken cut{way} {{ {hook} ; }}"));
        switch.run(&format!("nft add rule netdev broken cut{way} udp dport 8472 drop"));
    }
    let printed = |verb: &str| String::from_utf8_lossy(&a.try_cli(verb).stdout).into_owned();
    assert!(wait_until(NOTICE, || printed("peers").contains("blocked")), "{}", printed("peers"));
    page.shell("podwire peers", &printed("peers"));
    let doctor: Vec<_> = printed("doctor").lines().take(4).map(str::to_owned).collect();
    page.shell("podwire doctor | head -n 4", &doctor.join("\n"));
    switch.run("nft delete table netdev broken");
}

/// Ends a reflector, even when the rest fails.
struct Reflector(Child);

impl Drop for Reflector {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn latency(page: &mut Page, cluster: &Cluster, file: &Path) {
    let (a, to) = (&cluster.a, &cluster.b.pods[0]);
    let mut command = cluster.b.command("bench reflect --from b1");
    let reflect = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nsenter starts");
    let _reflector = Reflector(reflect);
    let listens = || to.netns.run("ss -Hlun sport = :7").lines().count() == 2;
    assert!(wait_until(NOTICE, listens), "no reflector in {}", to.name);
    let line = format!("bench latency --from a1 --to {} --rate 1000 --seconds 10", to.v4);
    let printed = a.cli(&format!("{line} --svg {}", file.display()));
    page.section("Round trips between pods", "Pod b1 answers to `podwire bench reflect --from b1` on its node.");
    page.shell(&format!("podwire {line} --svg latency.svg"), &printed);
    page.picture("podwire bench latency", "pictures/latency.svg");
}

fn metrics(page: &mut Page, node: &PodwireNode) {
    const WANTED: [&str; 6] = [
        "podwire_peer_probe_rtt_seconds{",
        "podwire_worker_heartbeat_age_seconds{",
        "podwire_worker_packets_total{",
        "podwire_ipam_addresses{",
        "podwire_peers_probed{",
        "podwire_worker_pass_duration_seconds_sum{",
    ];
    let url = format!("http://{}/metrics", PodwireNode::METRICS);
    let text = node.host.netns.run(&format!("curl -s {url}"));
    let rows: Vec<_> = text.lines().filter(|line| WANTED.iter().any(|name| line.starts_with(name))).collect();
    assert!(WANTED.iter().all(|name| rows.iter().any(|row| row.starts_with(name))), "{text}");
    page.section("Metrics", "A few of those that Prometheus scrapes.");
    let names = WANTED.map(|name| name.trim_start_matches("podwire_").trim_end_matches('{'));
    page.shell(&format!("curl -s {url} | grep -E '^podwire_({}){{'", names.join("|")), &rows.join("\n"));
}
