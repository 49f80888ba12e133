"""What the wheel carries, and what it does not."""

import re
import tarfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import remnant

PACKAGES = (
    "core/remnant",
    "kernels/remnant_kernels",
    "plugins/hf_ext/remnant_hf",
    "plugins/vllm_ext/remnant_vllm",
    "plugins/langchain_ext/remnant_langchain",
    "plugins/llamaindex_ext/remnant_llamaindex",
)
LARGEST = 12 << 20  # bytes; 8 MiB of weights and the code


@pytest.fixture(scope="module")
def wheel(built: Path) -> ZipFile:
    (path,) = built.glob("*.whl")
    assert path.stat().st_size < LARGEST
    return ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_in_the_wheel(wheel: ZipFile, root: Path, package: str):
    folder = root / package
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(folder.parent).as_posix() for path in paths}
    assert expected <= set(wheel.namelist())


def test_nothing_else_is_in_the_wheel(wheel: ZipFile):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    ours = {package.rpartition("/")[2] for package in PACKAGES}
    assert {top for top in tops if not top.endswith(".dist-info")} <= ours
    assert "remnant/py.typed" in wheel.namelist()


def test_metadata(metadata: Message):
    assert metadata["Version"] == remnant.__version__
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"torch", "kernels", "hf", "plot", "test", "dev"} <= extras
    always = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(re.split(r"[<>=]", line)[0] for line in always) == ["pluggy", "rich", "typer"]


def test_entry_points_lead_to_modules(wheel: ZipFile):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
    targets = re.findall(r"=\s*([\w.]+)", wheel.read(name).decode())
    files = set(wheel.namelist())
    for target in targets:
        path = target.replace(".", "/")
        assert {f"{path}.py", f"{path}/__init__.py"} & files, target


def test_sdist_carries_the_tests(built: Path):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = archive.getnames()
    assert any(name.endswith("tests/unit/test_errors.py") for name in names)
    assert any(name.endswith("/LICENSE") for name in names)
    assert not any("/.venv" in name or "__pycache__" in name for name in names)
