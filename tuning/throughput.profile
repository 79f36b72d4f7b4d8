# For mode = "adaptive" under load: as many packets as the cores carry, latency in tens of microseconds.

# Hugepages, 2 MiB each, for the packet memory of two workers with 8192 frames. Before podwire starts.
sysctl vm.nr_hugepages 64
# Packet memory that found no hugepage may still be joined to large pages.
thp madvise
# Frequency follows load too slowly for bursts.
governor performance
# Sleep states that a burst overtakes: to wake up takes longer, in µs.
sleep 50
# Each interrupt of the uplink fires on a worker's core, where its ring is in the cache.
interrupts
# One pair of nodes uses all queues: only the UDP source port differs from flow to flow.
hash udp4 sdfn
hash udp6 sdfn
# A ring that takes a burst while its worker is busy with another queue.
ring rx 4096
ring tx 1024
# More packets for each interrupt where the kernel path carries.
sysctl net.core.netdev_budget 600
# The queue before a CPU of the kernel path, which carries when a worker restarts.
sysctl net.core.netdev_max_backlog 10000
