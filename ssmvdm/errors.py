"""The error of a user's input, which the command line prints as one line."""


class InputError(ValueError):
    """An option, a file or a folder that cannot be used; the message is a full sentence for the user."""
