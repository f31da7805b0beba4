"""Files that the supervisor prepares and its workers map: made anew if somebody deletes one or cuts it short.

A worker that touches a page behind the end of its file is killed (SIGBUS), and so is the one that is started in its
place: nobody but the supervisor can end that.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from pathlib import Path

from paywarden.schemas.errors import PaywardenError

_log = logging.getLogger(__name__)


class MappedFile:
    """One such file. `prepare` makes it unless it is as it has to be."""

    def __init__(self, path: str, prepare: Callable[[], object], what: str) -> None:
        """Prepares the file. Raises what `prepare` raises. `what`: what is lost with it, for the log."""
        self._path, self._prepare, self._what = Path(path), prepare, what
        self._trouble = ""
        prepare()
        self._inode, self._size = self._look() or (0, 0)

    def mend(self) -> bool:
        """Make the file anew if it is gone or shorter than it was; returns whether it was.

        A file of another size that somebody put in its place is left alone: another host takes this one over.
        """
        try:
            found = self._look()
            if found is not None and (found[0] != self._inode or found[1] >= self._size):
                return False
            self._prepare()
            self._inode, self._size = self._look() or (0, 0)
        except (OSError, PaywardenError) as error:
            if str(error) != self._trouble:
                _log.error("%s was deleted or cut short, and cannot be made anew yet: %s", self._path, error)
            self._trouble = str(error)
            return False
        self._trouble = ""
        _log.error("%s was deleted or cut short: it is made anew, and %s", self._path, self._what)
        return True

    def _look(self) -> tuple[int, int] | None:
        """Returns which file it is and how long; None if there is none, or something else. Raises OSError."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            # Workers that start cannot map it: it is replaced.
            return None
        return status.st_ino, status.st_size
