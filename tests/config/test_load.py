"""The start configuration from file, environment and flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from specproxy.config.load import check_bind, is_loopback, load_start_config, parse_drafter
from specproxy.config.schema import CaptureConfig, DrafterConfig
from specproxy.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    """A configuration file."""
    file = folder / "specproxy.yaml"
    file.write_text(text)
    return file


def faults(
    file: Path | None = None, env: dict[str, str] | None = None, flags: dict[str, object] | None = None
) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(ConfigError) as caught:
        load_start_config(file, env, flags)
    return str(caught.value).splitlines()


def test_nothing_given_serves_the_house_model_with_its_drafters() -> None:
    """Without any source: the bundled model, its draft model, and the drafters that need nothing."""
    config = load_start_config()
    assert (config.model.path, config.model.name) == ("house", "house")
    assert {name: item.type for name, item in config.drafters.items()} == {
        "draft_model": "draft_model",
        "grammar": "grammar",
        "ngram": "ngram",
        "prediction": "prediction",
        "suffix": "suffix",
    }
    assert config.drafters["draft_model"].path == "house"


def test_another_model_gets_no_draft_model_of_the_house() -> None:
    """The house's draft model speaks the house's tokens only."""
    config = load_start_config(flags={"model.path": "Qwen/Qwen3-4B"})
    assert set(config.drafters) == {"grammar", "ngram", "prediction", "suffix"}
    assert config.model.name == "Qwen3-4B"


def test_declared_drafters_replace_the_default_ones_but_for_the_free_ones() -> None:
    """grammar, ngram, suffix and prediction are always there, as declared where they are."""
    config = load_start_config(flags={"drafters": ["ngram=ngram", "d=draft_model:/m/d"]})
    assert set(config.drafters) == {"grammar", "ngram", "d", "prediction", "suffix"}
    assert config.drafters["d"] == DrafterConfig(type="draft_model", path="/m/d")


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    """The later source wins, key by key."""
    file = write(tmp_path, "server: {port: 1, max_queue: 7, host: 127.0.0.2}\nlog: {level: error}\n")
    env = {"SPECPROXY_SERVER__PORT": "2", "SPECPROXY_LOG_LEVEL": "debug"}
    config = load_start_config(file, env, {"server.port": "3", "log.format": None})
    assert (config.server.port, config.server.max_queue, config.server.host) == (3, 7, "127.0.0.2")
    assert config.log.level == "debug"


def test_the_long_form_of_a_variable_wins_over_the_short_one() -> None:
    """SPECPROXY_PORT is short for SPECPROXY_SERVER__PORT."""
    assert load_start_config(env={"SPECPROXY_PORT": "5"}).server.port == 5
    assert load_start_config(env={"SPECPROXY_PORT": "5", "SPECPROXY_SERVER__PORT": "6"}).server.port == 6


def test_where_answers_are_kept_is_said_in_three_places(tmp_path: Path) -> None:
    """Flag, variable, file; nothing is kept where none of them names a directory."""
    assert load_start_config().capture == CaptureConfig(dir="", max_mb=1024)
    assert load_start_config(flags={"capture.dir": "/a"}).capture.dir == "/a"
    assert load_start_config(env={"SPECPROXY_CAPTURE": "/b", "SPECPROXY_CAPTURE__MAX_MB": "5"}).capture == (
        CaptureConfig(dir="/b", max_mb=5)
    )
    assert load_start_config(write(tmp_path, "capture: {dir: /c, max_mb: 9}\n")).capture == CaptureConfig(
        dir="/c", max_mb=9
    )


def test_variables_become_the_type_of_their_setting() -> None:
    """Numbers, flags, lists, and text that looks like a number."""
    config = load_start_config(
        env={
            "SPECPROXY_MODEL__NAME": "123",
            "SPECPROXY_MODEL__ALIASES": "gpt-4o, gpt-4o-mini",
            "SPECPROXY_MODEL__TRUST_REMOTE_CODE": "true",
            "SPECPROXY_SERVER__DRAIN_S": "1.5",
            "SPECPROXY_DRAFTERS__D__TYPE": "ngram",
            "SPECPROXY_DRAFTERS__D__MAX_K": "4",
        }
    )
    assert config.model.name == "123"
    assert config.model.aliases == ["gpt-4o", "gpt-4o-mini"]
    assert config.model.trust_remote_code is True
    assert config.server.drain_s == 1.5
    assert config.drafters["d"].max_k == 4


@pytest.mark.parametrize("share", ["0", "1.5", "much"])
def test_a_share_of_memory_is_a_part_of_it(share: str) -> None:
    """What may be used of a GPU's memory is more than nothing and no more than all."""
    refusal = f'flag model.memory_share: expected a number above 0 to 1, got "{share}"'
    assert refusal in faults(flags={"model.memory_share": share})
    assert load_start_config(flags={"model.memory_share": "0.8"}).model.memory_share == 0.8


