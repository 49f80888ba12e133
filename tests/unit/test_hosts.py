"""Which hosts can run here."""

import pytest

from remnant.errors import HostVersionError
from remnant.hosts import Host, host_status, in_range, require_version, supported


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
