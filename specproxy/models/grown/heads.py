"""Heads of a small target in the shape of heads of a large one, in the layout that they were published in.

A head that reads the states of the small target reads those of the grown one: each of the states that it concatenates
is padded by itself, the layers it reads are those where the same states stand (``layer_map``). An EAGLE-3 head also
gets the published number of tokens: those it lacks stand for the target's padding, which nobody may say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.models.grown.placing import Fill, Filler, Placement, Sizes, place, read_sizes
from specproxy.models.grown.shapes import Shape, layer_map
from specproxy.models.grown.target import grown_config

Kind = Literal["eagle3", "medusa", "mtp"]

FILES: dict[Kind, str] = {
    "eagle3": "model.safetensors",
    "medusa": "medusa_lm_head.safetensors",
    "mtp": "mtp.safetensors",
}
MTP = "model.mtp_layers."
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
OUTPUT, OFFSETS, MASK = "lm_head.weight", "d2t", "t2d"
PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "fc",
    "input_proj",
    "linear",
)


@dataclass(frozen=True)
class GrownHead:
    """``tensors`` and ``config`` as a published checkpoint has them."""

    kind: Kind
    tensors: dict[str, Tensor]
    config: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Make ``folder`` a head's folder that ``specproxy.heads.loading.read_head`` takes."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, folder / FILES[self.kind])
        (folder / "config.json").write_text(json.dumps(self.config, indent=2))


@torch.no_grad()
def grow_head(
    folder: Path,
    target: Mapping[str, Any],
    shape: Shape,
    device: str | torch.device,
    dtype: torch.dtype,
    fill: Fill = "random",
) -> GrownHead:
    """The EAGLE-3, Medusa or MTP (MiMo) head in ``folder`` for the grown target of ``shape``, made on ``device``.

    ``target``: config.json of the small target that it was trained for; an MTP module's folder is that target's.
    Raises ModelLoadError for a head of another kind or with parts that cannot be grown.
    """
    small = _read(folder)
    kind = _kind(small)
    own = json.loads((folder / "config.json").read_text("utf-8"))
    sizes = read_sizes({**target, **own}, str(folder))
    placement = Placement(sizes, shape, str(folder))
    filler = Filler(fill, device, dtype)
    tensors: dict[str, Tensor] = {}
    if kind == "eagle3":
        tensors |= _vocabulary(folder, small, sizes.vocab, shape, torch.device(device))
        own[LAYER_IDS] = _states(folder, own, int(target["num_hidden_layers"]), shape)
    for name, tensor in small.items():
        if name not in tensors:
            tensors[name] = _grow(folder, name, tensor, sizes, shape, placement, filler)
    return GrownHead(kind, tensors, _config(kind, own, shape, placement.eps, dtype))


def _read(folder: Path) -> dict[str, Tensor]:
    """Tensors of the head: of a whole target's folder those of its MTP modules. Raises ModelLoadError."""
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            places |= dict.fromkeys(stream.keys(), file)
    modules = {name: file for name, file in places.items() if name.startswith(MTP)}
    places = modules or places
    if not places:
        raise ModelLoadError(f"{folder}: no tensors in safetensors files; expected a head's folder")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        with safe_open(file, framework="pt") as stream:
            tensors |= {name: stream.get_tensor(name) for name, where in places.items() if where == file}
    return tensors


def _kind(tensors: Mapping[str, Tensor]) -> Kind:
    if any(name.startswith(MTP) for name in tensors):
        return "mtp"
    return "medusa" if any(".linear." in name for name in tensors) else "eagle3"


def _grow(
    folder: Path, name: str, small: Tensor, sizes: Sizes, shape: Shape, placement: Placement, filler: Filler
) -> Tensor:
    """One tensor at the large size. Raises ModelLoadError for one of unknown meaning."""
    part, _, suffix = name.rpartition(".")
    last = part.rpartition(".")[2]
    blocks = small.shape[-1] // sizes.hidden
    if name == OUTPUT:
        made = filler.make(shape.draft_vocab, shape.hidden)
        return place(made, small, torch.arange(small.shape[0]), placement.blocks(1))
    if suffix == "weight" and last.endswith("norm") and small.shape[-1] % sizes.hidden == 0:
        return placement.norm(small, filler.make(blocks * shape.hidden))
    if suffix == "weight" and last in PROJECTIONS:
        return placement.matrix(last, small, filler.make(*shape.matrix(last, blocks)))
    if suffix == "bias" and last == "linear":
        made = filler.make(shape.hidden).zero_()
        made[: sizes.hidden] = small
        return made
    raise ModelLoadError(
        f"{folder}: nothing is known about growing tensor {name}; expected an EAGLE-3, Medusa or MiMo head as "
        f"specproxy trains them"
    )


def _vocabulary(
    folder: Path, small: Mapping[str, Tensor], vocab: int, shape: Shape, device: torch.device
) -> dict[str, Tensor]:
    """``d2t`` [Vd] and ``t2d`` [V] of an EAGLE-3 head at its published size. Raises ModelLoadError."""
    if OUTPUT not in small:
        raise ModelLoadError(f"{folder}: tensor {OUTPUT} is missing; expected a head with a vocabulary of its own")
    known = small[OUTPUT].shape[0]
    if known > shape.draft_vocab or vocab + shape.draft_vocab - known > shape.vocab:
        raise ModelLoadError(
            f"{folder}: {known} draft tokens and {vocab} of the target do not fit {shape.draft_vocab} and {shape.vocab}"
        )
    offsets = small.get(OFFSETS, torch.zeros(known, dtype=torch.long)).to(device)
    ids = torch.arange(shape.draft_vocab, device=device)
    wide = torch.cat([offsets, torch.full_like(ids[known:], vocab - known)])
    mask = torch.zeros(shape.vocab, dtype=torch.bool, device=device)
    mask[ids + wide] = True
    return {OFFSETS: wide, MASK: mask}


def _states(folder: Path, own: Mapping[str, Any], layers: int, shape: Shape) -> list[int]:
    """The states that an EAGLE-3 head reads, as the grown target counts its layers. Raises ModelLoadError."""
    if not own.get(LAYER_IDS):
        raise ModelLoadError(f"{folder}: config.json has no {LAYER_IDS}; expected the states that the head reads")
    standing = layer_map(layers, shape.layers)
    return [standing[int(state)] for state in own[LAYER_IDS]]


def _config(kind: Kind, own: Mapping[str, Any], shape: Shape, eps: float, dtype: torch.dtype) -> dict[str, Any]:
    """The head's configuration at the large size."""
    named = {key: str(dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in own}
    if kind == "medusa":
        return {**own, "hidden_size": shape.hidden, "vocab_size": shape.vocab, **named}
    sized = grown_config(own, shape, eps) | named
    if kind == "eagle3":
        kept = {key: own[key] for key in ("num_hidden_layers", "tie_word_embeddings") if key in own}
        return {**sized, **kept, "draft_vocab_size": shape.draft_vocab}
    return sized
