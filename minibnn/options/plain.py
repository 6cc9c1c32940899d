"""Letters of formulas for a terminal or a pipe that lacks them: σ₁ is written sigma1 in ASCII and Windows' cp1252.

Letters of other words, as in paths and prompts, are escaped there (ü is \\xfc): without its dots a name would be that
of another file.
"""

import codecs
import unicodedata

NAMES = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "eps", "η": "eta", "θ": "theta", "λ": "lambda",
    "μ": "mu", "σ": "sigma", "ς": "s", "π": "pi", "Δ": "Delta", "Σ": "Sum", "√": "sqrt ", "∘": "*", "·": "*", "×": "x",
    "→": "->", "↔": "<->", "←": "<-", "≥": ">=", "≤": "<=", "≈": "~", "≠": "!=", "±": "+-", "−": "-", "–": "-",
    "—": "-", "…": "...", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "„": '"', "∈": "in", "∅": "empty",
    "§": "sec. ", "∞": "inf", "‖": "||", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE",
    "ø": "o", "Ø": "O", "ß": "ss", "ł": "l", "Ł": "L",
}
GREEK = [letter for letter, name in NAMES.items() if letter.isalpha() and unicodedata.name(letter).startswith("GREEK")]


def plain(text):
    """A text in ASCII: names for Greek letters and signs, base letters for accented ones, ? for what has neither.

    Example: plain("ᾱ_t → σ₁ é 犬") == "alpha_t -> sigma1 e ?".
    """
    written = []
    for letter in text:
        parts = (NAMES.get(part, part) for part in unicodedata.normalize("NFKD", NAMES.get(letter, letter)))
        kept = "".join(part for part in parts if part.isascii())
        written.append(kept or ("" if unicodedata.combining(letter) else "?"))
    return "".join(written)


def _replace(error):
    """For codecs: names for Greek letters and signs, escapes for all others, as Python writes them."""
    written, in_formula = [], False
    for letter in error.object[error.start : error.end]:
        parts = unicodedata.normalize("NFKD", letter)
        in_formula = in_formula if unicodedata.combining(letter) else not letter.isalpha() or parts[0] in GREEK
        name = plain(letter)
        written.append(name if in_formula and name != "?" else letter.encode("ascii", "backslashreplace").decode())
    return "".join(written), error.end


codecs.register_error("plain", _replace)
