"""Tensor parallel: the engine's process is rank 0, the others repeat what it does to the target."""
