# For mode = "busy": packets are answered in microseconds, at the cost of power and of what else the node does.

# Hugepages, 2 MiB each, for the packet memory of two workers with 8192 frames. Before podwire starts.
sysctl vm.nr_hugepages 64
# Packet memory that found no hugepage may still be joined to large pages.
thp madvise
# A core that slows down takes milliseconds to speed up again.
governor performance
# No sleep on the workers' cores from which it takes more than 2 µs to wake up.
sleep 2
# Each interrupt of the uplink fires on a worker's core, not on one that must pass it on.
interrupts
# The uplink tells of a packet at once instead of waiting for more.
coalesce rx-usecs 0
# Interrupts stay off while workers poll the uplink (dataplane.busy_poll); 200 µs after the last look a timer takes over,
# and after two looks in vain interrupts. In vain for workers that sleep. Before podwire starts.
device napi_defer_hard_irqs 2
device gro_flush_timeout 200000
# One pair of nodes uses all queues: only the UDP source port differs from flow to flow.
hash udp4 sdfn
hash udp6 sdfn
# Long enough for a burst, short enough for the cache.
ring rx 1024
# The kernel does not unmap pages to learn from which node they are used.
sysctl kernel.numa_balancing 0
# No page is moved in the background.
sysctl vm.compaction_proactiveness 0
