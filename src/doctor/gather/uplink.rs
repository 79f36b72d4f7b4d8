use std::fs;
use std::path::{Path, PathBuf};

use super::super::evidence::{Interrupt, Seen, Uplink};
use super::{cpu_list, number, seen};
use crate::control::netlink::Netlink;
use crate::steer::XdpDevice;
use crate::xsk::{Deferral, Driver, Queues, Rings, hashes_udp_ports};

/// A device of the calling thread's network namespace. `ipv6` is the family of the outer packets.
pub fn look(name: &str, ipv6: bool) -> Seen<Uplink> {
    let link = seen(Netlink::open().and_then(|mut netlink| netlink.link(name)))?;
    let link = link.ok_or_else(|| format!("there is no device {name}"))?;
    let driver = seen(Driver::of(name));
    // By its bus, because sysfs may show another network namespace's devices.
    let bus = driver.as_ref().ok().map(|driver| driver.bus.as_str()).filter(|bus| !bus.is_empty());
    let device = bus.and_then(|bus| device(Path::new("/sys/bus"), bus));
    Ok(Uplink {
        queues: seen(Queues::of(name)),
        rings: seen(Rings::of(name)),
        hashes_ports: seen(hashes_udp_ports(name, ipv6)),
        xdp: seen(XdpDevice::of(link.index)),
        numa_node: device.as_ref().and_then(|device| number(device.join("numa_node"))),
        interrupts: device.map(|device| interrupts(&device, Path::new("/proc/irq"))).unwrap_or_default(),
        deferral: Deferral::of(name, link.index),
        driver,
        link,
    })
}

/// The directory of a device that has `bus` as its name on one of the buses.
fn device(buses: &Path, bus: &str) -> Option<PathBuf> {
    let buses = fs::read_dir(buses).ok()?.flatten();
    buses.map(|kind| kind.path().join("devices").join(bus)).find(|device| device.is_dir())
}

/// The interrupts of a device that are in use.
fn interrupts(device: &Path, irqs: &Path) -> Vec<Interrupt> {
    let numbers = fs::read_dir(device.join("msi_irqs")).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let interrupt = |number| {
        let cpus = cpu_list(irqs.join(u32::to_string(&number)).join("effective_affinity_list"));
        (!cpus.is_empty()).then_some(Interrupt { number, cpus })
    };
    numbers.into_iter().filter_map(interrupt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interrupts_of_a_device_are_those_that_go_somewhere() {
        let root = tempfile::tempdir().unwrap();
        let (buses, irqs) = (root.path().join("bus"), root.path().join("irq"));
        let msi = buses.join("pci/devices/0000:01:00.0/msi_irqs");
        fs::create_dir_all(&msi).unwrap();
        for (number, cpus) in [("25", "2-3\n"), ("24", "1\n"), ("26", "\n")] {
            fs::write(msi.join(number), "msix\n").unwrap();
            fs::create_dir_all(irqs.join(number)).unwrap();
            fs::write(irqs.join(number).join("effective_affinity_list"), cpus).unwrap();
        }
        let device = device(&buses, "0000:01:00.0").unwrap();
        let expected = [(24, vec![1]), (25, vec![2, 3])].map(|(number, cpus)| Interrupt { number, cpus });
        assert_eq!(interrupts(&device, &irqs), expected);
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        assert_eq!(look("pw-none", false).unwrap_err(), "there is no device pw-none");
    }
}
