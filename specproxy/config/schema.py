"""Start configuration as data. Loading (file, environment, flags; flags win) is in ``specproxy.config.load``."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field


class ModelConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """The target. ``path`` is a folder or a Hugging Face id; the default is the bundled house model."""

    path: str = "house"
    name: str = ""
    aliases: list[str] = []
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device: str = "auto"
    tensor_parallel: int = 1
    max_model_len: int | Literal["auto"] = "auto"
    kv_memory: int | str = "auto"
    max_sequences: int = 32
    threads: int | Literal["auto"] = "auto"
    path_kind: Literal["auto", "fused", "transformers"] = "auto"
    trust_remote_code: bool = False


class DrafterConfig(Struct, forbid_unknown_fields=False, kw_only=True):
    """One drafter: a type of the registry, and the options that this type knows."""

    type: str
    path: str = ""
    max_k: int | None = None


class Timeouts(Struct, forbid_unknown_fields=True, kw_only=True):
    """Seconds."""

    connect: float = 2.0
    first_byte: float = 30.0
    idle: float = 30.0


class UpstreamConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """An existing OpenAI-compatible server."""

    url: str
    key_env: str = ""
    models: dict[str, str] = {}
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_connections: int = 256


class ServerConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """The public listener. ``max_queue`` bounds requests that wait or run; sizes in MiB, times in seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_queue: int = 256
    max_body_mb: int = 16
    keepalive_s: float = 15.0
    drain_s: float = 30.0
    body_timeout_s: float = 60.0


class AdminConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """The operator's listener."""

    host: str = "127.0.0.1"
    port: int = 8001
    key_env: str = "SPECPROXY_ADMIN_KEY"


class KeysConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """API keys: a file of ``id: sha256`` lines, or an environment variable with plain keys, comma-separated."""

    file: str = ""
    env: str = "SPECPROXY_API_KEYS"


class StateConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """Where the gate's state lives."""

    path: str = "specproxy.db"


class LogConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """Logging."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"
    bodies: bool = False


class StartConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """specproxy.yaml, whole."""

    model: ModelConfig = field(default_factory=ModelConfig)
    drafters: dict[str, DrafterConfig] = {}
    upstreams: dict[str, UpstreamConfig] = {}
    server: ServerConfig = field(default_factory=ServerConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    keys: KeysConfig = field(default_factory=KeysConfig)
    state: StateConfig = field(default_factory=StateConfig)
    log: LogConfig = field(default_factory=LogConfig)
    policies: str = "policies"


class EngineConfig(Struct, kw_only=True):
    """What the engine process is started with (JSON on its command line)."""

    socket: str
    model: ModelConfig
    drafters: dict[str, DrafterConfig]
    log: LogConfig = field(default_factory=LogConfig)
