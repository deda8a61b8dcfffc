"""What is written about the project is true of it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

import sickbay
from docs import generate
from remediation.drain_policy import DrainPolicy
from remediation.plugin_policy import DevicePluginPolicy
from remediation.policy import Budgets, Match, Policy, Rule, StartRate, load_policy

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


def _policies(page: Path) -> list[str]:
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [block for block in blocks if "kind: Policy" in block]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "docs" / "policy.md"], ids=lambda page: page.name
)
def test_every_policy_that_is_shown_is_one(page: Path, tmp_path: Path) -> None:
    shown = _policies(page)
    assert shown
    for number, text in enumerate(shown):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text, encoding="utf-8")
        assert load_policy(file).rules


def test_the_policys_page_names_every_key() -> None:
    page = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    structs = (Policy, Rule, Match, Budgets, StartRate, DrainPolicy, DevicePluginPolicy)
    keys = {field.encode_name for struct in structs for field in msgspec.structs.fields(struct)}
    assert {key for key in keys if not re.search(rf"\b{key}\b", page)} == set()
