use super::*;

/// The example of the README, with both families.
const GOOD: &str = r#"
[node]
name = "node-a"
uplink = "eth0"
pod_cidrs = ["10.244.1.0/24", "fd00:244:1::/64"]
[cluster]
pod_cidrs = ["10.244.0.0/16", "fd00:244::/32"]
[vxlan]
vni = 1
port = 8472
device = "podwire.1"
[dataplane]
mode = "adaptive"
cores = [1]
xdp = "auto"
zero_copy = "auto"
[[peers]]
name = "node-b"
underlay = "192.168.1.3"
vtep_mac = "02:00:00:00:00:02"
pod_cidrs = ["10.244.2.0/24", "fd00:244:2::/64"]
[[peers]]
name = "node-c"
underlay = "192.168.1.4"
pod_cidrs = ["10.244.3.0/24"]
"#;

/// The beginning of the first peer, before which `[ipam]` may stand.
const IPAM: &str = "[[peers]]";

/// The ranges of the last peer.
const LAST: &str = "pod_cidrs = [\"10.244.3.0/24\"]";

fn parse(text: &str) -> Result<Config, ConfigError> {
    parse::document(text, &[0, 1])
}

/// The faults of [`GOOD`] after a replacement, as text.
fn faults(old: &str, new: &str) -> Vec<String> {
    assert!(GOOD.contains(old), "{old}");
    match parse(&GOOD.replacen(old, new, 1)) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Invalid(problems)) => problems.iter().map(ToString::to_string).collect(),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn reads_every_key_and_derives_the_missing_mac() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.node.name, "node-a");
    assert_eq!(
        config.vxlan,
        Vxlan {
            vni: Vni::new(1).unwrap(),
            port: 8472,
            device: "podwire.1".into(),
            udp_checksum: false,
            direct_routing: false,
            gbp: false,
            underlay_mtu: None
        }
    );
    assert_eq!(config.dataplane.cores, [1]);
    assert!(!config.cluster.masquerade);
    assert_eq!(config.peers[0].vtep_mac, Mac([2, 0, 0, 0, 0, 2]));
    assert_eq!(config.peers[1].vtep_mac, Mac([2, 0x70, 192, 168, 1, 4]));
    assert_eq!(config.underlay_is_ipv6(), Some(false));
}

#[test]
fn a_second_vtep_is_of_ipv6_and_asked_for_by_either_side() {
    let first = "underlay = \"192.168.1.3\"\n";
    let config = parse(GOOD).unwrap();
    assert!(!config.wants_second() && config.peers[0].second.is_none());
    let config = parse(&GOOD.replacen(first, &format!("{first}underlay6 = \"fd00:1::3\"\n"), 1)).unwrap();
    let underlay = "fd00:1::3".parse().unwrap();
    assert!(config.wants_second());
    assert_eq!(config.peers[0].second, Some(TunnelEnd { underlay, mac: derive_vtep_mac(underlay) }));
    let addresses: Vec<_> = config.peers[0].node_addresses().map(|address| address.to_string()).collect();
    assert_eq!(addresses, ["192.168.1.3", "fd00:1::3"]);
    let own = GOOD.replacen("uplink", "underlay6 = \"fd00:1::2\"\nvtep_mac6 = \"02:00:00:00:00:66\"\nuplink", 1);
    let config = parse(&own).unwrap();
    assert!(config.wants_second());
    let Node { underlay6, vtep_mac6, .. } = config.node;
    assert_eq!((underlay6, vtep_mac6), ("fd00:1::2".parse().ok(), Some(Mac([2, 0, 0, 0, 0, 0x66]))));
    for (keys, said) in [
        ("underlay6 = \"192.168.1.33\"\n", "peers[0].underlay6 = \"192.168.1.33\": is not an IPv6 address"),
        ("underlay6 = \"fe80::1\"\n", "is not an address that other nodes can reach"),
        ("underlay6 = \"fd00:244:2::9\"\n", "lies inside the pod range fd00:244"),
        (
            "vtep_mac6 = \"02:00:00:00:00:66\"\n",
            "peers[0].vtep_mac6 = \"02:00:00:00:00:66\": has no underlay6 beside it",
        ),
        ("underlay6 = \"fd00:1::3\"\nvtep_mac6 = \"03:00:00:00:00:66\"\n", "is not a unicast address"),
    ] {
        let said_all = faults(first, &format!("{first}{keys}"));
        assert!(said_all.len() == 1 && said_all[0].contains(said), "{keys}: {said_all:?}");
    }
    let v6 = GOOD.replace("192.168.1.", "fd00:1::").replacen("uplink", "underlay6 = \"fd00:1::2\"\nuplink", 1);
    let error = parse(&v6).unwrap_err().to_string();
    assert!(error.contains("by peers[0].underlay all families go over IPv6"), "{error}");
}

