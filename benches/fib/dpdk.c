// SPDX-License-Identifier: Apache-2.0
/*
 * DPDK's longest-prefix match for the bench `fib`, as a process of its own, so that nothing else needs DPDK.
 *
 *   dpdk FILE rte_lpm|rte_fib
 *
 * FILE: family (4 or 6), how many prefixes, how many addresses, how many of them in a stretch, how many changes, as
 * 32-bit words; for each prefix its address (16 bytes, IPv4 in the first four), length and value (32-bit words); for
 * each address 16 bytes; for each change a prefix's place and its new value, 0 if it is withdrawn (32-bit words).
 * Addresses are in network byte order, all else in the machine's. Says how many nanoseconds it took to build the table,
 * how many bytes it takes, and the sum of the values that all addresses find; then answers each line of standard input
 * by a number:
 *
 *   burst N    how many nanoseconds the next N stretches of the addresses took, in bursts; after the last comes the first
 *   single N   the same, one by one
 *   change N   how many nanoseconds the next N changes took, beginning anew after the last one
 *   keep N     the same for what it takes that a thread of its own makes N changes a second, or none any more if N is 0
 *
 * No number follows changes for which there was no room.
 *
 * What is withdrawn may be used again at once, while look-ups still go there: to wait for them (RCU) is left to the
 * application, and is left out here.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <rte_common.h>
#include <rte_eal.h>
#include <rte_fib.h>
#include <rte_fib6.h>
#include <rte_lpm.h>
#include <rte_lpm6.h>
#include <rte_malloc.h>
#include <rte_memory.h>

#define BURST 64u
#define NONE 0

struct prefix {
    uint8_t address[16];
    uint32_t length;
    uint32_t value;
};

struct change {
    uint32_t place;
    uint32_t value;
};

struct head {
    uint32_t family;
    uint32_t prefixes;
    uint32_t addresses;
    uint32_t stretch;
    uint32_t changes;
};

static struct head head;
static struct prefix *prefixes;
static uint8_t (*addresses)[16];
static uint32_t *addresses_v4;
/* Where the next stretch of the addresses begins. */
static uint32_t next;
static struct change *changes;
static uint64_t next_change;
/* There was no room for a route that was withdrawn before. */
static atomic_int is_full;

static int with_fib;
static void *table;

/* Where the machine lets this process run. */
static cpu_set_t cpus;
static atomic_uint changes_a_second;

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static uint32_t v4(const uint8_t *address)
{
    uint32_t word;

    memcpy(&word, address, sizeof(word));
    return be32toh(word);
}

static void read_all(const char *path)
{
    FILE *file = fopen(path, "rb");

    if (!file || fread(&head, sizeof(head), 1, file) != 1)
        fail("no table");
    prefixes = calloc(head.prefixes, sizeof(*prefixes));
    addresses = calloc(head.addresses, sizeof(*addresses));
    addresses_v4 = calloc(head.addresses, sizeof(*addresses_v4));
    changes = calloc(head.changes, sizeof(*changes));
    if (fread(prefixes, sizeof(*prefixes), head.prefixes, file) != head.prefixes ||
        fread(addresses, sizeof(*addresses), head.addresses, file) != head.addresses ||
        fread(changes, sizeof(*changes), head.changes, file) != head.changes)
        fail("the table is cut off");
    for (uint32_t i = 0; i < head.addresses; i++)
        addresses_v4[i] = v4(addresses[i]);
    fclose(file);
}

/* How many groups of 256 entries below 24 bits the table may need: one for each eight bits of a long prefix. To spare
 * are more of IPv6's: about one of them is lost to rte_fib6 (DPDK 22.11) with each change.
 */
static uint32_t groups(void)
{
    uint32_t groups = head.family == 6 ? 8192 : 256;

    for (uint32_t i = 0; i < head.prefixes; i++)
        if (prefixes[i].length > 24)
            groups += (prefixes[i].length - 24 + 7) / 8;
    return RTE_MIN(groups, 1u << 21);
}

