"""The server process: HTTP in front, the engine's socket behind. Never imports torch, transformers or the engine."""
