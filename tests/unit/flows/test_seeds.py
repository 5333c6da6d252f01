"""Each seed in `fuzz/seeds` is real traffic: its handler takes it and refuses nothing.

Those of flows that the hypervisor receives are tried in `hypervisor/tests/fuzz/seeds.rs`.
"""

import struct
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest
from fuzz.recorded.seeds import DIRECTORY, flows, kept
from tests.unit.cli.test_escapes import through
from tests.unit.recorded import MEMORY_SIZE
from tests.unit.switch.test_uplink import GUEST, make
from tests.unit.worker import test_doorbells, test_hvsock, test_integration
from tests.unit.worker.conftest import World
from tests.unit.worker.network import test_device as network
from tests.unit.worker.network.test_rndis import MTU, message, packet, request
from tests.unit.worker.simulator import Half, service
from tests.unit.worker.simulator import packet as ring_packet
from tests.unit.worker.storage import conftest as storage
from tests.unit.worker.test_server import Quiet

from teuthis.flows import FLOWS, Counters
from teuthis.switch import rules
from teuthis.worker import link
from teuthis.worker.agent.frames import FrameDecoder
from teuthis.worker.devices.hvsock import service_port
from teuthis.worker.devices.network import nvsp
from teuthis.worker.devices.network.device import SEND_SECTION
from teuthis.worker.devices.network.rndis import Adapter, frame
from teuthis.worker.devices.storage import vstor
from teuthis.worker.memory import PageRange
from teuthis.worker.vmbus import messages as m
from teuthis.worker.vmbus.gpa import buffers
from teuthis.worker.vmbus.ring import RingReader

DISK_SIZE = 4 << 30
PAGES = 1024
"""Where the pages begin that take data of requests."""


def in_python() -> list[str]:
    """The flows with seeds that a Python process receives."""
    return [flow for flow in flows() if "#" not in FLOWS[flow].handler]


def host(flow: str, seed: bytes) -> Counters:
    """A worker whose guest has done what comes before this message."""
    world = World(MEMORY_SIZE)
    _, record, tail = m.decode(seed)
    if not isinstance(record, m.InitiateContact):
        world.guest.initiate()
    if not isinstance(record, m.InitiateContact | m.RequestOffers):
        world.guest.post(3)
        for _ in range(64):
            assert world.server.offer(m.Offer(service(1), service(2), 0), Quiet())
    match record:
        case m.GpadlBody(_, gpadl):
            pages = len(tail) // 8
            head = struct.pack("<IIHHII", 1, gpadl, 8 + 8 * pages, 1, pages << 12, 0)
            world.guest.post(8, head)
        case m.OpenChannel(relid, _, gpadl, _, half):
            world.guest.share_as(gpadl, relid, list(range(100, 100 + 2 * half)))
        case m.CloseChannel(relid):
            world.guest.share_as(7, relid, list(range(100, 114)))
            world.guest.post(5, struct.pack("<5I120x", relid, 1, 7, 0, 7))
        case m.GpadlTeardown(relid, gpadl):
            world.guest.share_as(gpadl, relid, [100])
        case m.RelidReleased(relid):
            world.server.rescind(world.server._channels[relid])
        case m.TlConnectRequest(_, wanted):
            port = service_port(wanted)
            assert port is not None
            world.sockets.listen(port, test_hvsock.Recorder)
    contact = isinstance(record, m.InitiateContact)
    world.server.receive(4 if contact else 1, 1, seed)
    return world.counters


def ring(_: str, seed: bytes) -> Counters:
    world = World()
    half = Half(world.memory, list(range(16, 16 + 9)))
    half.move(0, seed)
    half.words[0] = len(seed)
    reader = RingReader(world.memory, half.pages, world.counters)
    half.words[0] = len(seed)
    (read,) = reader.read()
    assert seed[16:-8] == bytes(read.header) + bytes(read.payload)
    return world.counters


def page_list(flow: str, seed: bytes) -> Counters:
    world = World(MEMORY_SIZE)
    found = buffers(world.memory, memoryview(seed), world.counters)
    for each in found:
        each.write(0, b"x" * each.length)
        assert each.read(0, each.length) == b"x" * each.length
    if flow == "memory.ram":
        assert PageRange(world.memory, [1]).read(0, 4) == bytes(4)
        world.counters.accept(flow)  # it has no counter of its own
    return world.counters


def stream(_: str, seed: bytes) -> Counters:
    world = World()
    assert world.guest.connect()
    pair = test_hvsock.Pair(world)
    pair.guest.write(ring_packet(seed))
    world.guest.pump()
    (size,) = struct.unpack_from("<I", seed, 4)
    assert len(pair.host.data) == size
    return world.counters


def agent(_: str, seed: bytes) -> Counters:
    counters = Counters()
    assert len(list(FrameDecoder(counters).feed(seed))) == 1
    return counters


def link_packet(flow: str, seed: bytes) -> Counters:
    counters = Counters()
    found, _ = link.decode(seed.ljust(link.MESSAGE_BYTES, b"\0"))
    counters.accept(found)
    return counters


def doorbell(_: str, seed: bytes) -> Counters:
    shared = test_doorbells.Shared()
    (relid,) = struct.unpack("<H", seed)
    shared.page[relid] = 1
    assert shared.doorbells.take() == [relid]
    return shared.counters


def service_answer(flow: str, seed: bytes) -> Counters:
    """The answer to a question that is asked now: of its number, and with its number."""
    names = test_integration.VERSIONS if flow == "integration.negotiation" else [flow[12:]]
    for name in names:
        world, seen = World(), test_integration.Recorder()
        if flow == "integration.negotiation":
            module = test_integration.make(world, seen, name)
            question = module.question()
        else:
            module, question = test_integration.busy(world, seen, name)
        raw = bytearray(seed)
        raw[24] = question.transaction
        if name == "heartbeat" and flow != "integration.negotiation":
            raw[28:36] = struct.pack("<Q", struct.unpack_from("<Q", question.body)[0] + 1)
        module.channel.write(ring_packet(bytes(raw)), signal=True)
        world.guest.pump()
        if module.open:
            return world.counters
    raise AssertionError("no service takes it")


