//! The device that carries the outer frames.

use super::evidence::{Evidence, Interrupt, Uplink};
use super::finding::Opinion;
use crate::config::{BusyPoll, Dataplane, Mode, Xdp, ZeroCopy};
use crate::control::view::{BusyPollRefusal, QueueStatus};
use crate::xsk::Driver;

/// The uplink, where workers use it.
fn of_workers(evidence: &Evidence) -> Option<&Uplink> {
    evidence.uplink().filter(|_| evidence.has_workers())
}

fn workers(evidence: &Evidence) -> usize {
    evidence.config.valid().map_or(0, |config| config.dataplane.cores.len())
}

pub(super) fn present(evidence: &Evidence) -> Vec<Opinion> {
    let link = match &evidence.uplink {
        None => return Vec::new(),
        Some(Err(why)) => {
            return vec![
                Opinion::error(why, "no other node can be reached")
                    .advice("set node.uplink to the device that reaches the other nodes (ip route get ADDRESS)"),
            ];
        }
        Some(Ok(uplink)) => &uplink.link,
    };
    let name = &link.name;
    vec![match (link.mac, link.up, link.running) {
        (None, ..) => Opinion::error(format!("{name} is not an Ethernet device"), "workers send Ethernet frames")
            .advice("set node.uplink to an Ethernet device, or mode = \"kernel\""),
        (_, false, _) => Opinion::error(format!("{name} is down"), "no other node can be reached")
            .command(format!("ip link set dev {name} up")),
        (_, true, false) => Opinion::warning(format!("{name} has no carrier"), "no other node can be reached")
            .advice("look at its cable, or at what is at its other end"),
        _ => Opinion::ok(format!("{name} is up")),
    }]
}

pub(super) fn foreign_xdp(evidence: &Evidence) -> Vec<Opinion> {
    let Some(uplink) = evidence.uplink() else { return Vec::new() };
    let (name, xdp) = match &uplink.xdp {
        Ok(xdp) => (&uplink.link.name, xdp),
        Err(why) => return vec![Opinion::unseen("what runs at the uplink's XDP hook", why)],
    };
    let Some(foreign) = xdp.programs().find(|program| !program.is_ours()) else {
        return vec![Opinion::ok(format!("no foreign program runs at the XDP hook of {name}"))];
    };
    let hook = match Some(foreign) {
        found if found == xdp.generic.as_ref() => "xdpgeneric",
        found if found == xdp.offloaded.as_ref() => "xdpoffload",
        _ => "xdpdrv",
    };
    let seen = format!("XDP program {} ({}) runs on {name} ({hook})", foreign.id, foreign.name);
    let wanted = evidence.config.valid().map(|config| &config.dataplane);
    if wanted.is_some_and(|wanted| wanted.xdp == Xdp::Off) {
        return vec![Opinion::ok(format!("{seen}, and podwire wants none there"))];
    }
    let meaning = "podwire does not take its place: the data plane cannot start while it is there";
    let opinion = match wanted {
        _ if !evidence.has_workers() => Opinion::note(seen, meaning),
        Some(wanted) if !needs_xdp(wanted) => {
            Opinion::note(seen, "podwire does not take its place: the kernel receives, and carries TCP")
        }
        _ => Opinion::error(seen, meaning),
    };
    vec![opinion.command(format!("ip link set dev {name} {hook} off"))]
}

