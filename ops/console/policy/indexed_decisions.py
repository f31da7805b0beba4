"""The decisions of the console's index, with the policies, rates and catalogue of the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from paywarden.ops import wiring
from paywarden.ops.console.policy.drafts import draft_source
from paywarden.ops.wiring import bundle_thresholds
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.features.profiles.money import RateTable
    from paywarden.models.policy.policy import Policy
    from paywarden.ops.console.decisions.index_connection import OpenedIndex
    from paywarden.streams.decision_index.index import DecisionIndex

Decode = Callable[[bytes], Mapping[str, Any]]


class IndexedDecisions:
    """See `SampledDecisions` in policy/replays.py."""

    def __init__(self, source: Source, opened: OpenedIndex, decode: Decode) -> None:
        self._source, self._opened, self._decode = source, opened, decode

    @cached_property
    def rates(self) -> RateTable:
        """The exchange rates of the settings."""
        return wiring.rate_table(self._source)

    @cached_property
    def catalogue_digest(self) -> str:
        """The catalogue of the settings, which conditions name features of."""
        return wiring.feature_engine(self._source).plan.digest

    def index(self) -> DecisionIndex:
        """Returns the index. Raises TemporaryFailure if its database cannot be used now."""
        return self._opened.parts()[0]

    def decoded(self, body: bytes) -> Mapping[str, Any]:
        """Returns a decision of the index in the form of its topic. Raises InvalidEvent."""
        return self._decode(body)

    def policies(self, draft: str) -> tuple[Policy, Policy]:
        """Returns the policy of the settings, and that of a draft. Raises Misconfigured."""
        now, new = (self._policy(source) for source in (self._source, draft_source(draft)))
        return now, new

    def _policy(self, source: Source) -> Policy:
        review_at, decline_at = bundle_thresholds(self._source, None)
        return wiring.policy(
            source, review_at=review_at, decline_at=decline_at, catalogue=wiring.catalogue(self._source)
        )
