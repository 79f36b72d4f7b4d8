use std::{io, panic, thread};

use core_affinity::CoreId;

/// Does `work` on `core`, on a thread made for it, and waits until it is done: what it touches first and what the kernel
/// allocates for it, hugepages too, then lies on the core's NUMA node as far as there is memory left (`alloc_pages` in
/// mm/mempolicy.c: the node of the CPU that asks, unless the process has a policy of its own). Where the thread cannot be
/// pinned, as on a core that is offline, the work is done wherever it runs.
pub fn near<T: Send>(core: CoreId, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let pinned = move || {
        let _anywhere = core_affinity::set_for_current(core);
        work()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(format!("podwire-s{}", core.id)).spawn_scoped(scope, pinned)?;
        Ok(thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload)))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::frame::Region;

    /// The NUMA node of a core; none where the kernel knows no nodes.
    fn node_of(core: CoreId) -> Option<String> {
        let entries = fs::read_dir(format!("/sys/devices/system/cpu/cpu{}", core.id)).ok()?.flatten();
        let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.find_map(|name| name.strip_prefix("node").map(str::to_owned))
    }

    /// The pages of the mapping that begins at `base`, by node: `/proc/self/numa_maps`.
    fn pages_by_node(base: usize) -> Option<Vec<(String, u64)>> {
        let maps = fs::read_to_string("/proc/self/numa_maps").ok()?;
        let line = maps.lines().find(|line| line.starts_with(&format!("{base:x} ")))?;
        let count = |word: &str| {
            let (node, pages) = word.strip_prefix('N')?.split_once('=')?;
            Some((node.to_owned(), pages.parse().ok()?))
        };
        Some(line.split_whitespace().filter_map(count).collect())
    }

    #[test]
    fn packet_memory_lies_on_the_node_of_the_core_that_it_is_mapped_near() {
        for core in core_affinity::get_core_ids().unwrap() {
            let (ran_on, (region, pool)) =
                near(core, || (rustix::thread::sched_getcpu(), Region::map(1024).unwrap())).unwrap();
            assert_eq!(ran_on, core.id);
            if let Some(node) = node_of(core).filter(|_| Path::new("/proc/self/numa_maps").exists()) {
                let pages = pages_by_node(region.as_raw().0.addr().get()).expect("the mapping is its own");
                let [(at, pages)] = &pages[..] else { panic!("core {}: {pages:?}", core.id) };
                assert_eq!((at, *pages > 0), (&node, true), "core {}", core.id);
            }
            region.unmap(pool).unwrap();
        }
    }

    #[test]
    fn work_for_a_core_that_is_not_there_is_done_elsewhere() {
        assert_eq!(near(CoreId { id: 1023 }, || 7).unwrap(), 7);
    }

    #[test]
    #[should_panic(expected = "as it would anywhere")]
    fn work_that_panics_panics() {
        near(CoreId { id: 0 }, || panic!("as it would anywhere")).unwrap();
    }
}
