/* Codes on stdin, sample after sample, the inputs in order, row-major and little-endian: codes of the outputs on stdout.
   --edge NAME: those of an inner edge; --edges: of every edge; --test: the self-test. Exit 2: half a sample, or no such
   edge; 3: a sample that the network refuses. */
#include <stdio.h>
#include <string.h>
#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#endif
#include "net_test.h"

static union {
    int64_t aligned;
    unsigned char bytes[NET_ARENA];
} arena;

/* 1: a whole input, 0: the end before its first number, -1: half an input */
static int take(net_t *net, const net_edge_t *edge)
{
    uint32_t i, k;
    for (i = 0; i < edge->size; ++i) {
        uint32_t value = 0;
        for (k = 0; k < edge->bytes; ++k) {
            const int c = getchar();
            if (c == EOF)
                return i == 0 && k == 0 ? 0 : -1;
            value |= (uint32_t)c << (8 * k);
        }
        if (edge->is_signed && edge->bytes < 4 && (value >> (8 * edge->bytes - 1)))
            value |= ~0u << (8 * edge->bytes);
        net_write(net, edge, i, (int32_t)value);
    }
    return 1;
}

static void give(const net_t *net, const net_edge_t *edge)
{
    uint32_t i, k;
    for (i = 0; i < edge->size; ++i) {
        const uint32_t value = (uint32_t)net_read(net, edge, i);
        for (k = 0; k < edge->bytes; ++k)
            putchar((int)((value >> (8 * k)) & 0xffu));
    }
}

static int test(net_t *net)
{
    net_fault_t fault;
    const int error = net_selftest(net, &fault);
    if (error == NET_ERROR_DIFFERENT)
        printf("sample %u: layer %d, edge %s differs, first at %d\n", (unsigned)fault.sample, (int)fault.layer,
               net_edges[fault.edge].name, (int)fault.index);
    else
        printf(error ? "error %d\n" : "equal: every edge of the samples (%d)\n", error);
    return error ? 1 : 0;
}

int main(int argc, char **argv)
{
    net_t net;
    int32_t wanted = -1, all = 0, k;
    uint32_t e;
    if (net_init(&net, arena.bytes, sizeof arena.bytes) != NET_OK)
        return 1;
    if (argc == 2 && strcmp(argv[1], "--test") == 0)
        return test(&net);
    if (argc == 2 && strcmp(argv[1], "--edges") == 0)
        all = 1;
    else if (argc == 3 && strcmp(argv[1], "--edge") == 0) {
        for (e = 0; e < NET_EDGES; ++e)
            if (strcmp(argv[2], net_edges[e].name) == 0)
                wanted = (int32_t)e;
        if (wanted < 0) {
            fprintf(stderr, "no such edge: %s\n", argv[2]);
            return 2;
        }
    } else if (argc != 1) {
        fprintf(stderr, "%s [--edge NAME | --edges | --test]\n", argv[0]);
        return 2;
    }
#if defined(_WIN32)
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
#endif
    for (;;) {
        for (e = 0; e < NET_INPUTS; ++e) {
            const int got = take(&net, &net_edges[net_inputs[e]]);
            if (got == 0 && e == 0)
                return 0;
            if (got != 1) {
                fprintf(stderr, "half a sample\n");
                return 2;
            }
        }
        for (k = -1; k < NET_LAYERS; ++k) {
            if (k >= 0 && net_run_layer(&net, k) != NET_OK)
                return 3;
            for (e = 0; e < NET_EDGES; ++e)
                if (net_edges[e].last == k && (all || (int32_t)e == wanted))
                    give(&net, &net_edges[e]);
        }
        if (!all && wanted < 0)
            for (e = 0; e < NET_OUTPUTS; ++e)
                give(&net, &net_edges[net_outputs[e]]);
    }
}
