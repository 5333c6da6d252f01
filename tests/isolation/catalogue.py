"""What an attacker tries from inside a process of a VM: one list for both processes.

Each attack is tried behind all walls, and again behind all but the system-call filter, as if the
attacker had found a hole in it: what the walls behind it say then.
"""

from typing import Final, NamedTuple

from .prison import call

AT_FDCWD: Final = -100
O_CREAT_WRITE: Final = 0o101
INET, UNIX, NETLINK, PACKET = 2, 1, 16, 17
STREAM, DATAGRAM, RAW = 1, 2, 3
SIGCHLD: Final = 17
PTRACE_ATTACH: Final = 16
LEFT_OPEN: Final = 877
"""A descriptor that nobody else has: the process that runs the tests may hold hundreds."""
ALL_LIMITS: Final = "x:" + "ff" * 16

EIGHT_BYTES: Final = "x:0000400000000000" + "0800000000000000"

LOCALHOST_TCP: Final = "x:02000016" + "7f000001" + "00" * 8
INTERNET_UDP: Final = "x:02000035" + "08080808" + "00" * 8


class Attack(NamedTuple):
    """One thing to try.

    Attributes:
        goal: what the attacker wants.
        calls: system calls in the prisoners' language; it has worked if the last one does.
        second_wall: what stands behind the filter; empty when nothing else does.
    """

    goal: str
    calls: str
    second_wall: str


def _then(*calls: str) -> str:
    return " ; ".join(calls)


def _open(path: str, flags: int = 0) -> str:
    return call("openat", AT_FDCWD, f"s:{path}", flags, 0o600)


ROOT_AND_LANDLOCK: Final = "empty root, Landlock"
CAPABILITIES: Final = "capabilities"

