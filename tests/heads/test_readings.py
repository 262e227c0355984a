from __future__ import annotations

from typing import Any

import pytest

from specproxy.errors import ModelLoadError
from specproxy.heads.readings import Overrides, Reading, eagle3_readings, read_layers
from specproxy.models.base import FINAL

LAYERS = 32
IDS = "eagle_aux_hidden_state_layer_ids"


def nested(**config: Any) -> dict[str, Any]:
    """SpecForge's part of a configuration."""
    return {"eagle_config": config}


@pytest.mark.parametrize(
    ("config", "hidden"),
    [
        ({}, (2, 16, 29)),
        ({IDS: None, "eagle_config": {}}, (2, 16, 29)),
        ({IDS: [3, 17, 30]}, (3, 17, 30)),
        ({IDS: [30, 3, 17, 17]}, (3, 17, 30)),
        (nested(**{IDS: [1, 11, 21]}), (2, 12, 22)),
        (nested(layer_ids=[1, 11, 21]), (1, 11, 21)),
        (nested(**{IDS: [1, 11, 21]}, layer_ids=[5]), (2, 12, 22)),
        ({IDS: [4], **nested(**{IDS: [1, 11, 21]})}, (4,)),
        ({"use_aux_hidden_state": False, IDS: [4]}, (FINAL,)),
        (nested(use_aux_hidden_state=False), (FINAL,)),
        ({"use_aux_hidden_state": True}, (2, 16, 29)),
        ({"num_aux_hidden_states": 3}, (2, 16, 29)),
        ({"num_aux_hidden_states": 2, IDS: [5, 9]}, (5, 9)),
    ],
)
def test_layer_ids_mean_what_their_format_says(config: dict[str, Any], hidden: tuple[int, ...]) -> None:
    """At the top an id counts layers that have run; in SpecForge's part it names the layer whose output is meant."""
    assert read_layers(config, LAYERS, "here")[0] == hidden


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({IDS: [2, 32]}, r"here: config\.json, eagle_aux.* \[2, 32\]: .* behind 2, 32 layers; expected 1 to 31"),
        ({IDS: [0, 4]}, "expected 1 to 31"),
        (nested(**{IDS: [31]}), "behind 32 layers; expected 1 to 31"),
        ({"num_aux_hidden_states": 4}, "num_aux_hidden_states 4 and names no layers"),
    ],
)
def test_layers_that_the_target_lacks_are_refused(config: dict[str, Any], message: str) -> None:
    """Ids out of range say what they were and what the target has."""
    with pytest.raises(ModelLoadError, match=message):
        read_layers(config, LAYERS, "here")


def test_a_target_too_shallow_for_the_default_is_refused() -> None:
    """EAGLE's default needs more layers than three."""
    with pytest.raises(ModelLoadError, match=r"names no layers.*expected 1 to 2"):
        read_layers({}, 3, "here")


def readings(config: dict[str, Any], overrides: Overrides | None = None) -> list[tuple[tuple[int, ...], bool]]:
    """States and residual flag of every reading."""
    found, _ = eagle3_readings(config, LAYERS, overrides or Overrides(), "here")
    return [(reading.hidden, reading.norm_before_residual) for reading in found]


def test_a_checkpoint_has_four_readings() -> None:
    """The nominal one, all layers one later, all one earlier, and the residual flag turned, in this order."""
    config = nested(**{IDS: [1, 11, 21]})
    shifted = [((2, 12, 22), False), ((3, 13, 23), False), ((1, 11, 21), False)]
    assert readings(config) == [*shifted, ((2, 12, 22), True)]
    names = [reading.name for reading in eagle3_readings(config, LAYERS, Overrides(), "here")[0]]
    expected = ["nominal", "every layer one later", "every layer one earlier", "norm_before_residual true"]
    assert names == expected


def test_a_flag_that_is_given_is_the_nominal_one() -> None:
    """The residual flag of the configuration comes first, its opposite last."""
    found = readings({"norm_before_residual": True, IDS: [3, 5]})
    assert found[0] == ((3, 5), True)
    assert found[-1] == ((3, 5), False)


def test_readings_stay_inside_the_target() -> None:
    """A shift that would leave the target is not offered."""
    assert readings({IDS: [1, 31]}) == [((1, 31), False), ((1, 31), True)]
    assert readings({IDS: [1, 30]}) == [((1, 30), False), ((2, 31), False), ((1, 30), True)]


def test_speculators_without_the_flag_have_both_readings_of_everything() -> None:
    """Where defaults of engines differ, both values are tried for each choice of layers, and a warning is given."""
    found, warning = eagle3_readings({"speculators_model_type": "eagle3", IDS: [3, 5]}, LAYERS, Overrides(), "here")
    pairs = [(reading.hidden, reading.norm_before_residual) for reading in found]
    assert pairs == [(hidden, normed) for hidden in ((3, 5), (4, 6), (2, 4)) for normed in (False, True)]
    assert len({reading.name for reading in found}) == 6
    assert "no norm_before_residual" in warning


def test_speculators_with_the_flag_need_no_warning() -> None:
    """A configuration that says it is believed."""
    config = {"speculators_config": {}, "norm_before_residual": False, IDS: [3, 5]}
    found, warning = eagle3_readings(config, LAYERS, Overrides(), "here")
    assert (len(found), warning) == (4, "")


def test_what_the_user_gives_is_not_varied() -> None:
    """Layers and flag given by the user hold in every reading."""
    assert readings({}, Overrides(hidden=(4, 9))) == [((4, 9), False), ((4, 9), True)]
    assert readings({}, Overrides(norm_before_residual=True)) == [
        ((2, 16, 29), True),
        ((3, 17, 30), True),
        ((1, 15, 28), True),
    ]
    assert readings({"speculators_config": {}}, Overrides((4,), norm_before_residual=False)) == [((4,), False)]


def test_layers_given_must_exist() -> None:
    """An override is checked as a configuration is."""
    with pytest.raises(ModelLoadError, match=r"layers given: .* behind 4, 40 layers; expected 1 to 31"):
        readings({}, Overrides(hidden=(4, 40)))


def test_a_head_of_the_final_state_has_no_layers_to_shift() -> None:
    """Only the residual flag is left open."""
    assert readings({"use_aux_hidden_state": False}) == [((FINAL,), False), ((FINAL,), True)]


def test_a_reading_is_told_in_one_line() -> None:
    """People see which states, why, and the flag."""
    assert str(Reading("nominal", (2, FINAL), source="why")) == (
        "nominal: hidden states 2, final (why), norm_before_residual false"
    )
