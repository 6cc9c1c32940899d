"""The words of the world: captions with parts left out, and a vocabulary in which each word is one token.

The vocabulary is the byte-pair encoding of Sennrich et al. 2016, learned until no word is split, in CLIP's file format.
"""

import functools
import json
from collections import Counter

from ..files.store import write_text
from ..networks.tokenizer import END, START, Tokenizer, byte_symbols
from . import scenes as world

RARE_WORDS = ("sks", "zwx", "ohwx", "qxv", "vlk", "ruq")  # no caption has them: they are free to name a new subject
PLACES = ("on the beach", "in the snow", "on a wooden floor")
VIEWS = (("plain", "warm"), ("plain", "cold"), ("from afar", "close up"))  # of `textured`: a light or distance, another
SPARE_WORDS = ("photo", "of", "picture", "drawing", "the", "and", "my", "small", "big")


def make_vocabulary(words, folder):
    """Learn byte-pair merges until every word is one token; write CLIP's `vocab.json` and `merges.txt`."""
    splits = {word: [*word[:-1], word[-1] + "</w>"] for word in sorted(set(words))}
    merges = []
    while pairs := Counter(pair for parts in splits.values() for pair in zip(parts, parts[1:], strict=False)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in splits.items():
            i, merged = 0, []
            while i < len(parts):
                whole = tuple(parts[i : i + 2]) == best
                merged.append("".join(best) if whole else parts[i])
                i += 2 if whole else 1
            splits[word] = merged
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges), START, END]
    write_text(folder / "vocab.json", json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    return Tokenizer(folder)


def elsewhere(prompt, model):
    """Three prompts that ask for the subject of a prompt under other circumstances which the model knows.

    model: as --model names it. `textured` was trained on no places and has no room for more words than its captions
    have: it takes another light or distance; a prompt that names none is returned as it is, three times. All others
    take places.
    """
    if model == "textured":
        return [prompt.replace(*view) for view in VIEWS]
    return [f"{prompt} {place}" for place in PLACES]


@functools.cache
def caption_words():
    """The frozenset of the words of all captions."""
    captions = [world.caption(world.Scene(*c)) for c in world.combinations() + world.combinations(held_out=True)]
    return frozenset({*" ".join(captions).split(), "a", "an", "photo", "of"})


def all_words():
    """The set of all words of the vocabulary: those of the captions, the spare and the rare ones."""
    return {*caption_words(), *SPARE_WORDS, *RARE_WORDS}


def random_caption(scene, rng):
    """The scene's caption, sometimes without its colour or its background, sometimes after "a photo of".

    Animals with spots have no colour word.
    """
    colour = scene.colour + " " if rng.random() < 0.8 and not scene.spotted else ""
    place = " " + world.BACKGROUNDS[scene.background] if rng.random() < 0.85 else ""
    words = world.article(f"{colour}{scene.subject}{place}")
    return "a photo of " + words if rng.random() < 0.15 else words
