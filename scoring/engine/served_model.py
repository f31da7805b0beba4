"""A model and a policy as one worker serves them, ready to be taken up between two chunks.

    models ─┐
    policy ─┼─► Served: bound scoring call, kept responses of approvals, record writer with the origins
    origins ┘

`PaymentScorer` decides each chunk with one `Served`. A share of a rollout replaces this one object.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paywarden.models.policy.policy import ACTIONS, APPROVE, MIRROR_ABSENT, MIRROR_STALE, Facts, Policy
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.records import Origin, RecordWriter, tail


class Served:
    """Decides with one chain of models and one policy. Not thread-safe once it is in use."""

    __slots__ = (
        *(
            "approved",
            "approved_below",
            "models",
            "origins",
            "policy",
            "score_vectors",
            "stale_after_ms",
            "token",
            "writer",
        ),
        *("_last_origin", "_propensities"),
    )

    def __init__(
        self,
        models: ModelChain,
        policy: Policy,
        origins: Sequence[Origin],
        *,
        vectors: NDArray[np.float32],
        catalogue_digest: str,
        usual_flags: Iterable[tuple[str, ...]],
        explored_share: float = 0.0,
    ) -> None:
        """`origins`: one for each model of the chain, and the last for decisions without a model.

        `vectors`: the scorer's own, shape (rows_max, features). `usual_flags`: the sets of flags of most payments.
        `explored_share`: that of [exploration]; 0 without it.
        """
        self.models, self.policy, self.origins = models, policy, tuple(origins)
        self.score_vectors = models.bind(vectors)
        self.stale_after_ms = policy.stale_after_ms
        self.token = object()
        """Says whether it is the same one, to someone who must not keep it."""
        self._last_origin = len(self.origins) - 1
        # Exploration: for each probability of an action, where its copies of the origins begin.
        self._propensities = {1.0: 0}
        written = list(self.origins)
        shares = {explored_share, *(each.share for each in policy.settings.explored)} if explored_share else set()
        for propensity in shares | {1.0 - share for share in shares}:
            self._propensities[propensity] = len(written)
            written += [replace(origin, propensity=propensity) for origin in self.origins]
        # A random prefix makes decision ids unique over hosts, workers and restarts, with nothing shared between them.
        self.writer = RecordWriter(vectors, catalogue_digest, os.urandom(8).hex(), written)
        self.approved: dict[tuple[str, ...], int] = {}
        """The number of the kept tail of an approval, by its flags. These tails name the primary model."""
        self.approved_below, _ = policy.thresholds
        self._keep_approvals(usual_flags)

    def origin_of(self, model: int, propensity: float = 1.0) -> int:
        """Returns the place of a model's origin. `model`: its index in the chain, or NO_MODEL.

        `propensity`: that of the action, if exploration tossed its coin; else 1.
        """
        return self._propensities[propensity] + (model if model >= 0 else self._last_origin)

    def _keep_approvals(self, usual_flags: Iterable[tuple[str, ...]]) -> None:
        """Keep the tail of an approval for each usual set of flags: nearly all responses have one of them."""
        if self.policy.has_conditions:
            return
        usual = [*usual_flags, (MIRROR_ABSENT,)]
        facts = Facts(ScoreRequest(), 0, np.zeros(0, dtype=np.float32), 0.0, ())
        for flags in dict.fromkeys((*usual, *((*some, MIRROR_STALE) for some in usual))):
            facts.flags = flags
            action, reasons = self.policy.decide(facts)
            if action == ACTIONS[APPROVE] and not reasons:
                tail_number = self.writer.keep_tail(tail(action, (), self.models.versions[0], flags))
                if tail_number is not None:
                    self.approved[flags] = tail_number
