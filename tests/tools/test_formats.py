"""Families told apart by their templates. The templates here are our own, cut down to what writes calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from specproxy.errors import ConfigError, InvalidRequest
from specproxy.tools.formats import FORMATS, detect, require_format

HERMES = (
    r"{% for c in m.tool_calls %}{{ '<tool_call>\n{"
    r'"name": "'
    "' }}{{ c.arguments | tojson }}</tool_call>{% endfor %}"
)
LLAMA = (
    "<|start_header_id|>{{ m.role }}<|end_header_id|>"
    """{{ '{"name": "' + c.name + '", ' }}{{ '"parameters": ' }}{{ c.arguments | tojson }}"""
)
TEMPLATES = {
    "hermes": HERMES,
    "llama3": LLAMA,
    "mistral": "{{ '[TOOL_CALLS][' }}{{ c.function | tojson }}",
    "mistral-named": "{{ '[TOOL_CALLS]' + c.name + '[ARGS]' + c.arguments | tojson }}",
}


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_each_family_is_known_by_its_template(name: str) -> None:
    """A template that writes a family's form is recognised as that family."""
    assert detect(TEMPLATES[name]) == FORMATS[name]


def test_the_house_model_is_known_by_its_own_template() -> None:
    """The bundled model's calls stand between markers without line breaks."""
    folder = Path(__file__).parents[2] / "specproxy" / "models" / "house"
    assert {detect(file.read_text("utf-8")) for file in folder.rglob("chat_template.jinja")} == {FORMATS["house"]}


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ messages }}",
        "<tool_call>\n<function={{ c.name }}>\n<parameter=x>",
        "<tool_call>{{ c.name }}\n<arg_key>x</arg_key>",
        "<TOOLCALL>[{}]</TOOLCALL>",
        "<|tool_call_begin|>{{ c.name }}",
    ],
)
def test_other_forms_are_not_taken_for_known_ones(template: str | None) -> None:
    """Families whose calls are not JSON between these markers are none of ours."""
    assert detect(template) is None


def test_details_follow_the_template() -> None:
    """White space, one call at a time, and arguments printed as they are given are read from the template."""
    spaced = detect("{{ '[TOOL_CALLS] [' }}{{ c.function | tojson }}")
    single = detect(LLAMA + "{{ raise_exception('only single tool-calls at once') }}")
    printed = detect("<tool_call>{{ c.arguments }}</tool_call>")
    assert spaced is not None
    assert spaced.before == " "
    assert single is not None
    assert not single.parallel
    assert printed is not None
    assert printed.arguments_as_text


def test_an_override_names_a_form() -> None:
    """An override wins over the template, and keeps the template's details where both agree."""
    assert detect(None, "hermes") == FORMATS["hermes"]
    assert detect(HERMES, "mistral") == FORMATS["mistral"]
    spaced = detect("{{ '[TOOL_CALLS] [' }}{{ c.function | tojson }}", "mistral")
    assert spaced is not None
    assert spaced.before == " "


def test_an_unknown_override_lists_the_choices() -> None:
    """A name that is no form stops the start and says which there are."""
    with pytest.raises(ConfigError, match="'qwen' is not known; choose one of hermes, house, llama3"):
        detect(None, "qwen")


def test_tools_without_a_form_are_refused() -> None:
    """A request with tools for a model of unknown form gets a 400 that says what to do."""
    with pytest.raises(InvalidRequest, match="none of the forms of tool calls known here") as caught:
        require_format(None, "base")
    assert (caught.value.param, caught.value.code) == ("tools", "tools_not_supported")
    assert require_format(FORMATS["house"], "house") is FORMATS["house"]


def test_markers_are_all_that_must_stay_visible() -> None:
    """Every marker of a form is listed, and no empty one."""
    assert FORMATS["house"].markers == ("<tool_call>", "</tool_call>")
    assert FORMATS["llama3"].markers == ("<|python_tag|>",)
    assert FORMATS["mistral-named"].markers == ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
