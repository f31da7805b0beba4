"""Builds a bundle's missing native library in a process of its own, never in a process that serves."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from paywarden.models.bundle.bundle import native_library, read_manifest, unsigned_libraries
from paywarden.models.bundle.signature import TrustedKeys
from paywarden.schemas.errors import BundleRefused

_log = logging.getLogger(__name__)

# The C compiler takes a second for a large model, and longer on a busy machine.
_TIMEOUT_S = 300


def build_missing(bundle: Path, trusted: TrustedKeys | None = None) -> bool:
    """Build the library for this machine if the bundle has none; returns whether it was built.

    The bundle may come from another kind of machine. With `trusted` keys, a library that the signature does not cover
    is built again: somebody else may have put it there. If the build fails, logs a warning: Treelite's interpreter
    then scores the bundle, slower and with the same bits. Raises BundleRefused without a signature of a trusted key.
    """
    signed = None if trusted is None else trusted.require(bundle)
    if not _lacks_library(bundle, signed):
        return False
    lacking = "library" if signed is None else "signed library"
    _log.info("bundle %s has no %s for this machine: compiling it", bundle, lacking)
    command = [sys.executable, "-P", "-m", "paywarden", "compile", str(bundle)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        reason = f"it took more than {_TIMEOUT_S} s"
    else:
        if done.returncode == 0:
            return True
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    _log.warning("bundle %s cannot be compiled here and will be slow: %s", bundle, reason)
    return False


def _lacks_library(bundle: Path, signed: frozenset[str] | None) -> bool:
    """Returns whether a model of the bundle has no library. False without a manifest: loading refuses that bundle."""
    try:
        manifest = read_manifest(bundle)
    except BundleRefused:
        return False
    if signed is not None and unsigned_libraries(bundle, manifest, signed):
        return True
    return not all(native_library(bundle, part).exists() for part in manifest.parts)
