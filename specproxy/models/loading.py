"""Load a target or a draft model: find it, check it, build the fastest path that runs it exactly."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from specproxy.errors import ModelLoadError
from specproxy.kernels.paged import LayerShape
from specproxy.models.base import ModelSpec, StepModel
from specproxy.models.fused import FAMILIES, FusedModel, can_fuse
from specproxy.models.generic import GenericModel
from specproxy.models.quantised import Quantised, read_quantised
from specproxy.models.sharding import Group, check_shares, keep_share

RECURRENT = frozenset(
    [
        *("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "jamba", "granitemoehybrid", "nemotron_h", "bamba"),
        *("mamba", "mamba2", "falcon_mamba", "zamba", "zamba2", "rwkv", "recurrent_gemma", "lfm2", "falcon_h1"),
        "minimax",
    ]
)
"""Model types with recurrent state: packed sequences would mix and drafts could not be taken back."""

OWN_ATTENTION = frozenset(["falcon", "bloom", "gptj", "mpt", "phimoe", "codegen"])
"""Model types whose attention or masks do not go through the attention interface."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
BUNDLED = "house"


def find_model(path: str, role: str) -> Path:
    """The folder of a model: the bundled one, a local folder, or a Hugging Face id in the local cache or on the hub.

    ``role`` is "target" or "draft". Raises ModelLoadError.
    """
    if path == BUNDLED:
        return Path(str(resources.files("specproxy"))) / "models" / "house" / role
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelLoadError(f"{path}: no config.json in this folder; expected a Hugging Face model folder")
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelLoadError(f"{path}: no such folder; expected a model folder or a Hugging Face id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelLoadError(f"{path}: not a local folder, and the hub did not give it: {error}") from None


def load_model(
    path: str,
    role: str = "target",
    *,
    dtype: str = "auto",
    device: str = "auto",
    max_len: int | None = None,
    path_kind: str = "auto",
    trust_remote_code: bool = False,
    grow: str = "",
    group: Group | None = None,
) -> tuple[StepModel, Path]:
    """A StepModel and its folder. ``path_kind``: "fused", "transformers", or "auto" (fused where it is exact).
    ``grow``: the large shape that it is grown into (``grown/``). ``group``: the processes that share it; each loads its
    own part.

    Raises ModelLoadError with one message for the user.
    """
    folder = find_model(path, role)
    config = _load_config(folder, path, trust_remote_code)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    plain_only = {"model.path_kind fused": path_kind == "fused", "model.grow": grow, "model.tensor_parallel": group}
    quantised = read_quantised(config, folder, path, device, plain_only)
    fuse = path_kind != "transformers" and quantised is None and can_fuse(config)
    if path_kind == "fused" and not fuse:
        raise ModelLoadError(f"{path}: the fused path does not cover model type {config.model_type}; use auto")
    if group is not None:
        if not fuse:
            kind = config.model_type
            raise ModelLoadError(f"{path}: model.tensor_parallel covers {', '.join(FAMILIES)}; {kind} runs on one GPU")
        device = group.place(device)
    stock = _load_stock(folder, path, config, quantised, dtype, device, trust_remote_code, None if grow else group)
    identity = fingerprint(folder)
    if grow:
        from specproxy.models.grown.target import grown_stock

        grown = grown_stock(stock, folder, grow, group=group)
        stock, identity = grown.model, grown.fingerprint
    ranks = 1 if group is None else group.size
    spec = _describe(stock, folder, device, max_len, "fused" if fuse else "transformers", identity, ranks)
    try:
        model: StepModel = _fused(stock, spec, group) if fuse else GenericModel(stock, spec)
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(f"{path}: out of memory while preparing the model: {error}") from None
    except (RuntimeError, ImportError, AttributeError, TypeError) as error:
        if quantised is None:
            raise
        raise quantised.failure(path, device, error) from None
    return model, folder


def _fused(stock: Any, spec: ModelSpec, group: Group | None) -> StepModel:
    """The layer loop for where the model is: kernels on a GPU, torch elsewhere, where there may be no Triton."""
    if not spec.device.startswith("cuda"):
        return FusedModel(stock, spec, group=group)
    from specproxy.models.device import DeviceModel

    return DeviceModel(stock, spec, group)


def _load_config(folder: Path, path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"{path}: config.json cannot be read: {error}") from None
    if config.model_type in RECURRENT:
        raise ModelLoadError(
            f"{path}: {config.model_type} keeps recurrent state; the engine serves KV-cache models only"
        )
    if config.model_type in OWN_ATTENTION:
        raise ModelLoadError(f"{path}: {config.model_type} computes attention in its own way; it cannot be served")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not trust_remote_code:
        raise ModelLoadError(f"{path}: {config.model_type} is not a causal language model; expected one")
    return config


def _load_stock(
    folder: Path,
    path: str,
    config: Any,
    quantised: Quantised | None,
    dtype: str,
    device: str,
    trust_remote_code: bool,
    group: Group | None,
) -> Any:
    """transformers' module; of ``group``'s ranks each keeps its part before anything goes to its device."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    wanted = config.dtype if dtype == "auto" else DTYPES[dtype]
    if isinstance(wanted, str):
        wanted = DTYPES.get(wanted, torch.float32)
    try:
        stock, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=wanted or torch.float32,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            attn_implementation="sdpa" if _has_sdpa(config) else "eager",
            output_loading_info=True,
            **({} if quantised is None else quantised.options),
        )
        if quantised is not None:
            quantised.check_complete(path, loading["missing_keys"])
        if group is not None:
            check_shares(stock.config, group.size, path)
            for layer in stock.model.layers:
                keep_share(layer, group)
        if quantised is None or not quantised.placed:
            stock = stock.to(device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelLoadError(f"{path}: does not fit the memory of {device}: {error}") from None
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelLoadError(f"{path}: the weights cannot be loaded: {error}") from None
    return stock.eval().requires_grad_(False)


def _has_sdpa(config: Any) -> bool:
    """Whether transformers' own module of this type has an SDPA path (audits prefer it)."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        return bool(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa)  # noqa: SLF001 - the only flag there is
    except KeyError:
        return False


def _describe(
    stock: Any, folder: Path, device: str, max_len: int | None, path_kind: str, identity: str, ranks: int
) -> ModelSpec:
    config = stock.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    limits = [v for v in (config.max_position_embeddings, tokenizer_limit(folder), max_len) if v]
    if max_len and max_len > limits[0]:
        raise ModelLoadError(f"max_model_len {max_len} exceeds the model's {limits[0]} positions")
    eos = stock.generation_config.eos_token_id
    return ModelSpec(
        model_type=config.model_type,
        path_kind=path_kind,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        max_len=min(limits),
        dtype=stock.dtype,
        device=device,
        layers=tuple(LayerShape(kv_heads // ranks, width, width) for _ in range(config.num_hidden_layers)),
        fingerprint=identity,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        ranks=ranks,
    )


def tokenizer_limit(folder: Path) -> int | None:
    """The tokenizer's model_max_length where it means something."""
    file = folder / "tokenizer_config.json"
    limit = json.loads(file.read_text()).get("model_max_length") if file.is_file() else None
    return int(limit) if isinstance(limit, (int, float)) and limit < 10**9 else None


def fingerprint(folder: Path) -> str:
    """SHA-256 (16 hex digits) over configuration and weights: names, sizes, and the first and last MiB of each file."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json", *folder.glob("generation_config.json")]):
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(2**20))
            stream.seek(max(0, file.stat().st_size - 2**20))
            digest.update(stream.read(2**20))
    return digest.hexdigest()[:16]


def tokenizer_hash(folder: Path) -> str:
    """Identity of the vocabulary: equal for two folders whose ids mean the same tokens."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelLoadError(f"{folder}: no tokenizer.json; expected a fast tokenizer beside the model")
    data = json.loads(file.read_text())
    added = sorted((t["id"], t["content"]) for t in data.get("added_tokens", []))
    return hashlib.sha256(json.dumps([data["model"].get("vocab"), added], sort_keys=True).encode()).hexdigest()[:16]


def tokenizer_size(folder: Path) -> int:
    """Ids that the tokenizer knows: the highest one and one."""
    data = json.loads((folder / "tokenizer.json").read_text())
    vocab = data["model"].get("vocab") or {}
    ids = [t["id"] for t in data.get("added_tokens", [])]
    ids.append(max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1)
    return int(max(ids)) + 1