#[test]
fn the_second_device_is_called_as_flannels_unless_that_is_too_long() {
    let vni = |number| Vni::new(number).unwrap();
    for (first, number, second) in [
        ("podwire.1", 1, "podwire-v6.1"),
        ("flannel.1", 1, "flannel-v6.1"),
        ("vx0", 1, "vx0-v6"),
        ("podwire.4096", 4096, "podwire-v6.4096"),
        ("podwire.70000", 70000, "pw6.70000"),
    ] {
        assert_eq!(second_device(first, vni(number)), second);
    }
}

#[test]
fn sections_with_defaults_may_be_left_out() {
    let config = parse(
        "[node]\nname='a'\nuplink='e'\npod_cidrs=['10.1.0.0/24']\n[cluster]\npod_cidrs=['10.1.0.0/16']\n\
         [vxlan]\nvni=7\n[dataplane]\nmode='kernel'\n",
    )
    .unwrap();
    assert_eq!((config.vxlan.device.as_str(), config.vxlan.port), ("podwire.7", 8472));
    let dataplane = &config.dataplane;
    assert_eq!((dataplane.frames, dataplane.hub_slots, dataplane.stale_ms), (8192, 4096, 20));
    assert!(dataplane.pod_trains && dataplane.bypass && dataplane.wake_pps == 20_000);
    assert!(dataplane.known_vteps_only);
    assert_eq!(dataplane.bulk, Bulk::Auto);
    assert!(dataplane.cores.is_empty() && config.peers.is_empty());
    assert_eq!(config.metrics, Metrics { listen: None, socket: false, per_pod: true, per_peer: true });
}

#[test]
fn peers_are_probed_every_five_seconds_unless_the_file_says_otherwise() {
    let interval = |text: &str| parse(&format!("{GOOD}{text}")).map(|config| config.probe.interval.as_secs());
    assert_eq!(interval("").unwrap(), 5);
    assert_eq!(interval("[probe]\ninterval_s = 0").unwrap(), 0);
    let problems = interval("[probe]\ninterval_s = 3601").unwrap_err().to_string();
    assert!(problems.contains("probe.interval_s = 3601: is not between 0 and 3600"), "{problems}");
}

