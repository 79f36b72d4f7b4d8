//! Objects of the node: routes, neighbours, forwarding entries, devices, settings.

use super::harness::Options;
use super::lab::{Lab, Place, Row};

const OBJECTS: [Row<'static>; 25] = [
    (Place::Node, "ip route del 10.244.2.0/24", "add route 10.244.2.0/24 via 10.244.2.0 dev podwire.1"),
    (
        Place::Node,
        "ip route replace 10.244.2.0/24 dev other0",
        "replace route 10.244.2.0/24 via 10.244.2.0 dev podwire.1",
    ),
    (
        Place::Node,
        "ip route replace 10.244.3.0/24 via 10.244.2.0 dev podwire.1 onlink proto 240",
        "replace route 10.244.3.0/24 via 10.244.3.0 dev podwire.1",
    ),
    (Place::Node, "ip -6 route del fd00:244:2::/64", "add route fd00:244:2::/64 via fd00:244:2:: dev podwire.1"),
    (
        Place::Node,
        "ip -6 route replace fd00:244:2::/64 dev other0",
        "replace route fd00:244:2::/64 via fd00:244:2:: dev podwire.1",
    ),
    (Place::Node, "ip route add 10.244.99.0/24 dev other0 proto 240", "delete route 10.244.99.0/24 dev other0"),
    (Place::Node, "ip route del 10.244.1.1/32", "add route 10.244.1.1/32 dev pw1"),
    (Place::Node, "ip route replace 10.244.1.1/32 dev other0", "replace route 10.244.1.1/32 dev pw1"),
    (Place::Node, "ip -6 route del fd00:244:1::1", "add route fd00:244:1::1/128 dev pw1"),
    (Place::Node, "ip route del unreachable 10.244.1.0/24", "add route unreachable 10.244.1.0/24"),
    (Place::Node, "ip route flush table main proto 240", "add route 10.244.3.0/24 via 10.244.3.0 dev podwire.1"),
    (
        Place::Node,
        "ip neigh del 10.244.2.0 dev podwire.1",
        "add neighbour 10.244.2.0 lladdr 02:70:c0:a8:01:03 dev podwire.1",
    ),
    (
        Place::Node,
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:01 dev podwire.1 nud permanent",
        "replace neighbour 10.244.2.0 lladdr 02:70:c0:a8:01:03 dev podwire.1",
    ),
    (
        Place::Node,
        "ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:01 dev podwire.1 nud stale",
        "add neighbour 10.244.3.0 lladdr 02:00:00:00:fe:03 dev podwire.1",
    ),
    (
        Place::Node,
        "ip -6 neigh del fd00:244:2:: dev podwire.1",
        "add neighbour fd00:244:2:: lladdr 02:70:c0:a8:01:03 dev podwire.1",
    ),
    (
        Place::Node,
        "ip neigh add 10.244.50.0 lladdr 02:00:00:00:00:01 dev podwire.1 nud permanent",
        "delete neighbour 10.244.50.0 lladdr 02:00:00:00:00:01 dev podwire.1",
    ),
    (Place::Node, "ip neigh del 10.244.1.1 dev pw1", "add neighbour 10.244.1.1 lladdr 0a:58:0a:f4:01:01 dev pw1"),
    (
        Place::Node,
        "ip neigh replace 10.244.1.1 lladdr 02:00:00:00:00:01 dev pw1 nud permanent",
        "replace neighbour 10.244.1.1 lladdr 0a:58:0a:f4:01:01 dev pw1",
    ),
    (
        Place::Node,
        "bridge fdb del 02:70:c0:a8:01:03 dev podwire.1 dst 192.168.1.3",
        "add fdb 02:70:c0:a8:01:03 dst 192.168.1.3 dev podwire.1",
    ),
    (
        Place::Node,
        "bridge fdb replace 02:70:c0:a8:01:03 dev podwire.1 dst 192.168.1.99",
        "replace fdb 02:70:c0:a8:01:03 dst 192.168.1.3 dev podwire.1",
    ),
    (
        Place::Node,
        "bridge fdb replace 02:00:00:00:fe:03 dev podwire.1 dst 192.168.1.4 port 9999",
        "replace fdb 02:00:00:00:fe:03 dst 192.168.1.4 dev podwire.1",
    ),
    (
        Place::Node,
        "bridge fdb add 02:00:00:00:00:01 dev podwire.1 dst 192.168.1.99 vni 9 port 9999",
        "delete fdb 02:00:00:00:00:01 dst 192.168.1.99 dev podwire.1",
    ),
    (Place::Node, "ip address del 10.244.1.0/32 dev podwire.1", "add address 10.244.1.0/32 dev podwire.1"),
    (Place::Node, "ip -6 address del fd00:244:1::/128 dev podwire.1", "add address fd00:244:1::/128 dev podwire.1"),
    (Place::Node, "ip address add 10.244.1.200/32 dev podwire.1", "delete address 10.244.1.200/32 dev podwire.1"),
];

