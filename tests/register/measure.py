"""What stands behind the register, measured in the checkout: code, system calls, the program."""

import ast
import importlib
import inspect
import re
import subprocess
import tempfile
import types
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from teuthis.flows import FLOWS, Flow
from teuthis.jail.system_calls import NUMBERS

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    name: ROOT / "target/release" / f"teuthis-{name}" for name in ("hypervisor", "hypervisor-kvm")
}
KVM = ROOT / "hypervisor/src/processor/kvm"


def counts() -> dict[str, int]:
    """Flows by kind and receiver."""
    return dict(Counter(f"{flow.kind}/{flow.receiver}" for flow in FLOWS.values()))


def limits() -> dict[str, int]:
    """What each flow may carry at most, and its further bounds."""
    found = {}
    for flow in FLOWS.values():
        found[flow.id] = flow.max_bytes
        bounds = {key: value for key, value in flow.values.items() if key.endswith("_max")}
        found |= {f"{flow.id}/{key}": value for key, value in bounds.items()}
    return found


def lines() -> dict[str, int]:
    """Lines of code, without blank lines and comments, of each flow's handler."""
    return {flow.id: handler_lines(flow) for flow in FLOWS.values()}


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Span:
    """Some lines of a source file, numbered from 1, both ends included."""

    path: Path
    first: int
    text: str

    @property
    def last(self) -> int:
        """Its last line."""
        return self.first + self.text.rstrip("\n").count("\n")

    def code_lines(self) -> int:
        """How many of the lines hold code: no blank lines, no comments, no docstrings."""
        lines = _rust_lines if self.path.suffix == ".rs" else _python_lines
        return lines(self.text)


def spans(flow: Flow) -> list[Span]:
    """The code of the handler of `flow`: the function or class that the register names.

    In a Rust file several types may have a function of that name: all of them.
    """
    if "#" in flow.handler:
        file, name = flow.handler.split("#")
        path = ROOT / file
        return [
            Span(path, _text(path).count("\n", 0, match.start()) + 1, match[0])
            for match in _rust_functions(_text(path), name)
        ]
    value = handler(flow)
    source = inspect.getsourcefile(value)
    assert source is not None
    lines, first = inspect.getsourcelines(value)
    return [Span(Path(source), first, "".join(lines))]


def handler_lines(flow: Flow) -> int:
    """Lines of code of the handler of `flow`."""
    return sum(span.code_lines() for span in spans(flow))


def handler(flow: Flow) -> types.FunctionType | type:
    """The Python handler of `flow`."""
    module, _, path = flow.handler.partition(":")
    value: Any = importlib.import_module(module)
    for name in path.split("."):
        value = getattr(value, name)
    assert isinstance(value, types.FunctionType | type), flow.handler
    return value


def _rust_functions(text: str, name: str) -> Iterable[re.Match[str]]:
    """The functions `name` of a file; rustfmt indents first line and last brace alike."""
    pattern = rf"^( *)(?:pub(?:\([^)]*\))? )?(?:const )?fn {re.escape(name)}\b.*?^\1}}"
    return re.finditer(pattern, text, re.MULTILINE | re.DOTALL)


def _rust_lines(text: str) -> int:
    return sum(
        bool(line.strip()) and not line.strip().startswith("//") for line in text.split("\n")
    )


def _python_lines(text: str) -> int:
    """Lines that hold code: no blank lines, no comments, no docstrings."""
    tree = ast.parse(inspect.cleandoc("\n" + text))
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            first = node.body[0]
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in docstrings
        for number, line in enumerate(inspect.cleandoc("\n" + text).split("\n"), start=1)
    )


def system_calls() -> dict[str, list[str]]:
    """The calls that each process keeps."""
    filters = _text(ROOT / "hypervisor/src/jail/filter.rs")
    (only_kvm,) = (match[0] for match in _rust_functions(filters, "kvm_calls"))
    texts = {"hypervisor": filters.replace(only_kvm, ""), "hypervisor-kvm": filters}
    calls = {name: sorted(set(re.findall(r"\bSYS_(\w+)", text))) for name, text in texts.items()}
    return calls | {name: _listed_calls(name) for name in ("worker", "switch")}


def kvm_requests() -> dict[str, list[str]]:
    """The requests that the hypervisor may make of what KVM gave it, once its door is locked."""
    text = "".join(_text(path) for path in sorted(KVM.glob("*.rs")))
    found = {}
    for owner, size, body in re.findall(
        r"const (VM|VCPU|SAVE|RESTORE)_CALLS: \[u64; (\d+)\] = \[([^\]]*)\];", text
    ):
        found[owner.lower()] = sorted(re.findall(r"0x[0-9A-F_]+", body))
        assert len(found[owner.lower()]) == int(size), owner
    return found


def _listed_calls(process: str) -> list[str]:
    """The calls that a process of ours in Python keeps."""
    jail = ast.parse(_text(ROOT / f"src/teuthis/jail/{process}.py"))
    keys = {
        key.value
        for node in ast.walk(jail)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and key.value in NUMBERS
    }
    return sorted(keys)


def unsafe_blocks() -> dict[str, int]:
    """How often `unsafe` stands in the code of each Rust program."""
    found = {}
    for program in ("hypervisor", "guest"):
        code = "\n".join(
            re.sub(r"//.*", "", _text(path))
            for path in sorted((ROOT / program / "src").rglob("*.rs"))
        )
        found[program] = len(re.findall(r"\bunsafe\b\s*(?:\{|impl|fn|extern|trait)", code))
    return found


def program_bytes(name: str) -> int | None:
    """Size of a stripped hypervisor program; None while there is none."""
    if not PROGRAMS[name].exists():
        return None
    with tempfile.NamedTemporaryFile() as stripped:
        subprocess.run(["strip", "-o", stripped.name, PROGRAMS[name]], check=True)
        return Path(stripped.name).stat().st_size
