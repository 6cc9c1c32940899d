"""Prompts that keep the subject and ask for something new, drawn at every checkpoint beside the training prompt.

Those for photographs are the paper's Table 5, in which [V] is the rare word and [object] the class word; the bundled
models, which do not know their words, get some of their own.
"""

from ..world import scenes as world

OBJECT = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest", "wearing a red hat",
    "wearing a santa hat", "wearing a rainbow scarf", "wearing a black top hat and a monocle", "in a chef outfit",
    "in a firefighter outfit", "in a police outfit", "wearing pink glasses", "wearing a yellow shirt",
    "in a purple wizard outfit",
)
OBJECT_ADJECTIVES = ("red", "purple", "shiny", "wet", "cube shaped")
SUBJECT = (
    "wearing sunglasses", "with snowflakes in their hair", "with beachy hair waves", "wearing a beret",
    "with a neutral expression", "with a contemplative look", "laughing heartily", "with an amused smile",
    "with forest green eyeshadow", "wearing a red hat", "with a slight grin", "with a thoughtful gaze",
    "wearing a black top hat", "in a chef hat", "in a firefighter helmet", "in a police cap", "wearing pink glasses",
    "wearing a yellow headband", "in a purple wizard hat", "smiling", "frowning", "looking surprised", "winking",
    "yawning", "laughing",
)


def table5_object(word, kind):
    """The 25 prompts for an object: table5_object("sks", "dog")[0] == "a sks dog in the jungle".   (Table 5, left)"""
    return [f"a {word} {kind} {rest}" for rest in OBJECT] + [f"a {a} {word} {kind}" for a in OBJECT_ADJECTIVES]


def table5_subject(word):
    """The 25 prompts for a person.   (Table 5, right)"""
    return [f"a photo of a {word} person {rest}" for rest in SUBJECT]


def world_prompts(word, kind):
    """(prompt, what a picture must show) in the bundled world: ten places and two colours, in the manner of Table 5."""
    places = [(f"a {word} {kind} {text}", {"background": name}) for name, text in world.BACKGROUNDS.items()]
    colours = [(f"a {colour} {word} {kind}", {}) for colour in ("red", "purple")]
    return [(prompt, {"subject": kind} | wanted) for prompt, wanted in places + colours]
