"""YAML with line numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from specproxy.config.yaml_reader import Problem, dotted, parse_scalar, parse_yaml, read_yaml


def test_yaml_1_2_scalars() -> None:
    """off, yes and dates are text, as YAML 1.2 says; numbers, booleans and null are what they look like."""
    document = parse_yaml("a: off\nb: yes\nc: 2024-01-01\nd: 0o17\ne: 1.5\nf: false\ng:\nh: 'off'\n", "x", [])
    assert document is not None
    assert document.value == {
        "a": "off",
        "b": "yes",
        "c": "2024-01-01",
        "d": 15,
        "e": 1.5,
        "f": False,
        "g": None,
        "h": "off",
    }


def test_every_key_and_item_has_its_line() -> None:
    """The line of a key is where the key stands, that of a list item where the item begins."""
    document = parse_yaml("# comment\nroutes:\n  - name: a\n    match:\n      n: 1\n  - name: b\n", "x", [])
    assert document is not None
    assert document.line(("routes",)) == 2
    assert document.line(("routes", 0, "match", "n")) == 5
    assert document.line(("routes", 1)) == 6
    assert document.line(("routes", 1, "unknown", "deeper")) == 6


def test_duplicate_keys_are_errors_that_name_both_lines() -> None:
    """The second of two equal keys is a problem, and the first stays."""
    problems: list[Problem] = []
    document = parse_yaml("a: 1\nb: 2\na: 3\n", "x.yaml", problems)
    assert [str(p) for p in problems] == ['x.yaml:3: a: duplicate key "a"; it stands in line 1 already']
    assert document is not None
    assert document.value == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: [1\n", 2, "is not valid YAML"),
        ("a: 1\nb: c: d\n", 2, "mapping values are not allowed here, near: b: c: d"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, "single document"),
        ("a: !!python/object:os.system x\n", 1, "tag"),
        ("a: !foo 1\n", 1, "tag !foo is not known here"),
        ("[1, 2]: 3\n", 1, "a key must be plain text"),
        ("a: 'x\x07'\n", 0, "is not valid YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_one_problem_with_its_line(text: str, line: int, part: str) -> None:
    """Broken syntax, foreign tags and several documents are told with the line and the offending text."""
    problems: list[Problem] = []
    parse_yaml(text, "x.yaml", problems)
    assert len(problems) == 1
    assert part in problems[0].message
    assert problems[0].line in (line, line - 1)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 10)}]\n" for p, n in zip("abcdef", "bcdefg", strict=True)),
        "a: &a {b: *a}\n",
        "a: " + "[" * 2000 + "]" * 2000,
    ],
)
def test_aliases_and_nesting_without_end_are_refused(text: str) -> None:
    """A small file that stands for a huge or endless value is a problem, not a hang."""
    problems: list[Problem] = []
    assert parse_yaml(text, "x", problems) is None
    assert "nested too deeply" in problems[0].message


def test_an_empty_file_has_no_value(tmp_path: Path) -> None:
    """A file with comments only is fine and holds nothing."""
    file = tmp_path / "x.yaml"
    file.write_text("# nothing\n")
    problems: list[Problem] = []
    document = read_yaml(file, problems)
    assert document is not None
    assert document.value is None
    assert problems == []


def test_unreadable_files_are_problems(tmp_path: Path) -> None:
    """A missing file and one that is not UTF-8 are told by name."""
    problems: list[Problem] = []
    assert read_yaml(tmp_path / "gone.yaml", problems) is None
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    assert read_yaml(tmp_path / "latin.yaml", problems, "latin.yaml") is None
    assert "No such file" in str(problems[0])
    assert str(problems[1]) == "latin.yaml: is not UTF-8 text (byte 3)"


def test_scalars_from_elsewhere() -> None:
    """A single value reads as YAML, and what YAML refuses is text."""
    assert parse_scalar("8") == 8
    assert parse_scalar("true") is True
    assert parse_scalar("null") is None
    assert parse_scalar("a: b: c") == "a: b: c"
    assert parse_scalar("[") == "["


def test_dotted_paths() -> None:
    """A path reads as one would write it."""
    assert dotted(("routes", 0, "match", "any", 2, "temperature")) == "routes[0].match.any[2].temperature"
