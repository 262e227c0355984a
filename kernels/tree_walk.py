"""The walk over sampled tokens on a GPU: which drafted nodes the target would have sampled, without asking the host.

The rule is that of ``kernels/walk.py``, lane by lane: from the root to the child that carries the token sampled at the
current node, as far as there is one; of siblings with the same token the first counts. One program walks one lane; at
each node it looks at all others at once, so what it takes grows with the accepted depth and not with the size of the
draft.

Shapes: B lanes, N drafted nodes of a lane at most.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from specproxy.kernels.launching import early, kernels_run, let_next_start, wait_for_input
from specproxy.kernels.walk import walk


class TreeWalk(NamedTuple):
    """All int64. ``accepted`` [B, N]: nodes from the root's child down, -1 behind the last; ``length`` [B]: how many;
    ``bonus`` [B]: the token sampled where the walk ended."""

    accepted: Tensor
    length: Tensor
    bonus: Tensor


def tree_walk_reference(tokens: Tensor, parents: Tensor, n: Tensor, sampled: Tensor) -> TreeWalk:
    """The contract lane by lane on the host."""
    accepted = torch.full_like(tokens, -1)
    count, bonus = torch.zeros_like(n), torch.zeros_like(n)
    for lane, nodes in enumerate(n.tolist()):
        found = walk(tokens[lane].tolist(), parents[lane].tolist(), nodes, sampled[lane].tolist())
        accepted[lane, : len(found.accepted_nodes)] = torch.tensor(found.accepted_nodes, dtype=torch.int64)
        count[lane], bonus[lane] = len(found.accepted_nodes), found.bonus
    return TreeWalk(accepted, count, bonus)


@triton.jit
def _walk_kernel(tokens, parents, n, sampled, accepted, count, bonus, N, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    let_next_start(EARLY)
    wait_for_input(EARLY)
    lane = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, BLOCK)
    inside = node < N
    drafted = node < tl.load(n + lane)
    token = tl.load(tokens + lane * N + node, mask=inside, other=0)
    parent = tl.load(parents + lane * N + node, mask=inside, other=-1)
    after = tl.load(sampled + lane * (N + 1) + 1 + node, mask=inside, other=0)
    wanted = tl.load(sampled + lane * (N + 1))
    path = tl.full([BLOCK], -1, tl.int64)
    depth, here = 0, -1
    child = tl.min(tl.where(drafted & (parent == here) & (token == wanted), node, BLOCK), 0)
    while child < BLOCK:
        path = tl.where(node == depth, child.to(tl.int64), path)
        wanted = tl.sum(tl.where(node == child, after, 0), 0)
        depth, here = depth + 1, child
        fits = drafted & (node > here) & (parent == here) & (token == wanted)
        child = tl.min(tl.where(fits, node, BLOCK), 0)
    tl.store(accepted + lane * N + node, path, mask=inside)
    tl.store(count + lane, depth)
    tl.store(bonus + lane, wanted)


def tree_walk(tokens: Tensor, parents: Tensor, n: Tensor, sampled: Tensor) -> TreeWalk:
    """Walk every lane's draft; all int64 and contiguous, on one device, nothing is waited for.

    tokens, parents [B, N]: the nodes' tokens and parents (-1: the root; children behind their parents); n [B]: nodes of
    each lane, what stands behind them is not looked at; sampled [B, N + 1]: the target's tokens at the root and at each
    node. Raises ValueError where shapes or types differ from these.
    """
    _check(tokens, parents, n, sampled)
    if not kernels_run(tokens):
        return tree_walk_reference(tokens, parents, n, sampled)
    lanes, nodes = tokens.shape
    found = TreeWalk(torch.empty_like(tokens), torch.empty_like(n), torch.empty_like(n))
    if lanes:
        block = triton.next_power_of_2(max(1, nodes))
        _walk_kernel[(lanes,)](
            tokens, parents, n, sampled, *found, nodes, BLOCK=block, num_warps=max(1, block // 256), **early(tokens)
        )
    return found


def _check(tokens: Tensor, parents: Tensor, n: Tensor, sampled: Tensor) -> None:
    lanes, nodes = tokens.shape
    expected = {"tokens": (tokens, [lanes, nodes]), "parents": (parents, [lanes, nodes]), "n": (n, [lanes])}
    expected["sampled"] = sampled, [lanes, nodes + 1]
    for name, (tensor, shape) in expected.items():
        if list(tensor.shape) != shape or tensor.dtype != torch.int64 or not tensor.is_contiguous():
            raise ValueError(
                f"tree_walk: {name} {list(tensor.shape)} {tensor.dtype}, strides {tensor.stride()}; expected {shape} "
                "int64, contiguous"
            )
