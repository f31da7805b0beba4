"""Faults of what decides: models, challengers, rollouts, the overlay, shards; and changes that detection finds."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import psutil

from paywarden.models.bundle.bundle import MANIFEST
from paywarden.models.rollout.log import FileRolloutLog, RolloutKeeper
from paywarden.models.rollout.rollout import EventKind, RolloutEvent
from paywarden.models.rollout.shares import CANDIDATE, CardSplit, arm_at, arm_edges
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.scoring.state.shards import CardShards, held_by
from perf.parts.alert_host_faults import Until
from perf.parts.alert_site import Fault, Pulses, Site, SiteOptions
from perf.parts.broken_model import BrokenModel
from tests.services.product.deployment import Deployment
from tests.services.product.processes import ROOT, PaywardenProcess
from tests.worlds.drift.drifting import decision as full_decision
from tests.worlds.drift.outcome_world import outcome
from tests.worlds.small import small_world
from tests.worlds.small.small_decisions import FEATURE, SmallDecisions, reference
from tests.worlds.stream.decision_records import decision

_DAY_MS = 86_400_000
_BLOCK_MS = 300_000


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def models(options: SiteOptions, stack: ExitStack) -> None:
    """Models that fail, and profiles that cannot be read."""
    folder = options.folder / "broken-models"
    first = BrokenModel(folder / "first", small_world.trained_bundle())
    second = BrokenModel(folder / "second", small_world.other_bundle())
    settings = {"serve": f'fallback_bundle = "{second.bundle}"\n'}
    site = Site(replace(options, bundle=first.bundle, settings=settings), stack)
    site.start("stream", "companion", "serve")
    profiles = Encoder("profiles", LocalSchemaIds().id_of("profiles"))

    def unreadable() -> None:
        """The states that a later release would write: the first byte is the layout."""
        for number in range(3):
            value = {"entity": "card", "state": b"\x63" + bytes(40), "written_time_ms": _now_ms()}
            site.payments.send("profiles", profiles.encode(value), f"card:c-{number}")
        site.payments.flush()

    later = Until(unreadable, 1.0)

    def both(letter: str) -> None:
        first.fail(letter)
        second.fail(letter)

    def heal() -> None:
        first.heal()
        second.heal()

    site.together(
        [
            Fault(
                ("PaywardenModelErrors",),
                "the model fails on one payment in ten",
                lambda: first.fail("h"),
                first.heal,
            ),
            Fault(("PaywardenModelOut",), "the model fails on every payment", lambda: first.fail("n"), first.heal),
            Fault(("PaywardenRulesAlone",), "model and fallback fail on every payment", lambda: both("n"), heal),
        ],
        [Fault(("PaywardenProfilesUnreadable",), "a later release writes profiles", later.begin, later.end)],
    )


def challengers(options: SiteOptions, stack: ExitStack) -> None:
    """A challenger that cannot start again, and challengers that do not keep up."""
    bundles = {"b-42": small_world.other_bundle(), "b-43": options.folder / "b-43"}
    shutil.copytree(bundles["b-42"], bundles["b-43"])
    tables = "".join(
        f'[[shadow.challengers]]\nname = "{name}"\nbundle = "{bundle}"\n' for name, bundle in bundles.items()
    )
    settings = {"shadow": "waiting_bytes_max = 1048576\n"}
    jobs = ("stream", "companion", "serve", "shadow")
    site = Site(replace(options, settings=settings, jobs=jobs, tail=tables), stack)
    site.start(*jobs)
    manifest = bundles["b-43"] / MANIFEST
    whole = manifest.read_text(encoding="utf-8")

    def break_challenger() -> None:
        """The challenger's process ends, and the next one refuses its bundle."""
        manifest.write_text("{}", encoding="utf-8")
        for child in _children(site, "shadow"):
            if "b-43" in child.cmdline():
                child.kill()

    def mend_challenger() -> None:
        manifest.write_text(whole, encoding="utf-8")

    pulses = Pulses(lambda: [child.pid for child in _children(site, "shadow")], stopped_s=40.0, running_s=3.0)

    def hold_up() -> None:
        site.payments.rate, site.payments.batch = 150.0, 15
        pulses.begin()

    def let_go() -> None:
        site.payments.rate, site.payments.batch = 10.0, 0
        pulses.end()

    site.suffer(
        Fault(
            ("PaywardenShadowUnpaired",),
            "the challengers get no core for 40 s of every 43 (SIGSTOP), at 150 payments a second",
            hold_up,
            let_go,
        )
    )
    site.suffer(
        Fault(
            ("PaywardenShadowDown",), "a challenger ends, and its bundle is damaged", break_challenger, mend_challenger
        )
    )


