"""Letters of formulas for a terminal or a pipe that lacks them: σ₁ is written sigma1 in ASCII and Windows' cp1252."""

import codecs
import unicodedata

NAMES = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "eps", "η": "eta", "θ": "theta", "λ": "lambda",
    "μ": "mu", "σ": "sigma", "ς": "s", "π": "pi", "Δ": "Delta", "Σ": "Sum", "√": "sqrt ", "∘": "*", "·": "*", "×": "x",
    "→": "->", "↔": "<->", "←": "<-", "≥": ">=", "≤": "<=", "≈": "~", "≠": "!=", "±": "+-", "−": "-", "–": "-",
    "—": "-", "…": "...", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "„": '"', "∈": "in",
    "§": "sec. ", "∞": "inf", "‖": "||", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE",
    "ø": "o", "Ø": "O", "ß": "ss", "ł": "l", "Ł": "L",
}


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
    return plain(error.object[error.start : error.end]), error.end


codecs.register_error("plain", _replace)
