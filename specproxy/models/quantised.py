"""Quantised checkpoints: which of them transformers can run here, and by name why not the others.

Their weights are not plain matrices, so nothing but transformers' own modules runs them: the any-architecture path.
What a method needs stands in a table as far as it can be told without loading anything; the rest transformers' own
check says, and a first forward behind loading.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from specproxy.errors import ModelLoadError

INSTEAD = "see to that, or use a checkpoint that is not quantised"


@dataclass(frozen=True)
class Method:
    """What transformers needs for a method. ``packages``: on any device, by the names they are installed under;
    ``gpu_packages``: on a GPU too. ``gpu``: the least compute capability where it runs on GPUs alone.
    ``unpacked_below``: with less than this capability, and off GPUs, the weights are multiplied out while loading and
    take their full size. ``never``: why it does not run at all."""

    packages: tuple[str, ...] = ()
    gpu_packages: tuple[str, ...] = ()
    gpu: tuple[int, int] | None = None
    unpacked_below: tuple[int, int] | None = None
    never: str = ""


ANY_GPU = (0, 0)
NO_GPU = (99, 0)
"""Compute capabilities that every card has, and none."""

BLOCK_FP8 = Method(("accelerate",), ("kernels",), unpacked_below=(8, 9))

METHODS: dict[str, Method] = {
    "aqlm": Method(("accelerate", "aqlm")),
    "auto-round": Method(("auto-round",)),
    "awq": Method(("accelerate", "gptqmodel")),
    "bitnet": Method(("accelerate",)),
    "bitsandbytes": Method(("accelerate", "bitsandbytes")),
    "compressed-tensors": Method(("compressed-tensors",)),
    "eetq": Method(("accelerate", "kernels"), gpu=ANY_GPU),
    "fbgemm_fp8": Method(("accelerate",), gpu=(9, 0)),
    "fouroversix": Method(("fouroversix",)),
    "fp8": BLOCK_FP8,
    "fp_quant": Method(("fp_quant",), gpu=ANY_GPU),
    "gemma": Method(),
    "gguf": Method(never="GGUF files are not read; expected a folder with safetensors"),
    "gptq": Method(("optimum", "gptqmodel")),
    "higgs": Method(("accelerate", "flute-kernel", "fast_hadamard_transform"), gpu=ANY_GPU),
    "hqq": Method(("hqq",), gpu=ANY_GPU),
    "metal": Method(("accelerate",), unpacked_below=NO_GPU),
    "mxfp4": Method(gpu_packages=("accelerate", "kernels"), unpacked_below=(7, 5)),
    "mxfp8": BLOCK_FP8,
    "nvfp4": Method(never="transformers does not load such checkpoints"),
    "quanto": Method(("accelerate", "optimum-quanto")),
    "quark": Method(("amd-quark",)),
    "sinq": Method(("sinq",)),
    "spqr": Method(("accelerate", "spqr_quant"), gpu=ANY_GPU),
    "torchao": Method(("torchao",)),
    "vptq": Method(("accelerate", "vptq"), gpu=ANY_GPU),
}
"""By ``quant_method`` of config.json: what ``validate_environment`` and the modules of transformers 5.17 ask for."""


def quantisation(config: Any, folder: Path) -> str:
    """The method that the checkpoint in ``folder`` is quantised with, empty where its weights are plain."""
    for key in ("quantization_config", "compression_config"):
        for part in (config, config.get_text_config()):
            found = getattr(part, key, None)
            if found:
                return _method(found)
    return "modelopt" if (folder / "hf_quant_config.json").is_file() else ""


def _method(found: Any) -> str:
    facts = found if isinstance(found, dict) else found.to_dict()
    if facts.get("load_in_4bit") or facts.get("load_in_8bit"):
        return "bitsandbytes"
    method = facts.get("quant_method")
    return str(getattr(method, "value", method) or "an unnamed method")


@dataclass(frozen=True)
class Quantised:
    """A quantised checkpoint that can run. ``options``: what ``from_pretrained`` is given beside what every model gets;
    ``placed``: whether it then is on its device, where such modules must not be moved to later."""

    method: str
    options: Mapping[str, Any]

    @property
    def placed(self) -> bool:
        """See the class."""
        return "device_map" in self.options

    def check_complete(self, path: str, missing: Collection[str]) -> None:
        """Raise ModelLoadError where modules were made that the checkpoint has no tensors for: transformers would have
        filled them at random."""
        if missing:
            count, first = len(missing), min(missing)
            raise _refusal(path, self.method, f"asks for {count} tensors that the checkpoint lacks, such as {first}")

    def failure(self, path: str, device: str, error: BaseException) -> ModelLoadError:
        """The error where its first forward failed."""
        return _refusal(path, self.method, f"loads but does not run on {device}: {_one_line(error)}")


def read_quantised(config: Any, folder: Path, path: str, device: str, wishes: Mapping[str, object]) -> Quantised | None:
    """How the checkpoint in ``folder`` is loaded if it is quantised, ``None`` where its weights are plain.

    ``config`` is changed where weights are to be multiplied out. ``wishes``: settings that only plain weights can have,
    and whether they were made. Raises ModelLoadError, naming the method, for what cannot run on ``device`` with the
    packages that are installed.
    """
    method = quantisation(config, folder)
    if not method:
        return None
    known = METHODS.get(method)
    if known is None:
        raise _refusal(path, method, f"is not known to transformers; expected one of {', '.join(METHODS)}")
    if known.never:
        raise _refusal(path, method, f"cannot be run: {known.never}")
    asked = [name for name, made in wishes.items() if made]
    if asked:
        raise _refusal(path, method, f"runs by transformers' own modules only: leave out {' and '.join(asked)}")
    if not getattr(config, "quantization_config", None):
        raise _refusal(path, method, "is told elsewhere than in quantization_config of config.json, as is expected")
    return Quantised(method, _options(config, method, known, path, device))


def _options(config: Any, method: str, known: Method, path: str, device: str) -> dict[str, Any]:
    on_gpu = device.startswith("cuda")
    capability = torch.cuda.get_device_capability(device) if on_gpu else None
    if known.gpu is not None:
        _check_gpu(path, method, known.gpu, device, capability)
    unpacked = known.unpacked_below is not None and (capability is None or capability < known.unpacked_below)
    packed_on_gpu = on_gpu and not unpacked
    _check_packages(path, method, device, [*known.packages, *(known.gpu_packages if packed_on_gpu else ())])
    if unpacked:
        config.quantization_config = {**config.quantization_config, "dequantize": True}
    _check_transformers(config, path, method, device)
    if packed_on_gpu and known is BLOCK_FP8:
        _check_fp8_kernel(path, method)
    return {"config": config, **({"device_map": {"": device}} if _installed("accelerate") else {})}


def _refusal(path: str, method: str, why: str) -> ModelLoadError:
    """The error for a quantised checkpoint; ``why`` goes on from the method's name."""
    return ModelLoadError(f"{path}: quantised with {method}, which {why}; {INSTEAD}")


