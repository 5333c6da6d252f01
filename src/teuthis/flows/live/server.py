"""Serves the page on this machine's loopback interface, and nowhere else."""

import socket
from typing import Final

import uvicorn

from teuthis.errors import HostError
from teuthis.flows.live.page import Page

_LOOPBACK: Final = "127.0.0.1"
_CONNECTIONS: Final = 32


def listen(port: int) -> socket.socket:
    """A listening socket on the loopback interface; port 0 takes a free one.

    Raises:
        HostError: the port is taken.
    """
    try:
        return socket.create_server((_LOOPBACK, port))
    except OSError as error:
        raise HostError(f"port {port} cannot be had ({error.strerror}): choose another") from error


def serve(page: Page, listener: socket.socket) -> None:
    """Serves until ^C."""
    server(page).run(sockets=[listener])


def server(page: Page) -> uvicorn.Server:
    """The server of `page`."""
    config = uvicorn.Config(
        page.application,
        log_level="critical",
        access_log=False,
        lifespan="off",
        http="h11",
        ws="none",
        limit_concurrency=_CONNECTIONS,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def address(page: Page, listener: socket.socket) -> str:
    """What to open in a browser."""
    return f"http://{_LOOPBACK}:{listener.getsockname()[1]}/{page.token}/"
