"""The README's example runs as it is printed, in the length that it claims, and learns."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def example() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    return block


def test_example_is_as_short_as_it_says():
    (claimed,) = re.findall(r"^## In (\d+) lines$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len([line for line in example().splitlines() if line.strip()]) == int(claimed)


@pytest.mark.slow
def test_example_runs_and_learns():
    """In a process of its own, as a reader would run it; fewer epochs, for time."""
    code = example().replace("epochs=30", "epochs=6")
    assert code != example()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = [float(v) for v in re.findall(r"0\.\d{3}|1\.000", done.stdout)]
    assert len(figures) == 4
    assert min(figures[:3]) > 0.9
    assert "100.0 % of 84,224 MACs on the chip" in done.stdout
    assert done.stdout.endswith("700,200 codes of 4 layers over 450 samples: all equal\n")


def test_make_targets_of_the_readme_exist():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^    |[`;] ?)make ([\w-]+)", README.read_text(encoding="utf-8"), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
