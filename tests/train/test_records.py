from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from specproxy.errors import StartError
from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer
from specproxy.train.records import Limits, Task, files_digest, read_tasks
from specproxy.train.target import FrozenTarget


@pytest.fixture(scope="module")
def tokenizer(target: FrozenTarget) -> Tokenizer:
    """The target's."""
    return Tokenizer.load(target.folder)


@pytest.fixture(scope="module")
def template(target: FrozenTarget) -> ChatTemplate | None:
    """The target's."""
    return ChatTemplate.load(target.folder)


def write(path: Path, *records: object) -> Path:
    """A JSON lines file, compressed if its name says so."""
    data = "\n".join(json.dumps(record) for record in records).encode()
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    return path


def test_a_chat_gives_everything_before_its_last_assistant_turn(
    tmp_path: Path, tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    """Earlier answers stay in the prompt; the last one is for the target to give."""
    turns = [("user", "One?"), ("assistant", "Yes."), ("user", "Two?"), ("assistant", "No.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    file = write(tmp_path / "chat.jsonl.xz", {"messages": messages, "category": "talk"})
    [task] = read_tasks([file], tokenizer, template, Limits())
    assert tokenizer.decode(task.ids, skip_special=False) == template.render(messages[:3])
    assert (task.source, task.text, task.answer) == ("talk", False, None)


def test_tools_of_a_record_stand_in_the_prompt(tmp_path: Path, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """The template is given the record's tools."""
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
    file = write(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "Rain?"}], "tools": [tool]})
    [task] = read_tasks([file], tokenizer, template, Limits())
    assert "get_weather" in tokenizer.decode(task.ids)


def test_a_text_keeps_its_beginning_and_captured_traffic_its_answer(
    tmp_path: Path, tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    """At most half of a text is the prefix, at most as long as allowed; tokens that were captured are not touched."""
    ids = tokenizer.encode("def add(a, b): return a + b", special=True)
    texts = write(tmp_path / "t.jsonl", {"text": "def add(a, b): return a + b", "source": "code"})
    captured = write(tmp_path / "c.jsonl", {"prompt_tokens": [7, 8], "answer_tokens": [9, 2]})
    plain = tmp_path / "plain.txt"
    plain.write_text("word " * 200)
    text, traffic, whole = read_tasks([texts, captured, plain], tokenizer, template, Limits(prefix=16))
    assert text == Task(tuple(ids[: len(ids) // 2]), "code", text=True)
    assert traffic == Task((7, 8), "c.jsonl", answer=(9, 2))
    assert (len(whole.ids), whole.text, whole.source) == (16, True, "plain.txt")


def test_what_is_too_long_is_left_out(tmp_path: Path, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """Long prompts are dropped, not cut, and records behind the limit are not read."""
    chats = [{"messages": [{"role": "user", "content": text}]} for text in ("word " * 300, "Hello.", "Bye.")]
    file = write(tmp_path / "a.jsonl", *chats)
    assert len(read_tasks([file], tokenizer, template, Limits(prompt=100))) == 2
    assert len(read_tasks([file], tokenizer, template, Limits(prompt=100, records=2))) == 1
    with pytest.raises(StartError, match="no prompt of 5 tokens"):
        read_tasks([file], tokenizer, template, Limits(prompt=5))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", r"b\.jsonl:1: not a JSON object"),
        ('{"a": 1}', r"b\.jsonl:1: expected messages, text, or prompt_tokens"),
        ('{"messages": "hello"}', "messages: expected a list"),
        ('{"prompt_tokens": [1], "answer_tokens": "x"}', "answer_tokens: expected a list of token ids"),
    ],
)
def test_a_broken_record_is_named(
    tmp_path: Path, tokenizer: Tokenizer, template: ChatTemplate, line: str, says: str
) -> None:
    """The message says which file and line, and what was expected."""
    file = tmp_path / "b.jsonl"
    file.write_text(line)
    with pytest.raises(StartError, match=says):
        read_tasks([file], tokenizer, template, Limits())


def test_a_file_that_is_missing_or_no_xz_is_named(tmp_path: Path) -> None:
    """Also the digest reads files, and says which one it cannot."""
    (tmp_path / "x.jsonl.xz").write_text("plain")
    for name in ("none.jsonl", "x.jsonl.xz"):
        with pytest.raises(StartError, match=f"{name}: cannot be read"):
            files_digest([tmp_path / name])
