"""specproxy: an OpenAI-compatible sidecar that speculates per route and proves that it changed nothing but the speed."""

__version__ = "0.1.0"
