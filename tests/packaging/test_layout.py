"""The folders of the checkout are folders, not packages, and the version stands once."""

import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

import remnant

FOLDERS = ("core", "kernels", "plugins", "tests", "benchmarks", "tools")


def test_no_init_in_the_top_folders(root: Path):
    folders = [root / name for name in FOLDERS] + list(root.glob("plugins/*_ext"))
    assert not [path for path in folders if (path / "__init__.py").exists()]


@pytest.mark.parametrize("name", ["core", "kernels", "plugins"])
def test_folder_cannot_be_imported(root: Path, name: str):
    """Another project's package may have that name; ours must not be found."""
    spec = find_spec(name)
    places = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
    assert not [place for place in places if Path(place).resolve().parent == root.resolve()]


def test_folder_cannot_be_imported_from_elsewhere(tmp_path: Path):
    code = "from importlib.util import find_spec as f; print(f('core'), f('plugins'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "None None\n"


def test_version_stands_once(root: Path):
    assert version("remnant") == remnant.__version__
    project = (root / "pyproject.toml").read_text()
    assert remnant.__version__ not in project
    sources = [*root.glob("core/**/*.py"), *root.glob("plugins/**/*.py")]
    holders = [path for path in sources if f'"{remnant.__version__}"' in path.read_text()]
    assert holders == [root / "core/remnant/__init__.py"]