pub(super) fn driver(evidence: &Evidence) -> Vec<Opinion> {
    let Some(uplink) = of_workers(evidence) else { return vec![Opinion::ok("no worker is configured")] };
    let name = uplink.driver.as_ref().map_or("an unknown driver", |driver| driver.name.as_str());
    let wanted = evidence.config.valid().map(|config| &config.dataplane);
    if let Some(figures) = evidence.daemon.status().and_then(|status| status.dataplane.figures.as_ref()) {
        let copies = figures.queues.iter().any(|queue| !queue.zero_copy);
        if figures.xdp == "off" {
            return vec![Opinion::ok(format!("{name}: the kernel receives, without XDP, and carries TCP"))];
        }
        let seen = format!("{name}: {} XDP, {}", figures.xdp, if copies { "copy" } else { "zero-copy" });
        let chosen = wanted.is_some_and(|wanted| wanted.xdp == Xdp::Generic);
        return vec![if figures.xdp == "generic" && !chosen {
            Opinion::warning(
                seen,
                "the driver has no native XDP, or refuses it as the device is set: each frame becomes an skb first",
            )
            .advice("the daemon's log says why; often the MTU, LRO, or too few free queues: ethtool -K, -L")
        } else {
            Opinion::ok(seen)
        }];
    }
    let driver = uplink.xdp.as_ref().ok().and_then(|xdp| xdp.driver);
    let needs_zero_copy = wanted.is_some_and(|wanted| wanted.zero_copy == ZeroCopy::Require);
    let does_without = wanted.is_some_and(|wanted| !needs_xdp(wanted));
    let needs_native = wanted.is_some_and(|wanted| wanted.xdp == Xdp::Native);
    vec![match driver {
        _ if wanted.is_some_and(|wanted| wanted.xdp == Xdp::Off) => {
            Opinion::ok(format!("{name} needs no XDP, as configured: the kernel receives, and carries TCP"))
        }
        _ if does_without && uplink.driver.as_ref().is_ok_and(Driver::copies_for_xdp) => {
            Opinion::ok(format!("{name} would copy each frame for XDP: the kernel receives, and carries TCP"))
        }
        None => Opinion::ok(format!("{name} does not say what it can do; it shows when the data plane runs")),
        Some(can) if needs_zero_copy && !can.zero_copy => {
            Opinion::error(format!("{name} has no zero-copy AF_XDP"), "the configuration requires it")
                .advice("set dataplane.zero_copy to \"auto\"")
        }
        Some(can) if needs_native && !can.native => {
            Opinion::error(format!("{name} has no native XDP"), "the configuration requires it")
                .advice("set dataplane.xdp to \"auto\"")
        }
        Some(can) if !can.native => Opinion::warning(
            format!("{name} has no native XDP"),
            if does_without {
                "the kernel receives, and carries TCP"
            } else {
                "generic XDP takes its place: each frame becomes an skb first"
            },
        )
        .advice("use a NIC whose driver has native XDP"),
        Some(can) => Opinion::ok(format!("{name}: native XDP, {}", if can.zero_copy { "zero-copy" } else { "copy" })),
    }]
}

fn needs_xdp(wanted: &Dataplane) -> bool {
    wanted.xdp.is_needed(wanted.zero_copy, wanted.bulk)
}

pub(super) fn queues(evidence: &Evidence) -> Vec<Opinion> {
    let Some(uplink) = of_workers(evidence) else { return vec![Opinion::ok("no worker is configured")] };
    let name = &uplink.link.name;
    let queues = match &uplink.queues {
        Ok(queues) => queues.receive.min(queues.send) as usize,
        Err(why) => return vec![Opinion::unseen("the number of queues", why)],
    };
    let workers = workers(evidence);
    let seen = format!("{name} has {queues} queue(s) for {workers} worker(s)");
    vec![if queues < workers {
        Opinion::warning(seen, "a worker needs a queue: the others are not started")
            .command(format!("ethtool -L {name} combined {workers}"))
    } else {
        Opinion::ok(seen)
    }]
}

pub(super) fn hash(evidence: &Evidence) -> Vec<Opinion> {
    let Some(uplink) = of_workers(evidence) else { return vec![Opinion::ok("no worker is configured")] };
    if uplink.queues.as_ref().is_ok_and(|queues| queues.receive < 2) {
        return vec![Opinion::ok("there is one queue")];
    }
    let name = &uplink.link.name;
    let flow = match evidence.config.valid().and_then(crate::config::Config::underlay_is_ipv6) {
        Some(true) => "udp6",
        _ => "udp4",
    };
    vec![match &uplink.hashes_ports {
        Ok(true) => Opinion::ok(format!("{name} hashes the ports of {flow}")),
        Ok(false) => Opinion::warning(
            format!("{name} does not hash the ports of {flow}"),
            "all that one peer sends lands on one queue, and so on one worker",
        )
        .command(format!("ethtool -N {name} rx-flow-hash {flow} sdfn")),
        Err(why) => Opinion::ok(format!("{name} does not say by what it hashes: {why}")),
    }]
}

pub(super) fn rings(evidence: &Evidence) -> Vec<Opinion> {
    let Some(uplink) = of_workers(evidence) else { return vec![Opinion::ok("no worker is configured")] };
    let Ok(rings) = uplink.rings else { return vec![Opinion::ok("the driver has no rings to set")] };
    let seen = format!("receive ring {} of {}, send ring {} of {}", rings.rx, rings.rx_max, rings.tx, rings.tx_max);
    vec![if rings.rx < rings.rx_max.min(512) {
        Opinion::note(seen, "a burst that is longer than the ring is lost before a worker sees it")
            .tuning(evidence.profile())
    } else {
        Opinion::ok(seen)
    }]
}

pub(super) fn interrupts(evidence: &Evidence) -> Vec<Opinion> {
    let Some(uplink) = of_workers(evidence) else { return vec![Opinion::ok("no worker is configured")] };
    let cores: Vec<_> = evidence.cpus.workers.iter().map(|cpu| cpu.id).collect();
    let elsewhere = |interrupt: &&Interrupt| !interrupt.cpus.iter().all(|cpu| cores.contains(cpu));
    let away: Vec<_> = uplink.interrupts.iter().filter(elsewhere).map(|found| found.number.to_string()).collect();
    vec![if away.is_empty() {
        Opinion::ok(format!("{} interrupt(s) of the uplink, all on the workers' CPUs", uplink.interrupts.len()))
    } else {
        Opinion::note(
            format!("interrupt {} of the uplink may fire on CPUs that no worker has", away.join(", ")),
            "in mode adaptive the kernel then fills a worker's ring on another CPU: colder caches, later wake-ups",
        )
        .tuning(evidence.profile())
    }]
}

