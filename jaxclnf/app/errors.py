"""Errors that the command shows as one line of text, never as a traceback."""


class AppError(ValueError):
    """Something that a person can put right; the message says what."""


class ArgumentError(AppError):
    """Arguments that make no sense, alone or together."""


class MediaError(AppError):
    """A file that cannot be read as an image, or cannot be written."""


class TableError(AppError):
    """A table whose text is not what it should be."""


class DataError(AppError):
    """Training data of which some cannot be used; the message lists them by line."""
