"""The live page in a real browser, with counters that the test moves."""

import http.client
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.browser.chromium import PROGRAM, Chromium
from tests.guests.processes import await_true
from teuthis.flows import FLOWS, Count, Counters
from teuthis.flows.live import Page, Sources, address, listen
from teuthis.flows.live.server import server


@dataclass
class Live:
    address: str
    counters: Counters

    def get(self, path: str = "", **headers: str) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(self.address)
        connection = http.client.HTTPConnection(parts.netloc, timeout=100)
        connection.request("GET", path or parts.path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content


@pytest.fixture
def live() -> Iterator[Live]:
    counters = Counters()
    sources = Sources()
    sources.add("some vm", counters.snapshot)
    page = Page(sources, {"agent.stdout": {"lines": "41", "covered": "93%"}})
    with listen(0) as listener:
        running = server(page)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        yield Live(address(page, listener), counters)
        running.should_exit = True
        thread.join(100)
    assert not thread.is_alive()
    sources.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if PROGRAM is None:
        pytest.skip("there is no chromium: make test installs it")
    with Chromium(tmp_path_factory.mktemp("chromium")) as chromium:
        yield chromium


def moves(flow: str) -> str:
    return f'document.querySelector(\'[data-flow="{flow}"]\').classList.contains("moving")'


def note(browser: Chromium, kind: str) -> None:
    """From now on `noted` has each flow that was once of that kind, however short a time."""
    browser.ask(
        "window.noted = new Set(); new MutationObserver((all) => all.forEach((each) =>"
        f" each.target.classList.contains('{kind}') && noted.add(each.target.dataset.flow)))"
        ".observe(document, {attributes: true, subtree: true, attributeFilter: ['class']})"
    )


def opened(browser: Chromium, live: Live) -> None:
    browser.open(live.address)
    browser.until('document.getElementById("state")?.textContent', ["1 VM"])


def test_lines_move_with_the_counters_and_rest_again(browser: Chromium, live: Live) -> None:
    live.counters.accept("agent.stderr", 10)
    opened(browser, live)
    assert not browser.ask(moves("agent.stderr")), "what was before is no news"
    note(browser, "moving")
    for _ in range(1000):
        live.counters.accept("agent.stdout", 100)
    browser.until('noted.has("agent.stdout")')
    assert browser.ask("noted.size") == 1
    browser.until('document.getElementById("bytes").textContent', ["100,010"])
    browser.until(moves("agent.stdout"), [False])


def test_what_is_refused_flashes(browser: Chromium, live: Live) -> None:
    opened(browser, live)
    note(browser, "refused")
    live.counters.reject("ring.packet", "type")
    browser.until('noted.has("ring.packet")')
    assert browser.ask("noted.size") == 1
    browser.ask('choose("ring.packet")')
    kind = "document.querySelector('#detail [data-kind=\"{}\"]').textContent"
    browser.until(kind.format("type") + '.startsWith("1 \u00d7 type: ")')
    assert browser.ask(kind.format("bounds") + '.startsWith("bounds: ")')
    assert browser.ask('document.getElementById("refused").textContent') == "1"


def test_a_line_tells_all_that_the_register_says(browser: Chromium, live: Live) -> None:
    opened(browser, live)
    browser.until("Object.keys(register).length > 0")
    browser.ask(
        "document.querySelector('[data-flow=\"agent.stdout\"]')"
        '.dispatchEvent(new MouseEvent("click", {bubbles: true}))'
    )
    words = browser.ask('document.getElementById("detail").textContent')
    flow = FLOWS["agent.stdout"]
    for each in (flow.shape, flow.threat, flow.handler, *flow.rejects, *flow.tests, "93%"):
        assert each in words
    live.counters.accept("agent.stdout", 7)
    browser.until('document.getElementById("now").textContent.startsWith("1 times, 7 bytes")')
    browser.ask("document.querySelector('.limb[data-kind=\"hypercall\"] .heading')"
                '.dispatchEvent(new MouseEvent("click"))')  # fmt: skip
    listed = browser.ask('document.querySelector("#list tbody").textContent')
    assert all(name in listed for name, each in FLOWS.items() if each.kind == "hypercall")


def test_the_page_keeps_to_its_own_rules(browser: Chromium, live: Live) -> None:
    browser.messages.clear()
    opened(browser, live)
    colour = "getComputedStyle(document.querySelector('.hull')).fill"
    assert browser.ask(colour) not in ("", "rgb(0, 0, 0)"), "the policy let our style through"
    browser.ask("document.body.append(Object.assign(document.createElement('script'),"
                "{textContent: 'window.broken = true'}))")  # fmt: skip
    assert browser.ask("window.broken") is None
    refusals: list[str] = []

    def refused() -> list[str]:
        browser.ask("0")  # what the page has said meanwhile comes with the answer
        refusals[:] = [words for words in browser.messages if "Content Security Policy" in words]
        return refusals

    await_true(refused)
    (refusal,) = refusals
    assert "inline script" in refusal


def test_nobody_gets_in_without_the_address(live: Live) -> None:
    host = urlsplit(live.address).netloc
    for path in ("/", "/events", "/flows.json", "/wrong/", "/wrong/events", "//", "/%00/"):
        status, headers, content = live.get(path, Host=host)
        assert status == 403, path
        assert b"address" in content
        assert headers["x-content-type-options"] == "nosniff"
    assert live.get()[0] == 200
    assert live.get(urlsplit(live.address).path + "../../etc/passwd")[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_name_for_this_machine_is_refused(live: Live, host: str) -> None:
    assert live.get(Host=host)[0] == 400


def test_it_listens_on_this_machine_alone() -> None:
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_the_page_asks_nothing_of_other_places(live: Live) -> None:
    base = live.address
    for name in ("", "live.css", "live.js"):
        with urllib.request.urlopen(base + name) as answer:
            text = answer.read().decode().replace("http://www.w3.org/2000/svg", "")
        assert "//www" not in text
        assert "http://" not in text
        assert "https://" not in text


def test_numbers_of_a_vm_that_is_ending_are_left_out() -> None:
    def gone() -> dict[str, Count]:
        raise ValueError("operation forbidden on released memoryview object")

    sources = Sources()
    sources.add("ending", gone)
    sources.add("lives", lambda: {"agent.exit": Count(1, 8, 0), "agent.hello": Count(0, 0, 0)})
    assert sources.read() == {"lives": {"agent.exit": (1, 8, 0, {})}}
