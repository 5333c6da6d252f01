import re
from pathlib import Path

import pytest

from tests.guests.named import home

README = Path(__file__).parents[2] / "README.md"


def test_the_example_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    with home(tmp_path):
        exec(example, {})
    shown = capsys.readouterr().out
    for part in ("0 b'hi\\ndata' ", "b'from a file\\n'", "b'a\\nb\\n'", "Count(count=", "-amd64"):
        assert part in shown
