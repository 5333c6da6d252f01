/* A hostile root user of a stock kernel that has the driver for MSRs: `registers SUBJECT SEED` tries
 * every MSR, or hypercalls from user mode; prints how many attempts were refused. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t state;
static unsigned refused;
static sigjmp_buf after;

static uint64_t dice(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static void on_signal(int number) {
    (void)number;
    refused++;
    siglongjmp(after, 1);
}

/* Reads, then writes; `all` includes those MSRs that the guest's own kernel cannot live without. */
static void msrs(int all) {
    static const uint32_t ranges[][2] = {
        {0, 0x2000}, {0x40000000, 0x40000200}, {0xc0000000, 0xc0002000}, {0xc0010000, 0xc0011200}};
    int file = open("/dev/cpu/0/msr", O_RDWR);
    if (file < 0)
        exit(1);
    for (unsigned range = 0; range < sizeof ranges / sizeof *ranges; range++)
        for (uint32_t msr = ranges[range][0]; msr < ranges[range][1]; msr++) {
            uint64_t value = dice();
            int vital = (msr >= 0xc0000080 && msr <= 0xc0000103) || (msr >= 0x800 && msr <= 0x83f) ||
                        (msr >= 0x40000000 && msr <= 0x400001ff) || msr == 0x1b || msr == 0x10 ||
                        (msr >= 0x174 && msr <= 0x176) || msr == 0x277;
            uint64_t old;
            refused += pread(file, &old, 8, msr) != 8;
            if (all || !vital)
                refused += pwrite(file, &value, 8, msr) != 8;
        }
}

/* Hypercalls from user mode: none may get through. */
static void hypercalls(void) {
    signal(SIGILL, on_signal), signal(SIGSEGV, on_signal), signal(SIGBUS, on_signal);
    for (volatile int tries = 0; tries < 1000; tries++)
        if (sigsetjmp(after, 1) == 0) {
            uint64_t result = dice();
            register uint64_t r8 __asm__("r8") = dice();
            if (tries & 1)
                __asm__ volatile("vmmcall" : "+a"(result) : "c"(dice()), "d"(dice()), "r"(r8) : "memory");
            else
                __asm__ volatile("vmcall" : "+a"(result) : "c"(dice()), "d"(dice()), "r"(r8) : "memory");
        }
}

int main(int count, char **words) {
    if (count != 3)
        return 2;
    state = strtoull(words[2], NULL, 0) | 1;
    if (!strcmp(words[1], "msrs"))
        msrs(0);
    else if (!strcmp(words[1], "all-msrs"))
        msrs(1);
    else if (!strcmp(words[1], "hypercalls"))
        hypercalls();
    else
        return 2;
    printf("%u\n", refused);
    return 0;
}
