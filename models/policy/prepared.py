"""A checked policy as a file, which a serving process reads instead of the project's configuration.

    FOLDER/policy.json    settings, the thresholds of its bundle, and digests
    FOLDER/lists.json     the entries of its short lists, read from wherever they stood
    FOLDER/NAME.list      a long list, which is mapped (models/policy/mapped_list.py)

A process that serves a policy with the same lists already keeps them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from paywarden.features.catalogue.entity import Catalogue
from paywarden.models.policy.mapped_list import MappedList, can_be_mapped, write_mapped_list
from paywarden.models.policy.policy import ConfiguredRule, ConfiguredSegment, Policy, PolicySettings
from paywarden.schemas.errors import Misconfigured

_POLICY, _LISTS = "policy.json", "lists.json"


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
    lists = {}
    for name, entries in policy.lists.items():
        if can_be_mapped(entries):
            write_mapped_list(folder / f"{name}.list", entries)
        else:
            lists[name] = sorted(entries)
    (folder / _LISTS).write_text(json.dumps(lists), encoding="utf-8")
    (folder / _POLICY).write_text(json.dumps(content), encoding="utf-8")


def load_policy(
    folder: Path,
    catalogue: Catalogue,
    earlier: PreparedPolicy | None = None,
    rest: Callable[[], object] = lambda: None,
) -> PreparedPolicy:
    """Read what `prepare_policy` wrote. If `earlier` is the same policy, or has the same lists, they are taken from it.

    `rest` is called between two steps. Raises Misconfigured if the files are gone or damaged.
    """
    try:
        text = (folder / _POLICY).read_text(encoding="utf-8")
        rest()
        content: dict[str, Any] = json.loads(text)
        thresholds = {name: content[name] for name in ("review_at", "decline_at")}
        if earlier is not None and earlier.digest == content["digest"] and earlier.policy.is_made_with(**thresholds):
            return PreparedPolicy(earlier.policy, content["digest"], content["list_digests"])
        rest()
        settings = dict(content["settings"])
        settings["rules"] = tuple(ConfiguredRule(**rule) for rule in settings["rules"])
        settings["segments"] = tuple(ConfiguredSegment(**segment) for segment in settings["segments"])
        if earlier is not None and earlier.list_digests == content["list_digests"]:
            lists: Mapping[str, Set[str]] = earlier.policy.lists
        else:
            read = json.loads((folder / _LISTS).read_text(encoding="utf-8"))
            lists = {
                name: frozenset(read[name]) if name in read else MappedList(folder / f"{name}.list")
                for name in content["list_digests"]
            }
        made = Policy(PolicySettings(**settings), **thresholds, lists=lists, catalogue=catalogue, rest=rest)
        rest()
        return PreparedPolicy(made, content["digest"], content["list_digests"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Misconfigured(f"prepared policy {folder}: it is gone or damaged: {error}") from error
