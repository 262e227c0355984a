"""How much memory an object holds: the tensors that can be reached from it, in whatever it keeps them.

Weights stand in modules, lists, closures over packed copies; counting what is reached needs no help from any of them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import FunctionType, ModuleType

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_LEAVES = (ModuleType, type, str, bytes, int, float, complex)


def held_bytes(root: object, *shared: object) -> int:
    """Bytes of all tensors reached from ``root``, each memory once, but of those that are reached from ``shared``."""
    known = {key for other in shared for key, _ in _tensors(other)}
    return sum(size for key, size in dict(_tensors(root)).items() if key not in known)


def _tensors(root: object) -> Iterator[tuple[int, int]]:
    """(identity, bytes) of every tensor's memory, some of it repeatedly."""
    waiting, seen = [root], {id(root)}
    while waiting:
        found = waiting.pop()
        if isinstance(found, Tensor) and not _is_made_of_others(found):
            yield _memory(found)
            continue
        for item in _held(found):
            if not isinstance(item, _LEAVES) and id(item) not in seen:
                seen.add(id(item))
                waiting.append(item)


def _is_made_of_others(found: object) -> bool:
    """Whether a tensor is a name for several: a quantised weight, for numbers and scales."""
    return is_traceable_wrapper_subclass(found)


def _held(found: object) -> list[object]:
    """What an object refers to; of a function what it closes over, not the module that it stands in."""
    if not isinstance(found, FunctionType):
        return gc.get_referents(found)
    contents = [item for cell in found.__closure__ or () for item in gc.get_referents(cell)]
    return [*contents, *(found.__defaults__ or ()), *(found.__kwdefaults__ or {}).values()]


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Identity and bytes of a tensor's memory. A packed weight shows neither address nor storage: it is its own."""
    if tensor.is_mkldnn:
        return id(tensor), tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
