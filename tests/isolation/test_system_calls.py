"""A process that was taken over asks the kernel for everything there is."""

import mmap

from teuthis.jail import switch, worker
from teuthis.jail.bpf import X32_BIT
from teuthis.jail.system_calls import HIGHEST, NAMES, NUMBERS

from .prison import OF_RUST, SIGSYS, Prison, call

HYPERVISOR = {
    "sendto",
    "recvfrom",
    "read",
    "write",
    "ppoll",
    "clock_gettime",
    "getrandom",
    "mmap",
    "mremap",
    "munmap",
    "brk",
    "exit_group",
}
REPLAY = HYPERVISOR - {"sendto", "recvfrom", "ppoll"}
"""What it keeps where it replays a recording: there is nobody to talk to or to wait for."""
KVM = {"ioctl", "timer_settime", "rt_sigtimedwait"}
"""What it has beside when the guest runs on the host's processor, and has one."""
WORKER = set(worker.system_calls([0], 0, 0))
SWITCH = set(switch.system_calls(0, 0))
"""Of a named network; the one before passt does without what joining takes."""
CALLS = {"worker": WORKER, "hypervisor": HYPERVISOR, "switch": SWITCH, "replay": REPLAY}

KILLED = f"killed {SIGSYS}"
STDERR, LINK_OF_NOBODY = 2, 1000


def allowed(prison: Prison) -> set[str]:
    return CALLS[prison.process] | (KVM if prison.kvm else set())


def test_the_lists_are_short() -> None:
    assert len(HYPERVISOR) <= 12
    assert len(REPLAY) <= 9
    assert len(WORKER) <= 30
    assert len(SWITCH) <= 17
    assert len(switch.system_calls(0, None)) <= 12


def test_every_other_number_kills(prison: Prison) -> None:
    """All that this kernel has, all that this list knows, and some beyond."""
    numbers = [number for number in range(HIGHEST + 64) if NAMES.get(number) not in allowed(prison)]
    answers = prison.attempt(str(number) for number in numbers)
    survived = {n: a for n, a in zip(numbers, answers, strict=True) if a != KILLED}
    # Recent kernels ask no filter about these two, and refuse them wherever the kernel itself has
    # not planted the call: SIGILL and ENXIO.
    unfiltered = {NUMBERS["uretprobe"]: "killed 4", NUMBERS["uprobe"]: "errno 6"}
    assert survived.items() <= unfiltered.items()


def test_the_x32_interface_kills(prison: Prison) -> None:
    numbers = [X32_BIT | number for number in (0, 1, 9, 59, 231, 512, 547)]
    answers = prison.attempt(str(number) for number in numbers)
    assert set(answers) == {KILLED}


def test_no_executable_memory(prison: Prison) -> None:
    prot_exec = 4
    attacks = [
        call("mmap", 0, 4096, prot, flags, -1, 0)
        for prot in (prot_exec, prot_exec | 3)
        for flags in (0x22, 0x21, 0x32)
    ]
    attacks += [
        call("mprotect", 0, 4096, 7),
        call("pkey_mprotect", 0, 4096, 7, -1),
        call("memfd_create", "s:x", 0),
        call("shmat", 0, 0, 0o100000),
        call("remap_file_pages", 0, 4096, 7, 0, 0),
        call("personality", 0x0400000),  # READ_IMPLIES_EXEC
    ]
    assert set(prison.attempt(attacks)) == {KILLED}


def test_no_mapping_of_a_descriptor_and_none_over_another(prison: Prison) -> None:
    map_fixed = 0x10
    attacks = [
        call("mmap", 0, 4096, 3, mmap.MAP_SHARED, 0, 0),
        call("mmap", 0, 4096, 3, mmap.MAP_PRIVATE, 0, 0),
        call("mmap", 0x10000, 4096, 3, 0x22 | map_fixed, -1, 0),
        call("mremap", 0, 4096, 8192, 3, 0x10000),
    ]
    if prison.process == "switch":
        del attacks[0]  # VMs that join bring pages of counters; it has no other file to be mapped
    assert set(prison.attempt(attacks)) == {KILLED}


def test_memory_and_the_end_are_allowed(prison: Prison) -> None:
    answers = prison.attempt(
        [
            call("mmap", 0, 4096, 3, 0x22, -1, 0),
            call("mmap", 0, 4096, 3, 0x22, -1, 0) + " ; " + call("munmap", "r0", 4096),
            call("brk", 0),
            call("exit_group", 0),
        ]
    )
    assert [answer.split(" ")[0] for answer in answers] == ["done", "done", "done", ""]


def test_descriptors_take_only_what_they_are_for(prison: Prison) -> None:
    attacks = [
        call("sendto", LINK_OF_NOBODY, "buffer", 16, 0, 0, 0),
        call("recvfrom", LINK_OF_NOBODY, "buffer", 16, 0, 0, 0),
        call("sendto", 3, "buffer", 16, 0, "x:0100", 2),
        call("sendmsg", 3, "buffer", 0),  # carries descriptors and credentials
        call("accept4", 3, 0, 0, 0),
        call("ioctl", 0, 0x5413, "buffer"),  # TIOCGWINSZ
        call("ioctl", 0, 0x5412, "s:x"),  # TIOCSTI types into a terminal
        call("fcntl", 0, 4, 0),
        call("ftruncate", 0, 0),
    ]
    if prison.process in OF_RUST:
        attacks += [
            call("read", STDERR, "buffer", 1),
            call("write", LINK_OF_NOBODY, "buffer", 1),
            call("write", 0, "buffer", 1),
        ]
    else:
        attacks += [
            call("recvmsg", LINK_OF_NOBODY, "buffer", 0),
            call("epoll_ctl", LINK_OF_NOBODY, 1, 0, "buffer"),
            call("epoll_wait", LINK_OF_NOBODY, "buffer", 1, 0),
        ]
    answers = prison.attempt(attacks)
    survived = {a: answer for a, answer in zip(attacks, answers, strict=True) if answer != KILLED}
    assert not survived


def test_numbers_and_names_agree() -> None:
    assert NUMBERS["read"] == 0
    assert NUMBERS["execve"] == 59
    assert NUMBERS["seccomp"] == 317
    assert NUMBERS["landlock_restrict_self"] == 446
