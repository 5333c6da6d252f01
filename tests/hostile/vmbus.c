#include "vmbus.h"

#define CHANNELS 32
#define RING_PAGES 8 /* each direction, control page included */

static struct channel {
    u32 relid, gpadl;
    u8 open, from_host, greeted, started, storage;
    u32 write;
    u8 *ring;
} channels[CHANNELS];

static u8 rings[CHANNELS][2 * RING_PAGES][PAGE] __attribute__((aligned(4096)));
static u8 messages[PAGE] __attribute__((aligned(4096)));
static u8 events[PAGE] __attribute__((aligned(4096)));
static u8 hypercall_page[PAGE] __attribute__((aligned(4096)));
static u8 input[PAGE] __attribute__((aligned(4096)));
static u32 gpadls = 1;
static u64 contact_at;

/* Where the second writer finds what is worth scribbling over: see `Scribbler` in campaign.py. */
struct { u64 magic, messages, events, rings, rings_size; } targets = {
    0x6568747574686973, (u64)messages, (u64)events, (u64)rings, sizeof rings,
};

void set_up_synic(void)
{
    write_msr(0x40000000, 0x8100ul << 48 | 1);
    write_msr(0x40000001, (u64)hypercall_page | 1);
    write_msr(0x40000083, (u64)messages | 1);
    write_msr(0x40000082, (u64)events | 1);
    write_msr(0x40000092, rarely(2) ? 0xF3 : 0xF3 | 1 << 18);
    write_msr(0x40000080, 1);
    write_msr(0x1B, 0xFEE00D00); /* x2APIC on */
    write_msr(0x80F, 0x1FF);
    write_msr(0x808, 0);
}

static u64 hypercall(u64 control, u64 parameter)
{
    u64 status = -1;
    asm volatile(DANGEROUS("vmmcall")
                 : "+a"(status), "+c"(control), "+d"(parameter)
                 : : "r8", "r9", "r10", "r11", "memory");
    return status;
}

static u64 post(u32 connection, u32 kind, const void *body, u32 size)
{
    u32 *words = (u32 *)input;
    words[0] = connection, words[1] = 0, words[2] = kind, words[3] = size;
    for (u32 i = 0; i < 240; i++)
        input[16 + i] = i < size ? ((const u8 *)body)[i] : 0;
    return hypercall(0x5C, (u64)input);
}

static void signal(u32 relid)
{
    hypercall(0x1005D, 0x2000 | relid);
}

void connect(void)
{
    u32 message[10] = {14, 0, 0x50003, 0, 2, 0, 0, 0, 0, 0};
    for (u32 i = 0; i < CHANNELS; i++)
        channels[i] = (struct channel){0};
    post(4, 1, message, sizeof message);
    u32 offers[2] = {3, 0};
    post(1, 1, offers, sizeof offers);
    contact_at = now();
}

/* Asks for the greeting connection, or for one to some other port. */
static void ask_for_connection(void)
{
    static const u8 vsock[12] = {0xCB, 0xFA, 0xE6, 0x11, 0xBD, 0x58,
                                 0x64, 0x00, 0x6A, 0x79, 0x86, 0xD3};
    u8 message[40] = {21};
    u32 port = rarely(8) ? value() : 0x7E07, mine = any();
    for (int i = 0; i < 4; i++) {
        message[8 + i] = mine >> 8 * i;
        message[24 + i] = port >> 8 * i;
    }
    for (int i = 0; i < 12; i++)
        message[12 + i] = message[28 + i] = vsock[i];
    post(1, 1, message, sizeof message);
}

