/* A bare-metal core hears one word: the self-test, the network on the features in heard.h, the word. */
#include <stdint.h>
#include <stdio.h>
#include "c/net_test.h"
#include "heard.h"

static union {
    int64_t aligned;
    unsigned char bytes[NET_ARENA];
} arena;

int main(void)
{
    const net_edge_t *input = &net_edges[net_inputs[0]], *output = &net_edges[net_outputs[0]];
    net_t net;
    net_fault_t fault;
    uint32_t i, best = 0;
    if (net_init(&net, arena.bytes, sizeof arena.bytes) != NET_OK)
        return 1;
    if (net_selftest(&net, &fault) != NET_OK) {
        printf("the core does not compute what the network does\n");
        return 1;
    }
    for (i = 0; i < input->size; ++i)
        net_write(&net, input, i, heard[i]);
    if (net_run(&net) != NET_OK)
        return 1;
    for (i = 1; i < output->size; ++i)
        if (net_read(&net, output, i) > net_read(&net, output, best))
            best = i;
    printf("%s\n", words[best]);
    return 0;
}
