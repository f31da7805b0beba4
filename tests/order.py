"""The order of a whole run's test files: files that wait between files that compute.

    collected    integration integration integration │ unit unit unit unit unit unit
    run          integration unit unit integration unit unit integration unit unit

Tests of processes and services wait for most of their time: for a start, a session, a poll. In the order of their
folders they would all run first, and the cores would rest for minutes. Beside tests that compute, they use what the
others leave. At every point of the order, as large a share of the waiting files' time has passed as of the others'
time: counted by files, the long ones that compute all came first, and two minutes of nothing but waiting followed. In
either group the longest files come first, and short ones fill the end of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

Item = TypeVar("Item")

_WAITING = ("tests/e2e/", "tests/integration/", "tests/simulation/")
# What each of the longer files takes in a whole run, roughly.
SECONDS = {
    "tests/integration/profiles/test_stream_ends.py": 155,
    "tests/e2e/test_demo_broken.py": 130,
    "tests/parity/test_handbook_backtest.py": 130,
    "tests/unit/features/kernel/test_bounds.py": 125,
    "tests/integration/profiles/test_stream.py": 105,
    "tests/integration/drift/test_drift_counts.py": 85,
    "tests/integration/host/test_companion.py": 85,
    "tests/integration/topics/test_archive.py": 80,
    "tests/simulation/test_simulation.py": 75,
    "tests/unit/models/training/test_training.py": 70,
    "tests/e2e/test_wheel.py": 65,
    "tests/integration/host/test_shipping.py": 65,
    "tests/integration/profiles/test_rebuild.py": 65,
    "tests/e2e/test_demo.py": 60,
    "tests/integration/profiles/test_source_identity.py": 60,
    "tests/integration/topics/test_dead_letters.py": 60,
    "tests/integration/profiles/test_chaos.py": 55,
    "tests/integration/rollout/test_rollout_lead.py": 55,
    "tests/e2e/test_shadow_host.py": 50,
    "tests/integration/profiles/test_back_pressure.py": 50,
    "tests/parity/test_features_against_naive.py": 50,
    "tests/unit/ops/commands/model/test_train.py": 50,
    "tests/e2e/test_console_models.py": 45,
    "tests/e2e/test_extras.py": 45,
    "tests/e2e/test_serving.py": 45,
    "tests/integration/host/test_sharded_companion.py": 45,
    "tests/integration/host/test_worker_kills.py": 45,
    "tests/integration/profiles/test_stream_app.py": 45,
    "tests/integration/rollout/test_rollout_hosts.py": 40,
    "tests/e2e/test_console_browser.py": 35,
    "tests/e2e/test_feature_commands.py": 35,
    "tests/e2e/test_interrupts.py": 35,
    "tests/integration/drift/test_outcomes.py": 35,
    "tests/integration/operate/test_units_run.py": 35,
    "tests/integration/topics/test_registry_later.py": 35,
    "tests/e2e/test_commands.py": 30,
    "tests/e2e/test_rollout.py": 30,
    "tests/integration/operate/test_clients_hostile.py": 30,
    "tests/integration/operate/test_gateway.py": 30,
    "tests/integration/operate/test_worked_example.py": 30,
    "tests/integration/profiles/test_backup.py": 30,
    "tests/integration/topics/test_kafka_service.py": 30,
    "tests/integration/topics/test_registry.py": 30,
    "tests/integration/topics/test_topic_clients.py": 30,
    "tests/parity/test_shadow_records.py": 30,
    "tests/unit/models/drift/test_detectors.py": 30,
    "tests/integration/drift/test_drift_detection.py": 25,
    "tests/integration/operate/test_alertmanager.py": 25,
    "tests/integration/operate/test_dashboards.py": 25,
    "tests/integration/profiles/test_random_declarations.py": 25,
    "tests/integration/profiles/test_store_verify.py": 25,
    "tests/parity/test_payment_readers.py": 25,
    "tests/integration/operate/test_clients_served.py": 20,
    "tests/integration/profiles/test_declared_fields.py": 20,
    "tests/integration/profiles/test_forget.py": 20,
    "tests/parity/test_overlay_in_replay.py": 20,
    "tests/parity/test_table_conversion.py": 20,
    "tests/contract/test_store.py": 20,
    "tests/unit/ops/test_histories.py": 20,
    "tests/unit/ops/test_libraries.py": 20,
    "tests/unit/perf/test_scenarios.py": 20,
    "tests/unit/scoring/grpc/test_front.py": 20,
    "tests/unit/scoring/server/test_mapped_files.py": 20,
    "tests/unit/streams/drift/test_state.py": 20,
    "tests/e2e/test_copied_bundle.py": 15,
    "tests/integration/host/test_grpc_clients.py": 15,
    "tests/integration/topics/test_open_transactions.py": 15,
    "tests/parity/test_declared_readers.py": 15,
    "tests/parity/test_native_model.py": 15,
    "tests/parity/test_own_fields_against_naive.py": 15,
    "tests/unit/features/datasets/test_handbook.py": 15,
    "tests/unit/perf/test_measuring.py": 15,
    "tests/unit/scoring/server/test_supervisor.py": 15,
    "tests/unit/scoring/server/test_swap.py": 15,
    "tests/unit/scoring/server/test_worker_processes.py": 15,
    "tests/integration/console/test_console_topics.py": 10,
    "tests/integration/host/test_openapi.py": 10,
}
_SECONDS_WAITING, _SECONDS_COMPUTING = 6, 2


def spread(names: Sequence[str]) -> list[str]:
    """Returns the names of the files in the order of the run. Each name occurs once in the result."""
    groups: tuple[list[str], list[str]] = ([], [])
    for name in sorted(dict.fromkeys(names), key=_seconds, reverse=True):
        groups[not name.startswith(_WAITING)].append(name)
    places = []
    for number, group in enumerate(groups):
        ends = list(accumulate(map(_seconds, group)))
        places += [((end - _seconds(name)) / ends[-1], number, name) for end, name in zip(ends, group, strict=True)]
    return [name for *_, name in sorted(places)]


def _seconds(name: str) -> int:
    return SECONDS.get(name, _SECONDS_WAITING if name.startswith(_WAITING) else _SECONDS_COMPUTING)


def ordered(items: Sequence[tuple[str, Item]]) -> list[Item]:
    """Returns the items of (file, item) pairs file by file, as `spread` orders the files."""
    by_file: dict[str, list[Item]] = {}
    for name, item in items:
        by_file.setdefault(name, []).append(item)
    return [item for name in spread(list(by_file)) for item in by_file[name]]
