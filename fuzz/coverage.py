"""`make fuzz-coverage`: which branches of the project's code the fuzzers' corpora take.

Every input that the targets keep in `build/fuzz/corpus` runs once more, and Python's properties as
often as `make test` runs them, in programs that count:
Rust's own instrumentation (regions: each arm of a branch, each way out by `?`), coverage.py for
Python. The results are lcov files in `build/coverage`, which `make flows-report` reads.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from fuzz.target import ROOT, RUST, WORK, Target, all_targets

_OUT = ROOT / "build/coverage"
_BUILD = ROOT / "target/fuzz-coverage"
_AT_ONCE = 500
_CODE_REGION = 0

Regions = dict[tuple[int, int, int, int], int]
"""How often the code between two places of a file ran: first line and column, last ones."""


def main() -> int:
    """Measures all targets."""
    shutil.rmtree(_OUT, ignore_errors=True)
    _OUT.mkdir(parents=True)
    targets = all_targets()
    _rust([target for target in targets if RUST.fullmatch(target.name)])
    _python([target for target in targets if not RUST.fullmatch(target.name)])
    return 0


def inputs(target: Target) -> list[Path]:
    """What a target has kept."""
    directory = WORK / "corpus" / target.short
    return sorted(directory.iterdir()) if directory.exists() else []


# ---- Rust ----------------------------------------------------------------------------------------


def _rust(targets: list[Target]) -> None:
    environment = os.environ | {
        "RUSTFLAGS": "-C instrument-coverage --cfg fuzzing",
        "LLVM_PROFILE_FILE": str(_BUILD / "build-script.profraw"),  # not beside the sources
    }
    build = ("cargo", "build", "--release", "--manifest-path", "fuzz/rust/Cargo.toml")
    subprocess.run([*build, "--target-dir", str(_BUILD)], cwd=ROOT, env=environment, check=True)
    files: dict[str, Regions] = {}
    for target in targets:
        program = _BUILD / "release" / target.short
        given = [str(path) for path in inputs(target)]
        for start in range(0, len(given), _AT_ONCE):
            raw = _OUT / f"{target.short}-{start}.profraw"
            subprocess.run(
                [program, *given[start : start + _AT_ONCE]],
                env=os.environ | {"LLVM_PROFILE_FILE": str(raw)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
        profile = _OUT / f"{target.short}.profdata"
        raws = sorted(_OUT.glob(f"{target.short}-*.profraw"))
        if raws:
            subprocess.run([_tool("llvm-profdata"), "merge", "-o", profile, *raws], check=True)
            _collect(files, program, profile)
        for raw in raws:
            raw.unlink()
        print(f"{target.short}: {len(given)} inputs", flush=True)
    _write(_OUT / "rust.info", files)


def _collect(files: dict[str, Regions], program: Path, profile: Path) -> None:
    """Adds the regions of our own code that a run of a program took or did not take."""
    exported = subprocess.run(
        [
            *(_tool("llvm-cov"), "export", str(program), f"-instr-profile={profile}"),
            str(ROOT / "hypervisor/src"),
        ],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    for function in json.loads(exported)["data"][0]["functions"]:
        for *place, count, file, _, kind in function["regions"]:
            name = function["filenames"][file]
            if kind == _CODE_REGION and name.startswith(f"{ROOT}/hypervisor/src/"):
                first, column, last, end = place
                regions = files.setdefault(name, {})
                key = (first, column, last, end)
                regions[key] = regions.get(key, 0) + count


def _write(path: Path, files: dict[str, Regions]) -> None:
    """Writes lcov's records, with a branch for each region."""
    with path.open("w") as out:
        for name, regions in sorted(files.items()):
            out.write(f"SF:{name}\n")
            for number, ((line, *_), count) in enumerate(sorted(regions.items())):
                out.write(f"DA:{line},{count}\nBRDA:{line},0,{number},{count}\n")
            out.write("end_of_record\n")


def _tool(name: str) -> str:
    """A program of the compiler's own LLVM: no other reads its files."""
    root = subprocess.run(
        ["rustc", "--print", "target-libdir"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    return str(Path(root).parent / "bin" / name)


# ---- Python --------------------------------------------------------------------------------------


def _python(targets: Iterable[Target]) -> None:
    data = _OUT / "python.data"
    coverage = (sys.executable, "-m", "coverage")
    for target in targets:
        given = inputs(target)
        subprocess.run(
            [
                *(*coverage, "run", "--branch", "--append", f"--data-file={data}"),
                *("--source=src/teuthis", "fuzz/drive.py", target.name, "--replay"),
                str(WORK / "corpus" / target.short),
            ],
            cwd=ROOT,
            check=True,
        )
        print(f"{target.short}: {len(given)} inputs", flush=True)
    subprocess.run(
        [*coverage, "lcov", "--quiet", f"--data-file={data}", "-o", str(_OUT / "python.info")],
        cwd=ROOT,
        check=True,
    )


if __name__ == "__main__":
    sys.exit(main())
