"""The error that a user can cause and mend. The command lines print it as one line and exit with code 2."""


class UserError(Exception):
    """Its message names the file, key or value at fault and says what to do."""
