"""specproxy: an OpenAI-compatible sidecar that speculates per route, and proves that only the speed changed."""

__version__ = "0.1.0"
