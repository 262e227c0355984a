from __future__ import annotations

import json
from pathlib import Path

import pytest

from specproxy.cli.main import main
from specproxy.heads.loading import read_head
from specproxy.train.target import FrozenTarget
from tests.train.test_heads import facts

CHATS = [
    {"messages": [{"role": "user", "content": "Hello."}], "category": "talk"},
    {"messages": [{"role": "user", "content": "Convert to JSON: date 2016-11-23."}], "category": "json"},
]
TINY = ["--length", "96", "--rows", "1", "--max-answer", "12", "--device", "cpu"]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Two prompts."""
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps(chat) for chat in CHATS))
    return file


def test_a_run_from_end_to_end(
    tmp_path: Path, chats: Path, target: FrozenTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers, weights, card and report come out of one command; the report can be had again without training."""
    out = tmp_path / "head"
    files = ["--data", str(chats), "--held-out", str(chats)]
    shape = ["--guesses", "2", "--draft-vocab", "64", "--intermediate-size", "64"]
    assert main(["train", "eagle3", "--out", str(out), *files, *shape, *TINY, "--steps", "3", "--json"]) == 0
    shown = capsys.readouterr()
    said = json.loads(shown.out)
    assert said == json.loads((out / "training.json").read_text())
    assert set(said["evaluation"]["sources"]) == {"talk", "json", "all"}
    assert said["facts"]["draft_vocabulary"] == 64
    assert "acceptance on held-out prompts" in shown.err
    assert read_head(str(out), facts(target)).head.spec.kind == "eagle3"
    assert "| talk |" in (out / "README.md").read_text()
    again = ["--init", str(out), "--steps", "0", "--held-out", str(chats), "--out", str(tmp_path / "again")]
    assert main(["train", "eagle3", *again, "--guesses", "2", *TINY, "--json"]) == 0
    repeated = json.loads(capsys.readouterr().out)
    assert repeated["data"] == said["data"]
    for name, row in said["evaluation"]["sources"].items():
        # The weights went through bf16 in between.
        assert repeated["evaluation"]["sources"][name]["positions"] == row["positions"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "--data: expected at least one file"),
        (["--steps", "0"], "--steps 0 needs --init"),
        (["--data", "none.jsonl"], "none.jsonl: cannot be read"),
    ],
)
def test_a_wrong_call_is_one_message(
    tmp_path: Path, given: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and a sentence that names the option or the file."""
    assert main(["train", "medusa", "--out", str(tmp_path), *given]) == 1
    assert says in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """It says what each recipe is for, what files look like, and gives commands to begin with."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("eagle3", "medusa", "draft", "prompt_tokens", "specproxy train eagle3"))
