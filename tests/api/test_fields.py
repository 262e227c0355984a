"""The table of fields: the docs page, the typed fields and the refusals say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specproxy.errors import InvalidRequest
from specproxy.server.api.chat import ChatFields
from specproxy.server.api.completions import CompletionFields
from specproxy.server.api.fields import FIELDS, fields_of, markdown_table

REFUSED_CHAT = [field for field in fields_of("chat").values() if field.status == "refused"]
REFUSED_COMPLETIONS = [field for field in fields_of("completions").values() if field.status == "refused"]
SOMETHING = {"nobody": ["would", "call", "this", "neutral"]}


def test_docs_page_is_the_table() -> None:
    """docs/api-fields.md has the table as the code has it, row by row."""
    page = (Path(__file__).parents[2] / "docs" / "api-fields.md").read_text("utf-8")
    assert markdown_table() in page


def test_names_are_unique_per_endpoint() -> None:
    """No field has two rows for one endpoint."""
    for endpoint in ("chat", "completions"):
        rows = [field for field in FIELDS if field.where in ("both", endpoint)]
        assert len(rows) == len(fields_of(endpoint))


def test_honoured_means_parsed() -> None:
    """The honoured rows of an endpoint are exactly the fields that its parser reads."""
    for endpoint, kind in (("chat", ChatFields), ("completions", CompletionFields)):
        honoured = {field.name for field in fields_of(endpoint).values() if field.status == "honoured"}
        assert honoured == set(kind.__struct_fields__)


@pytest.mark.parametrize("field", REFUSED_CHAT, ids=lambda field: field.name)
def test_refused_in_chat(chat: Any, field: Any) -> None:
    """A refused field is a 400 that names it; null and its neutral values pass."""
    with pytest.raises(InvalidRequest, match=f"`{field.name}` is not supported") as caught:
        chat(**{field.name: SOMETHING})
    assert caught.value.param == field.name
    for neutral in (None, *field.neutral):
        chat(**{field.name: neutral})


@pytest.mark.parametrize("field", REFUSED_COMPLETIONS, ids=lambda field: field.name)
def test_refused_in_completions(completion: Any, field: Any) -> None:
    """A refused field is a 400 that names it; null and its neutral values pass."""
    with pytest.raises(InvalidRequest, match=f"`{field.name}` is not supported") as caught:
        completion(**{field.name: SOMETHING})
    assert caught.value.param == field.name
    for neutral in (None, *field.neutral):
        completion(**{field.name: neutral})


@pytest.mark.parametrize("value", [None, 1, "x", True, [], {"a": 1}])
def test_inert_fields_take_anything(chat: Any, value: Any) -> None:
    """Inert fields change nothing, whatever they hold."""
    plain = chat()
    inert = {field.name: value for field in fields_of("chat").values() if field.status == "inert"}
    request = chat(**inert)
    assert (request.prompts, request.params, request.unknown) == (plain.prompts, plain.params, ())


def test_unknown_fields_are_ignored_and_listed(chat: Any) -> None:
    """A field that the API does not have is no error; it is listed for the log."""
    assert chat(shiny_new_field={"a": [1]}).unknown == ("shiny_new_field",)
