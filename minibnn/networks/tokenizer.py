"""CLIP's tokenizer: it turns a text into 77 ids, by byte-pair encoding (Sennrich et al. 2016) with the official files.

Follows: transformers 5's `CLIPTokenizer` (NFC, collapsed white space, lower case). OpenAI's own tokenizer differs: it
first repairs wrongly decoded text and HTML entities (`&amp;`), and it does not know special tokens inside a prompt.

But: no decoding, and special tokens are recognised only as they are written, not in capitals. The classes of Unicode
characters come from `unicodedata`, because the standard `re` has no \\p{L}.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch

from ..errors import UserError
from ..files.schema import either, integer, items, mapping, optional, record, text
from ..files.store import read_json, read_text, write_json, write_text

START, END = "<|startoftext|>", "<|endoftext|>"
CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)")


def byte_symbols():
    """A printable character for each of the 256 bytes: itself where printable, else one from 256 upwards.

    Example: byte_symbols()[ord("a")] == "a", byte_symbols()[ord(" ")] == "Ġ".   (GPT-2, `encoder.py`)
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def split_words(text):
    """Cut normalised text into contractions, runs of letters, single digits, and runs of anything else.

    Example: split_words("it's 42!?") == ["it", "'s", "4", "2", "!?"].
    """
    words, i = [], 0
    while i < len(text):
        contraction = CONTRACTION.match(text, i)
        kind = _kind(text[i])
        j = i + 1
        if contraction:
            j = contraction.end()
        elif kind in ("letter", "other"):
            while j < len(text) and _kind(text[j]) == kind:
                j += 1
        if kind != "space":
            words.append(text[i:j])
        i = j
    return words


def _kind(char):
    if char.isspace():
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(char)[0], "other")


class Tokenizer:
    """ids = tokenizer(["a dog"]): n prompts -> (n, 77) int64, with START and END, cut or padded to 77 ids each.

    A single string counts as one prompt.
    """

    def __init__(self, folder: Path | str) -> None:
        """folder: holds `vocab.json` and `merges.txt`, or `tokenizer.json`, and perhaps files that name the padding.

        Raises UserError when a file is missing or does not hold what its name says.
        """
        self.folder = folder = Path(folder)
        self.vocab, pairs = _read_vocabulary(folder)
        if START not in self.vocab or END not in self.vocab or any(len(pair) != 2 for pair in pairs):
            raise UserError(f"tokenizer in {folder}: vocab.json and merges.txt are not CLIP's format")
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.max_length, self.pad = _read_settings(folder)
        if self.pad not in self.vocab:
            self.pad = END
        self.special = re.compile("(" + "|".join(map(re.escape, (START, END, self.pad))) + ")")
        self.symbols = byte_symbols()
        self._ids_of_word = lru_cache(maxsize=65536)(self._merge)

    def save(self, folder: Path | str) -> None:
        """Write vocab.json, merges.txt and the two small files that name the special tokens."""
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": self.pad}
        merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in self.ranks)]) + "\n"
        write_text(Path(folder) / "vocab.json", json.dumps(self.vocab, ensure_ascii=False))
        write_text(Path(folder) / "merges.txt", merges)
        write_json(Path(folder) / "special_tokens_map.json", special)
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.max_length}
        write_json(Path(folder) / "tokenizer_config.json", settings | special)

    def _merge(self, word):
        """The ids of one word: of all pairs of neighbours the one learned first is merged, until none is known."""
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return tuple(self.vocab.get(part, self.vocab[END]) for part in parts)

    def encode(self, text: str) -> list[int]:
        """One prompt -> list of ids of any length, without START and END around it.

        Special tokens are cut out of the text first. SD v2 pads with "!" and so reads "hello!!" as three tokens.
        """
        ids = []
        for piece in self.special.split(text):
            if piece in (START, END, self.pad):
                ids.append(self.vocab[piece])
                continue
            piece = re.sub(r"\s+", " ", unicodedata.normalize("NFC", piece)).lower()
            for word in split_words(piece):
                ids.extend(self._ids_of_word("".join(self.symbols[b] for b in word.encode("utf-8"))))
        return ids

    def __call__(self, prompts: str | Iterable[str]) -> torch.Tensor:
        rows = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            ids = [self.vocab[START], *self.encode(prompt)[: self.max_length - 2], self.vocab[END]]
            rows.append(ids + [self.vocab[self.pad]] * (self.max_length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.max_length)

    def check_fits(self, ids: int, positions: int) -> None:
        """Raises UserError when it gives other ids, or more of them, than a text encoder with these numbers takes."""
        for what, own, there in (
            ("ids", max(self.vocab.values()) + 1, ids), ("positions", self.max_length, positions),
        ):
            if own > there:
                raise UserError(f"the tokenizer in {self.folder} has {own} {what}, the text encoder only {there}: "
                                "they belong to different models")


ID = integer(0, 10**7)
PAIR = either(text, items(text, 2, 2))
FILES = {  # what the files may hold
    "vocab.json": mapping(ID),
    "tokenizer.json": record({
        "model": record({"vocab": mapping(ID), "merges": items(PAIR)}, required=("vocab", "merges")),
        "added_tokens": items(record({"content": text, "id": ID}, required=("content", "id"))),
    }, required=("model", "added_tokens")),
    "settings": record({
        "model_max_length": optional(integer(3, 10**40)),  # transformers writes 10^30 for "any"
        "pad_token": optional(either(text, record({"content": text}, required=("content",)))),
    }),
}


def _read_vocabulary(folder):
    """({token: id}, merges) from vocab.json and merges.txt, or from the single tokenizer.json of transformers 5."""
    one = folder / "tokenizer.json"
    if one.exists() and not (folder / "vocab.json").exists():
        whole = read_json(one, FILES["tokenizer.json"])
        vocab = whole["model"]["vocab"] | {token["content"]: token["id"] for token in whole["added_tokens"]}
        return vocab, [tuple(m.split() if isinstance(m, str) else m) for m in whole["model"]["merges"]]
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).exists():
            raise UserError(f"no tokenizer in {folder}: {name} is missing")
    vocab, lines = read_json(folder / "vocab.json", FILES["vocab.json"]), read_text(folder / "merges.txt").splitlines()
    return vocab, [tuple(line.split()) for line in lines if line and not line.startswith("#version")]


def _read_settings(folder):
    """(length, padding token): SD v1 pads with END, SD v2 with "!". As in transformers, the second file is right."""
    settings = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            settings |= read_json(folder / name, FILES["settings"])
    pad = settings.get("pad_token") or END
    return min(settings.get("model_max_length") or 77, 77), pad["content"] if isinstance(pad, dict) else pad
