"""The order of a whole run's test files: files that wait between files that compute.

    collected    integration integration integration │ unit unit unit unit unit unit
    run          integration unit unit integration unit unit integration unit unit

Tests of processes and services wait for most of their time: for a start, a session, a poll. In the order of their
folders they would all run first, and the cores would rest for minutes. Spread evenly among the tests that compute,
they use what the others leave. In either group the longest files come first, and short ones fill the end of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

_WAITING = ("tests/e2e/", "tests/integration/", "tests/simulation/")
# Each takes more than 40 seconds in a whole run. A name that no longer exists does no harm.
LONGEST = (
    "tests/integration/spark/test_spark.py",
    "tests/integration/spark/test_bucket.py",
    "tests/simulation/test_simulation.py",
    "tests/integration/profiles/test_chaos.py",
    "tests/e2e/test_demo.py",
    "tests/e2e/test_wheel.py",
    "tests/integration/profiles/test_stream.py",
    "tests/integration/profiles/test_stream_ends.py",
    "tests/integration/operate/test_clients_hostile.py",
    "tests/integration/operate/test_clients_installed.py",
    "tests/integration/profiles/test_backup.py",
    "tests/integration/operate/test_units_run.py",
    "tests/e2e/test_shadow_host.py",
    "tests/e2e/test_console_browser.py",
    "tests/e2e/test_console_hostile_texts.py",
    "tests/integration/operate/test_worked_example.py",
    "tests/integration/topics/test_archive.py",
    "tests/integration/topics/test_dead_letters.py",
    "tests/e2e/test_serving.py",
    "tests/integration/drift/test_drift_counts.py",
    "tests/integration/profiles/test_rebuild.py",
    "tests/integration/host/test_companion.py",
    "tests/integration/host/test_sharded_companion.py",
    "tests/integration/profiles/test_stream_app.py",
    "tests/integration/host/test_shipping.py",
    "tests/e2e/commands/test_commands.py",
    "tests/e2e/commands/test_extras.py",
    "tests/integration/topics/test_registry.py",
    "tests/integration/rollout/test_rollout_lead.py",
    "tests/integration/host/test_worker_kills.py",
    "tests/integration/operate/test_gateway.py",
    "tests/integration/drift/test_outcomes.py",
    "tests/integration/profiles/test_source_identity.py",
    "tests/integration/profiles/test_back_pressure.py",
    "tests/integration/topics/test_topic_clients.py",
    "tests/e2e/test_rollout.py",
    "tests/e2e/commands/test_interrupts.py",
    "tests/unit/features/kernel/test_bounds.py",
    "tests/parity/test_handbook_backtest.py",
    "tests/unit/streams/decision_index/test_purge.py",
    "tests/parity/test_dataflow.py",
    "tests/unit/models/training/test_training.py",
    "tests/parity/test_features_against_naive.py",
    "tests/unit/ops/commands/model/test_train.py",
    "tests/unit/models/drift/test_detectors.py",
)


def spread(names: Sequence[str]) -> list[str]:
    """Returns the names of the files in the order of the run. Each name occurs once in the result."""
    files = list(dict.fromkeys(names))
    files.sort(key=lambda name: LONGEST.index(name) if name in LONGEST else len(LONGEST))
    groups: tuple[list[str], list[str]] = ([], [])
    for name in files:
        groups[name.startswith(_WAITING)].append(name)
    places = [((place + 0.5) / len(group), name) for group in groups for place, name in enumerate(group)]
    return [name for _, name in sorted(places, key=lambda placed: placed[0])]


def ordered(items: Sequence[tuple[str, Item]]) -> list[Item]:
    """Returns the items of (file, item) pairs file by file, as `spread` orders the files."""
    by_file: dict[str, list[Item]] = {}
    for name, item in items:
        by_file.setdefault(name, []).append(item)
    return [item for name in spread(list(by_file)) for item in by_file[name]]