def test_every_fault_is_told_with_its_source() -> None:
    """The variable or flag, the value, the expectation, and what may have been meant."""
    assert faults(
        env={"SPECPROXY_PRT": "1", "SPECPROXY_SERVER__PORTT": "1", "SPECPROXY_SERVER__PORT": "x"},
        flags={"model": "m", "drafters": ["foo"]},
    ) == [
        'SPECPROXY_PRT: no such setting; did you mean "SPECPROXY_PORT"?',
        'SPECPROXY_SERVER__PORT: expected a whole number from 0 to 65535, got "x"',
        'SPECPROXY_SERVER__PORTT: no such setting; did you mean "server.port"?',
        'flag model: no such setting; did you mean "model.path"?',
        'flag drafters: expected NAME=TYPE or NAME=TYPE:PATH, for example draft=draft_model:/models/draft, got "foo"',
    ]


def test_faults_of_the_file_have_lines(tmp_path: Path) -> None:
    """All of them at once."""
    file = write(
        tmp_path, "model: {pth: x}\nserver:\n  port: -1\ndrafters:\n  off: {type: ngram}\n  e: {type: eagle3}\n"
    )
    found = faults(file)
    assert found[0] == f'{file}:1: model.pth: unknown key "pth"; did you mean "path"?'
    assert found[1] == f"{file}:3: server.port: expected a whole number from 0 to 65535, got -1"
    assert 'drafters.off: "off" is a word of the policy language' in found[2]
    assert "drafters.e: type eagle3 needs a path" in found[3]


def test_a_drafters_own_options_are_kept_for_its_type(tmp_path: Path) -> None:
    """Keys that every drafter has are fields; all others are options, which only the type can judge."""
    file = write(tmp_path, "drafters:\n  e: {type: eagle3, path: /e, layers: auto, max_k: 6}\n")
    assert load_start_config(file).drafters["e"] == DrafterConfig(
        type="eagle3", path="/e", max_k=6, options={"layers": "auto"}
    )
    bad = write(tmp_path, "drafters:\n  e: {type: eagle3, path: /e, layers: [1, 2]}\n")
    assert faults(bad) == ["drafters.e.layers: expected a single value, got [1, 2]"]


def test_upstreams_need_a_web_address(tmp_path: Path) -> None:
    """An address without its scheme would fail at the first request only."""
    file = write(tmp_path, "upstreams: {a: {url: 'vllm:8000'}}\n")
    assert faults(file) == ['upstreams.a.url: expected http://… or https://…, got "vllm:8000"']


def test_secrets_and_kubernetes_variables_are_no_settings(tmp_path: Path) -> None:
    """Keys, whatever the file calls their variables, and what Kubernetes adds for a Service called specproxy."""
    file = write(tmp_path, "upstreams: {a: {url: 'http://a', key_env: SPECPROXY_A_KEY}}\n")
    config = load_start_config(
        file,
        {
            "SPECPROXY_API_KEYS": "a,b",
            "SPECPROXY_ADMIN_KEY": "c",
            "SPECPROXY_A_KEY": "d",
            "SPECPROXY_CONFIG": "e",
            "SPECPROXY_SERVICE_HOST": "10.0.0.1",
            "SPECPROXY_PORT": "tcp://10.0.0.1:8000",
            "SPECPROXY_PORT_8000_TCP_ADDR": "10.0.0.1",
            "PATH": "/bin",
        },
    )
    assert config.server.port == 8000


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """A file that was asked for must be there."""
    assert "No such file" in faults(tmp_path / "gone.yaml")[0]


@pytest.mark.parametrize("text", ["", "a", "=ngram", "a=", "a=:p"])
def test_drafters_on_the_command_line_have_one_form(text: str) -> None:
    """NAME=TYPE or NAME=TYPE:PATH, and nothing else."""
    with pytest.raises(ValueError, match="expected NAME=TYPE"):
        parse_drafter(text)


def test_a_drafters_path_may_hold_colons_and_equals() -> None:
    """Only the first of each separates."""
    assert parse_drafter("d=draft_model:C:/x=y") == ("d", {"type": "draft_model", "path": "C:/x=y"})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("127.9.9.9", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """Only addresses that this machine alone can reach count."""
    assert is_loopback(host) is loopback


def test_an_open_bind_needs_keys() -> None:
    """Whoever can reach the listener could use it, so it needs keys; so does the operator's."""
    config = load_start_config(flags={"server.host": "0.0.0.0", "admin.host": "0.0.0.0"})
    with pytest.raises(ConfigError, match=r'server.host is "0.0.0.0".*SPECPROXY_API_KEYS.*127.0.0.1'):
        check_bind(config, has_keys=False)
    with pytest.raises(ConfigError, match=r"admin.host.*SPECPROXY_ADMIN_KEY"):
        check_bind(config, has_keys=True, has_admin_key=False)
    check_bind(config, has_keys=True)
    check_bind(load_start_config(), has_keys=False, has_admin_key=False)
