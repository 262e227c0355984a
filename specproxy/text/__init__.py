"""Text: tokenizer, chat template, incremental detokenizer, stop strings. Needs ``tokenizers`` and ``jinja2`` only."""
