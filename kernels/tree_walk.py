"""The walk of ``kernels/walk.py`` for all sequences of a step at once, on the device.

From the root to the child that carries the token sampled at the current node, until there is none; the token sampled
there is the bonus token. One program a lane: the children of a node are looked for among all nodes at once, the first
one counts, and a look is all that a depth costs.

Shapes: B lanes, N nodes of a draft at most.
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
    """``accepted`` [B, N]: indices of the accepted nodes from the root down, -1 behind them; ``count`` [B]: how many;
    ``bonus`` [B]: the token sampled at the end. All int64."""

    accepted: Tensor
    count: Tensor
    bonus: Tensor


def tree_walk_reference(tokens: Tensor, parents: Tensor, n: Tensor, sampled: Tensor) -> TreeWalk:
    """The contract by ``walk``, lane by lane; it waits for the device."""
    accepted, count, bonus = torch.full_like(tokens, -1), torch.zeros_like(n), torch.zeros_like(n)
    lanes = zip(tokens.tolist(), parents.tolist(), n.tolist(), sampled.tolist(), strict=True)
    for lane, (lane_tokens, lane_parents, nodes, lane_sampled) in enumerate(lanes):
        found = walk(lane_tokens, lane_parents, nodes, lane_sampled)
        count[lane], bonus[lane] = len(found.accepted_nodes), found.bonus
        accepted[lane, : len(found.accepted_nodes)] = torch.tensor(found.accepted_nodes, dtype=torch.int64)
    return TreeWalk(accepted, count, bonus)


@triton.jit
def _tree_walk_kernel(
    tokens, parents, n, sampled, accepted, count, bonus, N, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    let_next_start(EARLY)
    wait_for_input(EARLY)
    lane = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, BLOCK)
    real = (node < N) & (node < tl.load(n + lane))
    token = tl.load(tokens + lane * N + node, mask=real, other=-1)
    parent = tl.load(parents + lane * N + node, mask=real, other=-2)
    behind = tl.load(sampled + lane * (N + 1) + 1 + node, mask=real, other=-1)
    wanted = tl.load(sampled + lane * (N + 1))
    path = tl.full([BLOCK], -1, tl.int64)
    depth = tl.full([], 0, tl.int32)
    here = depth - 1
    child = tl.min(tl.where(real & (parent == here) & (token == wanted), node, BLOCK), 0)
    while child < BLOCK:
        path = tl.where(node == depth, child, path)
        depth += 1
        here = child
        wanted = tl.sum(tl.where(node == here, behind, 0), 0)
        fits = real & (node > here) & (parent == here) & (token == wanted)
        child = tl.min(tl.where(fits, node, BLOCK), 0)
    tl.store(accepted + lane * N + node, path, mask=node < N)
    tl.store(count + lane, depth.to(tl.int64))
    tl.store(bonus + lane, wanted)


def tree_walk(tokens: Tensor, parents: Tensor, n: Tensor, sampled: Tensor) -> TreeWalk:
    """Accepted paths and bonus tokens of drafts tokens [B, N], parents [B, N] (each before its children, -1: the root)
    of n [B] nodes each; sampled [B, N + 1]: the target's token at the root, then at each node. All int64, contiguous.

    Raises ValueError where they are not.
    """
    lanes, nodes = tokens.shape
    shapes = ((lanes, nodes), (lanes, nodes), (lanes,), (lanes, nodes + 1))
    for name, x, shape in zip(("tokens", "parents", "n", "sampled"), (tokens, parents, n, sampled), shapes, strict=True):
        if x.shape != shape or x.dtype != torch.int64 or not x.is_contiguous():
            raise ValueError(
                f"tree_walk: {name} {list(x.shape)} {x.dtype}; expected {list(shape)} int64, contiguous, for tokens "
                f"{list(tokens.shape)}"
            )
    if not kernels_run(tokens):
        return tree_walk_reference(tokens, parents, n, sampled)
    found = TreeWalk(torch.empty_like(tokens), torch.empty_like(n), torch.empty_like(n))
    if lanes:
        block = triton.next_power_of_2(max(1, nodes))
        _tree_walk_kernel[(lanes,)](
            tokens, parents, n, sampled, *found, nodes, BLOCK=block, num_warps=1, **early(tokens)
        )
    return found
