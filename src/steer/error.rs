use std::io;
use std::path::PathBuf;

use crate::ids::{IfIndex, QueueId, WorkerId};

/// Why the steering programs could not be loaded, attached or told something.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    #[error("the kernel refused the steering programs: {0} (the verifier's words are in the log, target `libbpf`)")]
    Load(io::Error),
    #[error("cannot {act} {key} in the steering map `{map}`: {source}")]
    Map { act: &'static str, map: &'static str, key: String, source: io::Error },
    #[error(
        "cannot {act} {path}: {source}; programs stay attached by what is pinned there, in a BPF file system that root \
         can write: see that one is mounted on /sys/fs/bpf (`mount -t bpf bpf /sys/fs/bpf`)", path = path.display()
    )]
    Pins { act: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "interface {ifindex} already runs XDP program {program}, which is not ours and stays; \
         `bpftool prog show id {program}` tells whose it is: remove it, or choose another uplink"
    )]
    UplinkTaken { ifindex: IfIndex, program: u32 },
    #[error("cannot attach {program} to interface {ifindex} ({mode}): {source}")]
    Attach { program: &'static str, ifindex: IfIndex, mode: &'static str, source: io::Error },
    #[error("cannot ask which programs are attached to interface {ifindex}: {source}")]
    Query { ifindex: IfIndex, source: io::Error },
    #[error("cannot detach {program} from interface {ifindex}: {source}")]
    Detach { program: &'static str, ifindex: IfIndex, source: io::Error },
    #[error(
        "cannot attach {program} to interface {ifindex}: neither by tcx ({tcx}), which needs Linux 6.6 or later, nor by \
         a clsact filter ({clsact}), which needs Linux 6.1 or later with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"
    )]
    Ingress { program: &'static str, ifindex: IfIndex, tcx: io::Error, clsact: io::Error },
    #[error(
        "the steering programs have fewer credits than there are pod ids and workers: the binary was built from mixed sources"
    )]
    Credits,
    #[error("worker {} does not exist for the steering programs: at most {max} workers, counted from 0", worker.0)]
    NoSuchWorker { worker: WorkerId, max: u32 },
    #[error("queue {} is beyond the {max} queues that the steering programs serve: lower the uplink's queue count", queue.0)]
    NoSuchQueue { queue: QueueId, max: u32 },
}
