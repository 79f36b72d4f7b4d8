//! What was tried out.

use std::io;

use super::evidence::Evidence;
use super::finding::Opinion;
use crate::config::Xdp;
use crate::control::explain::{Need, Refusal, explain};

pub(super) fn namespaces(evidence: &Evidence) -> Vec<Opinion> {
    judge(evidence.trials.namespace.as_ref(), "making a network namespace", Need::Namespace)
}

pub(super) fn veth(evidence: &Evidence) -> Vec<Opinion> {
    judge(evidence.trials.veth.as_ref(), "making a veth pair", Need::Devices)
}

pub(super) fn vxlan(evidence: &Evidence) -> Vec<Opinion> {
    judge(evidence.trials.vxlan.as_ref(), "making a VXLAN device", Need::Devices)
}

pub(super) fn programs(evidence: &Evidence) -> Vec<Opinion> {
    judge(evidence.trials.programs.as_ref(), "loading the steering programs", Need::Programs)
}

pub(super) fn xdp(evidence: &Evidence) -> Vec<Opinion> {
    if evidence.config.valid().is_some_and(|config| config.dataplane.xdp == Xdp::Off) {
        return vec![Opinion::ok("no XDP program is to be attached, as configured")];
    }
    judge(evidence.trials.xdp.as_ref(), "attaching an XDP program to a veth", Need::Xdp)
}

pub(super) fn tcx(evidence: &Evidence) -> Vec<Opinion> {
    match &evidence.trials.tcx {
        Some(Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
            vec![
                Opinion::note(
                    format!("attaching a program by tcx: {error}"),
                    explain(Need::Ingress, Refusal::Unsupported).unwrap_or_default(),
                )
                .advice("boot Linux 6.6 or later"),
            ]
        }
        trial => judge(trial.as_ref(), "attaching a program by tcx", Need::Ingress),
    }
}

pub(super) fn packet_socket(evidence: &Evidence) -> Vec<Opinion> {
    judge(evidence.trials.packet_socket.as_ref(), "opening a packet socket", Need::PacketSocket)
}

pub(super) fn af_xdp(evidence: &Evidence) -> Vec<Opinion> {
    let trials = &evidence.trials;
    let opened = judge(trials.xdp_socket.as_ref(), "opening an AF_XDP socket", Need::XdpSocket);
    match &trials.xdp_queue {
        Some(_) => judge(trials.xdp_queue.as_ref(), "binding an AF_XDP socket to a veth", Need::PacketMemory),
        None => opened,
    }
}

/// Whether what was tried worked, and if not, what that means. What was not tried hangs on another trial that failed.
fn judge(trial: Option<&io::Result<()>>, what: &str, need: Need) -> Vec<Opinion> {
    let error = match trial {
        None => return Vec::new(),
        Some(Ok(())) => return vec![Opinion::ok(format!("{what} works"))],
        Some(Err(error)) => error,
    };
    let refusal = Refusal::of(error);
    let meaning = refusal.and_then(|refusal| explain(need, refusal));
    let advice = match refusal {
        Some(Refusal::NotPermitted) => {
            "run as root with the capabilities of tuning/podwire.service (systemd: CapabilityBoundingSet=; Kubernetes: \
             securityContext.capabilities.add)"
        }
        Some(Refusal::Busy) => "find and end what holds it",
        Some(Refusal::Unsupported) => "boot a kernel that has it",
        None => "the log of the kernel (dmesg) may say more",
    };
    vec![Opinion::error(format!("{what}: {error}"), meaning.unwrap_or("podwire cannot work without it")).advice(advice)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::assert_says;

    type Look = fn(&Evidence) -> Vec<Opinion>;
    type Fail = fn(&mut Evidence, io::Error);

    #[test]
    fn each_refusal_is_explained_in_the_words_of_the_data_plane() {
        let cases: [(Look, Fail, i32, &str); 8] = [
            (namespaces, |e, error| e.trials.namespace = Some(Err(error)), libc::EPERM, "CAP_SYS_ADMIN"),
            (veth, |e, error| e.trials.veth = Some(Err(error)), libc::EPERM, "CAP_NET_ADMIN"),
            (vxlan, |e, error| e.trials.vxlan = Some(Err(error)), libc::EOPNOTSUPP, "type of device"),
            (programs, |e, error| e.trials.programs = Some(Err(error)), libc::EPERM, "CAP_BPF"),
            (xdp, |e, error| e.trials.xdp = Some(Err(error)), libc::EBUSY, "bpftool net"),
            (tcx, |e, error| e.trials.tcx = Some(Err(error)), libc::EPERM, "CAP_NET_ADMIN"),
            (packet_socket, |e, error| e.trials.packet_socket = Some(Err(error)), libc::EPERM, "CAP_NET_RAW"),
            (af_xdp, |e, error| e.trials.xdp_queue = Some(Err(error)), libc::ENOBUFS, "LimitMEMLOCK="),
        ];
        for (check, put, errno, word) in cases {
            let change = |e: &mut Evidence| put(e, io::Error::from_raw_os_error(errno));
            assert_says(check, change, Severity::Error, word);
        }
    }

    #[test]
    fn a_kernel_without_tcx_is_no_error_and_a_missing_af_xdp_is() {
        let old = |e: &mut Evidence| e.trials.tcx = Some(Err(io::Error::from_raw_os_error(libc::EINVAL)));
        assert_says(tcx, old, Severity::Note, "clsact");
        let without = |e: &mut Evidence| {
            e.trials.xdp_socket = Some(Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)));
            e.trials.xdp_queue = None;
        };
        assert_says(af_xdp, without, Severity::Error, "CONFIG_XDP_SOCKETS");
    }
}
