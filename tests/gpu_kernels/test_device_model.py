"""The GPU's layer loop around its kernels, in Triton's interpreter, against the loop in torch."""

from __future__ import annotations

import pytest
import torch

from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models.base import FINAL
from specproxy.models.device import DeviceModel
from specproxy.models.fused import FusedModel
from specproxy.models.loading import load_model


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_device_model_equals_the_loop(dtype):
    """A prompt and a row behind it: logits and captured states are those of the loop in torch, within rounding."""
    loop, _ = load_model("house", dtype=dtype, device="cpu")
    assert isinstance(loop, FusedModel)
    model = DeviceModel(loop.stock, loop.spec)
    tokens = torch.randint(0, 8000, (6,), generator=torch.Generator().manual_seed(1))
    results = []
    for one in (loop, model):
        kv = KVBuffers.allocate(one.spec.layers, 4, 64, one.spec.dtype, "cpu")
        outputs = []
        for start, end in ((0, 5), (5, 6)):
            slots = torch.arange(128 + start, 128 + end)
            plan = plan_attention([Span(0, end - start, start, [2])], slots, kv)
            outputs.append(one.forward(tokens[start:end], torch.arange(start, end), plan, kv, None, (1, 5, FINAL)))
        results.append(outputs)
    for (logits, taps), (expected, states) in zip(results[1], results[0], strict=True):
        tolerance = 1e-4 if dtype == "float32" else 0.1
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance / 10)
        for tap, state in zip(taps, states, strict=True):
            torch.testing.assert_close(tap, state, atol=tolerance, rtol=tolerance / 10)
