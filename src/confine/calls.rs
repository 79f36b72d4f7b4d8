//! The system calls that are allowed, each group with its reason. Found by strace(1) over the tests, with what the C
//! library takes in their place on other versions.

#[allow(clippy::wildcard_imports, reason = "the names of system calls, SYS_…, are what this file is made of")]
use libc::*;

/// System calls that are needed together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub calls: &'static [c_long],
}

/// What any thread may ask of prctl(2) (`include/uapi/linux/prctl.h`): `PR_SET_VMA`, by which the allocator names what it
/// maps (glibc 2.38 and later), and `PR_GET_AUXV`, by which the size of a page is found.
pub(super) const PRCTL: [u64; 2] = [0x5356_4d41, 0x4155_5856];

/// The allocator, stacks of threads, rings and packet memory.
const MEMORY: Group = Group { calls: &[SYS_brk, SYS_mmap, SYS_mremap, SYS_munmap, SYS_madvise, SYS_mprotect] };

/// What every thread does: wait for others, read the clock where the vDSO cannot, print, end, and on an assertion of our
/// own end the process by SIGABRT.
const THREAD: Group = Group {
    calls: &[
        SYS_futex,
        SYS_sched_yield,
        SYS_clock_gettime,
        SYS_clock_nanosleep,
        SYS_nanosleep,
        SYS_restart_syscall,
        SYS_read,
        SYS_write,
        SYS_close,
        SYS_fcntl,
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_sigaltstack,
        SYS_getpid,
        SYS_gettid,
        SYS_tgkill,
        SYS_exit,
        SYS_exit_group,
    ],
};

/// Frames: to kick AF_XDP, to hand packets to pods, to ask both how many were lost, and whether the hub's device is up. And
/// to sleep until there are some.
const CARRY: Group =
    Group { calls: &[SYS_sendto, SYS_recvfrom, SYS_sendmmsg, SYS_getsockopt, SYS_ioctl, SYS_poll, SYS_ppoll] };

/// Clients of a socket that listens.
const SERVE: Group = Group {
    calls: &[
        SYS_accept4,
        SYS_epoll_wait,
        SYS_epoll_pwait,
        SYS_epoll_ctl,
        SYS_recvfrom,
        SYS_sendto,
        SYS_readv,
        SYS_writev,
        SYS_getsockopt,
        SYS_setsockopt,
        SYS_ioctl,
        SYS_shutdown,
        SYS_getrandom,
    ],
};

/// To read `/proc/self`, for the metrics of the process.
const READ_FILES: Group = Group {
    calls: &[
        SYS_openat,
        SYS_statx,
        SYS_newfstatat,
        SYS_fstat,
        SYS_lseek,
        SYS_getdents64,
        SYS_readlink,
        SYS_readlinkat,
        SYS_prlimit64,
    ],
};

/// The runtime directory, sysctls, pins, bpffs, and what `nft` opens when it starts.
const FILES: Group = Group {
    calls: &[
        SYS_open,
        SYS_stat,
        SYS_lstat,
        SYS_access,
        SYS_faccessat,
        SYS_faccessat2,
        SYS_statfs,
        SYS_fstatfs,
        SYS_getcwd,
        SYS_pread64,
        SYS_pwrite64,
        SYS_ftruncate,
        SYS_fsync,
        SYS_fdatasync,
        SYS_flock,
        SYS_rename,
        SYS_renameat,
        SYS_renameat2,
        SYS_unlink,
        SYS_unlinkat,
        SYS_mkdir,
        SYS_mkdirat,
        SYS_rmdir,
        SYS_chmod,
        SYS_fchmod,
        SYS_fchmodat,
        SYS_umask,
        SYS_memfd_create,
        SYS_inotify_init1,
        SYS_inotify_add_watch,
        SYS_inotify_rm_watch,
        SYS_mount,
    ],
};

/// Netlink, the control socket, packet and AF_XDP sockets, conntrack, the API server and the names it is found by.
const NETWORK: Group = Group {
    calls: &[
        SYS_socket,
        SYS_socketpair,
        SYS_bind,
        SYS_listen,
        SYS_accept,
        SYS_connect,
        SYS_getsockname,
        SYS_getpeername,
        SYS_sendmsg,
        SYS_recvmsg,
        SYS_recvmmsg,
    ],
};

/// Loops of events, signals and timers.
const EVENTS: Group = Group {
    calls: &[
        SYS_epoll_create1,
        SYS_eventfd2,
        SYS_timerfd_create,
        SYS_timerfd_settime,
        SYS_poll,
        SYS_ppoll,
        SYS_select,
        SYS_pselect6,
        SYS_pipe2,
        SYS_dup,
        SYS_dup2,
        SYS_dup3,
    ],
};

/// To start threads and `nft`, to put workers where they belong and confine them.
const START: Group = Group {
    calls: &[
        SYS_clone,
        SYS_clone3,
        SYS_vfork,
        SYS_execve,
        SYS_wait4,
        SYS_waitid,
        SYS_kill,
        SYS_pidfd_open,
        SYS_pidfd_send_signal,
        SYS_set_tid_address,
        SYS_set_robust_list,
        SYS_get_robust_list,
        SYS_rseq,
        SYS_arch_prctl,
        SYS_prctl,
        SYS_getuid,
        SYS_geteuid,
        SYS_getgid,
        SYS_getegid,
        SYS_getppid,
        SYS_uname,
        SYS_sysinfo,
        SYS_getrusage,
        SYS_sched_getaffinity,
        SYS_sched_setaffinity,
        SYS_sched_getattr,
        SYS_sched_setattr,
        SYS_capget,
        SYS_capset,
        SYS_seccomp,
    ],
};

/// The steering programs, and the network namespaces of pods.
const KERNEL: Group = Group { calls: &[SYS_bpf, SYS_setns, SYS_unshare] };

pub(super) const WORKER: &[Group] = &[MEMORY, THREAD, CARRY];
pub(super) const METRICS: &[Group] = &[MEMORY, THREAD, SERVE, READ_FILES];

/// All of them: a filter lets a thread's own calls through only if those of the threads before it do.
pub(super) fn control() -> impl Iterator<Item = Group> {
    const OWN: &[Group] = &[FILES, NETWORK, EVENTS, START, KERNEL];
    [WORKER, METRICS, OWN].into_iter().flatten().copied()
}