def _children(site: Site, name: str) -> list[psutil.Process]:
    return psutil.Process(site.processes[name].pid).children(recursive=True)


_GARBAGE = """\
import gc, os, threading, time

def litter():
    while True:
        time.sleep(1)
        if os.path.exists(CONTROL):
            kept = []
            for _ in range(400000):
                one = []
                one.append(one)
                kept.append(one)
            del kept, one
            gc.collect()

os.register_at_fork(after_in_child=lambda: threading.Thread(target=litter, daemon=True).start())
"""


def mirror(options: SiteOptions, stack: ExitStack) -> None:
    """Garbage in a worker, a companion whose mirror cannot be opened, a `serve` that looks for it elsewhere."""
    site = Site(options, stack)
    control, code = site.folder / "litters", site.folder / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(f"CONTROL = {str(control)!r}\n{_GARBAGE}", encoding="utf-8")
    site.environment["serve"] = {"PYTHONPATH": f"{code}:{ROOT}"}
    site.start("stream", "companion", "serve")
    place = site.deployment.mirror

    def no_folder() -> None:
        site.stop("companion")
        place.rename(f"{place}-away")
        place.write_text("a file", encoding="utf-8")
        site.run("companion")

    def folder_again() -> None:
        site.stop("companion")
        place.unlink()
        (site.folder / "mirror-away").rename(place)
        site.start("companion")

    def elsewhere() -> None:
        site.stop("serve")
        site.environment["serve"]["PAYWARDEN_MIRROR_PATH"] = str(site.folder / "other-mirror")
        site.run("serve")

    def here() -> None:
        site.stop("serve")
        del site.environment["serve"]["PAYWARDEN_MIRROR_PATH"]
        site.start("serve")

    site.suffer(
        Fault(
            ("PaywardenMirrorAbsent", "PaywardenHostNotReady"),
            "`serve` has another [mirror] path than the companion",
            elsewhere,
            here,
        )
    )
    site.together(
        [
            Fault(
                ("PaywardenGarbagePauses",),
                "something in the worker drops 400,000 objects that refer to themselves every second",
                control.touch,
                control.unlink,
            )
        ],
        [
            Fault(
                ("PaywardenCompanionFails",),
                "a file stands where the companion wants the mirror's folder",
                no_folder,
                folder_again,
                follow=("PaywardenMirrorStale", "PaywardenCompanionNotReady"),
            )
        ],
    )


def overlay(options: SiteOptions, stack: ExitStack) -> None:
    """More payments than the overlay has room for, and a stream that does not name its payments."""
    table = f'enabled = true\npath = "{options.folder / "overlay-table"}"\npayments_max = 1500\n'
    site = Site(replace(options, settings={"overlay": table}), stack)
    site.start("stream", "companion", "serve")

    def many() -> None:
        site.payments.rate, site.payments.batch = 200.0, 20

    def few() -> None:
        site.payments.rate, site.payments.batch = 10.0, 0

    def unnamed() -> None:
        site.stop("stream")
        site.environment["stream"] = {"PAYWARDEN_OVERLAY_ENABLED": "false"}
        site.run("stream")

    def named() -> None:
        site.stop("stream")
        site.environment["stream"] = {}
        site.run("stream")

    site.suffer(Fault(("PaywardenOverlayFull",), "fourteen times the payments that come on other days", many, few))
    site.suffer(Fault(("PaywardenOverlayUnused",), "the stream has [overlay] enabled = false", unnamed, named))


