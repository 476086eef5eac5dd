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


def with_notes(text: str, error: BaseException) -> str:
    """One line with the notes of an error, which say what is left.

    Args:
        text: What happened.
        error: The error.

    Returns:
        The text and the notes.

    Example:
        >>> error = KeyboardInterrupt()
        >>> error.add_note("a.partial.csv has the first 3 rows")
        >>> with_notes("interrupted", error)
        'interrupted; a.partial.csv has the first 3 rows'
    """
    return "; ".join([text, *getattr(error, "__notes__", ())])