/* Describes the channel's ring, with luck correctly, and opens the channel over it. */
static void open_channel(struct channel *channel)
{
    static u8 body[240];
    u32 *words = (u32 *)body;
    u64 *pages = (u64 *)(body + 28);
    u32 count = 2 * RING_PAGES, lie = rarely(channel->storage ? 30 : 6) ? 1 + below(6) : 0;
    channel->gpadl = gpadls++;
    channel->write = 0;
    for (u32 i = 0; i < sizeof(rings[0]); i += 8)
        if (i % PAGE < 128)
            *(u64 *)(channel->ring + i) = 0;
    words[0] = 8, words[1] = 0, words[2] = channel->relid, words[3] = channel->gpadl;
    words[4] = (8 + 8 * count) | 1 << 16;
    words[5] = count * PAGE, words[6] = 0;
    for (u32 i = 0; i < count; i++)
        pages[i] = ((u64)channel->ring >> 12) + i;
    switch (lie) {
    case 1: words[2 + below(5)] = value(); break;
    case 2: pages[below(count)] = value(); break;
    case 3: for (u32 i = 0; i < count; i++) pages[i] = pages[0]; break; /* all the same page */
    case 4: for (u32 i = 0; i < count; i++) pages[i] = ((u64)messages >> 12); break;
    case 5: for (u32 i = 0; i < count; i++) pages[i] = pool_page() >> 12; break;
    }
    post(1, 1, body, 28 + 8 * (lie == 6 ? below(26) : count));
    if (lie == 5)
        for (u32 i = 0; i < 8; i++)
            ((u32 *)channel->ring)[below(5)] = value();
    u32 *opening = words;
    opening[0] = 5, opening[1] = 0, opening[2] = channel->relid, opening[3] = 1;
    opening[4] = channel->gpadl, opening[5] = 0;
    opening[6] = rarely(10) ? value() : RING_PAGES;
    for (u32 i = 7; i < 37; i++)
        opening[i] = 0;
    if (rarely(10))
        opening[2 + below(5)] = value();
    post(1, 1, body, 148);
    channel->open = 1;
}

static void offered(u32 *body)
{
    u8 *bytes = (u8 *)body;
    for (u32 i = 0; i < CHANNELS; i++) {
        struct channel *channel = &channels[i];
        if (channel->relid)
            continue;
        channel->relid = body[2 + 176 / 4];
        channel->from_host = bytes[8 + 52 + 4];
        channel->storage = body[2] == 0xBA6163D9;
        channel->ring = rings[i][0];
        channel->greeted = channel->started = 0;
        open_channel(channel);
        return;
    }
}

static void rescinded(u32 relid)
{
    u32 message[3] = {7, 0, relid};
    if (!rarely(8))
        post(1, 1, message, sizeof message);
    message[0] = 13;
    if (!rarely(8))
        post(1, 1, message, sizeof message);
    for (u32 i = 0; i < CHANNELS; i++)
        if (channels[i].relid == relid)
            channels[i] = (struct channel){0};
}

void take_messages(void)
{
    for (int i = 0; i < 64; i++) {
        volatile u32 *slot = (volatile u32 *)(messages + 0x200);
        if (slot[0] == 0)
            break;
        static u32 body[60];
        for (u32 j = 0; j < 60; j++)
            body[j] = slot[4 + j];
        slot[0] = 0;
        write_msr(0x40000084, 0);
        if (body[0] == 1)
            offered(body);
        else if (body[0] == 2)
            rescinded(body[2]);
        else if (body[0] == 4)
            ask_for_connection();
    }
    if (now() - contact_at > 2000) /* everything may be broken by now: begin anew */
        connect();
    if (rarely(50))
        ask_for_connection();
}

void send_nonsense(void)
{
    static u32 message[60];
    struct channel *channel = &channels[below(CHANNELS)];
    for (u32 i = 0; i < LENGTH(message); i++)
        message[i] = rarely(3) ? value() : rarely(2) ? channel->relid : channel->gpadl;
    message[0] = rarely(8) ? value() : below(30);
    if (message[0] == 14 || message[0] == 16)
        message[0] = rarely(50) ? message[0] : 22; /* these two undo everything */
    message[1] = rarely(8) ? value() : 0;
    u32 size = rarely(4) ? below(260) : 240;
    post(rarely(16) ? value() : 1, rarely(16) ? value() : 1, message, size);
}

void call_nonsense(void)
{
    static const u64 codes[] = {0x5C, 0x5D, 0x1005D, 0x1005C, 0x2, 0x3, 0xB, 0x8001};
    u64 control = rarely(3) ? value() : codes[below(LENGTH(codes))];
    if (rarely(4))
        control |= 1ul << below(64);
    u64 at = rarely(3) ? value() : (u64)input + (rarely(4) ? below(PAGE) : 0);
    hypercall(control, rarely(4) ? 0x2000 | below(2100) : at);
}

