/* The machine as a bare 64-bit guest sees it: instructions, exceptions survived, random numbers. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define PAGE 4096ul
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* Where an exception goes on: every dangerous instruction names the place behind itself. */
extern u64 recovery;
extern u64 exceptions;

#define DANGEROUS(instruction) \
    "movq $1f, recovery(%%rip)\n\t" instruction "\n1: movq $0, recovery(%%rip)\n\t"

static inline u64 read_msr(u32 msr)
{
    u32 low = 0, high = 0;
    asm volatile(DANGEROUS("rdmsr") : "+a"(low), "+d"(high) : "c"(msr) : "memory");
    return (u64)high << 32 | low;
}

static inline void write_msr(u32 msr, u64 value)
{
    asm volatile(DANGEROUS("wrmsr") : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static inline u64 peek(u64 address)
{
    u64 value = 0;
    asm volatile(DANGEROUS("movq (%1), %0") : "+a"(value) : "r"(address) : "memory");
    return value;
}

static inline void poke(u64 address, u64 value)
{
    asm volatile(DANGEROUS("movq %1, (%0)") : : "r"(address), "a"(value) : "memory");
}

static inline void out8(u16 port, u8 value)
{
    asm volatile(DANGEROUS("outb %0, %1") : : "a"(value), "d"(port) : "memory");
}

/* xorshift64*: the same seed gives the same attack. */
extern u64 state;

static inline u64 any(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545F4914F6CDD1Dul;
}

static inline u64 below(u64 limit)
{
    return (any() >> 11) % limit;
}

static inline int rarely(u64 times)
{
    return below(times) == 0;
}

/* Pages that attacks may destroy, and values that programs get wrong more often than others. */
#define POOL_PAGES 512
extern u8 pool[POOL_PAGES][PAGE];

static inline u64 pool_page(void)
{
    return (u64)pool[below(POOL_PAGES)];
}

u64 value(void);

/* Milliseconds since the machine was made. */
static inline u64 now(void)
{
    return read_msr(0x40000020) / 10000;
}

void set_up_processor(void);
/* Runs the code at `start` as an unprivileged program until an exception or the timer. */
void run_unprivileged(u64 start);
