"""A checked policy as a file, which a serving process reads instead of the project's configuration.

    FOLDER/policy.json    settings, the thresholds of its bundle, and digests
    FOLDER/lists.json     the entries of its short lists, read from wherever they stood
    FOLDER/NAME.list      a long list (models/policy/mapped_list.py)

A process that serves a policy with the same lists already keeps them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from paywarden.features.catalogue.entity import Catalogue
from paywarden.models.policy.mapped_list import MappedList, can_be_mapped, write_mapped_list
from paywarden.models.policy.policy import ConfiguredRule, ConfiguredSegment, ConfiguredShare, Policy, PolicySettings
from paywarden.schemas.checked_text import with_checksum, without_checksum
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular

_POLICY, _LISTS = "policy.json", "lists.json"
# The exceptions of reading damaged files.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclasses.dataclass(frozen=True)
class PreparedPolicy:
    """A policy with its digest and those of its lists, which take long to compute when lists are long."""

    policy: Policy
    digest: str
    list_digests: Mapping[str, str]

    @classmethod
    def of(cls, policy: Policy) -> PreparedPolicy:
        """Returns a policy that was made in this process."""
        return cls(policy, policy.digest, policy.list_digests)


def prepare_policy(policy: Policy, folder: Path, *, review_at: float, decline_at: float) -> None:
    """Write a policy into `folder`. `review_at`, `decline_at`: the thresholds of its bundle. Raises OSError."""
    content = {
        "settings": dataclasses.asdict(dataclasses.replace(policy.settings, lists={})),
        "review_at": review_at,
        "decline_at": decline_at,
        "digest": policy.digest,
        "list_digests": policy.list_digests,
    }
    lists, checksums = {}, {}
    for name, entries in policy.lists.items():
        if can_be_mapped(entries):
            checksums[name] = write_mapped_list(folder / f"{name}.list", entries)
        else:
            lists[name] = sorted(entries)
    (folder / _LISTS).write_text(with_checksum(json.dumps(lists)), encoding="utf-8")
    whole = json.dumps(content | {"list_checksums": checksums})
    (folder / _POLICY).write_text(with_checksum(whole), encoding="utf-8")


def _text_of(path: Path) -> str:
    return without_checksum(read_regular(path).decode("utf-8"))


def _damaged(folder: Path, error: Exception) -> Misconfigured:
    return Misconfigured(f"prepared policy {folder}: it is gone or damaged: {error}")


def load_policy(
    folder: Path,
    catalogue: Catalogue,
    earlier: PreparedPolicy | None = None,
) -> PreparedPolicy:
    """Read the files of `prepare_policy`. If `earlier` is the same policy, or has the same lists, these are reused.

    A long list is copied into memory of this process. Raises Misconfigured if the files are gone or damaged.
    """
    try:
        text = _text_of(folder / _POLICY)
        content: dict[str, Any] = json.loads(text)
        thresholds = {name: content[name] for name in ("review_at", "decline_at")}
        if earlier is not None and earlier.digest == content["digest"] and earlier.policy.is_made_with(**thresholds):
            return PreparedPolicy(earlier.policy, content["digest"], content["list_digests"])
        settings = dict(content["settings"])
        settings["rules"] = tuple(ConfiguredRule(**rule) for rule in settings["rules"])
        settings["segments"] = tuple(ConfiguredSegment(**segment) for segment in settings["segments"])
        settings["explored"] = tuple(ConfiguredShare(**share) for share in settings["explored"])
        lists: dict[str, Set[str]]
        if earlier is not None and earlier.list_digests == content["list_digests"]:
            lists = dict(earlier.policy.lists)
        else:
            read = json.loads(_text_of(folder / _LISTS))
            checksums = content.get("list_checksums", {})
            lists = {}
            for name in content["list_digests"]:
                if name in read:
                    lists[name] = frozenset(read[name])
                else:
                    lists[name] = MappedList(folder / f"{name}.list", checksums.get(name))
        made = Policy(PolicySettings(**settings), **thresholds, lists=lists, catalogue=catalogue)
        return PreparedPolicy(made, content["digest"], content["list_digests"])
    except _UNREADABLE as error:
        raise _damaged(folder, error) from error
