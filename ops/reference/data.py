"""The data dictionary: docs/reference/data.md.

Where its words come from:

    decisions, differences  DECISION_COLUMNS and DIFFERENCE_COLUMNS in models/replay/files.py
    metrics.json            the docstring below each field of the dataclasses it is made of

A field without a meaning raises Undocumented. The page therefore has all of them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from paywarden.features.datasets.shop_world import TRUTH_COLUMNS, TRUTH_FILE
from paywarden.features.history.history import (
    ABSENT_COLUMNS,
    OUTCOME_COLUMNS,
    PAYMENT_COLUMNS,
)
from paywarden.models.metrics import (
    bursts,
    comparison,
    costs,
    curves,
    first_strikes,
    policy_value,
    segments,
    value_detected,
    weighted_measures,
)
from paywarden.models.replay import (
    files as replay_files,
)
from paywarden.models.replay import (
    live_comparison as live_decisions,
)
from paywarden.models.replay import (
    measures as replay_measures,
)
from paywarden.models.replay import stops
from paywarden.ops.reference.page import MADE_FROM_CODE, Undocumented, entry, prose
from paywarden.streams.archive import files as archive_files
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, TIMESTAMP, rows_schema


class PageLine(NamedTuple):
    """A line of the dictionary."""

    name: str
    kind: str
    meaning: str


# The page


def data_page() -> str:
    """Returns the data dictionary."""
    intro = [
        "# Data dictionary\n",
        *prose(
            "The columns of every file. The fields of [topics](topics.md) and their meanings are in `schemas/avsc`. "
            f"{MADE_FROM_CODE}"
        ),
        *prose(
            "In brackets: the type. `string?` may be null, `string[]` is a list, and `integer{}` is an object of "
            "integers by name. Money is in whole minor units, of the reference currency unless a line says otherwise: "
            "4999 is 49.99 EUR, and 4999 yen are 4999 JPY. A number whose name ends in `time_ms` or `timestamp_ms` is "
            "a time: milliseconds since 1970-01-01T00:00:00Z. Any other `_ms`, `_us`, `_minutes` or `_days` is a span "
            "in that unit. Shares, probabilities and measures such as recall are from 0 to 1, and differences of "
            "scores from -1 to 1. Other numbers are counts or ratios. `NAME_interval` (number[]) is the 95 % interval "
            "of NAME, `NAME_low` and `NAME_high` its ends, by Wilson. Ids of cards, merchants and devices are tokens "
            "of your own."
        ),
    ]
    return "\n".join([*intro, *_history(), *_truth(), *_replay(), *_archive()])


def _history() -> Iterator[str]:
    yield "## A history: payments.parquet and outcomes.parquet\n"
    yield from prose(
        "`simulate` and `convert` write these two files; `train`, `replay`, `backtest` and `backfill` read them. "
        "Payments are sorted by `event_time_ms`, outcomes by `outcome_time_ms`. The columns "
        f"{_listed(ABSENT_COLUMNS)} may be left out, and columns beyond these are ignored. A later outcome corrects an "
        "earlier one of the same payment. `payments.parquet` may also have a column `propensity` (number or null): the "
        "chance, above 0 and at most 1, that the payment was kept with its label; and a column `never_labelled` "
        "(boolean or null): nobody knows, or will know, whether the payment was fraud."
    )
    for topic, columns in (("payments", PAYMENT_COLUMNS), ("outcomes", OUTCOME_COLUMNS)):
        listed = ", ".join(f"`{name}` ({kind.replace(' or null', '?')})" for name, kind in columns.items())
        yield from (
            f"### {topic}.parquet",
            "",
            *prose(f"The fields of the topic ([meanings](../../schemas/avsc/{topic}.avsc)): {listed}."),
        )


def _truth() -> Iterator[str]:
    yield f"## The truth about made data: {TRUTH_FILE}\n"
    yield from prose(
        "`simulate --world shop` writes it beside the history, and `replay --ceiling` reads it. No other command does: "
        "a real history has no such file."
    )
    yield from _list([PageLine(*column) for column in TRUTH_COLUMNS])


def _replay() -> Iterator[str]:
    yield "## Results of `paywarden replay`\n\n### decisions.parquet\n"
    yield from prose("The champion's decision about every payment of the window, in order of time.")
    yield from _list(
        map(_of_column, (*replay_files.DECISION_COLUMNS, replay_files.VECTOR_COLUMN, *replay_files.SEGMENT_COLUMNS)),
    )
    yield from prose("With `--features` each [feature](features.md) is one more float32 column, null if it is missing.")
    yield "### differences.parquet\n"
    yield from prose("With a challenger: the payments that get different actions.")
    decided, compared = set(replay_files.DECISION_COLUMNS), replay_files.DIFFERENCE_COLUMNS
    same = "`, `".join(column.name for column in compared if column in decided)
    yield entry(same, (), "As in decisions.parquet.")
    yield from _list(_of_column(column) for column in compared if column not in decided)
    yield "### metrics.json\n"
    yield from prose(
        "At the top are the keys of *what was replayed*, and those of *one contestant* for the champion. `challenger` "
        "has the challenger's, `comparison` those of *champion against challenger*, and `archived_decisions` those of "
        "*live against replay*. A value that cannot be computed is null. The report shows the same numbers."
    )
    yield from _list([PageLine("payments_per_second", "number", _SPEED)])
    for title, made_of in _METRICS:
        yield from (f"#### {title}", "", *_list(_of_dataclass(made_of)))


_SPEED = "The replay's speed, the only value that differs between two replays of the same input."
_METRICS: tuple[tuple[str, type], ...] = (
    ("What was replayed", replay_measures.ReplayFacts),
    ("One contestant", replay_measures.ContestantMeasures),
    ("A group of payments", segments.GroupMeasures),
    ("Money", costs.Money),
    ("A reason", replay_measures.ReasonMeasures),
    ("Mean calibration", curves.MeanCalibration),
    ("With propensity weights", weighted_measures.WeightedMeasures),
    ("Value of a policy", policy_value.PolicyValue),
    ("Reliability", curves.ReliabilityCurve),
    ("Threshold curve", curves.ThresholdCurve),
    ("At review capacity", curves.AtCapacity),
    ("Bursts of fraud", bursts.BurstMeasures),
    ("First frauds", first_strikes.FirstStrikes),
    ("Detected frauds", value_detected.Detected),
    ("Who stopped payments", stops.Stops),
    ("Stopped payments", stops.StoppedPayments),
    ("Score histogram", curves.ScoreHistogram),
    ("Champion against challenger", replay_measures.ReplayComparison),
    ("Agreement", comparison.Agreement),
    ("Score shift", comparison.ScoreShift),
    ("A kind of change", replay_measures.ActionChange),
    ("A payment decided about differently", replay_measures.ChangedPayment),
    ("Live against replay", live_decisions.LiveComparison),
    ("Agreement with live decisions", live_decisions.LiveAgreement),
)


def _archive() -> Iterator[str]:
    topics = ", ".join(f"`{topic}`" for topic in archive_files.TOPICS)
    yield "## An archive: DIR/TOPIC/date=YYYY-MM-DD/part-PARTITION-FIRSTOFFSET.parquet\n"
    yield from prose(
        f"`paywarden admin archive` writes {topics}. The date is the UTC day on which the file's first record reached "
        "Kafka. The columns are the topic's fields, and then where the record is in Kafka:"
    )
    schema = rows_schema(archive_files.TOPICS[0])
    meanings = {
        PARTITION: "The record's partition.",
        OFFSET: "The record's offset in its partition.",
        TIMESTAMP: "Kafka's timestamp of the record; 0 without one.",
    }
    yield from _list(
        [PageLine(name, str(schema.field(name).type), text) for name, text in meanings.items()],
    )


# Lines


def _of_column(column: replay_files.OutputColumn) -> PageLine:
    kind = column.kind
    if pa.types.is_list(kind):
        return PageLine(column.name, f"{kind.value_type}[]", column.meaning)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return PageLine(column.name, str(kind), column.meaning)


def _of_dataclass(made_of: type) -> Iterator[PageLine]:
    docs, hints = field_docs(made_of), get_type_hints(made_of)
    for field in dataclasses.fields(made_of):
        if field.name not in docs:
            raise Undocumented(f"{made_of.__name__}.{field.name} has no docstring")
        kind = _json_kind(hints[field.name])
        yield PageLine(field.name, "" if kind in ("integer", "number") else kind, docs[field.name])


def _with_intervals(lines: Iterable[PageLine]) -> Iterator[PageLine]:
    """The lines, with the ends of a plain 95 % interval beside the number that it is about."""
    merged: dict[str, PageLine] = {}
    for line in lines:
        base, _, end = line.name.rpartition("_")
        if (base in merged and line.meaning in _PLAIN_INTERVALS.get(end, ())) or line.meaning == _INTERVAL_OF.format(
            base
        ):
            merged[base] = merged[base]._replace(name=f"{merged[base].name}`, `{line.name}")
        else:
            merged[line.name] = line
    yield from merged.values()


_INTERVAL_OF = "The 95 % interval of `{}`."
_PLAIN_INTERVALS = {
    "interval": ("Its 95 % interval.",),
    "low": (
        "Lower end of its 95 % interval (Wilson).",
        "Lower end of its 95 % interval, as for a share of the frauds.",
    ),
    "high": ("Upper end.",),
}


@cache
def field_docs(made_of: type) -> dict[str, str]:
    """The docstring below each field of a dataclass."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(made_of))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, after in zip(tree.body, tree.body[1:], strict=False):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = inspect.cleandoc(text).replace("\n", " ")
    return docs


def _json_kind(hint: Any) -> str:
    """The form of a type in JSON."""
    if get_origin(hint) in (Union, types.UnionType):
        (other,) = [part for part in get_args(hint) if part is not type(None)]
        return f"{_json_kind(other).removesuffix('?')}?"
    if get_origin(hint) in (list, tuple):
        return f"{_json_kind(get_args(hint)[0])}[]"
    if get_origin(hint) is dict:
        return f"{_json_kind(get_args(hint)[1])}{{}}"
    if hint is costs.CostSettings:
        return "[costs](settings.md#costs)"
    if dataclasses.is_dataclass(hint):
        title = next(title for title, made_of in _METRICS if made_of is hint)
        return f"[object](#{title.lower().replace(' ', '-')})"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[hint]


def _list(lines: Iterable[PageLine]) -> list[str]:
    return [*(entry(line.name, (line.kind,), line.meaning) for line in _with_intervals(lines)), ""]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)