#[test]
fn metrics_are_served_where_the_file_says() {
    let metrics = |text: &str| parse(&format!("{GOOD}[metrics]\n{text}")).map(|config| config.metrics);
    let read = metrics("listen = '[::]:9477'\nsocket = true\nper_pod = false\nper_peer = false").unwrap();
    let listen = Some("[::]:9477".parse().unwrap());
    assert_eq!(read, Metrics { listen, socket: true, per_pod: false, per_peer: false });
    for (line, reason) in [
        ("listen = '127.0.0.1'", "metrics.listen = '127.0.0.1': is not an address with a port"),
        ("listen = '127.0.0.1:0'", "has no port"),
        ("path = '/m'", "metrics.path: is not a known key"),
    ] {
        let error = metrics(line).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn excluded_addresses_are_merged_and_quarantine_may_be_none() {
    let keys =
        "[ipam]\nexclude = ['10.244.1.100-10.244.1.120', '10.244.1.121', 'fd00:244:1::/120']\nquarantine_s = 0\n";
    let ipam = parse(&GOOD.replacen(IPAM, &format!("{keys}{IPAM}"), 1)).unwrap().ipam;
    let exclude: Vec<_> = ipam.exclude.iter().map(ToString::to_string).collect();
    assert_eq!(exclude, ["10.244.1.100-10.244.1.121", "fd00:244:1::-fd00:244:1::ff"]);
    assert_eq!(ipam.quarantine, Duration::ZERO);
    let default = parse(GOOD).unwrap().ipam;
    assert_eq!(default, Ipam { exclude: Vec::new(), quarantine: Duration::from_secs(30) });
}

#[test]
fn each_fault_is_named_with_line_key_value_and_reason() {
    let rows = [
        ("\"node-b\"", "\"Node_B\"", "line 18: peers[0].name = \"Node_B\": is not a node name"),
        ("\"node-b\"", "\"node-a\"", "line 18: peers[0].name = \"node-a\": is taken by node.name"),
        ("name = \"node-b\"\n", "", "line 17: peers[0].name: is required"),
        ("\"eth0\"", "\"sixteen-bytes-ab\"", "line 4: node.uplink = \"sixteen-bytes-ab\": is longer than"),
        ("\"eth0\"", "\"a/b\"", "line 4: node.uplink = \"a/b\": is not a device name"),
        ("\"podwire.1\"", "\"eth0\"", "line 11: vxlan.device = \"eth0\": is the uplink"),
        ("10.244.1.0/24", "10.244.1.1/24", "line 5: node.pod_cidrs[0] = \"10.244.1.1/24\": has host bits set"),
        ("fd00:244:1::/64", "10.244.9.0/24", "node.pod_cidrs[1] = \"10.244.9.0/24\": is a second range"),
        ("10.244.1.0/24", "10.244.1.0/31", "node.pod_cidrs[0] = \"10.244.1.0/31\": is too small"),
        ("10.244.1.0/24", "10.244.1.0/33", "node.pod_cidrs[0] = \"10.244.1.0/33\": is not an address range"),
        ("10.244.3.0/24", "10.244.2.128/25", "overlaps 10.244.2.0/24 of node-b"),
        (
            "10.244.3.0/24",
            "10.244.1.0/24",
            "peers[1].pod_cidrs[0] = \"10.244.1.0/24\": of node-c overlaps 10.244.1.0/24 of node-a",
        ),
        ("vni = 1", "vni = 0", "line 9: vxlan.vni = 0: is reserved"),
        ("vni = 1", "vni = 16777216", "vxlan.vni = 16777216: does not fit 24 bits"),
        ("vni = 1", "vni = -1", "vxlan.vni = -1: is not between 0 and"),
        ("vni = 1", "vni = \"1\"", "vxlan.vni = \"1\": is not a whole number"),
        ("port = 8472", "port = 0", "vxlan.port = 0: is not a UDP port"),
        ("port = 8472", "port = 65536", "vxlan.port = 65536: is not between 0 and 65535"),
        ("port = 8472", "prot = 8472", "line 10: vxlan.prot: is not a known key"),
        ("\"adaptive\"", "\"fast\"", "line 13: dataplane.mode = \"fast\": is not one of busy, adaptive, kernel"),
        ("cores = [1]\n", "", "dataplane.cores: is required"),
        ("[1]", "[]", "line 14: dataplane.cores = []: names no CPU"),
        ("[1]", "[1, 1]", "dataplane.cores[1] = 1: is named twice"),
        ("[1]", "[2]", "dataplane.cores[0] = 2: is not a CPU that is online"),
        ("cores = [1]", "cores = [1]\nframes = 10", "dataplane.frames = 10: is not between 512 and 1048576"),
        ("cores = [1]", "cores = [1]\nstale_ms = 9", "dataplane.stale_ms = 9: is not between 10 and 10000"),
        ("\"192.168.1.3\"", "\"127.0.0.1\"", "peers[0].underlay = \"127.0.0.1\": is a loopback address"),
        ("\"192.168.1.3\"", "\"224.0.0.1\"", "is a multicast address"),
        ("\"192.168.1.3\"", "\"0.0.0.0\"", "is the unspecified address"),
        ("\"192.168.1.3\"", "\"fe80::1\"", "is not an address that other nodes can reach"),
        ("\"192.168.1.3\"", "\"10.244.200.1\"", "lies inside the pod range 10.244.0.0/16"),
        ("\"192.168.1.3\"", "\"2001:db8::1\"", "peers[1].underlay = \"192.168.1.4\": is not of the family of peers[0]"),
        ("\"192.168.1.4\"", "\"192.168.1.3\"", "peers[1].underlay = \"192.168.1.3\": is also peers[0].underlay"),
        (
            LAST,
            "pod_cidrs = [\"10.244.3.0/24\"]\naddresses = [\"fd00::4\"]",
            "line 26: peers[1].addresses[0] = \"fd00::4\": is of a family",
        ),
        (LAST, "pod_cidrs = [\"10.244.3.0/24\"]\naddresses = [\"192.168.1.3\"]", "is also peers[0].underlay"),
        (
            LAST,
            "pod_cidrs = [\"10.244.3.0/24\"]\naddresses = [\"10.244.9.9\"]",
            "lies inside the pod range 10.244.0.0/16",
        ),
        (LAST, "pod_cidrs = [\"10.244.3.0/24\"]\naddresses = [\"127.0.0.1\"]", "is a loopback address"),
        ("uplink", "addresses = [\"192.168.1.9\"]\nuplink", "line 4: node.addresses: is not a known key"),
        ("uplink", "underlay = \"192.168.1.3\"\nuplink", "peers[0].underlay = \"192.168.1.3\": is also node.underlay"),
        ("02:00:00:00:00:02", "03:00:00:00:00:02", "peers[0].vtep_mac = \"03:00:00:00:00:02\": is not a unicast"),
        ("02:00:00:00:00:02", "02:70:c0:a8:01:04", "gives the VTEP MAC 02:70:c0:a8:01:04, which peers[0].vtep_mac has"),
        (
            IPAM,
            "[ipam]\nexclude = [\"10.244.1.9-10.244.1.5\"]\n[[peers]]",
            "ipam.exclude[0] = \"10.244.1.9-10.244.1.5\": is no range",
        ),
        (
            IPAM,
            "[ipam]\nexclude = [\"10.244.1.9/24\"]\n[[peers]]",
            "line 18: ipam.exclude[0] = \"10.244.1.9/24\": has host bits",
        ),
        (
            IPAM,
            "[ipam]\nexclude = [\"10.244.2.9\"]\n[[peers]]",
            "ipam.exclude[0] = \"10.244.2.9\": is not inside one of node",
        ),
        (IPAM, "[ipam]\nexclude = [\"10.244.1.0/23\"]\n[[peers]]", "has host bits set; the range is 10.244.0.0/23"),
        (IPAM, "[ipam]\nexclude = [\"10.244.0.0-10.244.1.9\"]\n[[peers]]", "is not inside one of node.pod_cidrs"),
        (IPAM, "[ipam]\nexclude = \"10.244.1.9\"\n[[peers]]", "ipam.exclude = \"10.244.1.9\": is not an array"),
        (IPAM, "[ipam]\nquarantine_s = 86401\n[[peers]]", "ipam.quarantine_s = 86401: is not between 0 and 86400"),
        (IPAM, "[ipam]\nquarantine_s = -1\n[[peers]]", "ipam.quarantine_s = -1: is not between 0"),
        (IPAM, "[ipam]\nexcluded = []\n[[peers]]", "ipam.excluded: is not a known key"),
        ("[cluster]", "[[cluster]]", "cluster = [[cluster]]: is not a table"),
        ("[[peers]]\nname = \"node-b\"", "[peers]\nname = \"node-b\"", "duplicate key"),
        ("name = \"node-a\"", "name = ", "line 3: "),
    ];
    for (old, new, expected) in rows {
        let found = faults(old, new);
        assert!(found.iter().any(|fault| fault.contains(expected)), "{new}: expected {expected:?} in {found:#?}");
    }
}

#[test]
fn without_xdp_neither_zero_copy_nor_tcp_by_workers_can_be_had() {
    let rows = [("zero_copy = \"require\"", "no zero-copy"), ("bulk = \"workers\"", "carries all TCP")];
    for (more, reason) in rows {
        let found = faults("xdp = \"auto\"\nzero_copy = \"auto\"", &format!("xdp = \"off\"\n{more}"));
        let named = |fault: &String| fault.contains("dataplane.xdp") && fault.contains(reason);
        assert!(found.iter().any(named), "expected {reason:?} in {found:#?}");
    }
}

#[test]
fn a_range_where_no_pod_can_be_is_refused_of_node_peer_and_cluster() {
    let all = "is every address of its family";
    let rows = [
        ("0.0.0.0/0", all),
        ("::/0", all),
        ("0.0.0.0/1", "overlaps 0.0.0.0/8, which is unspecified"),
        ("127.1.0.0/24", "overlaps 127.0.0.0/8, which is loopback"),
        ("169.254.0.0/16", "overlaps 169.254.0.0/16, which is link-local"),
        ("168.0.0.0/6", "overlaps 169.254.0.0/16"),
        ("239.1.2.0/24", "overlaps 224.0.0.0/4, which is multicast"),
        ("::/64", "overlaps ::/128, which is unspecified"),
        ("::/126", "overlaps ::/128"),
        ("fe80:0:0:1::/64", "overlaps fe80::/10, which is link-local"),
        ("ff02::/64", "overlaps ff00::/8, which is multicast"),
    ];
    let keys = [
        ("10.244.1.0/24", "node.pod_cidrs[0]"),
        ("10.244.2.0/24", "peers[0].pod_cidrs[0]"),
        ("10.244.0.0/16", "cluster.pod_cidrs[0]"),
    ];
    for ((range, reason), (old, key)) in rows.iter().flat_map(|row| keys.map(|key| (*row, key))) {
        let (found, expected) = (faults(old, range), format!("{key} = \"{range}\": {reason}"));
        assert!(found.iter().any(|fault| fault.contains(&expected)), "expected {expected:?} in {found:#?}");
    }
    for (old, range) in [("10.244.1.0/24", "126.0.0.0/24"), ("fd00:244:1::/64", "fec0:0:0:1::/64")] {
        assert_eq!(faults(old, range), [] as [&str; 0], "beside what is reserved");
    }
}

#[test]
fn an_underlay_address_inside_any_nodes_pod_range_is_refused() {
    let own = ("uplink = \"eth0\"", "uplink = \"eth0\"\nunderlay = \"10.250.7.9\"", "node.underlay");
    let peer = ("192.168.1.3", "10.250.7.9", "peers[0].underlay");
    for (old, new, key) in [own, peer] {
        for range in ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"] {
            let text = GOOD.replacen(old, new, 1).replacen(range, "10.250.7.0/24", 1);
            let Err(ConfigError::Invalid(problems)) = parse(&text) else { panic!("{key} in {range} accepted") };
            let found: Vec<_> = problems.iter().map(ToString::to_string).collect();
            let expected = format!("{key} = \"10.250.7.9\": lies inside the pod range 10.250.7.0/24");
            assert!(found.len() == 1 && found[0].contains(&expected), "{found:#?}");
        }
    }
}

#[test]
fn a_range_outside_of_the_cluster_is_a_warning() {
    let config = parse(&GOOD.replace("10.244.1.0/24", "10.245.1.0/24")).unwrap();
    let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    let expected =
        "line 5: node.pod_cidrs[0] = \"10.245.1.0/24\": is not inside cluster.pod_cidrs, which should cover all nodes";
    assert_eq!(warnings, [expected]);
    assert!(parse(GOOD).unwrap().warnings.is_empty());
}

#[test]
fn all_faults_are_reported_at_once_by_line() {
    let text = GOOD.replace("vni = 1", "vni = 0").replace("\"node-a\"", "\"-\"").replace("10.244.3.0", "10.244.2.0");
    let Err(ConfigError::Invalid(problems)) = parse(&text) else { panic!("accepted") };
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["node.name", "vxlan.vni", "peers[1].pod_cidrs[0]"]);
}