def disk(flow: str, seed: bytes) -> Counters:
    world = World(MEMORY_SIZE)
    with storage.memory_disk(size=DISK_SIZE) as first, storage.memory_disk(size=DISK_SIZE) as other:
        driver = storage.Driver(world, [first, other])
        if flow.startswith("storvsp.") and flow != "storvsp.execute-srb":
            number = vstor.operation(seed)
            before = [storage.BEGIN, storage.QUERY_VERSION, storage.QUERY_PROPERTIES, storage.END]
            for each in before[: before.index(number)]:
                driver.operation(each, struct.pack("<H", 0x0602))
            assert driver.ask(seed).status == 0
            return world.counters
        driver.initialize()
        srb, data = vstor.srb(seed[:64]), seed[64:]
        world.memory.bytes[PAGES << 12 : (PAGES << 12) + len(data)] = data
        pages = list(range(PAGES, PAGES + -(-srb.data_length // 4096)))
        header = storage.page_list(pages, srb.data_length) if pages else b""
        assert driver.ask(seed[:64], header).srb_status == vstor.SrbStatus.SUCCESS
    return world.counters


def adapter(flow: str, seed: bytes) -> Counters:
    driver = network.Driver(World(MEMORY_SIZE))
    world = driver.world
    try:
        if flow == "nvsp.taken":
            driver.begin().give_buffers()
            driver.send_pages_direct(message(2, 1, 1, 0, 0x4000), channel=nvsp.CONTROL)
            ((transaction, _, _),) = driver.take()
            driver.give_back(transaction, seed)
            return world.counters
        _, record = nvsp.decode(seed)
        match record:
            case nvsp.Init():
                driver.ask(seed)
            case nvsp.NdisVersion() | nvsp.NdisConfig():
                driver.begin().tell(seed)
            case nvsp.ReceiveBuffer(gpadl) | nvsp.SendBuffer(gpadl):
                driver.begin()
                pages = world.guest.allocate(network.RECEIVE_PAGES)
                world.guest.share_as(gpadl, driver.channel.relid, pages)
                world.guest.expect(10)
                assert network.SUCCESS in driver.ask(seed)[1:2]
            case nvsp.RevokeReceiveBuffer() | nvsp.RevokeSendBuffer():
                driver.begin().give_buffers().tell(seed)
            case nvsp.RndisPacket(channel, section, size):
                driver.up()
                carries(driver, seed, channel, section, size)
    finally:
        driver.switch.close()
    return world.counters


def carries(driver: network.Driver, seed: bytes, channel: int, section: int, size: int) -> None:
    """Sends the message with an RNDIS message of the size that it names."""
    inside = section != nvsp.NO_SECTION
    size = size if inside else 200
    raw = (
        request(4, 0x0101_0101, bytes(size - 28))
        if channel == nvsp.CONTROL
        else bytes(packet(bytes(size - 44)))
    )
    header = b""
    if inside:
        driver.put(driver.send_pages, section * SEND_SECTION, raw)
    else:
        driver.put([network.DATA_PAGE], 0, raw)
        header = network.page_list((size, 0, [network.DATA_PAGE]))
    assert driver.ask(seed, header)[:2] == (108, network.SUCCESS)


def rndis(flow: str, seed: bytes) -> Counters:
    counters = Counters()
    adapter = Adapter(bytes(6), MTU, counters)
    if flow == "rndis.packet":
        assert len(frame(memoryview(seed), MTU + 14)) >= 14
        counters.accept(flow)
        return counters
    if flow != "rndis.initialize":
        adapter.control(2, memoryview(message(2, 1, 1, 0, 0x4000)))
    adapter.control(struct.unpack_from("<I", seed)[0], memoryview(seed))
    return counters


def sent_frame(flow: str, seed: bytes) -> Counters:
    counters = Counters()
    rules.check(seed, rules.sender(seed[6:12], IPv4Address(GUEST)), MTU + 14)
    if flow == "network.to-uplink":
        make().check(seed)
    counters.accept(flow)
    return counters


def text(flow: str, seed: bytes) -> Counters:
    assert through(seed) == (seed, 0)
    counters = Counters()
    counters.accept(flow)
    return counters


TAKES: dict[str, Callable[[str, bytes], Counters]] = {
    "vmbus.": host,
    "ring.packet": ring,
    "ring.gpa-direct": page_list,
    "memory.ram": page_list,
    "hvsock.data": stream,
    "agent.": agent,
    "link.": link_packet,
    "doorbell.to-worker": doorbell,
    "integration.": service_answer,
    "storvsp.": disk,
    "scsi.": disk,
    "nvsp.": adapter,
    "rndis.": rndis,
    "network.": sent_frame,
    "client.terminal": text,
}


@pytest.mark.parametrize("flow", in_python())
def test_each_seed_is_taken_by_its_handler(flow: str) -> None:
    (take,) = (each for name, each in TAKES.items() if flow.startswith(name))
    assert kept(flow)
    for seed in kept(flow):
        count = take(flow, seed).snapshot()[flow]
        assert (count.count > 0, count.kinds) == (True, {}), seed.hex()


def test_they_are_few_and_small() -> None:
    files = list(DIRECTORY.glob("*/*"))
    assert sum(path.stat().st_size for path in files) < 300_000
    assert {path.parent.name for path in files} <= set(FLOWS)
