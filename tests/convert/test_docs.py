"""The example of docs/convert.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_example_runs(capsys) -> None:
    text = (Path(__file__).parents[2] / "docs" / "convert.md").read_text()
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    assert "100.0 % of" in capsys.readouterr().out
