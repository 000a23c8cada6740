/* A core without an operating system: the self-test, and how many instructions a run takes (RISC-V). `printf` is
   whatever the board's C library makes of it; with picolibc and semihosting it comes out of the emulator or debugger. */
#include <stdio.h>
#include "net_test.h"

static union {
    int64_t aligned;
    unsigned char bytes[NET_ARENA];
} arena;

static uint32_t instructions(void)
{
#if defined(__riscv)
    unsigned long count;
    /* csrr count, minstret; written out, since an assembler wants to be told that there are such registers */
    __asm__ volatile(".insn i 0x73, 2, %0, x0, -1278" : "=r"(count));
    return (uint32_t)count;
#else
    return 0;
#endif
}

int main(void)
{
    net_t net;
    net_fault_t fault;
    uint32_t begin;
    int error = net_init(&net, arena.bytes, sizeof arena.bytes);
    if (!error)
        error = net_selftest(&net, &fault);
    if (error == NET_ERROR_DIFFERENT)
        printf("sample %u: layer %d, edge %s differs\n", (unsigned)fault.sample, (int)fault.layer,
               net_edges[fault.edge].name);
    else if (error)
        printf("error %d\n", error);
    else {
        begin = instructions();
        error = net_run(&net);
        printf("equal; %lu instructions a run\n", (unsigned long)(instructions() - begin));
    }
    return error;
}
