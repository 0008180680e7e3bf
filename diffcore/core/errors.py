"""What the user can mend."""

MISTAKE = 2
"""The exit code of what the user is to mend: no further try does."""


class UserError(Exception):
    """One line that names the thing and the remedy. The command line prints it and exits with MISTAKE."""
