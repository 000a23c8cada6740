/* The names of edges and layers, reading edges in the program's order, and the self-test. */
#include "net_test.h"

int32_t net_read(const net_t *net, const net_edge_t *edge, uint32_t index)
{
    const unsigned char *p = net->arena + edge->at;
    int32_t offset = 0, d;
    for (d = NET_AXES - 1; d >= 0; --d) {
        offset += (int32_t)(index % edge->shape[d]) * edge->stride[d];
        index /= edge->shape[d];
    }
    if (edge->type == NET_INT8)
        return *(const int8_t *)(p + offset);
    if (edge->type == NET_UINT8)
        return *(p + offset);
    p += offset * (edge->type == NET_INT32 ? 4 : 2);
    if (edge->type == NET_INT16)
        return *(const net_i16_t *)(const void *)p;
    if (edge->type == NET_UINT16)
        return *(const net_u16_t *)(const void *)p;
    return *(const net_i32_t *)(const void *)p;
}

void net_write(const net_t *net, const net_edge_t *edge, uint32_t index, int32_t value)
{
    unsigned char *p = net->arena + edge->at;
    int32_t offset = 0, d;
    for (d = NET_AXES - 1; d >= 0; --d) {
        offset += (int32_t)(index % edge->shape[d]) * edge->stride[d];
        index /= edge->shape[d];
    }
    if (edge->type <= NET_UINT8)
        *(p + offset) = (unsigned char)value;
    else if (edge->type <= NET_UINT16)
        *(net_u16_t *)(void *)(p + 2 * offset) = (uint16_t)value;
    else
        *(net_i32_t *)(void *)(p + 4 * offset) = value;
}

static uint32_t crc32(uint32_t crc, uint32_t byte)
{
    int32_t k;
    crc ^= byte;
    for (k = 0; k < 8; ++k)
        crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
    return crc;
}

uint32_t net_crc(const net_t *net, const net_edge_t *edge)
{
    uint32_t crc = 0xffffffffu, i, k;
    for (i = 0; i < edge->size; ++i) {
        const uint32_t value = (uint32_t)net_read(net, edge, i);
        for (k = 0; k < edge->bytes; ++k)
            crc = crc32(crc, (value >> (8 * k)) & 0xffu);
    }
    return ~crc;
}

int net_selftest(net_t *net, net_fault_t *fault)
{
    const int32_t *given = net_test_inputs, *wanted = net_test_outputs;
    uint32_t sample, e, i;
    int32_t k;
    for (sample = 0; sample < net_samples; ++sample) {
        for (e = 0; e < NET_INPUTS; ++e)
            for (i = 0; i < net_edges[net_inputs[e]].size; ++i)
                net_write(net, &net_edges[net_inputs[e]], i, *given++);
        for (k = -1; k < NET_LAYERS; ++k) {
            const int error = k < 0 ? NET_OK : net_run_layer(net, k);
            if (error)
                return error;
            for (e = 0; e < NET_EDGES; ++e)
                if (net_edges[e].last == k && net_crc(net, &net_edges[e]) != net_test_crc[sample * NET_EDGES + e]) {
                    fault->sample = sample;
                    fault->layer = k;
                    fault->edge = e;
                    fault->index = -1;
                    for (i = 0; i < NET_OUTPUTS; ++i) {
                        uint32_t j;
                        for (j = 0; j < net_edges[net_outputs[i]].size; ++j, ++wanted)
                            if (net_outputs[i] == e && fault->index < 0 && net_read(net, &net_edges[e], j) != *wanted)
                                fault->index = (int32_t)j;
                    }
                    return NET_ERROR_DIFFERENT;
                }
        }
        for (e = 0; e < NET_OUTPUTS; ++e)
            wanted += net_edges[net_outputs[e]].size;
    }
    return NET_OK;
}
