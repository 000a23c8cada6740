#ifndef NET_TEST_H
#define NET_TEST_H
#include "net.h"

#if defined(__GNUC__)
typedef int16_t __attribute__((may_alias)) net_i16_t;
typedef uint16_t __attribute__((may_alias)) net_u16_t;
typedef int32_t __attribute__((may_alias)) net_i32_t;
#else
typedef int16_t net_i16_t;
typedef uint16_t net_u16_t;
typedef int32_t net_i32_t;
#endif

/* An edge of the program: its numbers in memory, and `shape`, `bytes` and `is_signed` as golden vectors have them. */
typedef struct {
    const char *name;
    uint32_t at, type, size, bytes, is_signed;
    int32_t last; /* the layer that makes it; -1 for an input */
    uint32_t shape[NET_AXES];
    int32_t stride[NET_AXES];
} net_edge_t;

/* Where a self-test first differs; `index` is -1 where only the edge's sum of all codes is known. */
typedef struct {
    uint32_t sample, edge;
    int32_t layer, index;
} net_fault_t;

extern const net_edge_t net_edges[NET_EDGES];
extern const uint32_t net_inputs[NET_INPUTS], net_outputs[NET_OUTPUTS];
extern const char *const net_layer_names[NET_LAYERS > 0 ? NET_LAYERS : 1];
extern const uint32_t net_samples;
extern const int32_t net_test_inputs[], net_test_outputs[];
extern const uint32_t net_test_crc[];

int32_t net_read(const net_t *net, const net_edge_t *edge, uint32_t index);
void net_write(const net_t *net, const net_edge_t *edge, uint32_t index, int32_t value);
uint32_t net_crc(const net_t *net, const net_edge_t *edge);
int net_selftest(net_t *net, net_fault_t *fault);
#endif
