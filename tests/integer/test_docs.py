"""The example of docs/integer.md runs as it is printed."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "integer.md"


def test_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "106,400 codes of 3 layers over 200 samples: all equal" in done.stdout, done.stdout
    assert {path.name for path in (tmp_path / "net").iterdir()} == {"program.json", "tensors.safetensors"}
