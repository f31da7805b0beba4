"""A draft of the policy: the text of `[policy]` alone. And the decisions of the index, about which a draft is tried."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.profiles.money import RateTable
from paywarden.models.policy.policy import Policy, PolicySettings
from paywarden.ops import wiring
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.page_rows import PageRefused
from paywarden.ops.wiring import bundle_thresholds
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source
from paywarden.streams.decision_index.index import DecisionIndex

_TOLD_CHARS_MAX = 300
_WEEK_MS = 7 * 86_400_000
_KEY_PARTS_MAX = 8
# The time that a key takes to be read grows with the square of its parts: one of 20,000 took the console eight seconds.
_LONG_KEY = re.compile(
    r"""(?<![\w"'-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){%d}""" % _KEY_PARTS_MAX  # noqa: UP031 - braces
)


def draft_source(text: str) -> Source:
    """Return a draft as settings. It names no file: lists have their entries in it.

    Raises Misconfigured for anything else, and PageRefused for lists in files.
    """
    if _LONG_KEY.search(text):
        raise Misconfigured(f"the draft: wanted keys of at most {_KEY_PARTS_MAX} parts")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # A number of a thousand digits, and brackets in brackets, are TOML that nobody can read.
        raise Misconfigured(f"the draft is not TOML: {str(error)[:_TOLD_CHARS_MAX]}") from error
    if set(content) != {"policy"} or not isinstance(content["policy"], dict):
        raise Misconfigured("the draft: wanted the section [policy] and no other")
    source = Source(content, {}, "the draft")
    settings = source.section("policy", PolicySettings)
    for name, entries in settings.lists.items():
        if any(entry.startswith("@") for entry in entries):
            raise PageRefused(400, f"The list {name} names a file: wanted its entries in the draft.")
    return source


class IndexedDecisions:
    """The decisions of the index, with the policies, rates and catalogue of the settings.

    `decoded`: a decision of the index in the form of its topic; raises InvalidEvent.
    """

    def __init__(self, source: Source, opened: OpenedIndex, decode: Callable[[bytes], Mapping[str, Any]]) -> None:
        self._source, self._opened, self.decoded = source, opened, decode

    @cached_property
    def rates(self) -> RateTable:
        """The exchange rates of the settings."""
        return wiring.rate_table(self._source)

    @cached_property
    def catalogue_digest(self) -> str:
        """The catalogue of the settings, which conditions name features of."""
        return wiring.feature_engine(self._source).plan.digest

    @cached_property
    def catalogue(self) -> Catalogue:
        """The catalogue itself."""
        return wiring.catalogue(self._source)

    def policy(self) -> Policy:
        """Return the policy of the settings. Raises Misconfigured."""
        return self._policy(self._source)

    def index(self) -> DecisionIndex:
        """Return the index. Raises TemporaryFailure if its database cannot be used now."""
        with self._opened.used() as (index, _):
            return index

    def review_seconds(self, now_ms: int) -> float | None:
        """Return the median length of a review in the last week; None if nobody has reviewed."""
        with self._opened.used() as (_, queue):
            work = queue.throughput(now_ms - _WEEK_MS)
        reviews = sum(one.verdicts for one in work)
        return sum(one.verdicts * one.median_s for one in work) / reviews if reviews else None

    def policies(self, draft: str) -> tuple[Policy, Policy]:
        """Return the policy of the settings, and that of a draft. Raises Misconfigured."""
        return self.policy(), self._policy(draft_source(draft))

    def _policy(self, source: Source) -> Policy:
        review_at, decline_at = bundle_thresholds(self._source, None)
        return wiring.policy(source, review_at=review_at, decline_at=decline_at, catalogue=self.catalogue)
