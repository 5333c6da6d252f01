"""Classic BPF programs over `struct seccomp_data`: an allow-list assembled, a program evaluated.

Pure functions. `assemble` makes the filters of our own processes; `evaluate` answers what any
program would say to a call, ours or another process's that was read back from the kernel.
Reference: Documentation/networking/filter.rst, include/uapi/linux/{seccomp,audit,bpf_common}.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from teuthis.jail.system_calls import NUMBERS

ALLOW: Final = 0x7FFF_0000
LOG: Final = 0x7FFC_0000
KILL_PROCESS: Final = 0x8000_0000

ARCH_X86_64: Final = 0xC000_003E
X32_BIT: Final = 0x4000_0000
"""Set in the number of a call by the x32 interface, which reports the same architecture."""

_LOW_WORD: Final = 0xFFFF_FFFF
_NUMBER_AT: Final = 0
_ARCH_AT: Final = 4
_ARGUMENTS_AT: Final = 16

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_GREATER_EQUAL: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_DATA: Final = struct.Struct("<IIQ6Q")
_INSTRUCTION: Final = struct.Struct("<HBBI")


class Instruction(NamedTuple):
    """`struct sock_filter`."""

    code: int
    if_true: int
    if_false: int
    operand: int


class Check(NamedTuple):
    """A condition on one argument: of the bits in `mask`, exactly `value` are set."""

    argument: int
    mask: int
    value: int


Alternatives = tuple[tuple[Check, ...], ...]
"""Sets of checks; a call is allowed when all checks of one set hold. Empty: always allowed."""

AllowList = Mapping[str, Alternatives]


def assemble(allowed: AllowList) -> list[Instruction]:
    """The program that allows these calls and answers every other one with death."""
    program = [
        Instruction(_LOAD, 0, 0, _ARCH_AT),
        Instruction(_JUMP_EQUAL, 1, 0, ARCH_X86_64),
        _answer(KILL_PROCESS),
        Instruction(_LOAD, 0, 0, _NUMBER_AT),
        # x32 calls are told from ours by a bit of the number only; all numbers above are refused.
        Instruction(_JUMP_GREATER_EQUAL, 0, 1, X32_BIT),
        _answer(KILL_PROCESS),
    ]
    for name, alternatives in allowed.items():
        block = _block(alternatives)
        program.append(Instruction(_JUMP_EQUAL, 0, len(block), NUMBERS[name]))
        program += block
    return [*program, _answer(KILL_PROCESS)]


def pack(program: Sequence[Instruction]) -> bytes:
    """The program as the kernel reads it."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def unpack(program: bytes) -> list[Instruction]:
    """The program in what the kernel wrote."""
    return [Instruction(*fields) for fields in _INSTRUCTION.iter_unpack(program)]


def _answer(action: int) -> Instruction:
    return Instruction(_RETURN, 0, 0, action)


def _block(alternatives: Alternatives) -> list[Instruction]:
    """Decides about one system call; control never leaves it."""
    if not alternatives:
        return [_answer(ALLOW)]
    block: list[Instruction] = []
    for checks in alternatives:
        tests = [test for check in checks for test in _tests(check)]
        # A test that fails skips what is left of this alternative, its final answer included.
        for remaining, (at, mask, value) in zip(range(len(tests) - 1, -1, -1), tests, strict=True):
            block += [
                Instruction(_LOAD, 0, 0, at),
                Instruction(_AND, 0, 0, mask),
                Instruction(_JUMP_EQUAL, 0, 3 * remaining + 1, value),
            ]
        block.append(_answer(ALLOW))
    return [*block, _answer(KILL_PROCESS)]


def _tests(check: Check) -> list[tuple[int, int, int]]:
    """(offset, mask, value) of the 32-bit halves that `check` looks at."""
    if check.value & ~check.mask:
        raise ValueError(f"{check} can never hold")
    at = _ARGUMENTS_AT + 8 * check.argument
    low = (at, check.mask & _LOW_WORD, check.value & _LOW_WORD)
    high = (at + 4, check.mask >> 32, check.value >> 32)
    return [half for half in (low, high) if half[1]]


def evaluate(
    program: Sequence[Instruction],
    number: int,
    arguments: Sequence[int] = (),
    *,
    arch: int = ARCH_X86_64,
) -> int:
    """What `program` answers to a system call: a SECCOMP_RET value.

    Raises:
        ValueError: the program is not one that the kernel would accept.
    """
    values = [*arguments, *[0] * (6 - len(arguments))]
    data = _DATA.pack(number, arch, 0, *values)
    return _Machine(program, data).run()