/* ---- rings ------------------------------------------------------------------------------------ */

static u8 *ring_byte(struct channel *channel, u32 at)
{
    return channel->ring + PAGE + at % ((RING_PAGES - 1) * PAGE);
}

static void ring_put(struct channel *channel, u64 data, u32 size)
{
    for (u32 i = 0; i < size; i++)
        *ring_byte(channel, channel->write + i) = data >> 8 * (i & 7);
    channel->write = (channel->write + size) % ((RING_PAGES - 1) * PAGE);
}

/* One hv_sock packet around one frame of the agent; any field may lie. */
static void send_frame(struct channel *channel, u8 kind, u32 length, u32 first, int lie)
{
    u32 start = channel->write, data = 8 + length, padded = (8 + data + 7) & ~7u;
    u16 offset = 2, words = 2 + padded / 8, type = 6;
    u32 header = 1, size = data, frame_length = length;
    switch (lie) {
    case 1: type = value(); break;
    case 2: offset = value(); break;
    case 3: words = value(); break;
    case 4: header = value(); break;
    case 5: size = value(); break;
    case 6: frame_length = value(); break;
    }
    ring_put(channel, type | (u64)offset << 16 | (u64)words << 32 | (u64)below(2) << 48, 8);
    ring_put(channel, any(), 8);
    ring_put(channel, header | (u64)size << 32, 8);
    ring_put(channel, kind | (u64)frame_length << 32, 8);
    for (u32 at = 0; at < padded - 16; at += 8)
        ring_put(channel, at == 0 ? first : any(), 8);
    ring_put(channel, (u64)start << 32, 8);
    *(volatile u32 *)channel->ring = lie == 7 ? value() : channel->write;
}

/* One packet of a disk driver: a step of the handshake, or a SCSI command with its page list. */
static void send_request(struct channel *channel)
{
    static const u8 handshake[] = {7, 9, 10, 8};
    static const u8 commands[] = {0x00, 0x08, 0x0A, 0x12, 0x1A, 0x25, 0x28, 0x28, 0x2A, 0x2A,
                                  0x35, 0x42, 0x88, 0x8A, 0x93, 0x9E, 0xA0};
    int lie = rarely(6) ? 1 + below(12) : 0;
    u32 start = channel->write, greeting = channel->started < LENGTH(handshake);
    u8 operation = greeting ? handshake[channel->started++] : rarely(100) ? below(16) : 3;
    u32 pages = operation == 3 && !rarely(4) ? 1 + below(4) : 0, length = pages * PAGE;
    u32 offset = pages && rarely(4) ? below(PAGE) : 0, count = 1, sectors = (length - offset) / 512;
    u64 type = pages ? 9 : 6, head = 2 + (pages ? 2 + pages : 0), words = head + 8, flags = 1;
    u8 code = rarely(20) ? any() : commands[below(LENGTH(commands))], size = 16;
    u8 direction = pages ? code == 0x0A || code == 0x2A || code == 0x8A ? 0 : 1 : 2;
    u32 data = sectors * 512, sector = rarely(4) ? value() : below(5000), srb = 52;
    switch (lie) {
    case 1: if (rarely(20)) type = value(); break; /* these four end the channel */
    case 2: if (rarely(20)) head = below(words + 4); break;
    case 3: if (rarely(20)) words = below(64); break;
    case 4: if (rarely(20)) flags = below(4); break;
    case 5: count = value(); break;
    case 6: length = value(); break;
    case 7: offset = value(); break;
    case 8: data = value(); break;
    case 9: srb = value(); break;
    case 10: size = any(); break;
    case 11: direction = any(); break;
    case 12: sectors = value(); break;
    }
    ring_put(channel, (u16)type | (u16)head << 16 | (u64)(u16)words << 32 | flags << 48, 8);
    ring_put(channel, any(), 8);
    if (pages) {
        ring_put(channel, (u64)count << 32, 8);
        ring_put(channel, (u32)(length - (lie ? 0 : offset)) | (u64)offset << 32, 8);
    }
    for (u32 i = 0; i < pages; i++)
        ring_put(channel, rarely(30) ? value() : pool_page() >> 12, 8);
    ring_put(channel, operation | 1ul << 32, 8);
    ring_put(channel, (u64)(u16)(operation == 9 ? 0x602 : srb) << 32, 8);
    ring_put(channel, (u64)(rarely(20) ? any() : below(4)) << 24 | (u64)size << 32
                      | (u64)direction << 48, 8);
    /* The sector and the number of sectors are where the 10-byte commands have them. */
    ring_put(channel, data | (u64)code << 32 | (u64)(sector >> 24) << 48
                      | (u64)(u8)(sector >> 16) << 56, 8);
    ring_put(channel, (u8)(sector >> 8) | (sector & 0xFF) << 8 | (u64)(u8)(sectors >> 8) << 24
                      | (u64)(u8)sectors << 32, 8);
    for (int i = 0; i < 3; i++)
        ring_put(channel, 0, 8);
    ring_put(channel, (u64)start << 32, 8);
    *(volatile u32 *)channel->ring = channel->write;
}

