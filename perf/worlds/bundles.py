"""Copies of a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from paywarden.models.bundle.bundle import MANIFEST


def renamed(bundle: Path, copy: Path) -> Path:
    """Return a copy with the same trees, so of the same cost, and another version: the name of its folder."""
    shutil.copytree(bundle, copy)
    content = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    content["model_version"] = copy.name
    (copy / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return copy
