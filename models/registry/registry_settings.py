"""The settings `[models]`: where the registry is, who its people are, and its rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paywarden.models.registry.entries import is_name
from paywarden.models.registry.registry_rules import Rules
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal

_DAY_MS = 86_400_000


@dataclass(frozen=True)
class ModelRegistrySettings:
    """The registry of models. All hosts need the same name, people and rules."""

    # Where bundles and policies are kept: a folder, or a URL that fsspec opens, such as s3://bucket/models.
    folder: str = "registry"
    # The file of the log. Empty: log.jsonl in the folder. Needed where the folder is a URL.
    log: str = ""
    # Whether hosts share the log on the topic model-registry. Each host then has a copy in its file.
    topic: bool = False
    # How often a companion or a console makes its copy equal to the topic's.
    sync_s: float = internal(1.0)
    # Where this host keeps copies of what it fetched from a URL.
    cache: str = "registry-cache"
    # The file of names, roles and public keys. `paywarden models` needs it. With it, the log decides what hosts serve.
    people: str = ""
    # PEM file of the private key that signs; --key overrides it. Its mode must be 600.
    key_file: str = ""
    # Every entry names it. Give a test system another name, so that nothing signed there fits here.
    name: str = "paywarden"
    # How many people besides the proposer must approve a version before it is promoted. 0: none, 1: four eyes.
    approvals: int = 0
    # An approval counts for this long.
    approval_days: int = 30
    # How much older an entry may be than those before it: two machines never have the same time.
    clock_back_s: int = internal(300)
    # Processors for which a bundle needs a native library to be registered. Empty: that of the machine that registers.
    processors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting."""
        if not is_name(self.name):
            raise Misconfigured(f"[models] name: wanted letters, digits and . _ @ -, at most 64, got {self.name!r}")
        for name, low in (("approvals", 0), ("approval_days", 1)):
            if getattr(self, name) < low:
                raise Misconfigured(f"[models] {name}: wanted at least {low}, got {getattr(self, name)}")

    @property
    def rules(self) -> Rules:
        """The rules for readers of the log."""
        return Rules(self.name, self.approvals, self.approval_days * _DAY_MS, self.clock_back_s * 1000)

    @property
    def log_path(self) -> Path:
        """The file of the log. Raises Misconfigured if it is not known."""
        if self.log:
            return Path(self.log)
        if "://" in self.folder:
            raise Misconfigured(f"[models] log: wanted the file of the log, because the folder is {self.folder}")
        return Path(self.folder) / "log.jsonl"
