"""What decides about a payment: a bundle and a policy, each by its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Version:
    """The digests of a bundle and a policy that decide together. Two with the same digests are equal.

    `catalogue` is the digest of the feature catalogue that the bundle is for, `model` the bundle's own name of its
    model, for people. Both follow from the bundle, and are empty where nobody has looked into it.
    """

    bundle: str
    policy: str = ""
    catalogue: str = field(default="", compare=False)
    model: str = field(default="", compare=False)

    @property
    def digest(self) -> str:
        """The sha256 of the three digests, by which commands and entries of the registry name a version."""
        return hashlib.sha256(f"{self.bundle}\n{self.policy}\n{self.catalogue}".encode()).hexdigest()
