//! The kernel's version and how it was built.

use super::evidence::Evidence;
use super::finding::Opinion;

/// `bpf_xdp_load_bytes`, `bpf_loop`, and tc links of programs that use them.
const OLDEST: (u32, u32) = (6, 1);
/// tcx.
const TCX: (u32, u32) = (6, 6);

pub(super) fn version(evidence: &Evidence) -> Vec<Opinion> {
    let release = &evidence.kernel.release;
    vec![match parse(release) {
        None => Opinion::unseen("the kernel's version", release),
        Some(version) if version < OLDEST => {
            Opinion::error(format!("Linux {release}"), "the steering programs need Linux 6.1 or later")
                .advice("boot a newer kernel; mode = \"kernel\" does without the steering programs")
        }
        Some(version) if version < TCX => Opinion::note(
            format!("Linux {release}"),
            "there is no tcx before Linux 6.6: clsact filters take its place, which others may remove by accident",
        )
        .advice("boot Linux 6.6 or later"),
        Some(_) => Opinion::ok(format!("Linux {release}")),
    }]
}

/// Version and patch level of a release such as `6.1.0-28-amd64`.
fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn btf(evidence: &Evidence) -> Vec<Opinion> {
    vec![if evidence.kernel.btf {
        Opinion::ok("/sys/kernel/btf/vmlinux is there")
    } else {
        Opinion::warning(
            "there is no /sys/kernel/btf/vmlinux",
            "programs cannot ask conntrack: on a node that translates addresses all packets take the kernel path",
        )
        .advice("boot a kernel with CONFIG_DEBUG_INFO_BTF, as all distributions build it")
    }]
}

pub(super) fn jit(evidence: &Evidence) -> Vec<Opinion> {
    vec![match evidence.kernel.jit.as_deref() {
        Some("0") => {
            Opinion::warning("net.core.bpf_jit_enable is 0", "BPF programs are interpreted: each packet costs far more")
                .command("sysctl -w net.core.bpf_jit_enable=1")
        }
        Some(value) => Opinion::ok(format!("net.core.bpf_jit_enable is {value}")),
        None => Opinion::ok("always on, or shown in the first network namespace only"),
    }]
}

pub(super) fn conntrack_lookup(evidence: &Evidence) -> Vec<Opinion> {
    vec![if evidence.kernel.knows_conntrack {
        Opinion::ok("programs can ask conntrack")
    } else {
        Opinion::note(
            "conntrack is not loaded, or tells programs nothing",
            "if this node translates addresses (kube-proxy), all packets take the kernel path",
        )
        .command("modprobe nf_conntrack")
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::assert_says;

    #[test]
    fn a_release_is_judged_by_its_numbers() {
        for (release, severity) in [
            ("5.15.0-91-generic", Severity::Error),
            ("6.1.0-28-amd64", Severity::Note),
            ("6.6.1", Severity::Ok),
            ("6.18.44-fc-v445", Severity::Ok),
            ("7.0-rc1", Severity::Ok),
            ("unknown", Severity::Note),
        ] {
            assert_says(version, |e| e.kernel.release = release.into(), severity, release);
        }
    }

    #[test]
    fn what_the_kernel_was_built_without_is_named() {
        assert_says(btf, |e| e.kernel.btf = false, Severity::Warning, "btf");
        assert_says(jit, |e| e.kernel.jit = Some("0".into()), Severity::Warning, "bpf_jit_enable is 0");
        assert_says(conntrack_lookup, |e| e.kernel.knows_conntrack = false, Severity::Note, "conntrack");
    }
}