def _installed(package: str) -> bool:
    """Whether a package of that name is installed. Asking for its files would find folders that happen to be called
    so."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _check_gpu(path: str, method: str, least: tuple[int, int], device: str, capability: tuple[int, int] | None) -> None:
    if capability is None:
        raise _refusal(path, method, f"runs on NVIDIA GPUs only, not on {device}")
    if capability < least:
        found, wanted = (".".join(map(str, pair)) for pair in (capability, least))
        raise _refusal(path, method, f"needs compute capability {wanted}, {device} has {found}")


def _check_packages(path: str, method: str, device: str, packages: Sequence[str]) -> None:
    missing = [package for package in packages if not _installed(package)]
    if missing:
        raise _refusal(path, method, f"needs {' and '.join(missing)} on {device} (pip install {' '.join(missing)})")


def _check_transformers(config: Any, path: str, method: str, device: str) -> None:
    """What transformers itself checks before it loads: versions, options of the method."""
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantiser = AutoHfQuantizer.from_config(dict(config.quantization_config), pre_quantized=True)
        quantiser.validate_environment(device_map={"": device}, weights_only=True)
    except (ImportError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _refusal(path, method, f"transformers cannot load on {device}: {_one_line(error)}") from None


def _check_fp8_kernel(path: str, method: str) -> None:
    """Products of FP8 with block scales are a kernel that is fetched from the hub when it is first used."""
    from transformers.integrations.finegrained_fp8 import load_finegrained_fp8_kernel

    try:
        load_finegrained_fp8_kernel()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise _refusal(
            path, method, f"needs the kernel kernels-community/finegrained-fp8: {_one_line(error)}"
        ) from None


def _one_line(error: BaseException) -> str:
    """An error's first line, without the stop behind it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
