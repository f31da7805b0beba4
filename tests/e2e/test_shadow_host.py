"""A challenger with features that the served catalogue has not, on live payments: both stacks, and real Kafka.

payments ─┬─► stream, companion of wide.toml ─► its mirror ─► shadow run ─► shadow-decisions
callers ──┴─► serve ─► outbox ──────────────────────────────────┘
                          └─► companion ─► decisions
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paywarden.features.catalogue.loading import load_catalogue
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.training.table import LabelRules, training_table
from paywarden.models.training.training import train_bundle
from paywarden.ops.wiring.shadow_parts import shadow_tables
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.schemas.settings import read_source
from paywarden.streams.kafka.client import KafkaSettings
from tests.patience import PATIENCE_S
from tests.services.made_once import made_once
from tests.services.product.deployment import Deployment
from tests.services.product.processes import is_ready, post, samples, wait_for_listener, wait_until
from tests.worlds.rollout.registry import people_file
from tests.worlds.small import small_world
from tests.worlds.stream.topics import Topics

# The packaged features, and two that it has not.
WIDE = """\
from dataclasses import replace

from paywarden.features.catalogue import catalogue
from paywarden.features.catalogue.catalogue import card, merchant

more = (card.count("card_count_3h", "3h"), merchant.amount_max("merchant_amount_max_14d", "14d"))
CATALOGUE = replace(catalogue.CATALOGUE, features=(*catalogue.CATALOGUE.features, *more))
"""
FIRST, ASKED = 2_000, 6
REQUEST = ScoreRequest.DESCRIPTOR.fields_by_name


def wide_bundle(catalogue: Path) -> Path:
    def make(folder: Path) -> None:
        engine = FeatureEngine(load_catalogue(catalogue))
        days = small_world.TRAINING_DAYS
        rows = training_table(
            small_world.history(),
            days,
            engine=engine,
            rates=small_world.rates(),
            labels=LabelRules(small_world.LABEL_DELAY_DAYS),
        )
        train_bundle(rows, days, folder, engine=engine, settings=small_world.SETTINGS)

    return made_once("wide", make)


@pytest.fixture
def wide(tmp_path: Path, settings: KafkaSettings) -> Iterator[Deployment]:
    """The configuration of the shadow host. It reads the payments of the other one."""
    folder = tmp_path / "wide"
    folder.mkdir()
    (folder / "catalogue.py").write_text(WIDE, encoding="utf-8")
    with Deployment(folder, settings.bootstrap, f"{settings.topic_prefix}wide-") as made:
        made.configure("kafka", f'source_prefix = "{settings.topic_prefix}"\n')
        made.configure("features", f'catalogue = "{folder / "catalogue.py"}"\n')
        made.bundle.symlink_to(wide_bundle(folder / "catalogue.py"))
        made.create_topics()
        yield made


def asked(row: dict[str, Any], payment_id: str) -> bytes:
    fields = {name: value for name, value in row.items() if value is not None and name in REQUEST}
    return json.dumps({**fields, "payment_id": payment_id}).encode()


def test_a_shadow_host_decides_as_a_worker_of_its_own_catalogue_would_beside_the_champion(
    deployment: Deployment, wide: Deployment, settings: KafkaSettings
) -> None:
    deployment.bundle.symlink_to(small_world.trained_bundle())
    deployment.configure("companion", "fill_from_store = false\n")
    people = people_file(deployment.folder, {"anna": ("propose", "promote", "rollout"), "lead": ("lead",)})
    keys = deployment.folder
    deployment.configure(
        "models", f'folder = "{keys / "registry"}"\npeople = "{people}"\nkey_file = "{keys / "anna.pem"}"\n'
    )
    for arguments in (
        ("register", str(deployment.bundle)),
        ("promote", read_manifest(deployment.bundle).model_version),
        ("register", str(small_world.other_bundle())),
    ):
        done = deployment.run("models", *arguments, "--why", "a test")
        assert done.returncode == 0, done.stderr
    deployment.configure(
        "shadow",
        f'cpu_share_max = 1.0\n[[shadow.challengers]]\nname = "wide"\nconfig = "{wide.config}"\n',
    )
    deployment.configure_internally("shadow", batch_wait_ms=1, priority="normal")
    rows = small_world.tables()[0].slice(0, FIRST + 50).to_pylist()
    Topics(settings).send_payments(rows[:FIRST])
    wide.start("stream")
    companions = [each.start("companion").first_line() for each in (wide, deployment)]
    wait_until(lambda: is_ready(companions[0]), "the mirror of the shadow host is complete")
    served, own = (each.start("serve").first_line() for each in (deployment, wide))
    shadow = deployment.start("shadow", "run").first_line()
    for address in (served, own):
        wait_for_listener(address.removeprefix("http://"))
    wait_until(lambda: is_ready(shadow), "the challenger is loaded")
    source = read_source(str(deployment.config))
    answers: dict[str, dict[str, Any]] = {}
    numbers = itertools.count()

    def pay() -> bool:
        """Ask both hosts about the same payments, until some are compared. A slow machine leaves out many as late."""
        for row in rows[FIRST : FIRST + 50 : 10]:
            payment_id, told = f"p-{next(numbers)}", {}
            for address, host in ((served, "champion"), (own, "own")):
                status, body = post(f"{address}/v1/score", asked(row, payment_id), "application/json")
                assert status == 200, body
                told[host] = json.loads(body)
            answers[told["champion"]["decision_id"]] = told
        return len(shadow_tables(source, None, None, None)[0]) >= ASKED

    wait_until(pay, "decisions of the challenger are on the topic", every_s=0.2)
    pairs = shadow_tables(source, None, None, None)[0].to_pylist()
    champion, challenger = (read_manifest(each.bundle) for each in (deployment, wide))
    assert challenger.catalogue_digest != champion.catalogue_digest
    for pair in pairs:
        both = answers[pair["decision_id"]]
        assert (pair["is_shadow_host"], pair["challenger"]) == (True, "wide")
        assert (pair["champion_bundle_digest"], pair["challenger_bundle_digest"]) == (
            champion.digest,
            challenger.digest,
        )
        # To the bit: JSON has the shortest text that gives the same float64.
        assert (pair["champion_score"], pair["champion_action"]) == (
            both["champion"]["score"], both["champion"]["action"],
        )  # fmt: skip
        assert (pair["challenger_score"], pair["challenger_action"]) == (both["own"]["score"], both["own"]["action"])
    assert any(pair["champion_score"] != pair["challenger_score"] for pair in pairs)

    def compared() -> int:
        done = deployment.run("shadow", "report", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["pairs"]
        return int(found[0]["comparison"]["payments"]) if found else 0

    wait_until(lambda: compared() >= len(pairs), "the report has all pairs, whose decisions are shipped", every_s=0.5)

    # A rollout that begins in the shadow is one more challenger, until a person ends it.
    begin = ("--candidate", str(small_world.other_bundle()), "--name", "r-1")
    assert deployment.run("rollout", "start", "--shadow", *begin, "--why", "a test").returncode == 0
    leader = deployment.start("rollout", "lead", "--look-every", "0.5", "--key", str(keys / "lead.pem"))

    def tried() -> set[str]:
        pay()
        pairs = shadow_tables(source, None, None, None)[0].to_pylist()
        return {pair["challenger_bundle_digest"] for pair in pairs if pair["challenger"] == "r-1"}

    wait_until(lambda: tried() == {read_manifest(small_world.other_bundle()).digest}, "r-1 is tried", every_s=0.2)
    gauge = ("paywarden_shadow_up", "r-1")
    assert samples(shadow)[gauge] == 1
    assert deployment.run("rollout", "abort", "--why", "enough").returncode == 0
    wait_until(lambda: gauge not in samples(shadow), "nobody tries r-1 any more")
    assert leader.process.wait(PATIENCE_S) == 0
