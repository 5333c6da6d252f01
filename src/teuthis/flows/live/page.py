"""The page and the stream of its numbers, below a path that nobody can guess.

Whoever knows the address may look; a page of another origin neither knows it nor gets past the
check of the host name (DNS rebinding), and the page itself loads nothing from elsewhere.
"""

import asyncio
import base64
import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from importlib import resources
from typing import Any, Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from teuthis.flows.live.sources import Numbers, Sources
from teuthis.flows.register import FLOWS, RECEIVERS, Flow
from teuthis.flows.squid import draw

TICK_SECONDS: Final = 0.25
HOSTS: Final = ["127.0.0.1", "localhost"]
_FILES: Final = {"live.css": "text/css", "live.js": "text/javascript"}

Report = Mapping[str, Mapping[str, Any]]
"""What `make flows-report` found, by flow."""


class Page:
    """The application: the page, its style and script, the register, and the numbers."""

    def __init__(self, sources: Sources, report: Report | None = None) -> None:
        self.token = secrets.token_urlsafe(24)
        self._sources = sources
        self._report = report or {}
        self._drawing = draw()
        routes = [
            Route("/{token}/", self._index),
            Route("/{token}/flows.json", self._flows),
            Route("/{token}/events", self._events),
            Route("/{token}/{file}", self._file),
        ]
        self.application = Starlette(
            routes=routes,
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
                Middleware(_Guard, token=self.token, headers=self._headers()),
            ],
        )

    def _headers(self) -> dict[str, str]:
        """Nothing from elsewhere, no script but ours, in nobody's frame."""
        styles = re.findall(r"<style>(.*?)</style>", self._drawing, re.DOTALL)
        digests = (hashlib.sha256(style.encode()).digest() for style in styles)
        hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
        policy = (
            "default-src 'none'; script-src 'self'; connect-src 'self'; "
            f"style-src 'self' {hashes}; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        return {
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin",
            "cross-origin-opener-policy": "same-origin",
            "cache-control": "no-store",
        }

    async def _index(self, request: Request) -> Response:
        return _text(_read("page.html").replace("<!-- drawing -->", self._drawing), "text/html")

    async def _file(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name not in _FILES:
            return PlainTextResponse("there is no such file\n", status_code=404)
        return _text(_read(name), _FILES[name])

    async def _flows(self, request: Request) -> Response:
        entries = {
            name: {**_entry(flow), **self._report.get(name, {})} for name, flow in FLOWS.items()
        }
        return _text(json.dumps(entries), "application/json")

    async def _events(self, request: Request) -> Response:
        return StreamingResponse(self._numbers(), media_type="text/event-stream")

    async def _numbers(self) -> AsyncIterator[str]:
        """At each tick what changed, by VM and flow; None when the VM is gone."""
        before: dict[str, dict[str, Numbers]] = {}
        while True:
            now = self._sources.read()
            changed: dict[str, dict[str, Numbers] | None] = dict.fromkeys(before.keys() - now)
            for vm, counts in now.items():
                known = before.get(vm)
                news = {f: n for f, n in counts.items() if known is None or known.get(f) != n}
                if news or known is None:
                    changed[vm] = news
            yield f"data: {json.dumps(changed)}\n\n"
            before = now
            await asyncio.sleep(TICK_SECONDS)


class _Guard:
    """Lets nothing through without the secret, and puts `headers` on every answer."""

    def __init__(self, app: ASGIApp, token: str, headers: Mapping[str, str]) -> None:
        self._app = app
        self._token = token.encode()
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        if scope["type"] != "http":
            return
        given = scope["path"].split("/")[1].encode(errors="replace")
        if not secrets.compare_digest(given, self._token):
            refusal = PlainTextResponse("use the address that teuthis printed\n", status_code=403)
            await refusal(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


def _read(name: str) -> str:
    return resources.files("teuthis.flows.live").joinpath(name).read_text(encoding="utf-8")


def _text(content: str, media_type: str) -> Response:
    return Response(content, media_type=f"{media_type}; charset=utf-8")


def _entry(flow: Flow) -> dict[str, Any]:
    return {
        "kind": flow.kind,
        "direction": flow.direction,
        "receiver": flow.receiver,
        "reach": RECEIVERS[flow.receiver].reach,
        "shape": flow.shape,
        "min_bytes": flow.min_bytes,
        "max_bytes": flow.max_bytes,
        "values": flow.values,
        "rejects": flow.rejects,
        "handler": flow.handler,
        "tests": flow.tests,
        "fuzz": flow.fuzz,
        "threat": flow.threat,
        "left": flow.left,
    }
