"""The Python examples in README.md and docs/ run: the blocks of one page in order, as one program, from the root."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD_DIR = Path(os.environ.get("ACTNN_BUILD_DIR", ROOT / "build")).resolve()
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ALL_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in ALL_PAGES if BLOCK.search(page.read_text())]
RESULTS = re.compile(r"(?<=benchmarks/results/)\w+\.json")
FIGURES = [ROOT / "docs" / name for name in ("accuracy.md", "performance.md")]
"""Pages that name results without their folder."""
LINK = re.compile(r"\]\((?!https?://)([^)#]+)[^)]*\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page):
    program = "\n".join(BLOCK.findall(page.read_text())).replace('"build/', f'"{BUILD_DIR}/')
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page):
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken


def test_the_results_that_pages_name_are_there():
    pages = [*ALL_PAGES, ROOT / "benchmarks/README.md"]
    named = {name for page in pages for name in RESULTS.findall(page.read_text())}
    named |= {name for page in FIGURES for name in re.findall(r"`(\w+\.json)`", page.read_text())}
    kept = subprocess.run(["git", "ls-files", "benchmarks/results"], cwd=ROOT, capture_output=True, text=True)
    there = {Path(path).name for path in kept.stdout.split()} or {
        p.name for p in (ROOT / "benchmarks/results").iterdir()
    }
    assert named and named <= there, named - there
