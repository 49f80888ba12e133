"""The README is short, true and executable."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from remnant.hosts import HOSTS

TITLES = {
    "hf": "Hugging Face",
    "vllm": "vLLM",
    "langchain": "LangChain",
    "llamaindex": "LlamaIndex",
}
ORDER = ["Install", "Use", "Policies", "Add one", "Measured", "Limits", "Licence"]


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text()


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_it_is_short_and_in_order(readme: str):
    assert len(readme.splitlines()) < 200
    assert re.findall(r"^## (.*)$", readme, re.MULTILINE) == ORDER


def test_table_of_policies_is_that_of_the_registry(readme: str):
    pytest.importorskip("torch", reason="needs the extra torch")
    from remnant.cli.policies import markdown

    written = readme.partition("<!-- policies -->\n")[2].partition("<!-- /policies -->")[0]
    assert written == markdown(), "run `make readme`"


@pytest.mark.parametrize("host", [host for host in HOSTS if host.name in TITLES], ids=lambda h: h.name)
def test_host_that_is_not_built_is_planned(readme: str, host):
    (row,) = re.findall(rf"^\| {TITLES[host.name]}.*$", readme, re.MULTILINE)
    built = find_spec(host.package) is not None
    assert row.endswith("| ready |" if built else "| planned |")


@pytest.mark.parametrize("index", range(3))
def test_examples_run(readme: str, index: int):
    pytest.importorskip("transformers", reason="needs the extra hf")
    blocks = _blocks(readme)
    assert len(blocks) == 3
    exec(compile(blocks[index], f"README.md example {index}", "exec"), {})


def test_commands_exist(readme: str, root: Path):
    from remnant.cli import app

    names = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    names |= {group.name for group in app.registered_groups if isinstance(group.name, str)}
    written = "\n".join([readme, *(path.read_text() for path in sorted((root / "docs").glob("*.md")))])
    named = set(re.findall(r"(?:^ +|`)remnant ([a-z-]+)", written, re.MULTILINE))
    assert named <= names


def test_contributing_names_real_places(root: Path):
    text = (root / "CONTRIBUTING.md").read_text()
    for target in re.findall(r"make ([a-z]+)", text):
        assert re.search(rf"^{target}:", (root / "Makefile").read_text(), re.MULTILINE), target


def test_examples_of_the_guide_run(root: Path):
    namespace: dict[str, object] = {}
    blocks = _blocks((root / "docs" / "memory.md").read_text())
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/memory.md example {number}", "exec"), namespace)


def test_links_lead_somewhere(root: Path):
    for page in (root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
