"""Bundles as files, and the test of the rate of near-ties."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from scipy import stats

from specproxy.bundle import excess, read_bundle, write_bundle
from specproxy.errors import StartError
from specproxy.vocabulary import SamplingParams
from specproxy.wire import frames
from specproxy.wire.frames import Audit, FrameReader, ToEngine
from tests.audit.test_ending import WHOLE

RICH = replace(WHOLE, params=SamplingParams(logit_bias={5: -1.5}, stop_token_ids=(3,)), stop=("\n",), drafters=("a",))


def test_a_bundle_is_what_was_written(tmp_path: Path) -> None:
    """Through a JSON file and through a frame a bundle stays what it was."""
    write_bundle(RICH, tmp_path / "b.json")
    assert read_bundle(tmp_path / "b.json") == RICH
    [frame] = FrameReader[ToEngine](ToEngine).feed(frames.encode(Audit(RICH, 0.5, 0.1)))
    assert frame == Audit(RICH, 0.5, 0.1)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"version": 2}, "version"), ({"seed": "x"}, "seed"), ({"extra": 1}, "extra"), ({"prompt": None}, "prompt")],
)
def test_what_is_no_bundle_is_refused(tmp_path: Path, change: dict[str, object], word: str) -> None:
    """A field that is unknown or wrong, or another version, is named together with the file."""
    file = tmp_path / "b.json"
    file.write_bytes(msgspec.json.encode(msgspec.to_builtins(RICH) | change))
    with pytest.raises(StartError, match=word) as refused:
        read_bundle(file)
    assert str(file) in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """No traceback for a wrong path."""
    with pytest.raises(StartError, match=r"nothing\.json: cannot be read"):
        read_bundle(tmp_path / "nothing.json")


@pytest.mark.parametrize(("explained", "expected"), [(0, 0.0), (0, 3.0), (1, 1e-6), (3, 0.4), (40, 22.0), (2, 9.5)])
def test_the_excess_of_near_ties_is_poissons(explained: int, expected: float) -> None:
    """The chance of so many or more is that of a Poisson number; some where none are expected cannot be."""
    assert math.isclose(excess(explained, expected), stats.poisson.sf(explained - 1, expected), abs_tol=1e-12)
    assert excess(1, 0.0) == 0.0
