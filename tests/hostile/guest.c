/* A guest that attacks the machine it runs on, loaded in place of a kernel. Its command line is
 * "seed=N milliseconds=N"; when its time is over it switches the machine off. */
#include "vmbus.h"

static void attack_msrs(void)
{
    static const u32 ranges[][2] = {
        {0x40000000, 0x200}, {0x40000080, 0x40}, {0x800, 0x40}, {0, 0x400}, {0xC0000080, 0x200},
        {0xC0010000, 0x200}, {0x40000100, 8}, {0x480, 0x20},
    };
    const u32 *range = ranges[below(LENGTH(ranges))];
    u32 msr = rarely(20) ? (u32)value() : range[0] + below(range[1]);
    u64 content = value();
    if (msr == 0x40000105 && !rarely(1000))
        content &= ~(1ul << 63); /* a crash report would end the machine */
    if (rarely(3))
        read_msr(msr);
    else
        write_msr(msr, content);
}

static void attack_ports(void)
{
    static const u16 known[] = {0x3F8, 0x70, 0x71, 0x600, 0x601, 0x602, 0xCF8, 0xCFC, 0x80, 0x64};
    u16 port = rarely(3) ? any() : known[below(LENGTH(known))] + below(4);
    u32 data = value();
    if (port >= 0x5FD && port <= 0x602 && !rarely(1000))
        data &= ~0x3Ful; /* off and reset would end the machine */
    if (port >= 0x3F8 && port <= 0x3FF && !rarely(100))
        port = 0x3FB; /* a little console goes a long way */
    u64 address = rarely(2) ? pool_page() : value(), count = below(64);
    switch (below(7)) {
    case 0: asm volatile(DANGEROUS("inb %1, %b0") : "+a"(data) : "d"(port)); break;
    case 1: asm volatile(DANGEROUS("inl %1, %0") : "+a"(data) : "d"(port)); break;
    case 2: asm volatile(DANGEROUS("outb %b0, %1") : : "a"(data), "d"(port)); break;
    case 3: asm volatile(DANGEROUS("outw %w0, %1") : : "a"(data), "d"(port)); break;
    case 4: asm volatile(DANGEROUS("outl %0, %1") : : "a"(data), "d"(port)); break;
    case 5:
        if (port < 0x5FD || port > 0x602)
            asm volatile(DANGEROUS("rep outsb") : "+S"(address), "+c"(count) : "d"(port) : "memory");
        break;
    case 6:
        address = pool_page();
        asm volatile(DANGEROUS("rep insb") : "+D"(address), "+c"(count) : "d"(port) : "memory");
    }
}

/* Tables full of nonsense below an address-space slot of their own, then walks through them. */
static void attack_page_tables(void)
{
    u64 *root = (u64 *)0x4000;
    u32 slot = 1 + below(511);
    u64 page = pool_page();
    for (int i = 0; i < 16; i++)
        ((u64 *)page)[below(512)] = (rarely(3) ? any() : pool_page()) | below(256) | (rarely(4) << 7);
    root[slot] = rarely(4) ? value() : page | below(256) | 1;
    for (int i = 0; i < 16; i++) {
        u64 address = (u64)slot << 39 | (any() & 0x7FFFFFFFFF);
        address = (u64)((long)(address << 16) >> 16);
        if (rarely(3))
            asm volatile("invlpg (%0)" : : "r"(address) : "memory");
        else
            peek(address);
    }
    root[slot] = 0;
    asm volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
}

