"""What the user can mend."""


class UserError(Exception):
    """One line that names the thing and the remedy. The command line prints it and exits with 2."""
