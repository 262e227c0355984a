"""Tokenizers of the three families: the bundled byte-level one, a SentencePiece-like one, a WordPiece one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers, pre_tokenizers

from specproxy.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def house_dir() -> Path:
    """The bundled target's folder."""
    return Path(__file__).parents[2] / "specproxy" / "models" / "house" / "target"


@pytest.fixture(scope="session")
def house(house_dir: Path) -> Tokenizer:
    """The bundled target's tokenizer."""
    return Tokenizer.load(house_dir)


def write_folder(folder: Path, inner: Inner, config: dict[str, object]) -> Path:
    """A model folder with this tokenizer."""
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def metaspace_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer in Llama 2's layout: metaspace, byte fallback, a leading space that decoding strips."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    words = ["▁", "a", "b", "c", "▁a", "ab", "▁ab", ".", "\n"]
    vocab = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *bytes_, *words])}
    model = models.BPE(
        vocab, [("▁", "a"), ("a", "b"), ("▁a", "b")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    inner = Inner(model)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    config = {"eos_token": {"content": "</s>"}, "bos_token": "<s>", "model_max_length": 10**30}
    return write_folder(tmp_path_factory.mktemp("metaspace"), inner, config)


@pytest.fixture(scope="session")
def metaspace(metaspace_dir: Path) -> Tokenizer:
    """The small SentencePiece-like tokenizer."""
    return Tokenizer.load(metaspace_dir)


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small tokenizer whose decoder looks at neighbours."""
    words = ["[UNK]", "[SEP]", "play", "##ing", "##s", "it", ".", "the"]
    inner = Inner(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece("##", cleanup=False)
    inner.add_special_tokens(["[SEP]"])
    return Tokenizer.load(write_folder(tmp_path_factory.mktemp("wordpiece"), inner, {}))
