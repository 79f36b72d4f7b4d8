// SPDX-License-Identifier: Apache-2.0
/*
 * DPDK's longest-prefix match for the bench `fib`, as a process of its own, so that nothing else needs DPDK.
 *
 *   dpdk FILE rte_lpm|rte_fib
 *
 * FILE: family (4 or 6), how many prefixes, how many addresses, as 32-bit words; for each prefix its address (16
 * bytes, IPv4 in the first four), length and value (32-bit words); for each address 16 bytes. Addresses are in network
 * byte order, all else in the machine's. Says how many nanoseconds it took to build the table, how many bytes it takes,
 * and the sum of the values that all addresses find; then, for each number on standard input, how many nanoseconds so many passes over all addresses took.
 */
#include <endian.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

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

struct head {
    uint32_t family;
    uint32_t prefixes;
    uint32_t addresses;
};

static struct head head;
static struct prefix *prefixes;
static uint8_t (*addresses)[16];
static uint32_t *addresses_v4;

static void *table;

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
    if (fread(prefixes, sizeof(*prefixes), head.prefixes, file) != head.prefixes ||
        fread(addresses, sizeof(*addresses), head.addresses, file) != head.addresses)
        fail("the table is cut off");
    for (uint32_t i = 0; i < head.addresses; i++)
        addresses_v4[i] = v4(addresses[i]);
    fclose(file);
}

/* How many groups of 256 entries below 24 bits the table may need: one for each eight bits of a long prefix. */
static uint32_t groups(void)
{
    uint32_t groups = 256;

    for (uint32_t i = 0; i < head.prefixes; i++)
        if (prefixes[i].length > 24)
            groups += (prefixes[i].length - 24 + 7) / 8;
    return RTE_MIN(groups, 1u << 21);
}

static int add(int with_fib, const struct prefix *p)
{
    if (head.family == 4)
        return with_fib ? rte_fib_add(table, v4(p->address), p->length, p->value)
                        : rte_lpm_add(table, v4(p->address), p->length, p->value);
    return with_fib ? rte_fib6_add(table, p->address, p->length, p->value)
                    : rte_lpm6_add(table, p->address, p->length, p->value);
}

static void create(int with_fib)
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
        if (add(with_fib, &prefixes[i]))
            fail("no room for a prefix");
}

/* One pass over all addresses, in bursts; the sum of what they find. */
static uint64_t pass(int with_fib)
{
    uint64_t sum = 0;

    for (uint32_t at = 0; at < head.addresses; at += BURST) {
        uint32_t n = RTE_MIN(BURST, head.addresses - at);
        uint64_t wide[BURST];
        uint32_t narrow[BURST];
        int32_t found[BURST];

        if (head.family == 4 && with_fib)
            rte_fib_lookup_bulk(table, addresses_v4 + at, wide, n);
        else if (head.family == 4)
            rte_lpm_lookup_bulk(table, addresses_v4 + at, narrow, n);
        else if (with_fib)
            rte_fib6_lookup_bulk(table, addresses + at, wide, n);
        else
            rte_lpm6_lookup_bulk_func(table, addresses + at, found, n);
        for (uint32_t i = 0; i < n; i++)
            if (with_fib)
                sum += wide[i];
            else if (head.family == 6)
                sum += found[i] < 0 ? NONE : found[i];
            else if (narrow[i] & RTE_LPM_LOOKUP_SUCCESS)
                sum += narrow[i] & 0x00ffffff;
    }
    return sum;
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

int main(int argc, char **argv)
{
    char *eal[] = { argv[0], "--no-pci", "--no-huge", "--no-shconf", "--no-telemetry", "-m", "4096", "-l", "0",
                    "--log-level", "error" };
    struct rte_malloc_socket_stats before, after;
    volatile uint64_t sink = 0;
    uint64_t passes, start;
    int with_fib;

    if (argc != 3 || rte_eal_init(RTE_DIM(eal), eal) < 0)
        fail("DPDK does not start");
    rte_memseg_list_walk(want_hugepages, NULL);
    with_fib = !strcmp(argv[2], "rte_fib");
    read_all(argv[1]);
    rte_malloc_get_socket_stats(0, &before);
    start = now_ns();
    create(with_fib);
    printf("%" PRIu64, now_ns() - start);
    rte_malloc_get_socket_stats(0, &after);
    printf(" %zu %" PRIu64 "\n", after.heap_allocsz_bytes - before.heap_allocsz_bytes, pass(with_fib));
    fflush(stdout);
    while (scanf("%" SCNu64, &passes) == 1) {
        start = now_ns();
        for (uint64_t i = 0; i < passes; i++)
            sink += pass(with_fib);
        printf("%" PRIu64 "\n", now_ns() - start);
        fflush(stdout);
    }
    return 0;
}
