"""Messages, types and pickling of the error tree."""

import pickle

import pytest

from remnant import errors
from remnant.errors import ConfigError, HostVersionError, MissingExtra, RemnantError, unknown


def test_message_says_given_accepted_and_do():
    error = ConfigError("budget 0", accepted="1 or more", do="raise it")
    assert str(error) == "budget 0; accepted: 1 or more; raise it"
    assert error.to_dict()["type"] == "ConfigError"


def test_message_alone_is_enough():
    assert str(ConfigError("no such file")) == "no such file"


def test_accepted_may_be_names():
    assert str(ConfigError("x", accepted=["a", "b"])) == "x; accepted: a, b"


def test_missing_extra_names_the_command():
    error = MissingExtra("remnant.kv", "torch", "torch")
    assert isinstance(error, ImportError)
    assert str(error).endswith("pip install 'remnant[torch]'")


def test_host_version_error_names_both_sides():
    text = str(HostVersionError("transformers", "4.50.0", ">=5.19,<6"))
    assert "4.50.0" in text
    assert ">=5.19,<6" in text


def test_unknown_proposes_the_nearest_name():
    assert "did you mean 'snapkv'?" in str(unknown("policy", "snapvk", ["window", "snapkv"]))
    assert "did you mean" not in str(unknown("policy", "zzz", ["window"]))


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a", accepted="b", do="c"),
        MissingExtra("remnant.kv", "torch", "torch"),
        HostVersionError("transformers", "4", ">=5"),
    ],
)
def test_errors_survive_pickling(error: RemnantError):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_the_docstring_is_the_tree():
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    ours = [c.__name__ for c in classes if issubclass(c, RemnantError)]
    assert len(ours) == 6
    assert all(name in (errors.__doc__ or "") for name in ours)
