import os
import threading
import time

import pytest

from teuthis.root.streams import Exchange, Pipes


def serve(pipes: Pipes, count: int) -> list[int]:
    """The worker's copies of what it was given."""
    copies = [os.dup(descriptor) for descriptor in pipes.given[:count]]
    pipes.sent()
    return copies


def test_both_ways_at_once() -> None:
    data = os.urandom(3_000_000)
    with Pipes() as pipes:
        writer, reader = pipes.writer(), pipes.reader()
        source, sink = serve(pipes, 2)

        def echo() -> None:
            while chunk := os.read(source, 70_000):
                os.write(sink, chunk)
            os.close(source)
            os.close(sink)

        thread = threading.Thread(target=echo)
        thread.start()
        exchange = Exchange(data, writer, [reader], len(data))
        assert exchange.run()
        assert exchange.output(reader) == data
        assert not exchange.too_large
        thread.join()


def test_a_deadline() -> None:
    with Pipes() as pipes:
        reader = pipes.reader()
        (sink,) = serve(pipes, 1)
        exchange = Exchange(b"", None, [reader], 10)
        assert not exchange.run(time.monotonic() + 0.05)
        os.close(sink)
        assert exchange.run()


@pytest.mark.parametrize("size", [11, 40_000])
def test_too_much_output_is_not_kept(size: int) -> None:
    with Pipes() as pipes:
        reader = pipes.reader()
        (sink,) = serve(pipes, 1)
        os.write(sink, bytes(size))
        exchange = Exchange(b"", None, [reader], 10)
        assert not exchange.run()
        assert exchange.too_large
        os.write(sink, bytes(size))
        os.close(sink)
        assert exchange.run()
        assert exchange.output(reader) == b""


def test_a_reader_that_is_gone() -> None:
    with Pipes() as pipes:
        writer = pipes.writer()
        (source,) = serve(pipes, 1)
        os.close(source)
        assert Exchange(bytes(1_000_000), writer, [], 0).run()