const DEVICES: [Row<'static>; 12] = [
    (Place::Node, "ip link del podwire.1", "create device podwire.1"),
    (Place::Node, "ip link set podwire.1 down", "set device podwire.1 up"),
    (Place::Node, "ip link set podwire.1 address 02:00:00:00:00:01", "set device podwire.1 address 02:70:c0:a8:01:02"),
    (Place::Node, "ip link set podwire.1 mtu 1400", "set device podwire.1 mtu 1450"),
    (Place::Node, "ip link set podwire.1 alias ''", "set device podwire.1 alias podwire"),
    (Place::Node, "ip link set podwire.1 alias mine", "set device podwire.1 alias podwire"),
    (Place::Node, "ip link set podwire.1 type vxlan learning", "create device podwire.1"),
    (Place::Node, "ip link set podwire.1 down; ip link set podwire.1 name lost", "delete device lost"),
    (Place::Node, "ip link set pw1 down", "set device pw1 up"),
    (Place::Node, "ip link set pw1 address 02:00:00:00:00:01", "set device pw1 address 0a:58:a9:fe:01:01"),
    (Place::Node, "ip link set pw1 mtu 1400", "set device pw1 mtu 1450"),
    (Place::Node, "ip link set pw1 mtu 1400 down address 02:00:00:00:00:01", "set device pw1 address"),
];

const HUB: [Row<'static>; 6] = [
    (Place::Node, "ip link del pwhub0", "create device pwhub0"),
    (Place::Node, "ip link set pwhub0 down", "set device pwhub0 up"),
    (Place::Node, "ip link set pwhub1 down", "set device pwhub1 up"),
    (Place::Node, "ip link set pwhub0 mtu 1500", "set device pwhub0 mtu 65535"),
    (Place::Node, "ip link set pwhub1 alias ''", "set device pwhub1 alias podwire"),
    (Place::Node, "ethtool -K pwhub0 tx on", "set device pwhub0 checksums off"),
];

const SETTINGS: [Row<'static>; 13] = [
    (Place::Node, "sysctl -qw net.ipv4.ip_forward=0", "set net/ipv4/ip_forward from 0 to 1"),
    (Place::Node, "sysctl -qw net.ipv6.conf.all.forwarding=0", "set net/ipv6/conf/all/forwarding from 0 to 1"),
    (
        Place::Node,
        "echo 1 >/proc/sys/net/ipv4/conf/podwire.1/rp_filter",
        "set net/ipv4/conf/podwire.1/rp_filter from 1 to 2",
    ),
    (
        Place::Node,
        "echo 0 >/proc/sys/net/ipv4/conf/podwire.1/forwarding",
        "set net/ipv4/conf/podwire.1/forwarding from 0 to 1",
    ),
    (Place::Node, "echo 0 >/proc/sys/net/ipv4/conf/pw1/forwarding", "set net/ipv4/conf/pw1/forwarding from 0 to 1"),
    (Place::Node, "echo 0 >/proc/sys/net/ipv4/conf/pw1/arp_ignore", "set net/ipv4/conf/pw1/arp_ignore from 0 to 8"),
    (
        Place::Node,
        "echo 2 >/proc/sys/net/ipv6/conf/podwire.1/accept_ra",
        "set net/ipv6/conf/podwire.1/accept_ra from 2 to 0",
    ),
    (Place::Node, "echo 2 >/proc/sys/net/ipv6/conf/pw1/accept_ra", "set net/ipv6/conf/pw1/accept_ra from 2 to 0"),
    (
        Place::Node,
        "echo 1 >/proc/sys/net/ipv6/conf/podwire.1/disable_ipv6",
        "set net/ipv6/conf/podwire.1/disable_ipv6 from 1 to 0",
    ),
    (Place::Node, "echo 1 >/proc/sys/net/ipv6/conf/pw1/disable_ipv6", "set net/ipv6/conf/pw1/disable_ipv6 from 1 to 0"),
    (
        Place::Pod,
        "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1",
        "pod a1: set net/ipv6/conf/eth0/disable_ipv6 from 1 to 0",
    ),
    (Place::Node, "sysctl -qw net.ipv4.conf.all.forwarding=0", "set net/ipv4/ip_forward from 0 to 1"),
    (
        Place::Node,
        "echo 0 >/proc/sys/net/ipv6/conf/pw1/addr_gen_mode",
        "set net/ipv6/conf/pw1/addr_gen_mode from 0 to 1",
    ),
];

fn objects_are_put_right(options: Options) {
    let Some(lab) = Lab::new(options) else { return };
    lab.assert_put_right(&OBJECTS);
}

fn devices_are_put_right(options: Options) {
    let Some(lab) = Lab::new(options) else { return };
    lab.assert_put_right(&DEVICES);
}

#[test]
fn objects_are_put_right_on_the_kernel_path() {
    objects_are_put_right(Options::KERNEL);
}

#[test]
fn objects_are_put_right_beside_a_data_plane() {
    objects_are_put_right(Options::ADAPTIVE);
}

#[test]
fn devices_are_put_right_on_the_kernel_path() {
    devices_are_put_right(Options::KERNEL);
}

#[test]
fn devices_are_put_right_beside_a_data_plane() {
    devices_are_put_right(Options::ADAPTIVE);
}

#[test]
fn the_hub_is_put_right() {
    let Some(lab) = Lab::new(Options::ADAPTIVE) else { return };
    lab.assert_put_right(&HUB);
}

#[test]
fn settings_are_put_right() {
    let Some(lab) = Lab::new(Options::KERNEL) else { return };
    lab.shell(Place::Node, "sysctl -qw net.ipv4.conf.all.rp_filter=1");
    lab.assert_put_right(&SETTINGS);
}
