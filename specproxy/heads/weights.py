"""Tensors of a checkpoint, strictly: each is taken once, with its shape, or stands on a list of what is ignored.

A wrong key that is silently left out is a drafter that guesses badly, for reasons nobody sees.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specproxy.errors import ModelLoadError
from specproxy.models.library import Library
from specproxy.models.linear import Linear, make_linear
from specproxy.models.native_parts import NativeParts
from specproxy.models.norm import Norm, make_rms_norm

if TYPE_CHECKING:
    from specproxy.heads.device_parts import DeviceParts

SUFFIXES = (".safetensors", ".pt", ".bin")


class Weights:
    """The tensors of one checkpoint, in ``dtype`` on ``device`` (integers and flags as they are); ``linear`` and
    ``norm`` make products and norms of them. ``kernels``: makes of those the parts of a layer, on a GPU."""

    def __init__(
        self,
        path: str,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: str,
        code: Library | None = None,
    ) -> None:
        """``path``: as the user gave it, for messages. ``code``: what products and norms run on, where it is ours."""
        self.linear: Callable[..., Linear] = make_linear
        self.norm: Callable[[Tensor, float], Norm] = make_rms_norm
        if code is not None:
            parts = NativeParts(code, sum(tensor.numel() for tensor in tensors.values()))
            self.linear, self.norm = parts.linear, parts.norm
        self.kernels: DeviceParts | None = None
        if device.startswith("cuda"):
            from specproxy.heads.device_parts import DeviceParts  # needs Triton, which comes with a GPU

            self.use(DeviceParts())
        self.path = path
        self._all = tensors
        self._left = dict(tensors)
        self._dtype = dtype
        self._device = device

    def use(self, kernels: DeviceParts) -> None:
        """What is made of tensors from here on runs on the GPU's kernels."""
        self.kernels = kernels
        self.linear, self.norm = kernels.linear, kernels.norm

    @property
    def names(self) -> frozenset[str]:
        """Every name that the checkpoint holds, taken or not."""
        return frozenset(self._all)

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def fingerprint(self, *facts: object) -> str:
        """See ``fingerprint``; of all tensors, taken or not."""
        return fingerprint(self._all, *facts)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that is not taken yet. Raises ModelLoadError where it is missing."""
        return tuple(self._find(name).shape)

    def take(self, name: str, *shape: int, at_least: torch.dtype | None = None) -> Tensor:
        """The tensor, of exactly this shape (-1: any size), in ``at_least`` where that is wider than the others.

        Raises ModelLoadError naming the key.
        """
        tensor = self._find(name)
        found = tuple(tensor.shape)
        if len(found) != len(shape) or any(want not in (-1, have) for want, have in zip(shape, found, strict=True)):
            wanted = ", ".join("any" if size == -1 else str(size) for size in shape)
            raise ModelLoadError(f"{self.path}: {name} has shape {list(found)}; expected [{wanted}]")
        del self._left[name]
        if tensor.is_floating_point():
            dtype = self._dtype if at_least is None else torch.promote_types(self._dtype, at_least)
            return tensor.to(self._device, dtype).contiguous()
        return tensor.to(self._device).contiguous()

    def maybe(self, name: str, *shape: int, at_least: torch.dtype | None = None) -> Tensor | None:
        """``take`` where the tensor is there."""
        return self.take(name, *shape, at_least=at_least) if name in self else None

    def finish(self, ignore: Iterable[str] = ()) -> None:
        """Nothing may be left but what matches a pattern of ``ignore``. Raises ModelLoadError naming what is."""
        patterns = tuple(ignore)
        left = sorted(n for n in self._left if not any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ModelLoadError(f"{self.path}: tensor {left[0]}{more} has no place in this kind of head")

    def _find(self, name: str) -> Tensor:
        tensor = self._left.get(name)
        if tensor is None:
            near = sorted(self._left)[:3]
            raise ModelLoadError(
                f"{self.path}: tensor {name} is missing" + (f"; the file holds {', '.join(near)}, ..." if near else "")
            )
        return tensor


def weight_files(folder: Path, names: Iterable[str] = ("*",)) -> list[Path]:
    """Weight files of a folder whose stem matches one of ``names``; safetensors where there are any."""
    stems = tuple(names)
    for suffix in SUFFIXES:
        found = sorted(
            f for f in folder.glob(f"*{suffix}") if any(fnmatch.fnmatchcase(f.name[: -len(suffix)], s) for s in stems)
        )
        if found:
            return found
    return []


def read_names(path: str, files: Iterable[Path]) -> frozenset[str]:
    """Names of all tensors in ``files``; of safetensors only the headers are read. Raises as ``read_tensors`` does."""
    names: set[str] = set()
    for file in files:
        with _readable(path, file):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as stream:
                    names |= set(stream.keys())
            else:
                names |= set(_unpickle(file))
    return frozenset(names)


def read_tensors(path: str, files: Iterable[Path], keep: Callable[[str], bool] = lambda _: True) -> dict[str, Tensor]:
    """Tensors of ``files`` whose name ``keep`` wants, on the CPU. Never unpickles code: ``weights_only``.

    Raises ModelLoadError for a file that is truncated or is no weight file.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        with _readable(path, file):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as stream:
                    tensors |= {name: stream.get_tensor(name) for name in stream.keys() if keep(name)}  # noqa: SIM118
            else:
                tensors |= {name: tensor for name, tensor in _unpickle(file).items() if keep(name)}
    return tensors


@contextlib.contextmanager
def _readable(path: str, file: Path) -> Iterator[None]:
    """Whatever reading ``file`` raises, as a ModelLoadError that names it."""
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelLoadError(
            f"{path}: {file.name} cannot be read as weights ({error}); expected a whole file, so download it again"
        ) from None
    except Exception as error:  # noqa: BLE001 - pickle raises what it likes for a file that is no pickle
        raise ModelLoadError(f"{path}: {file.name} is not a file of plain tensors: {error}") from None


def _unpickle(file: Path) -> dict[str, Tensor]:
    """A file of torch.save, mapped where it has the format that can be."""
    loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(loaded, dict):
        raise TypeError(f"it holds a {type(loaded).__name__}")
    for name, tensor in loaded.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"its entry {name!r} is a {type(tensor).__name__}")
    return loaded


def fingerprint(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """SHA-256 (16 hex digits) over every tensor's bytes and whatever else defines the head."""
    digest = hashlib.sha256(repr(facts).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
