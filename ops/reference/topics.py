"""The topics: docs/reference/topics.md.

Partitions, cleanup and retention are those of `paywarden topics create` with the default settings. Only the key, the
writers and the readers stand here.
"""

from __future__ import annotations

from typing import NamedTuple

from paywarden.ops.reference.page import MADE_FROM_CODE, Undocumented, entry, prose
from paywarden.schemas.avro import TOPICS
from paywarden.streams.kafka import topics
from paywarden.streams.kafka.schemas.remembered_schemas import SCHEMAS_TOPIC
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC, repartition_topic

_DAY_MS = 86_400_000
_REPARTITION = repartition_topic("ENTITY")


class TopicUse(NamedTuple):
    """Facts about a topic that no schema and no setting holds."""

    key: str
    meaning: str
    writers: str
    readers: str


_USES = {
    "payments": TopicUse(
        "`card_id`",
        "Payment attempts.",
        "your systems; `demo`, `admin dead-letters --retry`",
        "`stream`, `rebuild`, `archive`, `train` and `replay` with `--from-topic`",
    ),
    "outcomes": TopicUse(
        "`payment_id`",
        "Whether a payment was fraud, known days later. A later outcome of a payment corrects the earlier one.",
        "your systems; `demo`, `admin dead-letters --retry`",
        "`stream`, `rebuild`, `archive`, `train` and `replay` with `--from-topic`",
    ),
    "profiles": TopicUse(
        "`ENTITY:ID`",
        "The changelog: the newest profile of each entity. A record without a value (a tombstone) erases the profile.",
        "`stream`, `rebuild`, `forget`",
        "`companion`",
    ),
    "decisions": TopicUse(
        "`payment_id`",
        "The decision about each payment, and its features. A reader of committed records finds each decision once; "
        "another may see one twice, with the same `decision_id`.",
        "`companion`",
        "your systems; `stream` (drift and outcomes), `archive`",
    ),
    "drift-alerts": TopicUse(
        "`alert_id`", "Each step in the life of an alert.", "`stream`", "your systems; `drift`, `console`"
    ),
    "drift-acknowledgements": TopicUse(
        "`alert_id`",
        "That somebody has seen or snoozed an alert.",
        "`drift note`, `console`",
        "`stream`, `drift`, `console`",
    ),
    "console-events": TopicUse(
        "`subject`",
        "People's acts on alerts, cases and drafts of the policy: assigned, commented, opened, closed, …; and "
        "the head of each console's audit log.",
        "`console`, `drift note`",
        "`console`, `drift`",
    ),
    "outcome-metrics": TopicUse(
        "`MODEL_VERSION:VARIANT`",
        "How good the decisions of a UTC day were: when its labels are mature, and when they are final. The latest "
        "record of a key, day and `maturity_days` counts.",
        "`stream`",
        "your systems",
    ),
    "dead-letters": TopicUse(
        "of the record",
        "Records that could not be used, whole, and why.",
        "`stream`",
        "`dead-letters`, `stream`",
    ),
    "dead-letters-retried": TopicUse(
        "`PARTITION-OFFSET` of the letter",
        "Which dead letters were sent back.",
        "`admin dead-letters --retry`",
        "`dead-letters`",
    ),
    "model-registry": TopicUse(
        "`digest` of the entry",
        "Changes of models: registered, proposed, approved, promoted, rolled back; and each event of a rollout.",
        "`models`, `rollout`",
        "`companion`, `models`, your systems",
    ),
    "catalogues": TopicUse(
        "`catalogue_digest`", "The features of a decision's vector, by name.", "`companion`", "your systems"
    ),
    "shadow-decisions": TopicUse(
        "`payment_id`",
        "The decisions of challengers in the shadow, beside the live decisions.",
        "`shadow`",
        "`shadow report`, your systems",
    ),
    "verdicts": TopicUse(
        "`payment_id`",
        "Analysts' provisional verdicts about payments in review. Drop a repeated `verdict_id`.",
        "`decisions index`, `console`",
        "`decisions index`, `console`, your systems",
    ),
    CURSORS_TOPIC: TopicUse(
        "`HOST/WORKER`",
        "How far the decisions of each outbox are shipped (`streams/companion/cursors.py`).",
        "`companion`",
        "`companion`",
    ),
    SCHEMAS_TOPIC: TopicUse(
        "the registry's id of a schema",
        "The text of each schema that a registry has given an id.",
        "every process that uses a registry",
        "every process that reads records",
    ),
    _REPARTITION: TopicUse(
        "the entity's id",
        "Events on their way to the owner of a profile (`streams/profiles/repartition.py`); one topic for each kind of "
        "entity, and for each further profile set `repartition-ENTITY.SET`.",
        "`stream`, `rebuild`",
        "`stream`, `rebuild`",
    ),
}
_NO_AVRO = {CURSORS_TOPIC: "bytes of our own", SCHEMAS_TOPIC: "JSON", _REPARTITION: "bytes of our own"}


def topics_page() -> str:
    """Returns the page of every topic."""
    lines = [_line(name) for name in (*TOPICS, CURSORS_TOPIC, SCHEMAS_TOPIC, _REPARTITION)]
    settings = topics.TopicSettings()
    return "\n".join(
        [
            "# Topics\n",
            *prose(f"Every topic that `paywarden topics create` creates. {MADE_FROM_CODE}"),
            *prose(
                "Values are Avro in the Confluent wire format (a zero byte, the schema's id in four bytes, big endian, "
                "the record), by `schemas/avsc/TOPIC.avsc`, if no other form is given. [data.md](data.md) has every "
                "field. With `[kafka] topic_prefix` every name begins with the prefix."
            ),
            *prose(
                "In brackets: key, partitions and retention by the default settings in `[topics]` (replication factor "
                f"{settings.replication}). A compacted topic keeps the newest record of each key for ever."
            ),
            *lines,
            "",
        ]
    )


def _line(name: str) -> str:
    use = _USES.get(name)
    if use is None:
        raise Undocumented(f"topic {name} has no description: add one to ops/reference/topics.py")
    # Private, so that nothing else creates topics one at a time.
    created = topics._new_topic(name, name, topics.TopicSettings())
    partitions = f"{created.num_partitions} partition{'s' if created.num_partitions > 1 else ''}"
    notes = (f"key {use.key}", _NO_AVRO.get(name, ""), partitions, _kept(created.config or {}))
    return entry(name, notes, f"{use.meaning} Written by {use.writers}. Read by {use.readers}.")


def _kept(config: dict[str, str]) -> str:
    retention_ms = config.get("retention.ms")
    days = "" if retention_ms is None else f"{int(retention_ms) // _DAY_MS} days"
    if retention_ms == "-1":
        return "for ever"
    if "compact" not in config["cleanup.policy"]:
        return days
    return f"compacted, {days}" if days else "compacted"
