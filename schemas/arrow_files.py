"""The exceptions of Arrow for files that are no tables, or damaged ones."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

UNREADABLE: Final = (pa.ArrowException, OSError, UnicodeDecodeError)
"""UnicodeDecodeError: names of columns that are not UTF-8, which Arrow hands on as they are."""
