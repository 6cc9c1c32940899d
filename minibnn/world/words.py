"""Which words of a prompt the bundled model has never seen, and which it knows instead.

Its vocabulary is that of the world's captions. Another word is cut into pieces that mean nothing to it, and the picture
shows something else; CLIP's vocabulary of 49,408 tokens has pieces for every word.
"""

import difflib

from ..networks.tokenizer import split_words
from . import scenes as world
from .captions import RARE_WORDS, caption_words

SMALL = 5000  # tokens; the bundled vocabulary has 659, CLIP's 49,408


def known_words(recipe):
    """The words of the captions, those that are free for new subjects, and those that a run was trained with."""
    trained = " ".join(recipe.get(name) or "" for name in ("prompt", "class_prompt")).lower()
    return caption_words() | set(RARE_WORDS) | set(split_words(trained))


def unknown_words(sd, prompt):
    """{unknown word: list of known words that are spelled alike} of a prompt; {} for a model of another vocabulary."""
    vocabulary = sd.tokenizer.vocab
    if len(vocabulary) > SMALL or not all(f"{word}</w>" in vocabulary for word in caption_words()):
        return {}
    known = sorted(known_words(sd.recipe))
    words = [word for word in dict.fromkeys(split_words(prompt.lower())) if word[0].isalnum() and word not in known]
    return {word: difflib.get_close_matches(word, known, 2) for word in words}


def advice(sd, prompts):
    """A line about the unknown words of some prompts, or None."""
    unknown = {}
    for prompt in dict.fromkeys(prompts):
        unknown |= unknown_words(sd, prompt)
    if not unknown:
        return None
    named = [word + (f" (did you mean {' or '.join(near)}?)" if near else "") for word, near in unknown.items()]
    places = ", ".join(world.BACKGROUNDS.values())
    kinds = f"subjects {', '.join(world.SUBJECTS)}; colours {', '.join(world.COLOURS)}; places {places}"
    return f"this small model has never seen: {', '.join(named)}. It knows the {kinds}"
