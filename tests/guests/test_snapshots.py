"""Machines that are paused, saved, restored and copied."""

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import teuthis
from tests.guests import disks
from tests.guests.processes import await_true, open_files
from tests.guests.test_network import PAGE as PAGE_OF_HOST
from tests.guests.test_network import fetch, host_server, needs_passt
from teuthis import Disk, layer
from teuthis.images import cache
from teuthis.root import first_pages, generation, snapshot
from teuthis.root.saved import IN_FILE, PAGE, PLACED


@pytest.fixture(scope="module")
def vm() -> Iterator[teuthis.VM]:
    with teuthis.VM("192M", env={"NAME": "value"}) as vm:
        vm.write_file("/tmp/file", b"from before")
        yield vm


@pytest.fixture(scope="module")
def saved(vm: teuthis.VM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshots") / "saved"
    vm.snapshot(path)
    return path


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A snapshot of one's own, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def uptime(vm: teuthis.VM) -> float:
    return float(vm.read_file("/proc/uptime").split()[0])


def knows_the_time(vm: teuthis.VM, told: float) -> bool:
    """Whether it has the time that it was told at `told` at the earliest, to the second or two."""
    now = float(vm.run(["date", "+%s"], check=True).stdout)
    return told - 2 < now < time.time() + 1


def test_a_paused_guest_stands_still(vm: teuthis.VM) -> None:
    began, before = time.monotonic(), uptime(vm)
    vm.pause()
    stopped = time.monotonic()
    with pytest.raises(teuthis.SnapshotError, match="paused"):
        vm.pause()
    result: list[bytes] = []
    asker = threading.Thread(target=lambda: result.append(vm.run(["echo", "hi"]).stdout))
    asker.start()
    time.sleep(2)
    assert not result
    stood, told = time.monotonic() - stopped, time.time()
    vm.resume()
    asker.join()
    assert result == [b"hi\n"]
    ran = uptime(vm) - before
    assert ran < time.monotonic() - began - stood + 0.1, "its time stood still"
    assert knows_the_time(vm, told)
    with pytest.raises(teuthis.SnapshotError, match="paused"):
        vm.resume()


def test_copies_go_on_by_themselves(vm: teuthis.VM) -> None:
    copies = vm.fork(2)
    try:
        for number, each in enumerate(copies):
            assert each.read_file("/tmp/file") == b"from before"
            each.write_file("/tmp/file", str(number).encode())
        assert [each.read_file("/tmp/file") for each in copies] == [b"0", b"1"]
        assert vm.read_file("/tmp/file") == b"from before"
        assert copies[0].run(["sh", "-c", "echo $NAME"]).stdout == b"value\n"
        (grandchild,) = copies[1].fork()
        copies[1].close()
        with grandchild:
            assert grandchild.read_file("/tmp/file") == b"1"
    finally:
        for each in copies:
            each.close()


def test_copies_do_not_repeat_random_numbers(vm: teuthis.VM) -> None:
    draw = ["sh", "-c", "head -c 16 /dev/urandom | hexdump -e '16/1 \"%02x\"'"]
    copies = vm.fork(4)
    try:
        drawn = [each.run(draw, check=True).stdout for each in (vm, *copies)]
        assert all(len(numbers) == 32 for numbers in drawn)
        assert len(set(drawn)) == 5
    finally:
        for each in copies:
            each.close()


def test_copies_share_what_they_do_not_change(vm: teuthis.VM, saved: Path) -> None:
    (copy,) = vm.fork()
    with copy:
        copy.run(["true"], check=True)
        own = os.fstat(copy.machine._processes.memory.own).st_blocks * 512
        whole = disks.used(saved / "memory")
        assert own < whole / 4, f"{own >> 10} KiB of {whole >> 10} KiB"


def test_a_snapshot_is_started_from_more_than_once(saved: Path) -> None:
    before = (saved / "memory").read_bytes()
    for _ in range(2):
        told = time.time()
        with teuthis.VM.restore(saved) as vm:
            assert vm.read_file("/tmp/file") == b"from before"
            vm.write_file("/tmp/file", b"changed")
            assert vm.run(["sh", "-c", "echo $NAME"]).stdout == b"value\n"
            assert knows_the_time(vm, told)
    assert (saved / "memory").read_bytes() == before
    used = (saved / "memory").stat().st_blocks * 512
    assert used < 160 << 20, "pages of zeros are not kept"


@pytest.mark.parametrize("name", ["pages", "hypervisor", "worker"])
def test_one_that_was_good_is_looked_at_again_when_it_has_changed(copied: Path, name: str) -> None:
    teuthis.VM.restore(copied).close()
    content = bytearray((copied / name).read_bytes())
    content[0] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(teuthis.SnapshotError, match=f"{name} is not what was saved"):
        teuthis.VM.restore(copied)


def test_programs_run_on(vm: teuthis.VM, tmp_path: Path) -> None:
    loop = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; usleep 10000; done"
    counting = "until [ -s /tmp/count ]; do usleep 10000; done"
    vm.run(["sh", "-c", f"({loop}) > /dev/null 2>&1 < /dev/null & {counting}"], check=True)
    with vm.popen(["sleep", "1000"]) as talking:
        vm.snapshot(tmp_path / "running")
        talking.kill()
    with teuthis.VM.restore(tmp_path / "running") as restored:
        first = int(restored.read_file("/tmp/count") or b"0")
        deadline = time.monotonic() + 60
        while int(restored.read_file("/tmp/count") or b"0") <= first:
            assert time.monotonic() < deadline, "the program does not go on"


def test_pages_that_are_put_in_place_are_what_they_were(vm: teuthis.VM, copied: Path) -> None:
    """Whichever they are: those that a program touched, or any."""
    digest = ["sh", "-c", "cat /init /tmp/file /bin/busybox | sha256sum"]
    expected = vm.run(digest, check=True).stdout
    pages = (copied / "pages").read_bytes()
    with teuthis.VM.restore(copied) as before:
        before.run(["true"], check=True)
        first_pages.write(copied, before.machine.memory, pages)
    touched = (copied / first_pages.NAME).read_bytes()
    own, count = generation.ADDRESS // PAGE, len(pages)
    possible = [page for page in range(count) if pages[page] == IN_FILE and page != own]
    chosen = set(random.Random(1).sample(possible, first_pages.MOST))
    anywhere = bytes(0 if page in chosen else 1 for page in range(count))
    for listed in (touched, anywhere):
        (copied / first_pages.NAME).write_bytes(listed)
        with teuthis.VM.restore(copied) as restored:
            memory = restored.machine.memory
            assert memory.pages is not None
            assert PLACED in os.pread(memory.pages, count, PAGE)
            assert restored.run(digest, check=True).stdout == expected
            restored.write_file("/tmp/more", b"of a copy")
            (copy,) = restored.fork()
            with copy:
                assert copy.run(digest, check=True).stdout == expected
                assert copy.read_file("/tmp/more") == b"of a copy"


def test_a_name_that_is_taken_is_refused(vm: teuthis.VM, saved: Path) -> None:
    with pytest.raises(teuthis.SnapshotError, match="exists"):
        vm.snapshot(saved)


def test_what_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(teuthis.SnapshotError, match="cannot be read"):
        teuthis.VM.restore(tmp_path)
    (tmp_path / "snapshot.json").write_text("{}")
    with pytest.raises(teuthis.SnapshotError, match="no snapshot"):
        teuthis.VM.restore(tmp_path)


@pytest.mark.parametrize("name", ["memory", "pages", "hypervisor", "worker"])
def test_damage_is_found_before_anything_runs(copied: Path, name: str) -> None:
    path = copied / name
    content = bytearray(path.read_bytes())
    at = next(i for i in range(len(content) // 2, len(content)) if content[i])
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(teuthis.SnapshotError, match=name):
        teuthis.VM.restore(copied)
    path.write_bytes(content[:-PAGE] if name == "memory" else content[:-1])
    with pytest.raises(teuthis.SnapshotError, match=name):
        teuthis.VM.restore(copied)
    path.unlink()
    with pytest.raises(teuthis.SnapshotError, match="cannot be read"):
        teuthis.VM.restore(copied)


def _manifest(path: Path, **changes: object) -> None:
    manifest = path / "snapshot.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def test_newer_and_contradictory_snapshots_are_refused(copied: Path) -> None:
    _manifest(copied, format=snapshot.FORMAT + 1)
    with pytest.raises(teuthis.SnapshotError, match="newer"):
        teuthis.VM.restore(copied)
    _manifest(copied, format=snapshot.FORMAT, memory_size=96 << 20)
    with pytest.raises(teuthis.SnapshotError, match="pages"):
        teuthis.VM.restore(copied)
    _manifest(copied, memory_size=4095)
    with pytest.raises(teuthis.SnapshotError, match="memory_size"):
        teuthis.VM.restore(copied)


@pytest.mark.parametrize("name", ["hypervisor", "worker"])
def test_a_state_that_was_forged_ends_the_vm_before_the_guest_runs(copied: Path, name: str) -> None:
    """Its digest fits: the processes themselves refuse it."""
    forged = bytes(5000)
    (copied / name).write_bytes(forged)
    _manifest(copied, **{name: hashlib.sha256(forged).hexdigest()})
    with pytest.raises(teuthis.SnapshotError, match="saved"):
        teuthis.VM.restore(copied)


def test_nothing_stays_behind(vm: teuthis.VM, saved: Path) -> None:
    def use() -> None:
        for each in vm.fork(2):
            each.close()
        teuthis.VM.restore(saved).close()

    use()
    before = open_files()
    use()
    await_true(lambda: open_files() <= before)


# ---- disks ---------------------------------------------------------------------------------------


class WithDisks:
    """A VM with a base and a layer, a disk that is read only, and a snapshot of it."""

    def __init__(self, place: Path) -> None:
        self.base, self.locked = disks.ext4(place / "base"), disks.ext4(place / "locked")
        self.before = [disks.digest(each) for each in (self.base, self.locked)]
        self.vm = teuthis.VM(
            "192M",
            disks=[Disk(self.base, copy_on_write=True), Disk(self.locked, read_only=True)],
        )
        self.vm.run(["sh", "-c", "mount -t ext4 /dev/sda /mnt"], check=True)
        self.vm.write_file("/mnt/synced", b"of all")
        self.vm.run(["sync"], check=True)
        self.vm.write_file("/mnt/cached", b"in the guest's memory")
        self.saved = place / "saved"
        self.vm.snapshot(self.saved)

    def __enter__(self) -> "WithDisks":
        return self

    def __exit__(self, *_: object) -> None:
        self.vm.close()


@pytest.fixture(scope="module")
def with_disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithDisks]:
    with WithDisks(tmp_path_factory.mktemp("disks")) as machine:
        yield machine


def _uncached(vm: teuthis.VM, path: str) -> bytes:
    """A file of the guest's as its disk has it."""
    vm.run(["sh", "-c", "sync; echo 3 >/proc/sys/vm/drop_caches"], check=True)
    return vm.read_file(path)


def test_copies_have_disks_of_their_own(with_disks: WithDisks) -> None:
    vm = with_disks.vm
    copies = vm.fork(2)
    try:
        for number, each in enumerate(copies):
            assert _uncached(each, "/mnt/synced") == b"of all"
            assert _uncached(each, "/mnt/cached") == b"in the guest's memory"
            each.write_file("/mnt/synced", bytes((number,)) * 100_000)
        for number, each in enumerate(copies):
            assert _uncached(each, "/mnt/synced") == bytes((number,)) * 100_000
        assert _uncached(vm, "/mnt/synced") == b"of all"
        (grandchild,) = copies[1].fork()
        copies[1].close()
        with grandchild:
            assert _uncached(grandchild, "/mnt/synced") == bytes((1,)) * 100_000
    finally:
        for each in copies:
            each.close()
    assert [disks.digest(with_disks.base), disks.digest(with_disks.locked)] == with_disks.before


def test_a_disk_is_saved_with_its_vm(with_disks: WithDisks) -> None:
    layer = disks.digest(with_disks.saved / "disk-0")
    for _ in range(2):
        with teuthis.VM.restore(with_disks.saved) as vm:
            assert _uncached(vm, "/mnt/synced") == b"of all"
            assert _uncached(vm, "/mnt/cached") == b"in the guest's memory"
            vm.write_file("/mnt/synced", b"changed")
            assert _uncached(vm, "/mnt/synced") == b"changed"
            assert vm.run(["cat", "/sys/block/sdb/ro"]).stdout == b"1\n"
    assert disks.digest(with_disks.saved / "disk-0") == layer
    assert not (with_disks.saved / "disk-1").exists()
    assert disks.used(with_disks.saved / "disk-0") < 4 << 20
    assert [disks.digest(with_disks.base), disks.digest(with_disks.locked)] == with_disks.before


def test_writing_goes_on_while_a_vm_is_saved(with_disks: WithDisks, tmp_path: Path) -> None:
    """Requests are under way when the guest stands still: none is lost, none is done twice."""
    vm = with_disks.vm
    loop = (
        "while dd if=/dev/urandom of=/mnt/busy bs=64k count=40 conv=fsync 2>/dev/null; do :; done"
    )
    writing = "until [ -s /mnt/busy ]; do usleep 10000; done"
    vm.run(["sh", "-c", f"({loop}) > /dev/null 2>&1 < /dev/null & {writing}"], check=True)
    for number in range(3):
        vm.snapshot(tmp_path / str(number))
    vm.run(["sh", "-c", "killall sh dd; rm -f /mnt/busy"])
    for number in range(3):
        with teuthis.VM.restore(tmp_path / str(number)) as restored:
            restored.run(["sh", "-c", "killall sh dd"])
            assert _uncached(restored, "/mnt/synced") == b"of all"
            assert not restored.run(
                ["sh", "-c", "dmesg | grep -E 'EXT4-fs error|I/O error'"]
            ).stdout


def test_a_base_that_has_changed_or_gone_is_refused(with_disks: WithDisks, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(with_disks.saved, tmp_path / "copy"))
    manifest = json.loads((copied / "snapshot.json").read_text())
    base = tmp_path / "base"
    shutil.copy2(with_disks.base, base)
    manifest["disks"][0]["path"] = str(base)
    manifest["disks"][0]["base"]["inode"] = base.stat().st_ino
    manifest["disks"][0]["base"]["modified_ns"] = base.stat().st_mtime_ns
    (copied / "snapshot.json").write_text(json.dumps(manifest))
    teuthis.VM.restore(copied).close()
    with base.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(teuthis.SnapshotError, match="changed"):
        teuthis.VM.restore(copied)
    base.unlink()
    with pytest.raises(teuthis.SnapshotError, match=r"base.*No such file"):
        teuthis.VM.restore(copied)


@pytest.mark.parametrize("at", ["map", "data"])
def test_a_layer_that_is_damaged_is_refused(with_disks: WithDisks, tmp_path: Path, at: str) -> None:
    copied = Path(shutil.copytree(with_disks.saved, tmp_path / "copy"))
    size = with_disks.base.stat().st_size
    entries = (copied / "disk-0").read_bytes()[layer.map_offset(size) :]
    block = entries.index(layer.OWN)
    with (copied / "disk-0").open("r+b") as file:
        file.seek(block * layer.BLOCK if at == "data" else layer.map_offset(size) + block)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes((byte[0] ^ 1,)))
    with pytest.raises(teuthis.SnapshotError, match="disk-0"):
        teuthis.VM.restore(copied)
    os.truncate(copied / "disk-0", size)
    with pytest.raises(teuthis.SnapshotError, match="damaged"):
        teuthis.VM.restore(copied)


def test_a_disk_that_is_written_to_itself_cannot_be_saved(tmp_path: Path) -> None:
    with teuthis.VM("192M", disks=[Disk(disks.ext4(tmp_path / "disk"))]) as vm:
        with pytest.raises(teuthis.SnapshotError, match="copy_on_write"):
            vm.snapshot(tmp_path / "saved")
        assert vm.run(["echo", "alive"]).stdout == b"alive\n"
        assert not (tmp_path / "saved").exists()


# ---- networks ------------------------------------------------------------------------------------


def _reaches(vm: teuthis.VM, address: str | None) -> bool:
    once = f"ping -c 1 -W 20 {address}"  # a frame may get lost, of whoever has much to do
    return vm.run(["sh", "-c", f"{once} || {once} || {once}"]).exit_code == 0


def test_each_copy_has_an_address_of_its_own(tmp_path: Path) -> None:
    with teuthis.VM("192M", network=f"switch:copies-{os.getpid()}") as vm:
        # The driver sends while it is taken out of the copies, where the program may end of it.
        flood = "ping -q -i 0.001 -I eth0 224.0.0.1 >/dev/null 2>&1 &"
        vm.run(["sh", "-c", flood], check=True)
        copies = vm.fork(2)
        try:
            everybody = [vm, *copies]
            assert len({each.address for each in everybody}) == 3
            for each in everybody:
                each.run(["killall", "ping"])
                addresses = each.run(["sh", "-c", "ip -o addr show eth0"]).stdout.decode()
                assert f"inet {each.address}/24" in addresses
                assert addresses.count("inet ") == 1
                assert all(_reaches(each, other.address) for other in everybody)
            before = copies[0].flows()["network.from-worker"].rejected
            spoof = f"ip addr add {vm.address}/24 dev eth0; ping -c 1 -W 2 -I {vm.address}"
            copies[0].run(["sh", "-c", f"{spoof} {copies[1].address}"])
            await_true(lambda: copies[0].flows()["network.from-worker"].rejected > before)
            copies[1].snapshot(tmp_path / "saved")
            copies[1].close()
            with teuthis.VM.restore(tmp_path / "saved") as restored:
                assert _reaches(restored, vm.address)
                assert _reaches(vm, restored.address)
                errors = "dmesg | grep -iE 'hung|not empty|hv_netvsc.*(error|unable)'"
                assert not restored.run(["sh", "-c", errors]).stdout
        finally:
            for each in copies:
                each.close()


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_copies_of_copies_need_not_wait_for_each_other(mtu: int) -> None:
    """Each driver is copied in the middle of setting its adapter up, or of changing its MTU."""
    with ExitStack() as all_of_them:
        network = f"switch:chain-{os.getpid()}"
        chain = [all_of_them.enter_context(teuthis.VM("192M", network=network, mtu=mtu))]
        for pause in (0, 0, 0.2, 0.4, 0):
            time.sleep(pause)
            (copy,) = chain[-1].fork()
            chain.append(all_of_them.enter_context(copy))
        assert len({each.address for each in chain}) == len(chain)
        for each in chain:
            assert _reaches(each, chain[each is chain[0]].address)
            assert each.run(["cat", "/sys/class/net/eth0/mtu"]).stdout == b"%d\n" % mtu
            errors = "dmesg | grep -iE 'hung|no adapter'"
            assert not each.run(["sh", "-c", errors]).stdout


@needs_passt
def test_copies_have_ways_out_of_their_own(tmp_path: Path) -> None:
    with host_server() as port:
        where = f"10.126.7.1:{port}"
        with teuthis.VM("192M", network="user", host_ports=[port]) as vm:
            (copy,) = vm.fork()
            with copy:
                assert [fetch(each, where) for each in (vm, copy)] == [PAGE_OF_HOST] * 2
                assert copy.machine.processes["passt"] != vm.machine.processes["passt"]
            vm.snapshot(tmp_path / "saved")
        with teuthis.VM.restore(tmp_path / "saved") as restored:
            assert fetch(restored, where) == PAGE_OF_HOST


# ---- templates -----------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with no template in it, but all else."""
    real = cache.directory("templates").parent
    for each in real.iterdir():
        if each.name != "templates":
            (tmp_path / each.name).symlink_to(each)
    monkeypatch.setenv("TEUTHIS_CACHE", str(tmp_path))
    return tmp_path / "templates"


def test_a_template_is_made_once_and_again_when_it_is_damaged(
    own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with teuthis.VM("192M", env={"A": "b"}) as vm:
        assert vm.run(["sh", "-c", "echo $A $HOME"]).stdout == b"b /root\n"
    (made,) = (each for each in own_cache.iterdir() if each.is_dir())
    first = (made / "memory").stat().st_ino
    assert 0 < (made / first_pages.NAME).read_bytes().count(0) <= first_pages.MOST
    with teuthis.VM("192M") as vm:
        assert vm.run(["sh", "-c", "echo $A"]).stdout == b"\n"
    assert (made / "memory").stat().st_ino == first

    memory = bytearray((made / "memory").read_bytes())
    memory[next(i for i in range(len(memory)) if memory[i])] ^= 1
    (made / "memory").write_bytes(memory)
    with teuthis.VM("192M") as vm:
        vm.run(["true"], check=True)
    assert "damaged" in caplog.text
    assert (made / "memory").stat().st_ino != first


def test_run_from_a_snapshot(saved: Path) -> None:
    script = "echo $NAME $MORE; cat /tmp/file; exit 7"
    command = ["run", "--restore", str(saved), "--env", "MORE=more", "--", "sh", "-c", script]
    done = subprocess.run([sys.executable, "-m", "teuthis", *command], capture_output=True)
    assert (done.returncode, done.stdout) == (7, b"value more\nfrom before")
    command = ["run", "--restore", str(saved), "--net", "user", "--", "true"]
    done = subprocess.run([sys.executable, "-m", "teuthis", *command], capture_output=True)
    assert done.returncode == 125
    assert b"--restore" in done.stderr


def test_an_image_takes_its_templates_with_it(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEUTHIS_DATA", str(tmp_path / "data"))
    disks.make_image("small", tmp_path)
    disks.make_image("small-2", tmp_path / "other")
    for name in ("small", "small-2"):
        with teuthis.VM("128M", image=name, disks=[Disk(disks.sparse(tmp_path / name))]) as vm:
            assert vm.run(["hostname"]).stdout == b"on-a-disk\n"
            assert vm.run(["cat", "/sys/block/sdb/size"]).stdout == b"131072\n"
            vm.write_file("/root/file", b"of this VM only")
        with teuthis.VM("128M", image=name) as vm:
            assert vm.run(["cat", "/root/file"]).exit_code == 1

    def kept() -> list[str]:
        return sorted(each.name.split("@")[0] for each in own_cache.iterdir() if each.is_dir())

    assert kept() == ["small", "small-2"]
    done = subprocess.run([sys.executable, "-m", "teuthis", "image", "rm", "small"])
    assert done.returncode == 0
    assert kept() == ["small-2"]


def test_what_cannot_start_from_a_template_boots(own_cache: Path, tmp_path: Path) -> None:
    log = io.BytesIO()
    with teuthis.VM("128M", console=log):
        pass
    assert b"Linux version" in log.getvalue(), "from the first line on"
    teuthis.VM("128M", cold=True).close()
    assert not own_cache.exists()


def test_without_room_for_a_template_vms_boot(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.write_text("a file where the directory should be")
    with teuthis.VM("128M") as vm:
        assert vm.run(["echo", "booted"]).stdout == b"booted\n"
    assert "no template" in caplog.text
