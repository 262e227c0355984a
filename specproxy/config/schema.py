"""Start configuration as data. Loading (file, environment, flags; flags win) is in ``specproxy.config.load``."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Scalar = str | int | float | bool | None

RESERVED_NAMES = frozenset({"auto", "off", "engine"})
"""Words of the policy language: no drafter or upstream may have them as its name."""


class ModelConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """The target. ``path`` is a folder or a Hugging Face id; the default is the bundled house model.

    ``tensor_parallel``: GPUs of this host that share the target, from ``device`` on; they must divide its heads and
    MLP width. ``kv_memory``, of each GPU: bytes, or text such as "512MB" or "2GB"; "auto" takes what else leaves of a
    GPU, or half of what a CPU has free. ``memory_share``: of a GPU's memory, how much may be used in all.
    ``exactness``: "auto" takes the best rung that the start-up self-test proves; "numeric" skips the padding that
    bitwise equality needs. ``tool_format``: how the model writes tool calls, where its chat template does not show
    it: hermes, house, llama3, mistral, mistral-named. ``compile``: "auto" runs a small bf16 model of the Llama family
    on CPU in compiled code, where there is a C++ compiler; "off" never does. ``grow``: the large shape that a small
    Llama is grown into without changing what it computes, to measure what that shape costs: llama-3-8b, llama-3-70b.
    """

    path: str = "house"
    name: str = ""
    aliases: list[str] = []
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device: str = "auto"
    tensor_parallel: Count = 1
    max_model_len: Count | Literal["auto"] = "auto"
    kv_memory: int | str = "auto"
    memory_share: Annotated[float, Meta(gt=0, le=1)] = 0.9
    max_sequences: Count = 32
    threads: Count | Literal["auto"] = "auto"
    path_kind: Literal["auto", "fused", "transformers"] = "auto"
    exactness: Literal["auto", "numeric"] = "auto"
    compile: Literal["auto", "off"] = "auto"
    trust_remote_code: bool = False
    tool_format: Literal["", "hermes", "house", "llama3", "mistral", "mistral-named"] = ""
    grow: str = ""


class DrafterConfig(Struct, forbid_unknown_fields=False, kw_only=True):
    """One drafter: a type of the registry, and in ``options`` every further key of its mapping.

    Only the type knows its options: the registry refuses those that it does not.
    """

    type: str
    path: str = ""
    max_k: Annotated[int, Meta(ge=1, le=63)] | None = None
    options: dict[str, Scalar] = {}


class Timeouts(Struct, forbid_unknown_fields=True, kw_only=True):
    """How long an upstream may take, seconds. ``first_byte``: from the request to the first event of a streamed answer;
    ``whole``: the same of an answer that is not streamed, which comes when all of it is generated; ``idle``: between
    two pieces of any answer."""

    connect: Seconds = 2.0
    first_byte: Seconds = 30.0
    whole: Seconds = 600.0
    idle: Seconds = 30.0


class BreakerConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """After so many failed requests in a row an upstream gets none for ``open_s`` seconds, then one to try; answers
    with a status below 500 are no failures."""

    failures: Count = 5
    open_s: Seconds = 10.0


class HealthConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """How an upstream is asked whether it is well: GET ``path`` below its server's root, every so many seconds. "auto"
    is what ``kind`` has, nothing for openai; empty: it is not asked."""

    path: str = "auto"
    every_s: Seconds = 10.0


class UpstreamConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """An existing OpenAI-compatible server.

    ``url``: as an OpenAI client takes it, with the /v1 at its end. ``key_env``: the variable that holds the key for it;
    a client's key never goes there. ``models``: what requests call a model, and what it is called there; other names go
    as they are. ``retries``: further tries where a connection fails before anything of an answer has come.
    """

    url: str
    kind: Literal["openai", "vllm", "sglang", "tgi", "llama.cpp"] = "openai"
    key_env: str = ""
    models: dict[str, str] = {}
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_connections: Count = 256
    retries: Annotated[int, Meta(ge=0, le=5)] = 1
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    health: HealthConfig = field(default_factory=HealthConfig)


class ServerConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """The public listener. ``max_queue`` bounds requests that wait or run; sizes in MiB, times in seconds.

    ``engine_silence_s``: how long the engine, which reports twice a second, may say nothing before it is taken to hang
    and is started again; its streams go on. Work that is captured for the first time on a GPU takes it a few seconds.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    max_queue: Count = 256
    max_body_mb: Count = 16
    keepalive_s: Seconds = 15.0
    drain_s: Annotated[float, Meta(ge=0)] = 30.0
    body_timeout_s: Seconds = 60.0
    engine_silence_s: Seconds = 60.0


class AdminConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """The operators' listener: there is one where ``key_env`` names a variable with keys (comma-separated), or where
    ``socket`` is set.

    ``socket``: path of a Unix socket that only this user may open, in place of ``host`` and ``port``; without keys, the
    system's user is who acts. ``names``: further host names by which browsers may call it; addresses, localhost and
    ``host`` are known.
    """

    host: str = "127.0.0.1"
    port: Port = 8001
    key_env: str = "SPECPROXY_ADMIN_KEY"
    socket: str = ""
    names: list[str] = []


class KeysConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """API keys: a file of ``id: sha256`` lines, with limits behind them if need be, or an environment variable with
    plain keys, comma-separated."""

    file: str = ""
    env: str = "SPECPROXY_API_KEYS"


class StateConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """Where the gate's state lives."""

    path: str = "specproxy.db"


class CaptureConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """Answers kept for training drafters: in which directory (empty: nothing is kept), and how many MiB at most."""

    dir: str = ""
    max_mb: Count = 1024


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
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    log: LogConfig = field(default_factory=LogConfig)
    policies: str = "policies"


class EngineConfig(Struct, kw_only=True):
    """What the engine process is started with (JSON on its command line)."""

    socket: str
    model: ModelConfig
    drafters: dict[str, DrafterConfig]
    log: LogConfig = field(default_factory=LogConfig)
