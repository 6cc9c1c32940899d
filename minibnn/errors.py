"""The error that a user can cause and mend. The command lines print it as one line and exit with code 2."""


class UserError(Exception):
    """Its message names the file, key or value at fault and says what to do."""


def visible(text, kept=" "):
    """The text with each character that a terminal obeys or does not show written as it would be in Python: \\x1b.

    Names of files may hold them. kept: those that are left as they are.
    """
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)