static int add(const struct prefix *p, uint32_t value)
{
    if (head.family == 4)
        return with_fib ? rte_fib_add(table, v4(p->address), p->length, value)
                        : rte_lpm_add(table, v4(p->address), p->length, value);
    return with_fib ? rte_fib6_add(table, p->address, p->length, value)
                    : rte_lpm6_add(table, p->address, p->length, value);
}

static int withdraw(const struct prefix *p)
{
    if (head.family == 4)
        return with_fib ? rte_fib_delete(table, v4(p->address), p->length)
                        : rte_lpm_delete(table, v4(p->address), p->length);
    return with_fib ? rte_fib6_delete(table, p->address, p->length) : rte_lpm6_delete(table, p->address, p->length);
}

/* Makes the next changes, while there is room. What is withdrawn already cannot be withdrawn again. */
static void make(uint64_t count)
{
    for (; count && !is_full; count--) {
        const struct change *c = &changes[next_change++ % head.changes];

        if (!c->value)
            withdraw(&prefixes[c->place]);
        else if (add(&prefixes[c->place], c->value))
            is_full = 1;
    }
}

static void create(void)
{
    uint32_t room = head.prefixes + 16;
    struct rte_lpm_config lpm = { .max_rules = room, .number_tbl8s = groups() };
    struct rte_lpm6_config lpm6 = { .max_rules = room, .number_tbl8s = groups() };
    struct rte_fib_conf fib = { .type = RTE_FIB_DIR24_8, .default_nh = NONE, .max_routes = room,
                                .dir24_8 = { .nh_sz = RTE_FIB_DIR24_8_4B, .num_tbl8 = groups() } };
    struct rte_fib6_conf fib6 = { .type = RTE_FIB6_TRIE, .default_nh = NONE, .max_routes = room,
                                  .trie = { .nh_sz = RTE_FIB6_TRIE_4B, .num_tbl8 = groups() } };

    if (head.family == 4)
        table = with_fib ? (void *)rte_fib_create("fib", SOCKET_ID_ANY, &fib)
                         : (void *)rte_lpm_create("lpm", SOCKET_ID_ANY, &lpm);
    else
        table = with_fib ? (void *)rte_fib6_create("fib6", SOCKET_ID_ANY, &fib6)
                         : (void *)rte_lpm6_create("lpm6", SOCKET_ID_ANY, &lpm6);
    if (!table)
        fail("no memory for the table");
    for (uint32_t i = 0; i < head.prefixes; i++)
        if (add(&prefixes[i], prefixes[i].value))
            fail("no room for a prefix");
}

/* What look-ups find in it is needed, for all that the compiler knows. */
#define use(array) asm volatile("" : : "r"(array) : "memory")

/* Looks up the addresses from one on until before another, in bursts; the sum of what is found if it is wanted. */
static uint64_t look_up(uint32_t at, uint32_t end, int wants_sum)
{
    uint64_t sum = 0;

    for (; at < end; at += BURST) {
        uint32_t n = RTE_MIN(BURST, end - at);
        uint64_t wide[BURST];
        uint32_t narrow[BURST];
        int32_t found[BURST];

        if (head.family == 4 && with_fib) {
            rte_fib_lookup_bulk(table, addresses_v4 + at, wide, n);
            use(wide);
        } else if (head.family == 4) {
            rte_lpm_lookup_bulk(table, addresses_v4 + at, narrow, n);
            use(narrow);
        } else if (with_fib) {
            rte_fib6_lookup_bulk(table, addresses + at, wide, n);
            use(wide);
        } else {
            rte_lpm6_lookup_bulk_func(table, addresses + at, found, n);
            use(found);
        }
        for (uint32_t i = 0; wants_sum && i < n; i++)
            if (with_fib)
                sum += wide[i];
            else if (head.family == 6)
                sum += found[i] < 0 ? NONE : found[i];
            else if (narrow[i] & RTE_LPM_LOOKUP_SUCCESS)
                sum += narrow[i] & 0x00ffffff;
    }
    return sum;
}