void talk(void)
{
    struct channel *channel = &channels[below(CHANNELS)];
    for (u32 i = 0; i < CHANNELS && rarely(3); i++)
        if (channels[i].storage)
            channel = &channels[i];
    if (!channel->open)
        return;
    volatile u32 *back = (volatile u32 *)(channel->ring + RING_PAGES * PAGE);
    if (!rarely(8))
        back[1] = rarely(20) ? value() : back[0]; /* what the host wrote is read */
    int lie = rarely(12) ? 1 + below(7) : 0;
    u32 used = channel->write - ((volatile u32 *)channel->ring)[1];
    if (used > 8 * PAGE && !rarely(20))
        used += (RING_PAGES - 1) * PAGE;
    if (used > (RING_PAGES - 3) * PAGE && !rarely(20)) {
        signal(channel->relid);
        return;
    }
    if (channel->storage) {
        send_request(channel);
    } else if (!channel->from_host && !channel->greeted) {
        channel->greeted = 1;
        send_frame(channel, 0x80, 4, 1, 0);
    } else if (!channel->from_host) {
        if (rarely(20000)) /* the second word of an agent that has greeted is its last */
            send_frame(channel, value(), below(64), value(), lie);
    } else if (!channel->started) {
        channel->started = 1;
        send_frame(channel, 0x81, 4, value(), rarely(4) ? lie : 0);
    } else {
        static const u8 kinds[] = {0x82, 0x82, 0x82, 0x83, 0x83, 0x86};
        u8 kind = rarely(60) ? 0x84 : rarely(60) ? 0x85 + below(3) : rarely(60) ? any() : kinds[below(LENGTH(kinds))];
        u32 length = kind == 0x82 || kind == 0x83 ? below(rarely(8) ? 4 : 2048) : kind == 0x87 ? 8
                   : kind == 0x84 ? 8 : kind == 0x86 ? 4 : 4 + below(40);
        send_frame(channel, kind, rarely(30) ? below(300) : length,
                   kind == 0x84 ? below(2) : rarely(4) ? value() : below(200), lie);
    }
    signal(channel->relid);
}

void scribble(void)
{
    struct channel *channel = &channels[below(CHANNELS)];
    switch (below(8)) {
    case 0: *(u32 *)(messages + 4 * below(1024)) = value(); break;
    case 1: *(u32 *)(events + 4 * below(1024)) = value(); break;
    case 2: *(u32 *)(input + 4 * below(1024)) = value(); break;
    case 3: hypercall(0x1005D, 0x2000 | below(64)); break;
    default:
        if (!channel->open || (!channel->from_host && !rarely(1000)))
            return;
        u32 page = below(2) * RING_PAGES;
        if (rarely(3)) /* index, mask, pending size, features */
            ((volatile u32 *)(channel->ring + page * PAGE))[rarely(4) ? 16 : below(4)] = value();
        else
            *(volatile u64 *)(channel->ring + 8 * below(2 * RING_PAGES * PAGE / 8)) = value();
        signal(channel->relid);
    }
}
