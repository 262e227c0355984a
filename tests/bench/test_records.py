"""Prompt files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from specproxy.bench.records import bundled, load_records, select
from specproxy.errors import StartError


def test_the_bundled_mix_has_sixty_prompts_in_seven_categories() -> None:
    """The package's own prompts load, each with messages, a temperature and metadata that names its category."""
    records = load_records(bundled())
    counts = Counter(record.category for record in records)
    assert len(records) == 60
    assert set(counts) == {"json", "edit", "quote", "code", "math", "chat", "creative"}
    assert all(record.body["metadata"] == {"category": record.category} for record in records)
    assert all("temperature" in record.body for record in records)
    assert len({record.id for record in records}) == 60


def test_descriptive_fields_are_not_sent() -> None:
    """Id, category, source and reference stay here; what remains is the request's body."""
    assert set(load_records(bundled())[0].body) == {"messages", "temperature", "metadata"}


def test_seeds_depend_on_the_id_alone() -> None:
    """Two loads give the same seeds, so that sampled answers can be compared between runs."""
    first, second = (load_records(bundled()) for _ in range(2))
    assert [record.seed for record in first] == [record.seed for record in second]
    assert len({record.seed for record in first}) == 60


def test_select_takes_the_first_of_each_named_category() -> None:
    """Categories and limit cut the file without changing its order."""
    chosen = select(load_records(bundled()), ["math", "json"], limit=2)
    assert [record.id for record in chosen] == ["json-00", "json-01", "math-00", "math-01"]


def test_an_unknown_category_is_refused_with_the_known_ones() -> None:
    """A typing error does not silently measure nothing."""
    with pytest.raises(StartError, match="no prompt has the category 'jsn'; the file has: json"):
        select(load_records(bundled()), ["jsn"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ("{", "prompts.jsonl:1: expected one JSON object per line"),
        ('{"id": "a", "category": "b", "messages": []}\n\n[]', "prompts.jsonl:3: expected one JSON object"),
        ('{"id": 1, "category": "b", "messages": []}', "prompts.jsonl:1: id: expected a string, found 1"),
        ('{"id": "a", "category": "b"}', "prompts.jsonl:1: messages: expected a list, found None"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    """Faults of a prompt file say where they are and what was expected."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(StartError, match=message):
        load_records(file)


def test_a_missing_file_is_one_message(tmp_path: Path) -> None:
    """A path that does not exist ends with the path and the reason."""
    with pytest.raises(StartError, match=r"none\.jsonl: cannot be read: No such file"):
        load_records(tmp_path / "none.jsonl")
