"""How many pages of KV there are."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from specproxy.config.schema import ModelConfig
from specproxy.errors import ConfigError, ModelLoadError
from specproxy.kernels.paged import KEY_BLOCK, KVBuffers
from specproxy.models.base import ModelSpec

AUTO_SHARE = 0.5
"""Of the free memory at most this share becomes KV by default; drafters, activations and the server need the rest."""

_UNITS = {"": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}


def parse_bytes(value: int | str) -> int:
    """A number, or text such as 512MB, 2GB or 1000000, in bytes. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(KB|MB|GB)?\s*", str(value).upper().replace("IB", "B"))
    if match is None:
        raise ConfigError(f"model.kv_memory: {value!r}; expected auto, a number of bytes, or text such as 512MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def count_pages(config: ModelConfig, spec: ModelSpec, page_size: int) -> int:
    """Pages of ``page_size`` tokens, reserved ones included.

    ``auto``: enough for every sequence at full length, but at most half the free memory. Raises ConfigError or, where
    not even one full sequence fits, ModelLoadError with the numbers.
    """
    per_token = sum(layer.width for layer in spec.layers) * spec.dtype.itemsize
    per_page = per_token * page_size
    per_sequence = -(-spec.max_len // page_size)
    if config.kv_memory == "auto":
        pages = min(config.max_sequences * per_sequence, int(free_memory(spec.device) * AUTO_SHARE) // per_page)
    else:
        pages = (parse_bytes(config.kv_memory) - KEY_BLOCK * per_token) // per_page
    if pages < per_sequence:
        raise ModelLoadError(
            f"KV for one sequence of {spec.max_len} tokens needs {per_sequence * per_page / 2**20:.0f} MB, "
            f"available are {max(0, pages) * per_page / 2**20:.0f} MB; lower model.max_model_len or raise "
            "model.kv_memory"
        )
    return pages + KVBuffers.RESERVED_PAGES


def free_memory(device: str) -> int:
    """Bytes that could be allocated now."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
