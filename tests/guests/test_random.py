"""Random numbers of copies: what Python in a stock Debian draws is drawn by one VM only."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import teuthis
from teuthis.images import make

DRAW = (
    "import os, random, secrets, uuid\n"
    "system = random.SystemRandom()\n"
    "def draw():\n"
    "    print(os.urandom(16).hex(), os.getrandom(16).hex(), system.getrandbits(128),\n"
    "          uuid.uuid4(), secrets.token_hex(16), flush=True)\n"
)
FRESH = DRAW + "draw(); print(random.random(), hash('seeded at the start'))"
"""Generators that a program seeds when it starts are seeded anew by each new program, too."""
RUNNING = DRAW + (
    "import time\n"
    "draw()\n"
    "while not os.path.exists('/tmp/go'): time.sleep(0.01)\n"
    "draw(); os.rename('/tmp/drawing', '/tmp/drawn')"
)
"""Draws before it is copied, and after it."""


def columns(answers: Sequence[bytes]) -> list[set[bytes]]:
    """All that was drawn in the same way."""
    return [set(column) for column in zip(*(each.split() for each in answers), strict=True)]


def written(vm: teuthis.VM, path: str) -> bytes:
    """A file, as soon as there is something in it."""
    deadline = time.monotonic() + 300
    while vm.run(["test", "-s", path]).exit_code:
        assert time.monotonic() < deadline, f"the program writes no {path}"
    return vm.read_file(path)


def drawn(vm: teuthis.VM) -> bytes:
    """What the program that ran before has drawn since."""
    vm.write_file("/tmp/go", b"")
    return written(vm, "/tmp/drawn")


def test_copies_of_debian_draw_numbers_of_their_own(tmp_path: Path) -> None:
    image = make.build("debian", say=print).name
    with ExitStack() as machines:
        # Of one template, then copies of one of them, then others from one snapshot of it.
        born = [machines.enter_context(teuthis.VM("512M", image=image)) for _ in range(3)]
        vm = born[0]
        vm.write_file("/tmp/program.py", RUNNING.encode())
        vm.run(
            ["sh", "-c", "python3 /tmp/program.py > /tmp/drawing 2>&1 < /dev/null &"], check=True
        )
        assert written(vm, "/tmp/drawing")
        vm.snapshot(tmp_path / "saved")
        clones = [vm, *vm.fork(2)]
        clones += [teuthis.VM.restore(tmp_path / "saved") for _ in range(2)]
        for each in clones[1:]:
            machines.enter_context(each)

        before, after = zip(*(drawn(each).splitlines() for each in clones), strict=True)
        assert len(set(before)) == 1, "all are copies of one program"
        assert [len(column) for column in columns(after)] == [len(clones)] * 5

        everybody = [*clones, *born[1:]]
        fresh = [each.run(["python3", "-c", FRESH], check=True).stdout for each in everybody]
        assert [len(column) for column in columns(fresh)] == [len(everybody)] * 7
