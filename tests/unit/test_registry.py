"""The registry's contract."""

import pytest

from remnant.errors import ConfigError
from remnant.registry import Registry


@pytest.fixture
def registry() -> Registry[type]:
    registry: Registry[type] = Registry("policy")
    registry.register("snapkv", int)
    registry.register("window", str)
    return registry


def test_order_of_registration_is_kept(registry: Registry[type]):
    assert registry.names() == ("snapkv", "window")
    assert list(registry) == [int, str]
    assert len(registry) == 2
    assert "snapkv" in registry
    assert "other" not in registry


def test_get_returns_what_was_registered(registry: Registry[type]):
    assert registry.get("window") is str


def test_unknown_name_lists_names_and_nearest(registry: Registry[type]):
    with pytest.raises(ConfigError, match=r"unknown policy 'snapk'.*snapkv, window.*did you mean"):
        registry.get("snapk")


def test_same_object_twice_is_fine(registry: Registry[type]):
    assert registry.register("snapkv", int) is int
    assert len(registry) == 2


def test_another_object_under_a_taken_name_is_refused(registry: Registry[type]):
    with pytest.raises(ConfigError, match="already"):
        registry.register("snapkv", float)
    assert registry.get("snapkv") is int


def test_empty_name_is_refused(registry: Registry[type]):
    with pytest.raises(ConfigError, match="empty policy name"):
        registry.register("", int)
