"""The files around the code say the same as each other."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_one_list_of_python_versions():
    """The classifiers, the oldest version that is required and checked for, and the hosted runs."""
    stated = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    hosted = re.findall(r"python-version: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert [re.findall(r"[\d.]+", line) for line in hosted] == [stated]
    assert f'requires-python = ">={stated[0]}"' in PROJECT
    assert f'python_version = "{stated[0]}"' in PROJECT
    assert f'target-version = "py{stated[0].replace(".", "")}"' in PROJECT


def test_every_extra_is_used():
    """A package that an extra brings is imported by the source, or is a tool of the developers."""
    (table,) = re.findall(r"\[project\.optional-dependencies\]\n(.*?)\n\[", PROJECT, flags=re.DOTALL)
    extras = dict(re.findall(r"^(\w+) = \[(.*?)\]$", table, flags=re.DOTALL | re.MULTILINE))
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    assert set(extras) >= {"export", "dev"}
    for extra in extras.keys() - {"dev"}:
        for package in re.findall(r'"([\w-]+)', extras[extra]):
            module = package.replace("-", "_")
            assert re.search(rf"^\s*(?:import|from) {module}\b", source, flags=re.MULTILINE), f"{extra}: {package}"


def test_make_bench_runs_every_benchmark():
    # what they share, and what takes a folder of images and trains
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"timing", "low_bits"}
    printed = subprocess.run(["make", "-n", "bench"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"benchmarks/(\w+)\.py --json out/bench/\1\.json", printed)) == names


def test_helpers_are_imported_by_name():
    """What several tests use is in tests/support/, and no test loads a file by its path."""
    helpers = {path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")}
    stray = {path for path in helpers if path.name != "conftest.py" and ROOT / "tests" / "support" not in path.parents}
    assert stray == {ROOT / "tests" / "chips" / "battery.py"}  # what every chip's test file fills in
    loader = "spec_" + "from_file_location"
    assert not [path for path in (ROOT / "tests").rglob("*.py") if loader in path.read_text(encoding="utf-8")]