_ROUTE_KEY = "5d" * 32


def cards(options: SiteOptions, stack: ExitStack) -> None:
    """Hosts that hold a part of the cards each: payments of others come, and a second host has another list."""
    key = options.folder / "route-key"
    key.write_text(_ROUTE_KEY, encoding="utf-8")
    key.chmod(0o600)
    names = ("one", "two", "three")

    def shards(host: str, hosts: tuple[str, ...] = names) -> str:
        return f'count = 16\nhost = "{host}"\nhosts = {json.dumps(hosts)}\ncopies = 1\nroute_key_file = "{key}"\n'

    site = Site(replace(options, settings={"shards": shards("one")}, jobs=(*options.jobs, "other")), stack)
    held = held_by("one", 16, names, 1)
    kinds = CardShards(16, bytes.fromhex(_ROUTE_KEY), {"card": 1})
    every = [f"c-{number}" for number in range(200)]
    of_host = [shard in held for shard in kinds.of_cards([card.encode() for card in every]).tolist()]
    ours = [card for card, is_ours in zip(every, of_host, strict=True) if is_ours]
    others = [card for card, is_ours in zip(every, of_host, strict=True) if not is_ours]
    site.payments.cards = ours[:20]
    (site.folder / "second").mkdir()
    second = stack.enter_context(Deployment(site.folder / "second", options.bootstrap, f"{options.name}-"))
    text = site.deployment.config.read_text(encoding="utf-8")
    text = text.replace(str(site.folder), str(second.folder)).replace(
        str(site.ports["companion"]), str(site.ports["other"])
    )
    # The same store, and a mirror and an outbox of its own.
    text = text.replace(str(second.store), str(site.deployment.store))
    second.config.write_text(text.replace(shards("one"), shards("two")), encoding="utf-8")

    def run_second(hosts: tuple[str, ...]) -> None:
        if second.running and second.running[-1].process.poll() is None:
            second.running[-1].stop()
        now = second.config.read_text(encoding="utf-8")
        second.config.write_text(re.sub(r"\nhosts = \[.*\]", f"\nhosts = {json.dumps(hosts)}", now), encoding="utf-8")
        second.start("companion", afresh=True)

    run_second(names)
    site.start("stream", "companion", "serve")
    site.together(
        [
            Fault(
                ("PaywardenCardsNotHeld",),
                "half of the payments are of cards that another host holds",
                lambda: setattr(site.payments, "cards", ours[:20] + others[:20]),
                lambda: setattr(site.payments, "cards", ours[:20]),
            )
        ],
        [
            Fault(
                ("PaywardenShardTablesDiffer",),
                "the companion of a second host has another list of hosts",
                lambda: run_second(("one", "two")),
                lambda: run_second(names),
            )
        ],
    )


