#include "machine.h"

u64 recovery, exceptions, state;
u8 pool[POOL_PAGES][PAGE] __attribute__((aligned(2097152)));

u64 value(void)
{
    switch (below(8)) {
    case 0: return below(32);
    case 1: return -1ul - below(32);
    case 2: return 1ul << below(64);
    case 3: return (1ul << below(64)) - 1;
    case 4: return pool_page() | below(8);
    case 5: return (u32)any();
    case 6: return 64 * 1024 * 1024 - 2048 + below(4096); /* about the end of RAM */
    default: return any();
    }
}

/* ---- exceptions and interrupts: a dangerous instruction is skipped ---------------------------- */

struct frame {
    u64 r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax;
    u64 vector, error, rip, cs, flags, rsp, ss;
};

static struct { u16 low, selector; u8 stack, type; u16 middle; u32 high, zero; } idt[256];
static u64 gdt[8];
static struct { u32 zero; u64 stacks[3], zero2, ist[7]; u64 zero3; u16 zero4, bitmap; }
    __attribute__((packed)) tss;
static u8 exception_stack[4 * PAGE] __attribute__((aligned(16)));
u64 kernel_stack, kernel_return; /* written by run_unprivileged */

void handle(struct frame *frame)
{
    if (frame->vector >= 32)
        asm volatile("wrmsr" : : "c"(0x80B), "a"(0), "d"(0)); /* end of interrupt */
    else
        exceptions++;
    if (frame->cs & 3) {
        frame->rip = kernel_return;
        frame->rsp = kernel_stack;
        frame->cs = 0x10;
        frame->ss = 0x18;
        frame->flags = 2;
    } else if (frame->vector < 32 && recovery != 0) {
        frame->rip = recovery;
    } else if (frame->vector < 32) {
        u32 passes = 1 << 1 | 1 << 2 | 1 << 16 | 0xFFFC0000; /* debug, NMI, interrupts of ours */
        if (passes >> frame->vector & 1) {
            asm volatile("mov %0, %%dr7" : : "r"(0x400ul));
            asm volatile("wrmsr" : : "c"(0x80B), "a"(0), "d"(0));
        } else {
            /* A defect of this program, or the work of an attack that hit it: give up. */
            out8(0x3F8, 'E'), out8(0x3F8, 'A' + frame->vector), out8(0x3F8, '\n');
            out8(0x600, 5 << 2 | 1 << 5);
        }
    }
}

asm("stubs:\n"
    ".set vector, 0\n"
    ".rept 256\n"
    ".balign 16\n"
    ".if vector >= 32\n pushq $0\n .else\n" /* the others: those without an error code */
    ".if !((0x60227D00 >> vector) & 1)\n pushq $0\n .endif\n .endif\n"
    "pushq $vector\n"
    "jmp common\n"
    ".set vector, vector + 1\n"
    ".endr\n"
    "common: push %rax; push %rcx; push %rdx; push %rsi; push %rdi\n"
    "push %r8; push %r9; push %r10; push %r11\n"
    "cld; mov %rsp, %rdi; call handle\n"
    "pop %r11; pop %r10; pop %r9; pop %r8; pop %rdi; pop %rsi; pop %rdx; pop %rcx; pop %rax\n"
    "add $16, %rsp; iretq\n"
    ".globl run_unprivileged\n"
    "run_unprivileged: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp, kernel_stack(%rip); movq $1f, kernel_return(%rip)\n"
    "pushq $0x23; lea 4096(%rdi), %rax; push %rax; pushq $0x202; pushq $0x2B; push %rdi\n"
    "iretq\n"
    "1: cld; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n");
extern u8 stubs[];

void set_up_processor(void)
{
    for (int i = 0; i < 256; i++) {
        u64 at = (u64)stubs + i * 16;
        idt[i] = (typeof(idt[0])){at, 0x10, 1, 0x8E, at >> 16, at >> 32, 0};
    }
    u64 base = (u64)&tss;
    tss.stacks[0] = tss.ist[0] = (u64)exception_stack + sizeof exception_stack;
    tss.bitmap = sizeof tss;
    gdt[2] = 0x00AF9B000000FFFF;
    gdt[3] = 0x00CF93000000FFFF;
    gdt[4] = 0x00CFF3000000FFFF;
    gdt[5] = 0x00AFFB000000FFFF;
    gdt[6] = (sizeof tss - 1) | (base & 0xFFFFFF) << 16 | 0x89ul << 40 | (base >> 24 & 0xFF) << 56;
    gdt[7] = base >> 32;
    struct { u16 limit; u64 base; } __attribute__((packed)) table;
    table.limit = sizeof gdt - 1, table.base = (u64)gdt;
    asm volatile("lgdt %0" : : "m"(table));
    table.limit = sizeof idt - 1, table.base = (u64)idt;
    asm volatile("lidt %0; ltr %w1" : : "m"(table), "r"(0x30));
    /* Unprivileged code may use the pool: one large page. The loader's tables map all low RAM. */
    u64 *tables = (u64 *)0x4000;
    u64 *directory = (u64 *)0x6000;
    tables[0] |= 4, tables[512] |= 4, directory[(u64)pool >> 21] |= 4;
    asm volatile("mov %%cr3, %0; mov %0, %%cr3" : : "r"(base));
    /* SSE, so that random code meets vector instructions. */
    u64 cr0, cr4;
    asm volatile("mov %%cr0, %0; mov %%cr4, %1" : "=r"(cr0), "=r"(cr4));
    cr0 = (cr0 & ~0xEul) | 0x10002, cr4 |= 0x600;
    asm volatile("mov %0, %%cr0; mov %1, %%cr4" : : "r"(cr0), "r"(cr4));
}
