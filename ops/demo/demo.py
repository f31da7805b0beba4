"""`paywarden demo`: runs the whole product on one machine, with real processes and nothing to install.

1. simulate a world; train and compile a model on its past; load the past, up to some hours ago, into an LMDB store
2. start the embedded broker here, and `stream`, `companion` and `serve` as processes of their own
3. when all of them are ready, send the payments of these hours to the endpoint at a fixed rate; each answered payment
   goes onto the topic `payments`, as an authorisation service would do; outcomes go onto `outcomes`: those of past
   payments, and after a simulated delay those of some live payments
4. read `decisions` and compare them with the answers; read every process's counts of its work (ops/demo/verdict.py)
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.datasets.made_columns import with_declared_columns
from paywarden.features.datasets.simulator import simulate, split_at
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.history.overlay import HistoryOverlay
from paywarden.features.history.staleness import Staleness
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.models.bundle.bundle import Manifest, load_bundle
from paywarden.models.metrics.evaluation import Days, day_of_time
from paywarden.models.training.table import LabelRules, training_table
from paywarden.models.training.training import train_bundle
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.ops.demo.demo_desk import Desk
from paywarden.ops.demo.kept_demo import DRIFT_SETTINGS, keep_running, stop_at_a_signal
from paywarden.ops.demo.live_run import LIVE_PREFIX, DemoWorld, Kept, LiveLoad, LiveSystem, run_live
from paywarden.ops.demo.verdict import in_words
from paywarden.ops.loadgen.traffic import requests_of
from paywarden.ops.progress import progress_bar
from paywarden.ops.times import now_ms
from paywarden.streams.maintenance.backfill import backfill

HISTORY_DAYS = 45
# After the start, for `--keep`. A demonstration that lives longer begins them again.
LATER_DAYS = 2
# The hour (UTC) that it is in the simulated world at the start: people pay often from then on, for nine hours.
BUSY_HOUR = 11
# A person is waiting. 14 days instead of 28 and 60 trees instead of 200 train in a quarter of the time, and the average
# precision is 0.65 instead of 0.69. A choice of the number of trees would cost another training. One thread: with other
# work on the machine LightGBM's threads wait for each other, and keep a core busy each.
TRAINING_DAYS = 14
TRAINING = TrainingSettings(
    label_delay_days=7,
    trees=60,
    learning_rate=0.1,
    early_stopping_rounds=0,
    threads=1,
    # A payment sees the payments that its host has answered.
    profile_lag="1s",
    overlay_hosts=1,
)
CARDS_MIN = 3_000
# With 10,000 cards a kept demonstration has a payment every three seconds, although each card pays twice a day: with
# fewer cards that pay more often, drift detection would rightly see another world than that of the training.
KEPT_CARDS_MIN = 10_000
# A week for them: about as many payments to train on.
KEPT_TRAINING_DAYS = 7
# The simulator's average. The live part must not run out of payments.
_PAYMENTS_PER_CARD_DAY = 1.5
_MINUTE_MS, _HOUR_MS, _DAY_MS, _DAY_MINUTES = 60_000, 3_600_000, 86_400_000, 1_440


def run_demo(
    *,
    seconds: int,
    rate: float,
    seed: int,
    catalogue: Catalogue = CATALOGUE,
    catalogue_file: Path | None = None,
    keep: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Run the demonstration; returns the summary. Raises PaywardenError naming the part that did not do its work.

    `catalogue_file` has the catalogue of a project, for the processes. Its declared fields get plausible values. `keep`
    takes the addresses as JSON; then everything runs on until SIGTERM or SIGINT (ops/demo/kept_demo.py).
    """
    console = Console(stderr=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-demo-")))
        in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-demo-", dir=in_memory)))
        world = prepare_world(
            folder, catalogue, seconds=seconds, rate=rate, seed=seed, console=console, is_kept=keep is not None
        )
        world = replace(world, catalogue_file=catalogue_file)

        def say(line: str) -> None:
            _say(console, line)

        if keep is None:
            return run_live(world, folder, memory, load=LiveLoad(rate, seconds), console=console, say=say)
        announce, desk = keep, Desk(folder)

        def afterwards(live: LiveSystem, summary: dict[str, Any]) -> None:
            for line in in_words(summary):
                say(line)
            with stop_at_a_signal() as stop:
                command = [sys.executable, "-m", "paywarden"]
                desk.open_case(live.kafka, live.flagged)
                keep_running(live, desk, summary, announce=announce, say=say, stop=stop, command=command)

        return run_live(
            world,
            folder,
            memory,
            load=LiveLoad(rate, seconds),
            console=console,
            say=say,
            kept=Kept(DRIFT_SETTINGS + desk.prepare(), desk.register, afterwards),
        )


def prepare_world(
    folder: Path,
    catalogue: Catalogue,
    *,
    seconds: int,
    rate: float,
    seed: int,
    console: Console,
    is_kept: bool = False,
) -> DemoWorld:
    """Simulate, train, compile and load the past: a bundle and a store in `folder`, and the live part."""
    wanted = int(rate * seconds) + 100
    cards = max(KEPT_CARDS_MIN if is_kept else CARDS_MIN, int(wanted / _PAYMENTS_PER_CARD_DAY))
    training_days = KEPT_TRAINING_DAYS if is_kept else TRAINING_DAYS
    now = now_ms()
    _say(console, f"simulating {HISTORY_DAYS} days of {cards} cards")
    ahead_ms = (BUSY_HOUR * _HOUR_MS - now) % _DAY_MS
    payments, outcomes = at_another_hour(
        *simulate(
            cards=cards, days=HISTORY_DAYS + LATER_DAYS, seed=seed, end_time_ms=now + ahead_ms + LATER_DAYS * _DAY_MS
        ),
        ahead_ms,
    )
    fields = catalogue.payment.fields
    payments = with_declared_columns(payments, fields, seed=seed)
    # The payments of the last hours are sent live. Dated as they are, cards pay as often as in the training.
    start_ms = payments["event_time_ms"][int(np.searchsorted(payments["event_time_ms"].to_numpy(), now)) - wanted]
    past, live = split_at(payments, outcomes, start_ms.as_py())
    history = history_of_tables(*past, fields)
    _say(console, "loading the feature kernel (the first time it is compiled, which takes half a minute)")
    engine = FeatureEngine(catalogue)
    engine.warm_up()
    _say(console, f"training on {training_days} days, compiling the model, and loading {len(history)} payments")
    with ThreadPoolExecutor(1) as pool:
        # The training does not hold Python's lock most of the time, so the other thread can run.
        filling = pool.submit(_fill_store, history, folder / "store", catalogue)
        manifest = _train(history, folder / "bundle", engine, training_days)
        profiles = filling.result()
    _say(
        console,
        f"model {manifest.model_version}: {manifest.training_payments} payments, {manifest.training_frauds} frauds, "
        f"average precision {manifest.metrics['average_precision']:.3f} out of fold",
    )
    bundle = load_bundle(folder / "bundle", catalogue_digest=engine.plan.digest)
    _say(console, f"{len(history)} payments of history are {profiles} profiles in the store")
    return DemoWorld(
        requests_of(live[0].slice(0, wanted), id_prefix=LIVE_PREFIX, fields=fields),
        past_outcomes(live[1], past[0], now),
        _labels(live[1], live[0]),
        bundle.predictor.native,
        profiles,
        fields,
        later=live[0].slice(wanted),
    )


def _train(history: History, bundle: Path, engine: FeatureEngine, days: int) -> Manifest:
    """Train a bundle on the last days whose labels are known."""
    last_day = int(day_of_time(history.event_time_ms[-1:])[0]) - TRAINING.label_delay_days
    window = Days(last_day - days + 1, last_day)
    table = training_table(
        history,
        window,
        engine=engine,
        rates=load_rates(),
        labels=LabelRules(TRAINING.label_delay_days),
        staleness=Staleness.read(TRAINING.profile_lag),
        overlay=HistoryOverlay(TRAINING.overlay_hosts),
    )
    return train_bundle(table, window, bundle, engine=engine, settings=TRAINING, progress=progress_bar)


def _fill_store(history: History, path: Path, catalogue: Catalogue) -> int:
    """Fill a store with the profiles of the whole past; returns how many. Its thread needs an engine of its own."""
    with closing(LmdbStore.from_settings(LmdbSettings(path=str(path)))) as store:
        return backfill(history, store, engine=FeatureEngine(catalogue), rates=load_rates(), outcome_days=30)


def past_outcomes(outcomes: pa.Table, payments: pa.Table, start_ms: int) -> list[dict[str, Any]]:
    """Returns the outcomes of past payments that become known in the next simulated day, in order.

    `outcomes` are all that become known from `start_ms` on. Some are of payments that are sent live, with other ids:
    nobody would know those payments.
    """
    soon = outcomes.filter(pc.less(outcomes["outcome_time_ms"], start_ms + _DAY_MS))
    rows: list[dict[str, Any]] = soon.filter(pc.is_in(soon["payment_id"], payments["payment_id"])).to_pylist()
    return rows


def at_another_hour(payments: pa.Table, outcomes: pa.Table, ahead_ms: int) -> tuple[pa.Table, pa.Table]:
    """Returns a world's tables as they are where the sun is `ahead_ms` behind: people pay by their own clocks."""
    offset = (payments["utc_offset_minutes"].to_numpy() + ahead_ms // _MINUTE_MS + _DAY_MINUTES // 2) % _DAY_MINUTES
    moved = {
        "event_time_ms": payments["event_time_ms"].to_numpy() - ahead_ms,
        "utc_offset_minutes": offset - _DAY_MINUTES // 2,
    }
    return _replaced(payments, moved), _replaced(
        outcomes, {"outcome_time_ms": outcomes["outcome_time_ms"].to_numpy() - ahead_ms}
    )


def _replaced(table: pa.Table, columns: Mapping[str, np.ndarray[Any, Any]]) -> pa.Table:
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    return table


def _labels(outcomes: pa.Table, payments: pa.Table) -> dict[str, str]:
    """Returns labels by the id of a live payment."""
    outcomes = outcomes.filter(pc.is_in(outcomes["payment_id"], payments["payment_id"]))
    ids, labels = outcomes["payment_id"].to_pylist(), outcomes["label"].to_pylist()
    return {LIVE_PREFIX + payment_id: label for payment_id, label in zip(ids, labels, strict=True)}


def _say(console: Console, line: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {line}", highlight=False)
