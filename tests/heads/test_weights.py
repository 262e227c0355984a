from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specproxy.errors import ModelLoadError
from specproxy.heads.weights import Weights, fingerprint, read_names, read_tensors, weight_files

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2]), "flags": torch.tensor([True, False])}


def weights() -> Weights:
    """Three tensors, as bfloat16 where they are numbers."""
    return Weights("here", TENSORS, torch.bfloat16, "cpu")


def test_tensors_are_taken_once_with_their_shape() -> None:
    """A tensor comes in the head's type, integers and flags as they are, and is then no longer left."""
    found = weights()
    assert found.take("a.weight", 2, -1).dtype == torch.bfloat16
    assert found.take("b", 2).dtype == torch.int64
    assert found.take("flags", 2).dtype == torch.bool
    found.finish()
    with pytest.raises(ModelLoadError, match=r"here: tensor b is missing"):
        found.take("b", 2)


def test_another_shape_is_refused_with_both() -> None:
    """The message names the tensor, what it has and what was expected."""
    with pytest.raises(ModelLoadError, match=r"here: a\.weight has shape \[2, 3\]; expected \[any, 4\]"):
        weights().take("a.weight", -1, 4)
    with pytest.raises(ModelLoadError, match=r"expected \[6\]"):
        weights().take("a.weight", 6)


def test_a_missing_tensor_is_named_beside_what_is_there() -> None:
    """The message helps to see that the file has another layout."""
    with pytest.raises(ModelLoadError, match=r"tensor c is missing; the file holds a\.weight, b, flags"):
        weights().take("c", 1)
    assert weights().maybe("c", 1) is None


def test_what_is_left_is_refused_unless_it_is_ignored() -> None:
    """Nothing is left out silently; patterns say what may be."""
    found = weights()
    found.take("b", 2)
    with pytest.raises(ModelLoadError, match=r"a\.weight and 1 more has no place"):
        found.finish()
    found.finish(["fl*", "a.*"])
    assert found.names == set(TENSORS)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_every_kind_of_file_is_read(suffix: str, tmp_path: Path) -> None:
    """Names alone, all tensors, or some of them."""
    file = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(TENSORS, file)
    else:
        torch.save(TENSORS, file)
    assert read_names("here", [file]) == set(TENSORS)
    found = read_tensors("here", [file])
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert set(read_tensors("here", [file], lambda name: name == "b")) == {"b"}


def test_an_old_pickle_is_read(tmp_path: Path) -> None:
    """Files from before torch's zip format cannot be mapped, and are read whole."""
    torch.save(TENSORS, tmp_path / "model.bin", _use_new_zipfile_serialization=False)
    assert set(read_tensors("here", [tmp_path / "model.bin"])) == set(TENSORS)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("kept", [0, 20, -40])
def test_a_truncated_file_is_named(suffix: str, kept: int, tmp_path: Path) -> None:
    """A download that broke off says which file, and what to do."""
    file = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(TENSORS, file)
    else:
        torch.save(TENSORS, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelLoadError, match=rf"here: model\{suffix} (cannot be read as weights|is not a file)"):
        read_names("here", [file])
    with pytest.raises(ModelLoadError, match=rf"here: model\{suffix} "):
        read_tensors("here", [file])


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": torch.ones(1)}}, {"epoch": 3}])
def test_a_pickle_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    """A training state is not taken for weights."""
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(ModelLoadError, match=r"model\.bin is not a file of plain tensors"):
        read_tensors("here", [tmp_path / "model.bin"])


class Harmful:
    """Makes a file when it is unpickled by the wrong means."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._file,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    """A file that asks for anything but tensors is refused unread."""
    torch.save({"a": Harmful(tmp_path / "here")}, tmp_path / "model.bin")
    with pytest.raises(ModelLoadError, match=r"model\.bin is not a file of plain tensors"):
        read_tensors("here", [tmp_path / "model.bin"])
    assert not (tmp_path / "here").exists()


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    """Where a folder has both, the safe kind is read; names choose among files."""
    for name in ("model.bin", "model.safetensors", "other.pt", "model-2.safetensors"):
        (tmp_path / name).touch()
    assert [f.name for f in weight_files(tmp_path)] == ["model-2.safetensors", "model.safetensors"]
    assert [f.name for f in weight_files(tmp_path, ("other",))] == ["other.pt"]
    assert weight_files(tmp_path, ("none",)) == []


def test_a_fingerprint_is_of_every_byte() -> None:
    """Another value, name, type or fact is another fingerprint; order and layout in memory are not."""
    base = fingerprint(TENSORS, 1)
    assert base == fingerprint(dict(reversed(TENSORS.items())), 1)
    assert base == fingerprint(TENSORS | {"a.weight": TENSORS["a.weight"].T.contiguous().T}, 1)
    others = [
        fingerprint(TENSORS, 2),
        fingerprint(TENSORS | {"b": torch.tensor([1, 3])}, 1),
        fingerprint(TENSORS | {"b": torch.tensor([1, 2], dtype=torch.int32)}, 1),
        fingerprint({n + "x": t for n, t in TENSORS.items()}, 1),
    ]
    assert len({base, *others}) == 5
    assert weights().fingerprint(1) == base
