"""What of this machine chooses kernels, and where results that depend on it are kept."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_identity() -> str:
    """Name, stepping and feature flags of the processor: all of them choose kernels."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    facts = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "flags", "stepping"))]
    return " ".join(facts)


def cache_folder() -> Path:
    """Where verdicts and compiled code are kept between starts; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "specproxy"