/* The same one by one. A `rte_fib` has bursts only: of one address. */
static void look_up_single(uint32_t at, uint32_t end)
{
    uint64_t wide;
    uint32_t narrow = NONE;

    for (; at < end; at++)
        if (head.family == 4 && with_fib) {
            rte_fib_lookup_bulk(table, addresses_v4 + at, &wide, 1);
            use(&wide);
        } else if (head.family == 4) {
            rte_lpm_lookup(table, addresses_v4[at], &narrow);
            use(&narrow);
        } else if (with_fib) {
            rte_fib6_lookup_bulk(table, addresses + at, &wide, 1);
            use(&wide);
        } else {
            rte_lpm6_lookup(table, addresses[at], &narrow);
            use(&narrow);
        }
}

/* DPDK's memory is meant to be of hugepages. There may be none that are reserved, but transparent ones. */
static int want_hugepages(const struct rte_memseg_list *list, void *unused)
{
    (void)unused;
    madvise(list->base_va, list->len, MADV_HUGEPAGE);
    return 0;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* Changes routes until that is not wanted any more. DPDK has bound the thread that starts this to one core. */
static void *keep_changing(void *unused)
{
    uint64_t start = now_ns(), made = 0, due;
    uint32_t rate;

    (void)unused;
    pthread_setaffinity_np(pthread_self(), sizeof(cpus), &cpus);
    while ((rate = atomic_load(&changes_a_second))) {
        due = (now_ns() - start) * rate / 1000000000;
        if (due == made)
            usleep(100);
        make(due - made);
        made = due;
    }
    return NULL;
}

static void keep(uint32_t rate)
{
    static pthread_t thread;

    if (atomic_exchange(&changes_a_second, 0))
        pthread_join(thread, NULL);
    atomic_store(&changes_a_second, rate);
    if (rate && pthread_create(&thread, NULL, keep_changing, NULL))
        fail("no thread for changes");
}

/* Does what a line asks for, and says how many nanoseconds that took. */
static uint64_t answer(const char *what, uint64_t count)
{
    uint64_t start = now_ns();

    if (!strcmp(what, "keep"))
        keep(count);
    else if (!strcmp(what, "change"))
        make(count);
    else
        for (uint64_t i = 0; i < count; i++) {
            uint32_t end = RTE_MIN(next + head.stretch, head.addresses);

            if (!strcmp(what, "single"))
                look_up_single(next, end);
            else
                look_up(next, end, 0);
            next = end % head.addresses;
        }
    return now_ns() - start;
}

int main(int argc, char **argv)
{
    char *eal[] = { argv[0], "--no-pci", "--no-huge", "--no-shconf", "--no-telemetry", "-m", "4096", "-l", "0",
                    "--log-level", "error" };
    struct rte_malloc_socket_stats before, after;
    uint64_t count, start, ns;
    char what[8];

    sched_getaffinity(0, sizeof(cpus), &cpus);
    if (argc != 3 || rte_eal_init(RTE_DIM(eal), eal) < 0)
        fail("DPDK does not start");
    rte_memseg_list_walk(want_hugepages, NULL);
    with_fib = !strcmp(argv[2], "rte_fib");
    read_all(argv[1]);
    rte_malloc_get_socket_stats(0, &before);
    start = now_ns();
    create();
    printf("%" PRIu64, now_ns() - start);
    rte_malloc_get_socket_stats(0, &after);
    printf(" %zu %" PRIu64 "\n", after.heap_allocsz_bytes - before.heap_allocsz_bytes, look_up(0, head.addresses, 1));
    fflush(stdout);
    while (scanf("%7s %" SCNu64, what, &count) == 2) {
        ns = answer(what, count);
        if (is_full && (!strcmp(what, "change") || !strcmp(what, "keep")))
            printf("full\n");
        else
            printf("%" PRIu64 "\n", ns);
        fflush(stdout);
    }
    return 0;
}