CATALOGUE: Final = (
    # files
    Attack("read a file of the host", _open("/etc/passwd"), ROOT_AND_LANDLOCK),
    Attack("list the root directory", _open("/", 0o200000), ROOT_AND_LANDLOCK),
    Attack("climb out of the root", _open("../../../../../../etc/passwd"), ROOT_AND_LANDLOCK),
    Attack("create a file", _open("/x", O_CREAT_WRITE), ROOT_AND_LANDLOCK),
    Attack("create a file without a name", _open("/", 0o20200002), ROOT_AND_LANDLOCK),
    Attack("make a directory", call("mkdir", "s:/x", 0o777), ROOT_AND_LANDLOCK),
    Attack("make a device node", call("mknod", "s:/x", 0o060600, 0xFE00), ROOT_AND_LANDLOCK),
    Attack("look for a file", call("access", "s:/etc/passwd", 0), "empty root"),
    Attack("enter a directory", call("chdir", "s:/etc"), "empty root"),
    Attack(
        "open by handle",
        call("open_by_handle_at", AT_FDCWD, "x:0800000001000000" + "01" * 8, 0),
        CAPABILITIES,
    ),
    Attack("use a descriptor left open", call("read", LEFT_OPEN, "buffer", 16), "descriptors"),
    # other processes
    Attack("read another process's memory", _open("/proc/1/mem"), ROOT_AND_LANDLOCK),
    Attack("read its own /proc", _open("/proc/self/maps"), ROOT_AND_LANDLOCK),
    Attack(
        "trace the process that started it",
        call("ptrace", PTRACE_ATTACH, "parent", 0, 0),
        "identity, user namespace, Landlock",
    ),
    Attack(
        "read the memory of the process that started it",
        call("process_vm_readv", "parent", EIGHT_BYTES, 1, EIGHT_BYTES, 1, 0),
        "identity, user namespace, Landlock",
    ),
    Attack(
        "take a descriptor of the process that started it",
        _then(call("pidfd_open", "parent", 0), call("pidfd_getfd", "r0", 0, 0)),
        "identity, user namespace, limits",
    ),
    Attack("signal the process that started it", call("kill", "parent", 0), "Landlock"),
    Attack("signal init", call("kill", 1, 0), "identity, Landlock"),
    Attack("queue a signal", call("rt_sigqueueinfo", "parent", 10, "x:" + "00" * 128), "Landlock"),
    # new processes
    Attack("fork", call("fork"), "limits"),
    Attack("clone", call("clone", SIGCHLD, 0, 0, 0, 0), "limits"),
    Attack("vfork", call("clone", SIGCHLD | 0x4000, 0, 0, 0, 0), "limits"),
    Attack("start a thread", call("clone", 0x10F00, "buffer", 0, 0, 0), "limits"),
    Attack("execute a shell", call("execve", "s:/bin/sh", 0, 0), "empty root, Landlock"),
    # network
    Attack(
        "connect to a service of the host",
        _then(call("socket", INET, STREAM, 0), call("connect", "r0", LOCALHOST_TCP, 16)),
        "network namespace, Landlock",
    ),
    Attack(
        "send a packet to the Internet",
        _then(
            call("socket", INET, DATAGRAM, 0),
            call("sendto", "r0", "buffer", 1, 0, INTERNET_UDP, 16),
        ),
        "network namespace",
    ),
    Attack("open a raw socket", call("socket", INET, RAW, 255), CAPABILITIES),
    Attack("open a packet socket", call("socket", PACKET, RAW, 0), CAPABILITIES),
    Attack(
        "listen on a TCP port",
        _then(
            call("socket", INET, STREAM, 0),
            call("bind", "r0", "x:02001f90" + "00" * 12, 16),
        ),
        "Landlock",
    ),
    # namespaces and mounts
    Attack("mount a file system", call("mount", "s:x", "s:/", "s:tmpfs", 0, 0), CAPABILITIES),
    Attack("unmount the root", call("umount2", "s:/", 2), CAPABILITIES),
    Attack("pivot the root", call("pivot_root", "s:/", "s:/"), CAPABILITIES),
    Attack("change the root", call("chroot", "s:/"), CAPABILITIES),
    Attack("make a mount namespace", call("unshare", 0x20000), CAPABILITIES),
    Attack("make a network namespace", call("unshare", 0x40000000), CAPABILITIES),
    Attack("make a user namespace", call("unshare", 0x10000000), ""),
    Attack("open a tree of mounts", call("open_tree", AT_FDCWD, "s:/", 1), CAPABILITIES),
    Attack("configure a file system", call("fsopen", "s:tmpfs", 0), CAPABILITIES),
    # privileges
    Attack("become root", call("setuid", 0), "identity, user namespace"),
    Attack(
        "become another VM's user", call("setresuid", 0x7E07FFFF, 0x7E07FFFF, -1), "user namespace"
    ),
    Attack("join root's group", call("setgid", 0), "identity, user namespace"),
    Attack("take groups", call("setgroups", 1, "x:00000000"), CAPABILITIES),
    Attack(
        "take back capabilities",
        call("capset", "x:2205082000000000", "x:" + "ff" * 24),
        CAPABILITIES,
    ),
    Attack("unlock the securebits", call("prctl", 28, 0), CAPABILITIES),
    Attack("raise its priority", call("setpriority", 0, 0, -20), "capabilities, limits"),
    Attack(
        "run in real time", call("sched_setscheduler", 0, 1, "x:01000000"), "capabilities, limits"
    ),
    Attack("lift its limits", call("prlimit64", 0, 7, ALL_LIMITS, 0), "capabilities"),
    Attack("allow itself processes", call("setrlimit", 6, ALL_LIMITS), "capabilities"),
    Attack("lock memory", call("mlockall", 3), "limits"),
    # the kernel's larger interfaces
    Attack("load a BPF program", call("bpf", 5, "buffer", 128), CAPABILITIES),
    Attack("start io_uring", call("io_uring_setup", 8, "buffer"), "limits"),
    Attack("watch page faults", call("userfaultfd", 0), CAPABILITIES),
    Attack("watch the kernel", call("perf_event_open", "buffer", 0, -1, -1, 0), CAPABILITIES),
    Attack("load a kernel module", call("init_module", "buffer", 16, "s:"), CAPABILITIES),
    Attack("load another kernel", call("kexec_load", 0, 0, 0, 0), CAPABILITIES),
    Attack("restart the host", call("reboot", 0xFEE1DEAD, 672274793, 0), CAPABILITIES),
    Attack("read the kernel's log", call("syslog", 3, "buffer", 4096), CAPABILITIES),
    Attack("set the clock", call("clock_settime", 0, "x:" + "00" * 16), CAPABILITIES),
    Attack("name the host", call("sethostname", "s:mine", 4), CAPABILITIES),
    Attack("reach hardware ports", call("iopl", 3), CAPABILITIES),
    Attack("swap", call("swapon", "s:/x", 0), CAPABILITIES),
    Attack("account for processes", call("acct", "s:/x"), CAPABILITIES),
    Attack(
        "find a key of the session that started it",
        call("keyctl", 10, -3, "s:user", "s:teuthis-test-secret", 0),
        "keyring",
    ),
    Attack("find shared memory of the host", call("shmget", 0x7E07, 0, 0), "IPC namespace"),
)
