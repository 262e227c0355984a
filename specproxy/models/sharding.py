"""A Llama-family model split over processes, called ranks (Shoeybi et al., arXiv 1909.08053).

Each rank holds an equal part of the query and key heads and of the MLP's width: rows of the q, k, v, gate and up
projections, and the columns of the output and down projections that meet them. So a rank computes a part of what a
layer adds to the residual stream, and one sum over the ranks behind each half of a layer makes it whole. Embedding,
norms and output product are whole on every rank: heads that draft share them, and only one rank drafts.

Parts are summed in the model's type, in which they travel. Two of them give the same bits in either order, whatever the
rows beside them, so two ranks can be as exact as one; a number is rounded twice more than on one rank, and its bits are
other ones. Of three parts the order of the sum depends on where a number lies in the buffer, thus on the other rows.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from specproxy.errors import ModelLoadError, RankLost

OWN_ROWS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
OWN_COLUMNS = ("self_attn.o_proj", "mlp.down_proj")


class Group:
    """The ``size`` processes that hold a model together, seen from the one of number ``rank``."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    def place(self, device: str) -> str:
        """The device of this rank's part, "cpu" or "cuda": where ``device`` is a GPU, rank r takes the r-th from there
        on and makes it the current one. Raises ModelLoadError where there are too few."""
        if not device.startswith("cuda"):
            return device
        first, found = torch.device(device).index or 0, torch.cuda.device_count()
        if first + self.size > found:
            raise ModelLoadError(
                f"model.tensor_parallel {self.size} from {device} on needs {first + self.size} GPUs, this host has "
                f"{found}; lower it, or set model.device"
            )
        torch.cuda.set_device(first + self.rank)
        return "cuda"

    def meet(self, store: Any, device: str) -> None:
        """Wait for the other ranks at ``store`` (``meeting_point``), and be able to ``add`` from then on."""
        if dist.is_initialized():
            raise ModelLoadError("torch.distributed is in use in this process; expected one sharded model a process")
        if sys.platform == "linux":
            # Ranks share a host; gloo would ask for the address of the host's name, which may have none.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        cuda = device.startswith("cuda")
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            device_id=torch.device("cuda", torch.cuda.current_device()) if cuda else None,
        )

    def add(self, part: Tensor) -> Tensor:
        """The sum of all ranks' ``part`` [T, D], in its place. On a GPU it is enqueued like a kernel, and captured like
        one. Raises RankLost where another rank is gone and that can be noticed."""
        try:
            dist.all_reduce(part)
        except RuntimeError as error:
            raise RankLost(f"rank {self.rank} of {self.size} could not add up with the others: {error}") from error
        return part

    def leave(self) -> None:
        """Be on one's own again."""
        if dist.is_initialized():
            dist.destroy_process_group()


def meeting_point(size: int, port: int = 0) -> Any:
    """torch's store where ``size`` ranks of this host find each other: opened by rank 0 at a free port (``.port``), by
    the others at that ``port``."""
    # torch exports the name only where it was built with its distributed part.
    return dist.TCPStore("127.0.0.1", port, size, is_master=not port, wait_for_workers=False)  # type: ignore[attr-defined]


def check_shares(config: Any, size: int, where: str) -> None:
    """Raise ModelLoadError naming every number of ``config`` that ``size`` ranks cannot share equally."""
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    wrong = [f"{name} {getattr(config, name)}" for name in names if getattr(config, name) % size]
    if wrong:
        raise ModelLoadError(
            f"{where}: model.tensor_parallel {size} does not divide {', '.join(wrong)}; expected a number that does"
        )


def keep_share(layer: Any, group: Group) -> None:
    """Cut the decoder ``layer`` of a stock module down to this rank's part; what it drops is free at once.

    A bias behind a sum stays with rank 0 alone. The layer's heads and width must be divisible: see ``check_shares``.
    """
    for path in OWN_ROWS:
        module = layer.get_submodule(path)
        module.weight = _part(module.weight, group, 0)
        if module.bias is not None:
            module.bias = _part(module.bias, group, 0)
    for path in OWN_COLUMNS:
        module = layer.get_submodule(path)
        module.weight = _part(module.weight, group, 1)
        if module.bias is not None and group.rank:
            module.bias = None


def _part(whole: Tensor, group: Group, dim: int) -> nn.Parameter:
    part = whole.chunk(group.size, dim)[group.rank]
    return nn.Parameter(part.clone(memory_format=torch.contiguous_format), requires_grad=False)
