"""Where the package keeps what can be made again: a folder of the user's cache."""

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "JAXCLNF_CACHE_DIR"
"""Environment variable that names another folder."""


def user_cache() -> Path:
    """The folder, which need not exist.

    Returns:
        What `$JAXCLNF_CACHE_DIR` names, where it is set; else `jaxclnf` in the cache
        that the system has for each user.

    Example:
        >>> isinstance(user_cache(), Path)
        True
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(os.path.expanduser(named))
    return platformdirs.user_cache_path("jaxclnf", appauthor=False)
