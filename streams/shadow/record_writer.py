"""Writes shadow records in Avro: the bytes of the general encoder, in a ninth of its time.

    header │ decision_id │ payment_id │ card_id │ time │ names │ score, action │ names │ score, action │ reasons
                                                          of the champion        of the challenger

A challenger runs in the time that the host's other processes leave of the cores. To make a dict of each record and give
it to a general encoder took a third of its CPU time. The names (challenger, catalogue, digests) are the same in nearly
all records, so their bytes are kept.
"""

from __future__ import annotations

import struct

from paywarden.models.rollout.shadow import ShadowRecord
from paywarden.schemas.avro import Encoder, topic_schema
from paywarden.streams.kafka.avro_bytes import enum_bytes, text_bytes, texts_bytes, whole_bytes

SHADOW_TOPIC = "shadow-decisions"
FIELDS = (
    *("decision_id", "payment_id", "card_id", "decided_time_ms", "challenger", "is_shadow_host", "catalogue_digest"),
    *("champion_bundle_digest", "champion_policy_digest", "champion_score", "champion_action"),
    *("challenger_bundle_digest", "challenger_policy_digest", "challenger_score", "challenger_action"),
    "challenger_reasons",
)
"""The fields in the order in which they are written, which is the schema's."""
# The names of champions and challengers that are kept. A host has a handful.
_KEPT_MAX = 256
_SCORE = struct.Struct("<d").pack


class ShadowRecordWriter:
    """Writes shadow records. Not thread-safe."""

    def __init__(self, encoder: Encoder) -> None:
        """`encoder`: that of the topic. Its header says under which id the schema is known."""
        types = {field["name"]: field["type"] for field in topic_schema(SHADOW_TOPIC)["fields"]}
        assert tuple(types) == FIELDS, "the writer follows the schema"
        self.header = encoder.header
        """The bytes that each value begins with."""
        self._actions = {action: enum_bytes(place) for place, action in enumerate(types["champion_action"]["symbols"])}
        self._names: dict[tuple[str | bool, ...], bytes] = {}
        # Neighbours are often of the same millisecond.
        self._time_ms, self._time = 0, whole_bytes(0)

    def write(self, record: ShadowRecord) -> bytes:
        """Returns the value to send."""
        champion, challenger, names, actions = record.champion, record.challenger, self._names, self._actions
        if record.decided_time_ms != self._time_ms:
            self._time_ms, self._time = record.decided_time_ms, whole_bytes(record.decided_time_ms)
        of_champion = (
            record.challenger_name,
            record.is_shadow_host,
            record.catalogue_digest,
            champion.bundle_digest,
            champion.policy_digest,
        )
        of_challenger = challenger.bundle_digest, challenger.policy_digest
        return b"".join(
            (
                self.header,
                text_bytes(record.decision_id),
                text_bytes(record.payment_id),
                text_bytes(record.card_id),
                self._time,
                names.get(of_champion) or self.names_of(of_champion),
                _SCORE(champion.score),
                actions[champion.action],
                names.get(of_challenger) or self.names_of(of_challenger),
                _SCORE(challenger.score),
                actions[challenger.action],
                texts_bytes(record.challenger_reasons),
            )
        )

    def names_of(self, values: tuple[str | bool, ...]) -> bytes:
        """Returns the bytes of neighbouring fields that many records share, and keeps them."""
        if len(self._names) >= _KEPT_MAX:
            self._names.clear()
        written = b"".join(bytes([value]) if isinstance(value, bool) else text_bytes(value) for value in values)
        self._names[values] = written
        return written
