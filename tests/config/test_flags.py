"""The command line's settings."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from specproxy.config.flags import add_config_flags, config_file, flag_settings
from specproxy.config.load import load_start_config
from specproxy.errors import ConfigError


def parse(*arguments: str) -> argparse.Namespace:
    """The flags as a command has them."""
    parser = argparse.ArgumentParser()
    add_config_flags(parser)
    return parser.parse_args(arguments)


def test_flags_set_what_they_name() -> None:
    """Named flags, repeated drafters, and --set for every other key."""
    settings = flag_settings(
        parse(
            "--model",
            "m",
            "--port",
            "9",
            "--drafter",
            "a=ngram",
            "--drafter",
            "b=prediction",
            "--set",
            "log.level=debug",
        )
    )
    assert settings == {
        "model.path": "m",
        "server.port": "9",
        "drafters": ["a=ngram", "b=prediction"],
        "log.level": "debug",
    }
    config = load_start_config(flags=settings)
    assert (config.model.path, config.server.port, config.log.level) == ("m", 9, "debug")


def test_every_flag_names_a_setting_that_exists() -> None:
    """A flag with a mistyped key would be refused only when somebody uses it."""
    given = parse("--model", "m", "--model-name", "n", "--device", "cpu", "--dtype", "float32", "--policies", "p")
    more = parse("--host", "::1", "--port", "1", "--keys-file", "k", "--log-level", "info", "--log-format", "json")
    for namespace in (given, more):
        load_start_config(flags=flag_settings(namespace))


def test_nothing_given_sets_nothing() -> None:
    """Absent flags leave the other sources alone."""
    assert flag_settings(parse()) == {}


def test_the_file_is_the_flags_or_else_the_environments() -> None:
    """--config wins over SPECPROXY_CONFIG."""
    env = {"SPECPROXY_CONFIG": "/e.yaml"}
    assert config_file(parse(), {}) is None
    assert config_file(parse(), env) == Path("/e.yaml")
    assert config_file(parse("--config", "/f.yaml"), env) == Path("/f.yaml")


def test_set_needs_a_value() -> None:
    """--set KEY says what form was expected."""
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        flag_settings(parse("--set", "server.port"))