pub(super) fn busy_poll(evidence: &Evidence) -> Vec<Opinion> {
    let Some(uplink) = of_workers(evidence) else { return vec![Opinion::ok("no worker is configured")] };
    let name = &uplink.link.name;
    let wanted = evidence.config.valid().map(|config| &config.dataplane);
    let figures = evidence.daemon.status().and_then(|status| status.dataplane.figures.as_ref());
    if wanted.is_some_and(|wanted| wanted.busy_poll == BusyPoll::Off) {
        return vec![Opinion::ok("busy-polling is off, as configured")];
    }
    if wanted.is_some_and(|wanted| wanted.xdp == Xdp::Off) || figures.is_some_and(|figures| figures.xdp == "off") {
        return vec![Opinion::ok(format!("the kernel receives on {name}: there is nothing to busy-poll"))];
    }
    if uplink.driver.as_ref().is_ok_and(Driver::has_no_interrupts) {
        return vec![Opinion::ok(format!("{name} has no interrupts that busy-polling could save"))];
    }
    let Some(deferral) = uplink.deferral else {
        return vec![Opinion::unseen("how the uplink holds interrupts back", "sysfs is not of its network namespace")];
    };
    if deferral.holds_back() {
        let seen = format!("{name} holds interrupts back while it is polled");
        let is_missed = |queue: &QueueStatus| queue.busy_poll.refusal == Some(BusyPollRefusal::NotDeferred);
        return vec![match figures {
            Some(figures) if figures.queues.iter().any(is_missed) => {
                Opinion::note(seen, "it did not yet when the workers were started: they do not poll it")
                    .advice("start the daemon again")
            }
            _ => Opinion::ok(seen),
        }];
    }
    let seen = format!(
        "{name} does not hold interrupts back: napi_defer_hard_irqs is {}, gro_flush_timeout {}",
        deferral.hard_irqs, deferral.timeout_ns
    );
    vec![if wanted.is_some_and(|wanted| wanted.mode == Mode::Busy) {
        Opinion::note(seen, "workers that spin leave it to interrupts, on whatever CPU, to fill their rings").command(
            format!(
                "echo 2 >/sys/class/net/{name}/napi_defer_hard_irqs; \
                 echo 200000 >/sys/class/net/{name}/gro_flush_timeout; systemctl restart podwire"
            ),
        )
    } else {
        Opinion::ok(seen)
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::view::{BusyPollStatus, TrafficStatus};
    use crate::doctor::evidence::Daemon;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::{assert_says, config, uplink};
    use crate::steer::{AttachedProgram, XdpDevice, XdpDriver};
    use crate::xsk::{Deferral, Queues, Rings};

    #[test]
    fn an_uplink_that_is_missing_down_or_no_ethernet_device_is_named() {
        assert_says(present, |e| e.uplink = Some(Err("there is no eth7".into())), Severity::Error, "eth7");
        assert_says(present, |e| uplink(e).link.up = false, Severity::Error, "eth0 is down");
        assert_says(present, |e| uplink(e).link.running = false, Severity::Warning, "no carrier");
        assert_says(present, |e| uplink(e).link.mac = None, Severity::Error, "not an Ethernet");
    }

    #[test]
    fn a_foreign_program_is_detached_from_the_hook_where_it_is() {
        let foreign = |name: &str| Some(AttachedProgram { id: 9, name: name.into() });
        let native = |e: &mut Evidence| uplink(e).xdp = Ok(XdpDevice { native: foreign("lb"), ..XdpDevice::default() });
        assert_says(foreign_xdp, native, Severity::Note, "ip link set dev eth0 xdpdrv off");
        let generic = |e: &mut Evidence| uplink(e).xdp = Ok(XdpDevice { generic: foreign(""), ..XdpDevice::default() });
        assert_says(foreign_xdp, generic, Severity::Note, "xdpgeneric off");
        let needed = |e: &mut Evidence| {
            native(e);
            config(e).dataplane.xdp = Xdp::Native;
        };
        assert_says(foreign_xdp, needed, Severity::Error, "cannot start");
        let ours =
            |e: &mut Evidence| uplink(e).xdp = Ok(XdpDevice { native: foreign("nic_steer"), ..XdpDevice::default() });
        assert_says(foreign_xdp, ours, Severity::Ok, "no foreign");
        let unwanted = |e: &mut Evidence| {
            native(e);
            config(e).dataplane.xdp = Xdp::Off;
        };
        assert_says(foreign_xdp, unwanted, Severity::Ok, "wants none");
    }

    #[test]
    fn the_driver_is_judged_by_what_runs_and_else_by_what_it_says() {
        let figures = |e: &mut Evidence, xdp: &str| {
            let Daemon::Well { status, .. } = &mut e.daemon else { panic!() };
            status.dataplane.figures.as_mut().unwrap().xdp = xdp.into();
        };
        assert_says(driver, |e| figures(e, "generic"), Severity::Warning, "generic XDP");
        assert_says(driver, |e| figures(e, "off"), Severity::Ok, "kernel receives");
        let says = |e: &mut Evidence, native, zero_copy| {
            e.daemon = Daemon::Away("none".into());
            let driver = Some(XdpDriver { native, zero_copy });
            uplink(e).xdp = Ok(XdpDevice { driver, ..XdpDevice::default() });
        };
        assert_says(driver, |e| says(e, false, false), Severity::Warning, "no native XDP");
        let veth = |e: &mut Evidence| {
            says(e, true, false);
            uplink(e).driver = Ok(Driver { name: "veth".into(), bus: String::new() });
        };
        assert_says(driver, veth, Severity::Ok, "would copy");
        assert_says(driver, |e| says(e, true, false), Severity::Ok, "copy");
        let required = |e: &mut Evidence| {
            says(e, true, false);
            config(e).dataplane.zero_copy = ZeroCopy::Require;
        };
        assert_says(driver, required, Severity::Error, "no zero-copy");
        let unwanted = |e: &mut Evidence| {
            says(e, false, false);
            config(e).dataplane.xdp = Xdp::Off;
        };
        assert_says(driver, unwanted, Severity::Ok, "needs no XDP");
    }

    #[test]
    fn queues_hashes_rings_and_interrupts_are_compared_with_the_workers() {
        let one = |e: &mut Evidence| uplink(e).queues = Ok(Queues { receive: 1, send: 1 });
        assert_says(queues, |e| uplink(e).queues = Ok(Queues { receive: 2, send: 0 }), Severity::Warning, "0 queue(s)");
        assert_says(hash, |e| uplink(e).hashes_ports = Ok(false), Severity::Warning, "rx-flow-hash udp4 sdfn");
        assert_says(hash, one, Severity::Ok, "one queue");
        let small = Rings { rx: 64, rx_max: 4096, tx: 64, tx_max: 4096 };
        assert_says(rings, |e| uplink(e).rings = Ok(small), Severity::Note, "64 of 4096");
        let away = |e: &mut Evidence| uplink(e).interrupts[0].cpus = vec![0, 1];
        assert_says(interrupts, away, Severity::Note, "interrupt 24");
    }

    #[test]
    fn workers_that_spin_are_to_have_interrupts_held_back() {
        let spins = |e: &mut Evidence| config(e).dataplane.mode = Mode::Busy;
        assert_says(busy_poll, |_| {}, Severity::Ok, "does not hold interrupts back");
        assert_says(busy_poll, spins, Severity::Note, "echo 200000 >/sys/class/net/eth0/gro_flush_timeout");
        let off = |e: &mut Evidence| {
            spins(e);
            config(e).dataplane.busy_poll = BusyPoll::Off;
        };
        assert_says(busy_poll, off, Severity::Ok, "as configured");
        let without = |e: &mut Evidence| {
            spins(e);
            config(e).dataplane.xdp = Xdp::Off;
        };
        assert_says(busy_poll, without, Severity::Ok, "nothing to busy-poll");
        let veth = |e: &mut Evidence| {
            spins(e);
            uplink(e).driver = Ok(Driver { name: "veth".into(), bus: String::new() });
        };
        assert_says(busy_poll, veth, Severity::Ok, "no interrupts");
        assert_says(busy_poll, |e| uplink(e).deferral = None, Severity::Note, "sysfs");
        let tuned = |e: &mut Evidence| {
            spins(e);
            uplink(e).deferral = Some(Deferral { hard_irqs: 2, timeout_ns: 200_000 });
        };
        assert_says(busy_poll, tuned, Severity::Ok, "while it is polled");
        let later = |e: &mut Evidence| {
            tuned(e);
            let Daemon::Well { status, .. } = &mut e.daemon else { panic!() };
            let busy_poll = BusyPollStatus { refusal: Some(BusyPollRefusal::NotDeferred), ..BusyPollStatus::default() };
            let traffic = TrafficStatus::default();
            let queue = QueueStatus { queue: 0, worker: 0, zero_copy: true, busy_poll, traffic };
            status.dataplane.figures.as_mut().unwrap().queues.push(queue);
        };
        assert_says(busy_poll, later, Severity::Note, "start the daemon again");
    }
}
