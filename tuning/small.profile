# For a machine of one or two cores, or a virtual one: nothing that takes memory or a core from the pods.

# Packet memory is joined to large pages when there are some; none are set aside.
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
# A burst waits in the ring while the pods have the core.
ring rx 1024
# The queue before a CPU of the kernel path, for the same reason.
sysctl net.core.netdev_max_backlog 4000
