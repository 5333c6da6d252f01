"""The assembler of filters, judged by an evaluator of the programs it makes."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.jail import seccomp, worker
from teuthis.jail.bpf import (
    ALLOW,
    ARCH_X86_64,
    KILL_PROCESS,
    X32_BIT,
    Check,
    assemble,
    evaluate,
    may_allow,
    pack,
    unpack,
)
from teuthis.jail.system_calls import HIGHEST, NAMES, NUMBERS

ARCH_I386 = 0x4000_0003
WORD = st.integers(0, 2**64 - 1)
PROT_EXEC = 4
MAP_PRIVATE_ANONYMOUS = 0x22


def test_only_the_calls_on_the_list_are_allowed() -> None:
    program = assemble({"read": (), "exit_group": ()})
    allowed = {number for number in range(HIGHEST + 100) if evaluate(program, number) == ALLOW}
    assert allowed == {NUMBERS["read"], NUMBERS["exit_group"]}


def test_everything_else_kills() -> None:
    program = assemble({"read": ()})
    assert evaluate(program, NUMBERS["write"]) == KILL_PROCESS
    assert evaluate(program, 2**32 - 1) == KILL_PROCESS


def test_an_empty_list_allows_nothing() -> None:
    assert {evaluate(assemble({}), number) for number in NAMES} == {KILL_PROCESS}


def test_what_may_be_allowed_is_told_without_knowing_the_arguments() -> None:
    allowed = worker.system_calls([3], 4, 5)
    program = assemble(allowed)
    assert {name for name, number in NUMBERS.items() if may_allow(program, number)} == set(allowed)
    assert evaluate(program, NUMBERS["epoll_wait"], [9]) == KILL_PROCESS
    assert may_allow(program, NUMBERS["epoll_wait"])


def test_other_architectures_are_refused() -> None:
    program = assemble(dict.fromkeys(NUMBERS, ()))
    assert evaluate(program, 0, arch=ARCH_X86_64) == ALLOW
    assert evaluate(program, 0, arch=ARCH_I386) == KILL_PROCESS


@given(st.integers(0, X32_BIT - 1))
def test_x32_is_refused(number: int) -> None:
    program = assemble(dict.fromkeys(NUMBERS, ()))
    assert evaluate(program, number | X32_BIT) == KILL_PROCESS


@given(st.integers(0, 5), WORD, WORD, WORD)
def test_a_check_looks_at_all_64_bits_of_its_mask(
    argument: int, mask: int, value: int, given: int
) -> None:
    check = Check(argument, mask, value & mask)
    program = assemble({"ioctl": ((check,),)})
    arguments = [0] * 6
    arguments[argument] = given
    expected = ALLOW if given & mask == value & mask else KILL_PROCESS
    assert evaluate(program, NUMBERS["ioctl"], arguments) == expected
    arguments[argument] = value & mask
    assert evaluate(program, NUMBERS["ioctl"], arguments) == ALLOW


@given(st.lists(st.integers(0, 7), min_size=6, max_size=6))
def test_all_checks_of_one_alternative_must_hold(arguments: list[int]) -> None:
    alternatives = (
        (seccomp.integer(0, 1), seccomp.integer(1, 2)),
        (seccomp.without(2, 4), seccomp.integer(3, 3), seccomp.null(4)),
    )
    program = assemble({"fcntl": alternatives, "read": ()})
    first = arguments[:2] == [1, 2]
    second = not arguments[2] & 4 and arguments[3] == 3 and arguments[4] == 0
    expected = ALLOW if first or second else KILL_PROCESS
    assert evaluate(program, NUMBERS["fcntl"], arguments) == expected
    assert evaluate(program, NUMBERS["read"], arguments) == ALLOW


def test_a_check_that_cannot_hold_is_an_error() -> None:
    with pytest.raises(ValueError, match="never hold"):
        assemble({"mmap": ((Check(0, 1, 2),),)})


def test_programs_survive_the_kernels_format() -> None:
    program = assemble({"mmap": ((seccomp.without(2, PROT_EXEC),),)})
    assert unpack(pack(program)) == program


def test_the_evaluator_refuses_programs_that_run_past_their_end() -> None:
    with pytest.raises(ValueError, match="past its end"):
        evaluate([], 0)


PRISONER = """
import os, sys
from teuthis.jail import capabilities, seccomp
from teuthis.jail.kernel import call
name, arguments = sys.argv[1], [int(word, 0) for word in sys.argv[2:]]
capabilities.no_new_privileges()
seccomp.install({
    "exit_group": (),
    "mmap": ((seccomp.without(2, 4), seccomp.integer(3, 0x22)),),
})
try:
    call(name, *arguments)
except OSError:
    pass
os._exit(7)
"""


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (["mmap", "0", "4096", "3", "0x22", "-1", "0"], 7),
        (["mmap", "0", "4096", "7", "0x22", "-1", "0"], -signal.SIGSYS),
        (["mmap", "0", "4096", "3", "0x21", "-1", "0"], -signal.SIGSYS),
        (["getpid"], -signal.SIGSYS),
        (["openat", "0", "0", "0", "0"], -signal.SIGSYS),
    ],
)
def test_the_kernel_reads_the_programs_as_the_evaluator_does(call: list[str], answer: int) -> None:
    command = [sys.executable, "-c", PRISONER, *call]
    assert subprocess.run(command, env=dict(os.environ), check=False).returncode == answer
    program = assemble({"mmap": ((seccomp.without(2, PROT_EXEC), seccomp.integer(3, 0x22)),)})
    arguments = [int(word, 0) % 2**64 for word in call[1:]]
    expected = ALLOW if answer == 7 else KILL_PROCESS
    assert evaluate(program, NUMBERS[call[0]], arguments) == expected
