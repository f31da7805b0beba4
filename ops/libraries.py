"""Builds a bundle's missing native library in a process of its own, never in a process that serves."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from paywarden.models.bundle.bundle import native_library, read_manifest
from paywarden.schemas.errors import BundleRefused

_log = logging.getLogger(__name__)

# TL2cgen takes half a minute for a large model on a slow machine.
_TIMEOUT_S = 300


def build_missing(bundle: Path) -> None:
    """Build the library for this machine if the bundle has none: it may come from another kind of machine.

    If the build fails, logs a warning: Treelite's interpreter then scores the bundle, slower and with the same bits.
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
    """Returns whether a model of the bundle has no library. False without a manifest: loading refuses that bundle."""
    try:
        return not all(native_library(bundle, part).exists() for part in read_manifest(bundle).parts)
    except BundleRefused:
        return False
