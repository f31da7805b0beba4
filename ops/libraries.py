"""A bundle's native library, built where it is missing: by a process of its own, never in one that serves."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from paywarden.models.bundle.bundle import native_library, read_manifest
from paywarden.schemas.errors import BundleRefused

_log = logging.getLogger(__name__)

# Large models by TL2cgen take half a minute on a slow machine.
_TIMEOUT_S = 300


def build_missing(bundle: Path) -> None:
    """Build the library for this machine if a bundle has none, as one that comes from another kind of machine.

    Says so where that cannot be done: then the bundle is scored by Treelite's interpreter, to the same bits.
    """
    if not _lacks_library(bundle):
        return
    _log.info("bundle %s has no library for this machine: compiling it", bundle)
    command = [sys.executable, "-P", "-m", "paywarden", "compile", str(bundle)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        reason = f"it took more than {_TIMEOUT_S} s"
    else:
        if done.returncode == 0:
            return
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    _log.warning("bundle %s cannot be compiled here and will be slow: %s", bundle, reason)


def _lacks_library(bundle: Path) -> bool:
    """Whether one of its models has none. One without a manifest is left to whoever loads it, and refuses it."""
    try:
        return not all(native_library(bundle, part).exists() for part in read_manifest(bundle).parts)
    except BundleRefused:
        return False
