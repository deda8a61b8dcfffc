"""What is written about the project is true of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sickbay
from docs import generate

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_page_that_is_made_from_the_code_is_up_to_date(name: str) -> None:
    committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert committed == generate.PAGES[name](), "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_key_of_the_configuration_says_what_it_means() -> None:
    rows = re.findall(r"^\| `(\w+)` .*\| *([^|]*?) *\|$", generate.configuration_page(), flags=re.MULTILINE)
    assert rows
    assert [key for key, meaning in rows if not meaning] == []


def test_the_readmes_explanation_is_what_explain_prints(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line, shown = re.search(r"\$ sickbay explain '([^']+)'\n(.*?)```", readme, flags=re.DOTALL).groups()
    assert sickbay.main(["explain", line]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    "target", re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
)
def test_every_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
