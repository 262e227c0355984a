"""Models in the engine: loaded by transformers, run one ragged step at a time over paged KV."""
