"""The error that every command may raise at its user."""


class UsageError(Exception):
    """Something the user can put right: printed without a traceback, exit code 2."""
