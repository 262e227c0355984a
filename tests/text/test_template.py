"""The chat template against transformers' apply_chat_template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specproxy.errors import InvalidRequest, ModelLoadError
from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi <b>there</b> é"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 1+1? \n"}],
    [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "w", "arguments": {"é": "<x>"}}}]},
        {"role": "tool", "content": "sun"},
        {"role": "assistant", "content": "It is sunny"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "w", "parameters": {"a": "<é>"}}}]

TRIMMING = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{% generation %}{{ m.content | trim }}{% endgeneration %}"
    "{% if loop.index > 90 %}{% break %}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    "{% if mood is defined %}({{ mood }}){% endif %}"
)


@pytest.fixture(scope="module")
def theirs(house_dir: Path) -> Any:
    """Transformers' own tokenizer of the bundled model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(house_dir)


@pytest.fixture(scope="module")
def ours(house_dir: Path) -> ChatTemplate:
    """The bundled model's template."""
    template = ChatTemplate.load(house_dir)
    assert template is not None
    return template


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("generation", [True, False])
def test_equals_transformers(
    ours: ChatTemplate, theirs: Any, house: Tokenizer, messages: list[dict[str, Any]], tools: Any, generation: bool
) -> None:
    """Text and ids are those of apply_chat_template."""
    expected = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=generation, tokenize=False)
    text = ours.render(messages, tools=tools, add_generation_prompt=generation)
    assert text == expected
    ids = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=generation)["input_ids"]
    assert house.encode(text, special=False) == list(ids)


@pytest.mark.parametrize("final", ["It is ", "It is", " x\n"])
@pytest.mark.parametrize("source", [None, TRIMMING])
def test_continue_equals_transformers(house_dir: Path, theirs: Any, final: str, source: str | None) -> None:
    """The final message stays open at its end, whether the template trims messages or not."""
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": final}]
    template = ChatTemplate(source) if source else ChatTemplate.load(house_dir)
    assert template is not None
    expected = theirs.apply_chat_template(
        messages, chat_template=source, continue_final_message=True, add_generation_prompt=False, tokenize=False
    )
    assert template.render(messages, continue_final_message=True, add_generation_prompt=False) == expected


def test_variables(tmp_path: Path) -> None:
    """Special tokens of the configuration and the request's own variables reach the template."""
    config = {"chat_template": TRIMMING, "bos_token": {"content": "<s>"}, "unk_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    text = template.render([{"role": "user", "content": " x "}], kwargs={"mood": "fine"})
    assert text == "<s>[user]x[assistant](fine)"


def test_developer_becomes_system_where_unknown(ours: ChatTemplate) -> None:
    """A template that does not know the role sees a system message; one that does sees it as it is."""
    messages = [{"role": "developer", "content": "d"}]
    assert ours.render(messages).startswith("<|im_start|>system\n")
    knows = ChatTemplate("{% if messages[0].role == 'developer' %}yes{% endif %}")
    assert knows.render(messages) == "yes"


def test_named_templates(tmp_path: Path) -> None:
    """A list of templates: the default one, and one for conversations with tools."""
    entries = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render([]) == "plain"
    assert template.render([], tools=TOOLS) == "tools"


def test_no_template(tmp_path: Path) -> None:
    """A folder without a template has none."""
    assert ChatTemplate.load(tmp_path) is None


def test_broken_template(tmp_path: Path) -> None:
    """A template that does not compile is refused at load."""
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ModelLoadError, match="chat template"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[5].content }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for m in messages %}{{ m.update({}) }}{% endfor %}",
    ],
)
def test_refusals(source: str) -> None:
    """What the template refuses or trips over, and what the sandbox forbids, is the client's 400."""
    with pytest.raises(InvalidRequest, match="chat template refuses") as caught:
        ChatTemplate(source).render([{"role": "user", "content": "x"}])
    assert caught.value.param == "messages"


def test_final_message_left_out() -> None:
    """A template that does not show the final message cannot continue it."""
    with pytest.raises(InvalidRequest, match="cannot be continued"):
        ChatTemplate("x").render([{"role": "assistant", "content": "y"}], continue_final_message=True)
