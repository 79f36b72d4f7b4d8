/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What the programs know of the workers: whether one is alive, and how many
 * frames of a pod it has yet to take. The other side is src/shared/mod.rs.
 */
#ifndef PODWIRE_WORKER_H
#define PODWIRE_WORKER_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

/* A clock read on another CPU may be ahead of @now: the age is signed. */
static __always_inline bool younger(__u64 then_ns, __u64 now_ns, __u64 limit_ns)
{
	return (__s64)(now_ns - then_ns) < (__s64)limit_ns;
}

/* A poller must have beaten lately. A sleeper need not, but it must wake up
 * within the limit once it has been called.
 */
static __always_inline bool is_fresh(const struct heartbeat *beat, __u64 now_ns,
				     __u64 limit_ns)
{
	/* Before the times; pairs with Heartbeat::wake(), which stores the beat
	 * and then `asleep`, and Heartbeat::sleep(), which stores the call and
	 * then `asleep`: who sees the state sees the time that belongs to it.
	 */
	__u64 asleep = READ_ONCE(beat->asleep);
	__u64 beat_ns = READ_ONCE(beat->beat_ns);
	__u64 called_ns;

	if (!beat_ns)
		return false;
	if (!asleep)
		return younger(beat_ns, now_ns, limit_ns);
	called_ns = READ_ONCE(beat->called_ns);
	return !called_ns || younger(called_ns, now_ns, limit_ns);
}

/* The heartbeat of a worker that will take a frame, or NULL. */
static __always_inline struct heartbeat *fresh_worker(__u32 worker,
						      const struct config *cfg,
						      __u64 now_ns)
{
	struct heartbeat *beat = bpf_map_lookup_elem(&heartbeats, &worker);

	return beat && is_fresh(beat, now_ns, cfg->stale_ns) ? beat : NULL;
}

/* Whether a fresh worker is at work: it has beaten, or has been called, lately.
 * One that hangs or waits for its core has not. A pass over full bursts of
 * super-packets takes some milliseconds, which half of the limit (10 ms unless
 * configured) allows for. One that sleeps uncalled has nothing in its ring: what
 * it seems to owe is lost.
 */
static __always_inline bool is_at_work(const struct heartbeat *beat,
				       __u64 now_ns, __u64 limit_ns)
{
	/* before the times, as above */
	__u64 asleep = READ_ONCE(beat->asleep);
	__u64 since_ns = READ_ONCE(beat->beat_ns);

	if (asleep)
		since_ns = READ_ONCE(beat->called_ns);
	return since_ns && younger(since_ns, now_ns, limit_ns / 2);
}

/* So many packets within config.wake_ns are worth to wake a worker for.
 * src/worker/pace.rs has the same number.
 */
#define WAKE_PACKETS 16

/* So long after a worker has fallen asleep its socket's ring may yet get what was
 * claimed before: the driver hands that over at the end of its poll.
 */
#define SETTLE_NS 100000

/* Whether a worker has slept for long enough to have nothing in its socket's ring. */
static __always_inline bool is_fast_asleep(const struct heartbeat *beat,
					   __u64 now_ns)
{
	/* before the time, as above */
	return READ_ONCE(beat->asleep) &&
	       !younger(READ_ONCE(beat->beat_ns), now_ns, SETTLE_NS);
}

/* Whether a worker that sleeps is left to sleep, as packets for it are few: the
 * kernel has carried one by the time that the worker is awake. CPUs that race may
 * count too few.
 */
static __always_inline bool stays_asleep(struct heartbeat *beat, __u64 now_ns,
					 __u64 wake_ns)
{
	if (!wake_ns || !READ_ONCE(beat->asleep) || READ_ONCE(beat->called_ns))
		return false;
	if (!younger(READ_ONCE(beat->since_ns), now_ns, wake_ns)) {
		WRITE_ONCE(beat->since_ns, now_ns);
		WRITE_ONCE(beat->left, 0);
	}
	WRITE_ONCE(beat->left, READ_ONCE(beat->left) + 1);
	if (READ_ONCE(beat->left) >= WAKE_PACKETS)
		return false;
	WRITE_ONCE(beat->left_ns, now_ns);
	return true;
}

/* To be called only when a frame for the worker follows, which wakes it. */
static __always_inline void call_worker(struct heartbeat *beat, __u64 now_ns)
{
	if (READ_ONCE(beat->asleep) && !READ_ONCE(beat->called_ns))
		WRITE_ONCE(beat->called_ns, now_ns);
}

/* So long after a packet that no worker takes the kernel path carries those that a
 * worker would take too: they could overtake it. The first one may overtake what
 * the worker has yet to take.
 */
#define HOLD_NS 1000000000

static __always_inline void hold(__u32 account)
{
	struct credit *credit = bpf_map_lookup_elem(&credits, &account);

	if (credit)
		WRITE_ONCE(credit->held_ns, bpf_ktime_get_ns());
}

static __always_inline bool is_held(__u32 account, __u64 now_ns)
{
	struct credit *credit = bpf_map_lookup_elem(&credits, &account);
	__u64 held_ns = credit ? READ_ONCE(credit->held_ns) : 0;

	return held_ns && younger(held_ns, now_ns, HOLD_NS);
}

/* Signed: a frame that comes after it was given up for lost is consumed twice. */
static __always_inline __s64 in_flight(const struct credit *credit)
{
	return READ_ONCE(credit->produced) - READ_ONCE(credit->consumed);
}

/* Whether the worker has taken all that it was sent of an account. */
static __always_inline bool is_settled(__u32 account)
{
	struct credit *credit = bpf_map_lookup_elem(&credits, &account);

	return credit && in_flight(credit) <= 0;
}

/* What a worker takes at once. src/pipeline/mod.rs has the same number. */
#define WORKER_BURST 128

/* Whether a pod may have one more frame on its way. It may have up to four times
 * as many as the ring has slots left: one pod alone four fifths of the ring, and
 * whoever has none finds a slot (Choudhury and Hahne, "Dynamic queue length
 * thresholds for shared-memory packet switches", 1998), unless there are hundreds
 * of such pods. And the quota keeps pods that send more than the worker can take
 * to equal shares, also while a burst has just been taken and many slots are left.
 * It counts from a full burst on, or half of a small ring: of hundreds of pods that
 * send trains by turns each has more than an even share for a moment, and a worker
 * that got but that would be idle.
 */
static __always_inline bool has_room(const struct credit *own,
				     const struct credit *ring, __u64 slots)
{
	__s64 all = in_flight(ring), left = (__s64)slots - all;
	__s64 quota = READ_ONCE(ring->quota);
	__s64 mine = in_flight(own);

	if (left <= 0 || mine >= 4 * left)
		return false;
	return !quota || mine < quota || (all < WORKER_BURST && all < left);
}

/* Takes one credit of an account, and of its ring's. CPUs that race may exceed
 * what there is by one frame each: it bounds the share of a ring, it is not an
 * account.
 */
static __always_inline bool take_credit(__u32 account, __u32 ring_account,
					__u64 slots)
{
	struct credit *ring = bpf_map_lookup_elem(&credits, &ring_account);
	struct credit *own = bpf_map_lookup_elem(&credits, &account);

	if (!own || !ring)
		return false;
	if (!has_room(own, ring, slots)) {
		__sync_fetch_and_add(&own->refused, 1);
		return false;
	}
	__sync_fetch_and_add(&own->produced, 1);
	__sync_fetch_and_add(&ring->produced, 1);
	return true;
}

#endif
