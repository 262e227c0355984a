from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specproxy.drafters.replay import ReplayDrafter, ReplayOptions, load, prompt_key, write_scripts
from specproxy.errors import ConfigError

Make = Callable[..., Any]
PROMPT = [3, 1, 4]
ANSWER = [(7 * i) % 90 for i in range(400)]


def drafter(**options: Any) -> ReplayDrafter:
    """Replays ANSWER after PROMPT."""
    return ReplayDrafter("replay", ReplayOptions(**options), {prompt_key(PROMPT): [ANSWER]}, vocab_size=100)


def replay(run: Any) -> Counter[int]:
    """Accepted lengths over the whole answer."""
    lengths: Counter[int] = Counter()
    done = 0
    while done < len(ANSWER):
        accepted = run.accept(ANSWER[done:])
        lengths[accepted] += 1
        done += accepted + 1
    return lengths


def test_chains_are_accepted_at_every_length(bench: Make) -> None:
    """Over one answer each accepted length from 0 to K occurs."""
    assert set(replay(bench(drafter(), PROMPT, k=6))) == set(range(7))


def test_trees_are_accepted_at_many_depths_and_ranks(bench: Make) -> None:
    """Trees use all nodes, have distinct siblings, and hold the right token at every rank, and below wrong ones."""
    run = bench(drafter(shape="tree"), PROMPT, k=12)
    ranks: Counter[int] = Counter()
    depths: Counter[int] = Counter()
    decoys = done = 0
    while done < len(ANSWER) - 1:
        tokens = run.propose()
        parents = run.batch.parents[0].tolist()
        assert len(tokens) == 12
        node = -1
        for right in ANSWER[done:-1]:
            siblings = [i for i in range(12) if parents[i] == node]
            assert len({tokens[i] for i in siblings}) == len(siblings)
            hit = [rank for rank, i in enumerate(siblings) if tokens[i] == right]
            if not hit:
                break
            ranks[hit[0]] += 1
            node = siblings[hit[0]]
        astray = [i for i in range(12) if parents[i] >= 0 and parents[i] != node]
        decoys += sum(tokens[i] in ANSWER[done + 1 : done + 6] for i in astray)
        accepted = run.accept(ANSWER[done:])
        depths[accepted] += 1
        done += accepted + 1
    assert set(ranks) == {0, 1, 2}
    assert set(range(6)) <= set(depths)
    assert decoys > 0


def test_mixed_shapes_hold_chains_and_trees(bench: Make) -> None:
    """The mixed shape drafts both, step by step."""
    run = bench(drafter(shape="mixed"), PROMPT, k=5)
    kinds = set()
    for token in ANSWER[:40]:
        run.propose()
        kinds.add(run.batch.parents[0, :5].tolist() == [-1, 0, 1, 2, 3])
        run.commit([token])
    assert kinds == {True, False}


def test_the_same_seed_errs_alike_and_another_elsewhere(bench: Make) -> None:
    """Proposals are a function of seed, prompt and position."""
    first, again, other = (bench(drafter(seed=seed), PROMPT).propose() for seed in (1, 1, 2))
    assert first == again != other


def test_without_errors_all_is_accepted(bench: Make) -> None:
    """errors=False replays the answer as it is."""
    assert set(replay(bench(drafter(errors=False), PROMPT, k=4))) <= {4, len(ANSWER) % 5 - 1}


def test_it_drafts_past_the_end_of_the_answer(bench: Make) -> None:
    """The last steps still fill K, so that an answer ends inside a burst."""
    run = bench(drafter(errors=False), PROMPT)
    run.commit(ANSWER[:-2])
    guess = run.propose()
    assert len(guess) == 8
    assert guess[:2] == ANSWER[-2:]


def test_scripts_are_read_from_a_file_or_a_folder(bench: Make, host: Any, tmp_path: Path) -> None:
    """Of several outputs of one prompt the one that agrees with what is committed is replayed."""
    write_scripts(tmp_path / "a.json", [(PROMPT, [1, 2, 3, 4]), ([9], [8, 8, 8])])
    write_scripts(tmp_path / "b.json", [(PROMPT, [1, 5, 6, 7])])
    for path, committed, expected in ((tmp_path, [1, 5], [6, 7]), (tmp_path / "a.json", [1, 2], [3, 4])):
        run = bench(load("replay", {"path": str(path), "errors": False}, host), PROMPT, k=2)
        run.commit(committed)
        assert run.propose() == expected
    run.commit([77])
    assert run.propose() == []


def test_the_prediction_serves_as_a_script(bench: Make, host: Any) -> None:
    """A prompt without a script replays the submission's prediction; without either there is no guess."""
    replayer = load("replay", {"errors": False}, host)
    assert bench(replayer, PROMPT, prediction=[5, 6, 7], k=3).propose() == [5, 6, 7]
    assert bench(replayer, PROMPT, k=3).propose() == []


def test_a_tiny_vocabulary_is_enough(bench: Make) -> None:
    """With two ids there is one wrong token, and siblings stay distinct."""
    tiny = ReplayDrafter("r", ReplayOptions(shape="tree", width=4), {prompt_key(PROMPT): [[0, 1] * 20]}, vocab_size=2)
    run = bench(tiny, PROMPT, k=8)
    assert set(run.propose()) <= {0, 1}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"path": "/nowhere.json"}, "/nowhere.json"),
        ({"shape": "ring"}, "shape"),
        ({"width": 0}, "width"),
        ({"x": 1}, "x"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], told: str, host: Any) -> None:
    """Unknown options, values out of range and unreadable scripts are refused."""
    with pytest.raises(ConfigError, match=told):
        load("replay", options, host)


def test_a_broken_script_file_is_refused(host: Any, tmp_path: Path) -> None:
    """A file that is not of the documented form is named."""
    (tmp_path / "x.json").write_text('{"a": [1, 2]}')
    with pytest.raises(ConfigError, match="no scripts in"):
        load("replay", {"path": str(tmp_path)}, host)
