"""What the documents name exists, and what they print as Python runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]
CITING = [path for folder in ("src", "tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.[pm][yd]")]
PRINTED = {
    "convert.md": ["100.0 % of"],
    "integer.md": ["106,400 codes of 3 layers over 200 samples: all equal"],
}
"""What a page says its examples print."""
WRITTEN = {"integer.md": {"net/SHA256SUMS", "net/program.json", "net/tensors.safetensors"}}
"""All files that a page says its examples write."""


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text(page), flags=re.DOTALL)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def tests():
    return {name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", text(path))}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_named_tests_exist(page, tests):
    mentioned = set(re.findall(r"`(test_\w+)(?:\[[^`]*\])?`", text(page)))
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert mentioned <= tests | files


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)", text(page)):
        assert (page.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if examples(page) and page != ROOT / "README.md"], ids=named)
def test_examples_run(page, tmp_path):
    """One after the other in a process and a folder of their own, as a reader would run them."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(examples(page))], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert all(line in done.stdout for line in PRINTED.get(page.name, [])), done.stdout
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == WRITTEN.get(page.name, written)


def test_specifications_that_are_cited_can_be_opened():
    """`spec/NAME.md` is a file of docs/spec/, and each section cited of it is one of its headings."""
    number = r"\d+(?:\.\d+)*"
    citation = re.compile(rf"spec/([\w-]+\.md)(?:,? sections? ({number}(?:(?:, and |, | and | to ){number})*))?")
    headings = {
        path.name: set(re.findall(rf"^#+ ({number})", text(path), flags=re.MULTILINE))
        for path in (ROOT / "docs" / "spec").glob("*.md")
    }
    cited = [
        (named(path), *found.groups())
        for path in CITING
        if path != Path(__file__)
        for found in citation.finditer(" ".join(text(path).replace("#", " ").split()))
    ]
    assert len([path for path, _, sections in cited if path.startswith("src/") and sections]) > 50
    missing = [
        f"{path}: {name} {section}"
        for path, name, sections in cited
        for section in re.findall(number, sections or "")
        if section not in headings.get(name, ())
    ]
    assert not missing
    assert {name for _, name, _ in cited} <= headings.keys()