def rollout(options: SiteOptions, stack: ExitStack) -> None:
    """A rollout that loses an arm's decisions, one that does harm, one that nobody leads, and a damaged log."""
    log = options.folder / "rollouts.jsonl"
    site = Site(
        replace(
            options,
            settings={"rollout": f'log = "{log}"\nsteps = [50.0, 100.0]\nstep_hours = [2.0]\nsettle_s = 0.0\n'},
            jobs=("stream", "companion"),
        ),
        stack,
    )
    site.start("stream", "companion")
    decisions = Decided(site, FileRolloutLog(log))
    leader: list[PaywardenProcess] = []

    def lead() -> None:
        leader.append(site.deployment.start("rollout", "lead", afresh=True))

    def rolled_back() -> None:
        decisions.begin("r-harm", lead)
        decisions.send(4_000, rollout="r-harm", declines=0.3)

    def split_wrong() -> None:
        decisions.begin("r-split", lead)
        decisions.send(4_000, rollout="r-split", lost=0.5)

    def next_rollout() -> None:
        decisions.begin("r-next", lead)

    def not_led() -> None:
        leader[-1].kill()

    site.suffer(
        Fault(("PaywardenRolloutSplitWrong",), "half of the candidate's decisions are lost", split_wrong, next_rollout)
    )
    decisions.abort()
    site.suffer(
        Fault(("PaywardenRolloutRolledBack",), "the candidate declines 30 % of its payments", rolled_back, next_rollout)
    )
    whole = log.read_bytes()

    def damage() -> None:
        log.write_bytes(whole[: len(whole) // 2] + b"\xff" * 40 + whole[len(whole) // 2 :])

    site.suffer(Fault(("PaywardenRolloutNotLed",), "`paywarden rollout lead` is killed", not_led, lead))
    whole = log.read_bytes()
    site.suffer(
        Fault(
            ("PaywardenRolloutLogUnreadable",), "the log of rollouts is damaged", damage, lambda: log.write_bytes(whole)
        )
    )


class Decided:
    """Decisions of 2,000 cards on the topic, as hosts with a rollout write them."""

    def __init__(self, site: Site, log: FileRolloutLog) -> None:
        self._site, self._log = site, log
        self._encoder = Encoder("decisions", LocalSchemaIds().id_of("decisions"))
        self._random, self._made = np.random.default_rng(1), 0

    def begin(self, name: str, lead: Callable[[], object]) -> None:
        """Begin a rollout, half of whose cards are the candidate's, and wait until it runs."""
        self.abort()
        self.send(2_000)
        time.sleep(0.1)
        arguments = ("--candidate", str(small_world.other_bundle()), "--name", name, "--by", "ann", "--why", "a test")
        done = self._site.deployment.run("rollout", "start", *arguments)
        assert done.returncode == 0, done.stderr
        lead()
        deadline = time.monotonic() + 120
        while self._phase() != "running" and time.monotonic() < deadline:
            self.send(20, rollout=name, share=0)
            time.sleep(0.5)
        self._site.say(f"rollout {name} is {self._phase()}")

    def abort(self) -> None:
        if self._phase() in ("pending", "running", "paused"):
            RolloutKeeper(self._log).take(RolloutEvent(EventKind.ABORTED, _now_ms(), "ann", "enough"))
            time.sleep(2)

    def _phase(self) -> str:
        found = RolloutKeeper(self._log).rollout
        return "" if found is None else str(found.phase.value)

    def send(
        self, count: int, *, rollout: str = "", share: int = 5_000, declines: float = 0.02, lost: float = 0.0
    ) -> None:
        found = RolloutKeeper(self._log).rollout
        salt = found.start.salt if found is not None and rollout else "00" * 16
        split, edges = CardSplit(bytes.fromhex(salt)), arm_edges([share])
        for card in self._random.integers(0, 2_000, count):
            self._made += 1
            ours = bool(rollout) and share > 0 and arm_at(split.position(f"card:C{card}".encode()), edges) == CANDIDATE
            if ours and self._random.random() < lost:
                continue
            is_declined = self._random.random() < (declines if ours else 0.02)
            record = decision(
                f"r{self._made}",
                decided_time_ms=_now_ms(),
                card_id=f"C{card}",
                score=float(self._random.random()),
                latency_us=int(self._random.gamma(4.0, 100.0)),
                action="decline" if is_declined else "approve",
                rollout=rollout,
                arm=("candidate" if ours else "champion") if rollout else "",
            )
            self._site.payments.send("decisions", self._encoder.encode(record), f"r{self._made}")
        self._site.payments.flush()


def drift(options: SiteOptions, stack: ExitStack) -> None:
    """A feature that is 0 for every payment of the last hour, then is as before."""
    _drifted(options, stack, "PaywardenDriftCritical", "a feature of the model is 0 for every payment", "")


def drift_small(options: SiteOptions, stack: ExitStack) -> None:
    """The same with a threshold for critical changes that it does not reach."""
    more = "psi_critical = 100.0\nshare_change_critical = 100.0\n"
    text = "the same, where [drift_alerts] takes it for a warning"
    _drifted(options, stack, "PaywardenDriftWarning", text, more)


def _drifted(options: SiteOptions, stack: ExitStack, alert: str, text: str, more: str) -> None:
    path = options.folder / f"{options.name}-reference.npz"
    reference().save(path)
    settings = {
        "drift": f'references = ["{path}"]\nsave_every_ms = 1000\ngrace_ms = 5000\n',
        "drift_detection": "payments_min = 30\n",
    }
    if more:
        settings["drift_alerts"] = more
    site = Site(replace(options, settings=settings, jobs=("stream",), watches_drift=True), stack)
    made, encoder = SmallDecisions(seed=5), Encoder("decisions", LocalSchemaIds().id_of("decisions"))

    def block(start_ms: int, count: int, length_ms: int) -> None:
        for record in made.records(start_ms, count, length_ms):
            record = {**record, "decision_id": f"{options.name}-{record['decision_id']}"}
            site.payments.send("decisions", encoder.encode(record), record["payment_id"])
        site.payments.flush()

    def live() -> None:
        block(_now_ms() - 5_000, 12, 5_000)

    def changed() -> float:
        made.gone = FEATURE
        return time.time()

    def as_before() -> None:
        made.gone = ""

    # All of yesterday: of a part of a day, detection says that its hours are not those of other days.
    first, end = (_now_ms() // _DAY_MS - 1) * _DAY_MS, _now_ms() // _BLOCK_MS * _BLOCK_MS
    for start_ms in range(first, end, _BLOCK_MS):
        block(start_ms, 60, _BLOCK_MS)
    feed = Until(live, 5.0)
    feed.begin()
    stack.callback(feed.end)
    site.start("stream")
    site.suffer(Fault((alert,), text, changed, as_before, more_s=1800.0, later_s=1800.0))


def outcomes(options: SiteOptions, stack: ExitStack) -> None:
    """Frauds that a model used to decline are approved on the last day with mature labels."""
    settings = {
        "outcomes": "save_every_ms = 1000\nlabel_delay_days = 2\nwindow_days = 60\nreference_days = 6\n",
        "drift": "save_every_ms = 1000\ngrace_ms = 5000\n",
    }
    site = Site(replace(options, settings=settings, jobs=("stream",)), stack)
    ids = LocalSchemaIds()
    encoders = {topic: Encoder(topic, ids.id_of(topic)) for topic in ("decisions", "outcomes")}
    last_day = _now_ms() // _DAY_MS - 3

    def decided() -> float:
        """The stream reads all at once: days without records would be evaluated before they come."""
        for number in range(3_000):
            day, is_fraud = last_day - number % 8, number // 8 % 4 == 0
            decided_ms = day * _DAY_MS + number % 23 * 3_600_000
            is_caught = is_fraud and day != last_day
            shown: dict[str, object] = {
                "action": "decline" if is_caught else "approve",
                "score": 0.9 if is_caught else 0.01,
                "flags": [],
            }
            record = {**full_decision(number, decided_ms), **shown}
            label = outcome(record["payment_id"], decided_ms + 7_200_000, "fraud" if is_fraud else "genuine")
            site.payments.send("decisions", encoders["decisions"].encode(record), record["payment_id"])
            site.payments.send("outcomes", encoders["outcomes"].encode(label), record["payment_id"])
        site.payments.flush()
        began = time.time()
        site.start("stream")
        return began

    site.suffer(
        Fault(
            ("PaywardenOutcomesWorse",),
            "a model approves all frauds of the last day with mature labels",
            decided,
            lambda: None,
            # The day after must have mature labels, too.
            clears=False,
        )
    )
