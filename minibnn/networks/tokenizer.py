"""CLIP's tokenizer: text -> 77 ids, by byte-pair encoding (Sennrich et al. 2016) with the official vocabulary files.

Follows: transformers 5's `CLIPTokenizer` (NFC, white space collapsed, lower case). OpenAI's own tokenizer differs in
that it first mends mojibake and HTML entities (`&amp;`) and does not know special tokens inside a prompt.

But: no decoding. Unicode classes come from `unicodedata` because the standard `re` has no \\p{L}.
"""

import json
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

import torch

from ..errors import UserError
from ..files.store import write_json, write_text

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
    """ids = tokenizer(["a dog"]): a list of n prompts -> (n, 77) int64, START and END included, padded and cut to 77."""

    def __init__(self, folder):
        """folder: holds `vocab.json` and `merges.txt`, or `tokenizer.json`; the padding token is read from its config files, if any.

        Raises UserError when a file is missing or is not what its name says.
        """
        self.folder = Path(folder)
        try:
            self.vocab, pairs = self._read()
        except FileNotFoundError as error:
            raise UserError(f"no tokenizer in {self.folder}: {Path(error.filename).name} is missing") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"tokenizer in {self.folder}: a file is damaged ({error})") from None
        if START not in self.vocab or END not in self.vocab or any(len(pair) != 2 for pair in pairs):
            raise UserError(f"tokenizer in {self.folder}: vocab.json and merges.txt are not CLIP's format")
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.max_length, self.pad = self._settings()
        self.symbols = byte_symbols()
        self._bpe = lru_cache(maxsize=65536)(self._bpe_uncached)

    def _read(self):
        """({token: id}, merges), from vocab.json and merges.txt, or from the one tokenizer.json that transformers 5 writes."""
        one = self.folder / "tokenizer.json"
        if one.exists() and not (self.folder / "vocab.json").exists():
            whole = json.loads(one.read_text(encoding="utf-8"))
            vocab = whole["model"]["vocab"] | {token["content"]: token["id"] for token in whole["added_tokens"]}
            return vocab, [tuple(m.split() if isinstance(m, str) else m) for m in whole["model"]["merges"]]
        vocab = json.loads((self.folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (self.folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        return vocab, [tuple(line.split()) for line in lines if line and not line.startswith("#version")]

    def save(self, folder):
        """Write vocab.json, merges.txt and the two small files that name the special tokens."""
        pad = next(token for token, i in self.vocab.items() if i == self.pad)
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
        merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in self.ranks)]) + "\n"
        write_text(Path(folder) / "vocab.json", json.dumps(self.vocab, ensure_ascii=False))
        write_text(Path(folder) / "merges.txt", merges)
        write_json(Path(folder) / "special_tokens_map.json", special)
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.max_length}
        write_json(Path(folder) / "tokenizer_config.json", settings | special)

    def _settings(self):
        """(length, padding id): SD v1 pads with END, SD v2 with id 0 ("!"); `tokenizer_config.json` says which."""
        length, pad = 77, END
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            try:
                settings = json.loads((self.folder / name).read_text(encoding="utf-8"))
            except (FileNotFoundError, json.JSONDecodeError):
                continue
            length = settings.get("model_max_length", length)
            pad = settings.get("pad_token") or pad
            pad = pad["content"] if isinstance(pad, dict) else pad
        return min(length, 77), self.vocab.get(pad, self.vocab[END])

    def _bpe_uncached(self, word):
        """Merge the symbols of one word, always the pair that was learned first, until no known pair is left."""
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return tuple(self.vocab.get(part, self.vocab[END]) for part in parts)

    def encode(self, text):
        """One prompt -> list of ids, of any length, without START and END around it."""
        ids = []
        for piece in re.split(f"({re.escape(START)}|{re.escape(END)})", text):
            if piece in (START, END):
                ids.append(self.vocab[piece])
                continue
            piece = re.sub(r"\s+", " ", unicodedata.normalize("NFC", piece)).lower()
            for word in split_words(piece):
                ids.extend(self._bpe("".join(self.symbols[b] for b in word.encode("utf-8"))))
        return ids

    def __call__(self, prompts):
        rows = []
        for prompt in prompts:
            ids = [self.vocab[START], *self.encode(prompt)[: self.max_length - 2], self.vocab[END]]
            rows.append(ids + [self.pad] * (self.max_length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.max_length)