def may_allow(program: Sequence[Instruction], number: int) -> bool:
    """Whether `program` lets the native call `number` pass with some arguments.

    Follows both ways of every jump that depends on an argument, so a program that contradicts
    itself may count as allowing; one that allows never counts as refusing.
    """
    known = {_NUMBER_AT: number, _ARCH_AT: ARCH_X86_64}
    ways: list[tuple[int, int | None]] = [(0, None)]
    seen = set(ways)
    while ways:
        at, a = ways.pop()
        code, if_true, if_false, operand = program[at]
        if code & 0x07 == 0x06:
            if code & 0x18 == 0x10 or operand & 0xFFFF_0000 in (ALLOW, LOG):
                return True
            continue
        after: list[tuple[int, int | None]]
        if code & 0x07 != 0x05:
            # Only the accumulator matters here, and only while it holds the number.
            after = [(at + 1, known.get(operand) if code == _LOAD else _kept(code, operand, a))]
        elif code & 0xF0 == 0x00:
            after = [(at + 1 + operand, a)]
        elif a is None or code & 0x08:
            after = [(at + 1 + if_true, a), (at + 1 + if_false, a)]
        else:
            taken = _compare(code & 0xF0, a, operand)
            after = [(at + 1 + (if_true if taken else if_false), a)]
        ways += [way for way in after if way not in seen]
        seen.update(after)
    return False


def _kept(code: int, operand: int, a: int | None) -> int | None:
    """The accumulator after an instruction that is no load of a field; None: not known."""
    if code & 0x07 == 0x04 and not code & 0x08 and a is not None:
        return _compute(code & 0xF0, a, operand)
    return a if code & 0x07 in (0x01, 0x02, 0x03) or code == 0x07 else None


class _Machine:
    """Accumulator, index register and scratch words of classic BPF."""

    def __init__(self, program: Sequence[Instruction], data: bytes) -> None:
        self.program, self.data = program, data
        self.a = self.x = 0
        self.scratch = [0] * 16

    def run(self) -> int:
        at = 0
        while 0 <= at < len(self.program):
            code, if_true, if_false, operand = self.program[at]
            at += 1
            kind = code & 0x07
            if kind == 0x06:  # RET, of a constant or of A
                return self.a if code & 0x18 == 0x10 else operand
            if kind == 0x05:  # JMP: jumps are forward only, so every program ends
                operation = code & 0xF0
                if operation == 0x00:
                    at += operand
                else:
                    other = self.x if code & 0x08 else operand
                    at += if_true if _compare(operation, self.a, other) else if_false
            else:
                self._step(kind, code, operand)
        raise ValueError("the program runs past its end")

    def _step(self, kind: int, code: int, operand: int) -> None:
        if kind in (0x00, 0x01):  # LD and LDX
            value = self._load(code & 0xE0, operand)
            if kind == 0x00:
                self.a = value
            else:
                self.x = value
        elif kind == 0x02:  # ST
            self.scratch[operand] = self.a
        elif kind == 0x03:  # STX
            self.scratch[operand] = self.x
        elif kind == 0x04:  # ALU
            other = self.x if code & 0x08 else operand
            self.a = _compute(code & 0xF0, self.a, other)
        elif code & 0xF8 == 0x00:  # TAX
            self.x = self.a
        else:  # TXA
            self.a = self.x

    def _load(self, mode: int, operand: int) -> int:
        if mode == 0x00:  # IMM
            return operand
        if mode == 0x20:  # ABS
            return int.from_bytes(self.data[operand : operand + 4], "little")
        if mode == 0x60:  # MEM
            return self.scratch[operand]
        if mode == 0x80:  # LEN
            return len(self.data)
        raise ValueError(f"a load that seccomp does not have: mode {mode:#x}")


def _compare(operation: int, left: int, right: int) -> bool:
    match operation:
        case 0x10:
            return left == right
        case 0x20:
            return left > right
        case 0x30:
            return left >= right
        case 0x40:
            return bool(left & right)
    raise ValueError(f"a jump that BPF does not have: {operation:#x}")


def _compute(operation: int, left: int, right: int) -> int:
    match operation:
        case 0x00:
            result = left + right
        case 0x10:
            result = left - right
        case 0x20:
            result = left * right
        case 0x30:
            result = left // right if right else 0
        case 0x40:
            result = left | right
        case 0x50:
            result = left & right
        case 0x60:
            result = left << (right & 31)
        case 0x70:
            result = left >> (right & 31)
        case 0x80:
            result = -left
        case 0xA0:
            result = left ^ right
        case _:
            raise ValueError(f"an operation that seccomp does not have: {operation:#x}")
    return result & _LOW_WORD
