//! What this process may do. A daemon that is started the same way may do the same.

use super::evidence::Evidence;
use super::finding::Opinion;
use crate::frame::CHUNK_SIZE;

/// The capabilities of the daemon, by their numbers in `include/uapi/linux/capability.h`.
const NEEDED: [(u32, &str); 5] =
    [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];

const IPC_LOCK: u32 = 14;

pub(super) fn capabilities(evidence: &Evidence) -> Vec<Opinion> {
    let held = match &evidence.privileges.effective {
        Ok(held) => *held,
        Err(why) => return vec![Opinion::unseen("what this process may do", why)],
    };
    let missing: Vec<_> = NEEDED.iter().filter(|(bit, _)| held & 1 << bit == 0).map(|(_, name)| *name).collect();
    vec![if missing.is_empty() {
        Opinion::ok("all that the daemon needs")
    } else {
        Opinion::error(
            format!("{} is missing", missing.join(", ")),
            "a daemon that is started like this can neither load programs nor make devices; and the doctor sees less",
        )
        .advice(
            "run it as root with these capabilities (systemd: CapabilityBoundingSet= as in tuning/podwire.service; \
             Kubernetes: securityContext.capabilities.add)",
        )
    }]
}

pub(super) fn locked_memory(evidence: &Evidence) -> Vec<Opinion> {
    let (limit, held) = match (&evidence.privileges.lockable, &evidence.privileges.effective) {
        (Ok(limit), Ok(held)) => (*limit, *held),
        (Err(why), _) | (_, Err(why)) => return vec![Opinion::unseen("the limit of locked memory", why)],
    };
    let Some(limit) = limit.filter(|_| held & 1 << IPC_LOCK == 0) else {
        return vec![Opinion::ok("no limit")];
    };
    let needed = packet_memory(evidence);
    let seen = format!("{} KiB may be locked, {} KiB are needed, CAP_IPC_LOCK is missing", limit >> 10, needed >> 10);
    vec![if needed <= limit {
        Opinion::ok(seen)
    } else {
        Opinion::error(seen, "AF_XDP refuses packet memory above the limit (ENOBUFS)")
            .advice("systemd: LimitMEMLOCK=infinity; by hand: ulimit -l unlimited; or give it CAP_IPC_LOCK")
    }]
}

/// Bytes of the packet memory of all workers.
pub(super) fn packet_memory(evidence: &Evidence) -> u64 {
    let chunk = u64::try_from(CHUNK_SIZE).unwrap_or(u64::MAX);
    let of_config = |dataplane: &crate::config::Dataplane| {
        u64::from(dataplane.frames) * chunk * u64::try_from(dataplane.cores.len()).unwrap_or(u64::MAX)
    };
    evidence.config.valid().filter(|_| evidence.has_workers()).map_or(0, |config| of_config(&config.dataplane))
}

pub(super) fn bpffs(evidence: &Evidence) -> Vec<Opinion> {
    vec![match &evidence.privileges.bpffs {
        Ok(true) => Opinion::ok("a BPF file system is mounted on /sys/fs/bpf"),
        Ok(false) => Opinion::warning(
            "no BPF file system is mounted on /sys/fs/bpf",
            "the daemon mounts one for itself; in a mount namespace of its own what it pins there ends with it, and \
             pods lose the fast path while it restarts",
        )
        .command("mount -t bpf bpf /sys/fs/bpf"),
        Err(why) => Opinion::warning(
            format!("/sys/fs/bpf: {why}"),
            "programs stay attached by what is pinned there; without it the data plane does not start",
        )
        .advice("mount sysfs and a BPF file system there; in a container, mount the host's /sys/fs/bpf"),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::assert_says;

    #[test]
    fn missing_capabilities_are_named() {
        assert_says(
            capabilities,
            |e| e.privileges.effective = Ok(!(1 << 12)),
            Severity::Error,
            "CAP_NET_ADMIN is missing",
        );
        assert_says(
            capabilities,
            |e| e.privileges.effective = Ok(1 << 12),
            Severity::Error,
            "CAP_NET_RAW, CAP_SYS_ADMIN",
        );
        assert_says(capabilities, |e| e.privileges.effective = Err("no /proc".into()), Severity::Note, "no /proc");
    }

    #[test]
    fn the_limit_of_locked_memory_counts_without_the_capability_only() {
        let limit = |e: &mut Evidence, bytes, held| {
            e.privileges.lockable = Ok(bytes);
            e.privileges.effective = Ok(held);
        };
        assert_says(locked_memory, |e| limit(e, Some(8 << 20), 0), Severity::Error, "8192 KiB may be locked");
        assert_says(locked_memory, |e| limit(e, Some(1 << 40), 0), Severity::Ok, "needed");
        assert_says(locked_memory, |e| limit(e, Some(0), 1 << IPC_LOCK), Severity::Ok, "no limit");
        assert_says(locked_memory, |e| limit(e, None, 0), Severity::Ok, "no limit");
    }

    #[test]
    fn a_missing_bpf_file_system_is_mounted_by_a_command() {
        assert_says(bpffs, |e| e.privileges.bpffs = Ok(false), Severity::Warning, "no BPF file system");
        assert_says(bpffs, |e| e.privileges.bpffs = Err("no such file".into()), Severity::Warning, "no such file");
    }
}
