//! The kernel's own counters of network devices.

use std::fs;
use std::io;

use super::api::DeviceStats;

/// The table of the calling thread's network namespace; unlike sysfs it needs no mount of that namespace.
const TABLE: &str = "/proc/thread-self/net/dev";

/// The counters of the devices in `names` that exist, in the order of `names`.
pub fn read(names: &[&str]) -> io::Result<Vec<DeviceStats>> {
    let table = parse(&fs::read_to_string(TABLE)?);
    let find = |name: &&str| table.iter().find(|row| row.device == **name).cloned();
    Ok(names.iter().filter_map(find).collect())
}

/// Understands `net/core/net-procfs.c`, `dev_seq_printf_stats`: a name, a colon, eight figures received, eight sent.
fn parse(table: &str) -> Vec<DeviceStats> {
    let row = |line: &str| {
        let (name, figures) = line.split_once(':')?;
        let figures: Vec<u64> = figures.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let [rx_bytes, rx_packets, _, rx_dropped, _, _, _, _, tx_bytes, tx_packets, _, tx_dropped, ..] = figures[..]
        else {
            return None;
        };
        let device = name.trim().to_owned();
        Some(DeviceStats { device, rx_packets, rx_bytes, rx_dropped, tx_packets, tx_bytes, tx_dropped })
    };
    table.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_and_headers_are_not() {
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
podwire.1:    840      10    1    2    0     0          0         0     1680      20    3    4    0     0       0          0
";
        let expected = DeviceStats {
            device: "podwire.1".into(),
            rx_packets: 10,
            rx_bytes: 840,
            rx_dropped: 2,
            tx_packets: 20,
            tx_bytes: 1680,
            tx_dropped: 4,
        };
        assert_eq!(parse(table), [expected]);
    }

    #[test]
    fn the_loopback_is_found_and_a_missing_device_is_left_out() {
        let found: Vec<_> = read(&["no-such-device", "lo"]).unwrap().into_iter().map(|row| row.device).collect();
        assert_eq!(found, ["lo"]);
    }
}