static void attack_control_registers(void)
{
    u64 cr0, cr4, content = value(), descriptor[2] = {any(), any()};
    asm volatile("mov %%cr0, %0; mov %%cr4, %1" : "=r"(cr0), "=r"(cr4));
    switch (below(12)) {
    case 0: asm volatile(DANGEROUS("mov %0, %%cr0") : : "r"(cr0 ^ 1ul << below(64))); break;
    case 1: asm volatile(DANGEROUS("mov %0, %%cr4") : : "r"(cr4 ^ 1ul << below(64))); break;
    case 2: asm volatile(DANGEROUS("mov %0, %%cr8") : : "r"(content)); break;
    case 3: asm volatile(DANGEROUS("mov %0, %%dr7") : : "r"(content & ~0xFFul)); break;
    case 4: asm volatile(DANGEROUS("xsetbv") : : "a"(content), "d"(content >> 32), "c"(below(3))); break;
    case 5: asm volatile(DANGEROUS("mov %w0, %%es") : : "r"(content)); break;
    case 6: asm volatile(DANGEROUS("ltr %w0") : : "r"(content)); break;
    case 7: asm volatile(DANGEROUS("lldt %w0") : : "r"(content)); break;
    case 8: asm volatile(DANGEROUS("fxrstor (%0)") : : "r"(content)); break;
    case 9: asm volatile(DANGEROUS("invpcid %1, %0") : : "r"(content), "m"(descriptor)); break;
    case 10: asm volatile(DANGEROUS("rdpmc") : : "c"(content) : "rax", "rdx"); break;
    case 11: {
        u32 a = content, b, c = value(), d;
        asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    }
    }
    asm volatile("mov %0, %%cr0; mov %1, %%cr4" : : "r"(cr0), "r"(cr4));
    asm volatile("mov %0, %%cr8; mov %1, %%dr7; mov %w0, %%es" : : "r"(0ul), "r"(0x400ul));
}

static void arm_timer(u64 ticks)
{
    write_msr(0x400000B0, 0x1ED9); /* direct, vector 0xED, armed by its count */
    write_msr(0x400000B1, read_msr(0x40000020) + ticks);
}

/* Random bytes, and pieces of real instructions, as an unprivileged program. */
static void attack_as_program(void)
{
    static const u8 prefixes[] = {0x0F, 0x66, 0xF2, 0xF3, 0x48, 0x4C, 0x41, 0xF0, 0x67, 0x64};
    u64 page = pool_page();
    for (u32 i = 0; i < PAGE / 8; i++)
        ((u64 *)page)[i] = any();
    for (u32 i = 0; i < PAGE; i += 1 + below(16))
        ((u8 *)page)[i] = prefixes[below(LENGTH(prefixes))];
    write_msr(0xC0000080, read_msr(0xC0000080) & ~1ul); /* no SYSCALL, no SYSENTER */
    write_msr(0x174, 0);
    write_msr(0x1B, 0xFEE00D00);
    write_msr(0x80F, 0x1FF);
    write_msr(0x808, 0);
    for (int i = 0; i < 16; i++) {
        arm_timer(5000);
        run_unprivileged(page + below(2048));
    }
}

static void sleep(void)
{
    arm_timer(below(10000));
    asm volatile("sti; hlt; cli");
}

static u64 parameter(const char *name)
{
    for (const char *text = (const char *)0x3000; *text; text++) {
        const char *at = text, *wanted = name;
        while (*wanted && *at == *wanted)
            at++, wanted++;
        if (*wanted)
            continue;
        u64 number = 0;
        while (*at >= '0' && *at <= '9')
            number = number * 10 + *at++ - '0';
        return number;
    }
    return 0;
}

void attack(void)
{
    set_up_processor();
    state = parameter("seed=") * 0x9E3779B97F4A7C15 + 1;
    u64 end = now() + parameter("milliseconds=");
    set_up_synic();
    connect();
    for (u64 step = 0; now() < end; step++) {
        if (step % 64 == 0)
            set_up_synic();
        take_messages();
        asm volatile("sti; nop; cli");
        switch (below(20)) {
        case 0: attack_msrs(); break;
        case 1: attack_ports(); break;
        case 2: call_nonsense(); break;
        case 3: send_nonsense(); break;
        case 4: scribble(); break;
        case 5: rarely(8) ? attack_page_tables() : attack_control_registers(); break;
        case 6: if (rarely(32)) attack_as_program(); break;
        case 7: if (rarely(32)) sleep(); break;
        default: talk();
        }
    }
    out8(0x600, 5 << 2 | 1 << 5);
    for (;;)
        asm volatile("cli; hlt");
}

asm(".text\n.globl _start\n_start: lea stack_end(%rip), %rsp; jmp attack\n"
    ".section .bss\n.balign 16\n.skip 65536\nstack_end:\n.text\n");