#[test]
fn no_cut_or_noise_in_the_text_panics() {
    for end in (0..GOOD.len()).filter(|end| GOOD.is_char_boundary(*end)) {
        let _ = parse(&GOOD[..end]);
        let _ = parse(&GOOD[end..]);
        let _ = parse(&format!("{}\u{0}é\"{}", &GOOD[..end], &GOOD[end..]));
    }
}

#[test]
fn derived_macs_are_unicast_stable_and_distinct() {
    let derive = |text: &str| derive_vtep_mac(text.parse().unwrap());
    assert_eq!(derive("192.168.1.2").to_string(), "02:70:c0:a8:01:02");
    assert_eq!(derive("2001:db8::1"), derive("2001:db8:0::1"));
    assert_ne!(derive("2001:db8::1"), derive("2001:db8::2"));
    assert!(derive("2001:db8::1").is_unicast() && derive("2001:db8::1").0[0] & 2 == 2);
}

#[test]
fn reads_the_kernels_cpu_lists() {
    assert_eq!(parse_cpu_list("0-2,5\n"), [0, 1, 2, 5]);
    assert_eq!(parse_cpu_list(""), [] as [usize; 0]);
}

const KUBERNETES: &str = "[node]\nname='a'\nuplink='e'\n[kubernetes]\n[dataplane]\nmode='kernel'\n";

#[test]
fn with_kubernetes_ranges_peers_and_tunnel_are_left_to_the_api() {
    let config = parse(KUBERNETES).unwrap();
    assert_eq!(config.kubernetes, Some(Kubernetes::default()));
    assert!(config.awaits_members() && !parse(GOOD).unwrap().awaits_members());
    let paths =
        "[kubernetes]\nkubeconfig='/a'\nnet_conf='/b'\nsubnet_env='/c'\ncache='/d'\n[ipam]\nexclude=['10.9.9.9']\n";
    let config = parse(&KUBERNETES.replace("[kubernetes]\n", paths)).unwrap();
    let kubernetes = config.kubernetes.unwrap();
    assert_eq!(kubernetes.kubeconfig, Some("/a".into()));
    assert_eq!((kubernetes.net_conf, kubernetes.subnet_env), (Some("/b".into()), Some("/c".into())));
    assert_eq!(kubernetes.cache, Some("/d".into()));
    let unnamed = parse(&KUBERNETES.replace("name='a'\n", "")).unwrap();
    assert!(!unnamed.node.name.is_empty());
}

#[test]
fn what_the_api_says_is_not_said_in_the_file_too() {
    for (section, said) in [
        (
            "[node]\npod_cidrs=['10.1.0.0/24']",
            "node.pod_cidrs = ['10.1.0.0/24']: comes from the Kubernetes API's nodes",
        ),
        (
            "[cluster]\npod_cidrs=['10.1.0.0/16']\n[node]",
            "cluster.pod_cidrs = ['10.1.0.0/16']: comes from net-conf.json",
        ),
        ("[vxlan]\nvni=1\n[node]", "vxlan.vni = 1: comes from net-conf.json"),
        ("[vxlan]\nport=1\n[node]", "vxlan.port = 1: comes from net-conf.json"),
        ("peers=[]\n[node]", "peers = []: comes from the Kubernetes API's nodes"),
    ] {
        let Err(ConfigError::Invalid(problems)) = parse(&KUBERNETES.replace("[node]", section)) else {
            panic!("{section}")
        };
        let [problem] = &problems[..] else { panic!("{section}: {problems:?}") };
        assert!(problem.to_string().contains(said), "{problem}");
    }
    let relative = KUBERNETES.replace("[kubernetes]\n", "[kubernetes]\nkubeconfig='a'\n");
    assert!(parse(&relative).unwrap_err().to_string().contains("not an absolute path"));
}
