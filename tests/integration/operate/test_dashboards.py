"""Every panel of every dashboard on a real Prometheus that scrapes running processes."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from paywarden.models.bundle.bundle import MANIFEST
from paywarden.ops.cli import cli
from paywarden.ops.logs import SCHEMA
from paywarden.ops.reference.metrics import families
from paywarden.ops.times import now_ms
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from tests.patience import PATIENCE_S
from tests.services.missing_tools import PROMETHEUS
from tests.services.product.deployment import Deployment
from tests.services.product.processes import post, wait_for_listener, wait_until
from tests.services.product.scoring_server import PATIENT
from tests.services.servers.prometheus import OPS, Prometheus, ask, running_prometheus, served
from tests.worlds.operate import runbook
from tests.worlds.operate.alert_faults import FAULTS, Stamp, Starts
from tests.worlds.operate.metric_uses import Panel, boards, family_of, panels
from tests.worlds.small import small_world

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason=PROMETHEUS.reason),
]

DAYS = "shown once a block or a day of decisions is evaluated"
CLUSTER = "shown with an Aerospike cluster"
CHANGE = "shown once a worker has changed what decides"
REGISTRY = "shown by a companion with [models] topic"
OVERLAY = "shown with [overlay] enabled"
SHARDS = "shown with [shards] count"
EVENT = "has a series for each kind of event, once there was one"
MADE = {
    "paywarden_drift_score_distance": DAYS,
    "paywarden_drift_training_distance": DAYS,
    "paywarden_drift_action_share": DAYS,
    "paywarden_outcomes_average_precision": DAYS,
    "paywarden_outcomes_brier_score": DAYS,
    "paywarden_outcomes_calibration_error": DAYS,
    "paywarden_outcomes_fraud_missed_minor": DAYS,
    "paywarden_outcomes_label_lag_quantile_seconds": DAYS,
    "paywarden_outcomes_net_minor": DAYS,
    "paywarden_outcomes_precision": DAYS,
    "paywarden_outcomes_recall": DAYS,
    "paywarden_store_breaker": CLUSTER,
    "paywarden_store_call_seconds": CLUSTER,
    "paywarden_store_calls_total": CLUSTER,
    "paywarden_store_failures_total": CLUSTER,
    "paywarden_store_findings": CLUSTER,
    "paywarden_store_moving_partitions": CLUSTER,
    "paywarden_store_records_total": CLUSTER,
    "paywarden_store_retries_total": CLUSTER,
    "paywarden_store_second_faults_total": CLUSTER,
    "paywarden_swap_timestamp_seconds": CHANGE,
    "paywarden_companion_model_registry_synced_timestamp_seconds": REGISTRY,
    "paywarden_companion_model_registry_failures_total": REGISTRY,
    "paywarden_companion_shards": SHARDS,
    "paywarden_companion_shard_table_info": SHARDS,
    "paywarden_overlay_added_total": OVERLAY,
    "paywarden_overlay_folded_total": OVERLAY,
    "paywarden_overlay_full_total": OVERLAY,
    "paywarden_overlay_left_out_total": OVERLAY,
    "paywarden_overlay_unsure_total": OVERLAY,
    "paywarden_overlay_untimely_total": OVERLAY,
    "paywarden_stream_dead_letters_total": EVENT,
    "paywarden_stream_expired_records_total": EVENT,
}
"""Metrics that no process shows within the minute of a test, and why. Their series are made up here; all others are
those of running processes."""

EMPTY = {
    "curl -s $COMPANION/metrics | grep paywarden_companion_model_registry",
    "curl -s $SERVE/metrics | grep paywarden_overlay",
    "curl -s $STREAM/metrics | grep -E 'paywarden_store_(moving|second)'",
}
"""Commands of the runbook that find nothing here: the deployment has no registry, no overlay and no Aerospike."""


class MadePage:
    """A page with a series of each metric of MADE. Counts grow with each scrape."""

    def __init__(self) -> None:
        self._families = {family[0]: family for those in families().values() for family in those if family[0] in MADE}
        self._scrapes = 0

    def __call__(self) -> str:
        self._scrapes += 1
        lines = []
        for name, kind, labels, _ in self._families.values():
            text = ", ".join(f'{label}="made"' for label in labels)
            lines.append(f"# TYPE {name.removesuffix('_total')} {kind}")
            if kind == "histogram":
                lines += [f'{name}_bucket{{{text}, le="{bound}"}} {self._scrapes}' for bound in ("0.1", "+Inf")]
                lines += [f"{name}_count{{{text}}} {self._scrapes}", f"{name}_sum{{{text}}} {self._scrapes}"]
            else:
                lines.append(f"{name}{{{text}}} {self._scrapes}")
        return "\n".join(lines) + "\n"


class Running:
    """A host, a stream worker and a challenger, and payments for them."""

    def __init__(self, deployment: Deployment, settings: KafkaSettings) -> None:
        self.deployment = deployment
        small_world.copied_bundle(deployment.folder)
        with deployment.config.open("a", encoding="utf-8") as config:
            config.write(f'{PATIENT}[[shadow.challengers]]\nname = "b-42"\nbundle = "{small_world.other_bundle()}"\n')
        self.stream = deployment.start("--log", "json", "stream").first_line()
        self.companion = deployment.start("--log", "json", "companion").first_line()
        self.serve = deployment.start("--log", "json", "serve")
        self.http = self.serve.first_line()
        assert self.serve.process.stdout is not None
        self._grpc = self.serve.process.stdout.readline().strip().removeprefix("grpc://")
        self.admin = self.serve.process.stdout.readline().strip().removeprefix("admin ")
        self.shadow = deployment.start("--log", "json", "shadow", "run").first_line()
        wait_for_listener(self.http.removeprefix("http://"))
        wait_for_listener(self._grpc)
        self._producer = make_producer(settings, linger_ms=1)
        self._settings = settings
        ids = LocalSchemaIds()
        self._encoders = {name: Encoder(name, ids.id_of(name)) for name in ("payments", "outcomes")}
        self._sent = 0

    def send(self) -> None:
        """One payment over HTTP, one over gRPC; both on the topic, with the outcome of one."""
        requests = [self._request() for _ in range(2)]
        status, answer = post(f"{self.http}/v1/score", requests[0].SerializeToString(), "application/x-protobuf")
        assert status == 200, answer
        with grpc.insecure_channel(self._grpc) as channel:
            call = channel.unary_unary("/paywarden.scoring.v1.Scoring/Score")
            call(requests[1].SerializeToString(), timeout=PATIENCE_S)
        for request in requests:
            record = {field.name: getattr(request, field.name) or None for field in request.DESCRIPTOR.fields}
            self._produce("payments", record, request.card_id)
        outcome = {
            "payment_id": requests[0].payment_id,
            "label": "fraud",
            "source": "analyst",
            "outcome_time_ms": now_ms(),
        }
        self._produce("outcomes", outcome, requests[0].payment_id)
        self._producer.flush(PATIENCE_S)

    def send_nonsense(self) -> None:
        """A record on the topic that is no payment."""
        self._producer.produce(self._settings.topic("payments"), b"nonsense", key="k")
        assert self._producer.flush(PATIENCE_S) == 0

    def _produce(self, topic: str, record: dict[str, object], key: str) -> None:
        self._producer.produce(self._settings.topic(topic), self._encoders[topic].encode(record), key=key)

    def _request(self) -> ScoreRequest:
        self._sent += 1
        return ScoreRequest(
            payment_id=f"p-{self._sent}",
            event_time_ms=now_ms(),
            card_id=f"c-{self._sent % 7}",
            merchant_id="m",
            amount_minor=100,
            currency="EUR",
        )

    def targets(self) -> dict[str, list[str]]:
        """Returns the addresses to scrape, by job."""
        addresses = {"serve": self.admin, "companion": self.companion, "stream": self.stream, "shadow": self.shadow}
        return {job: [address.removeprefix("http://")] for job, address in addresses.items()}


@pytest.fixture
def running(deployment: Deployment, settings: KafkaSettings) -> Running:
    return Running(deployment, settings)


@pytest.fixture
def prometheus(running: Running, tmp_path: Path) -> Iterator[Prometheus]:
    rules = {name: (OPS / name).read_text(encoding="utf-8") for name in ("alerts.yml", "recording.yml")}
    # Rules are evaluated as often as the pages are scraped.
    with (
        served(page=MadePage()) as made,
        running_prometheus(tmp_path / "prometheus", {**running.targets(), "made": [made]}, rules=rules) as server,
    ):
        yield server


def is_answered(prometheus: Prometheus, panel: Panel) -> bool:
    """Each query of the panel is answered by a series with a value.

    A time of 0 means that there was no such event, and the panel shows no line. Here its series is enough.
    """
    for query in panel.queries:
        expr = query.replace("$__rate_interval", "1m").replace(" > 0)", ")")
        for variable in ("$host", "$worker", "$version", "$challenger"):
            expr = expr.replace(variable, ".+")
        if not any(not math.isnan(float(series["value"][1])) for series in prometheus.query(expr)):
            return False
    return True


def conditions(prometheus: Prometheus) -> set[str]:
    """The alerts whose condition holds, whether they fire already or wait for their `for`."""
    alerts = ask(prometheus.address, "/api/v1/alerts")["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts}


def assert_the_page_of_metrics_names_all(prometheus: Prometheus) -> None:
    """A metric that the code does not list is on no page, on no dashboard and watched by no alert."""
    listed = {family[0] for those in families().values() for family in those}
    series = prometheus.query('count by (__name__) ({__name__=~"paywarden_.+"})')
    names = {one["metric"]["__name__"] for one in series}
    # The times at which counters began, which the library of Python adds.
    shown = {family_of(name) for name in names if not name.endswith("_created")}
    assert len(shown) > 100
    assert sorted(shown - listed) == []


ROLLOUT = "paywarden_rollout_"
"""Series of a rollout: no process has one before it begins."""


def assert_faults_are_of_series_that_there_are(prometheus: Prometheus) -> None:
    """Each series that a fault of the page of alerts changes exists on a quiet day, with the same name and labels.

    An `increase` does not see the first event of a counter that appears with it, and its alert would be silent.
    """
    changes = [
        change
        for fault in FAULTS.values()
        for change in fault.changes
        if isinstance(change, Stamp | Starts) or change.quiet is not None
    ]
    # Series of settings that this deployment does not have: a made series would exist even if its process fails.
    waiting = {
        _of_any_process(change.series)
        for change in changes
        if change.series.split("{")[0] not in MADE and not change.series.startswith(ROLLOUT)
    }

    def all_there() -> bool:
        # A page that is asked for four times a second may be missed.
        waiting.difference_update([series for series in waiting if prometheus.query(series)])
        return not waiting

    try:
        wait_until(all_there, "every series is there", every_s=0.2)
    except AssertionError:
        pytest.fail(f"not there before the fault: {sorted(waiting)}")


def _of_any_process(series: str) -> str:
    metric, _, labels = series.removesuffix("}").partition("{")
    names = ("instance", "job", "challenger", "worker")
    kept = [label for label in labels.split(", ") if label.split("=")[0] not in names]
    # The topics of tests have a prefix.
    kept = [label.replace('topic="', 'topic=~".*') for label in kept]
    return f"{metric}{{{', '.join(kept)}}}"


def assert_logs_keep_to_the_schema(deployment: Deployment) -> None:
    """Every line that each kind of process has logged is one object of the schema."""
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    commands = set()
    for process in deployment.running:
        lines = [json.loads(line) for line in process.log.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            validator.validate(line)
        commands |= {line["command"] for line in lines}
    # A stream and a challenger that are well may have nothing to say.
    assert {"companion", "serve"} <= commands <= {"stream", "companion", "serve", "shadow"}


# Their result depends on settings that this deployment does not have: a registry, a rollout.
HARMLESS = (
    "drift status",
    "admin outbox",
    "admin profile-sets",
    "admin set-aside",
    "admin source",
    "admin dead-letters",
)


def assert_runbook_works(running: Running) -> None:
    """Run the runbook's commands that change nothing: those that ask a process, and those that list something."""
    addresses = {name.upper(): str(getattr(running, name)) for name in ("companion", "stream", "shadow", "admin")}
    environment = {**os.environ, **addresses, "SERVE": running.http}
    asking = [command for command in runbook.commands() if command.program == "curl"]
    # A series that no process shows yet cannot be found.
    asking = [command for command in asking if not any(name.removesuffix("_total") in command.text for name in MADE)]
    script = "\n".join(f"{{ {command.text}; }} >/dev/null || echo {shlex.quote(command.text)}" for command in asking)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    failed = set(done.stdout.splitlines()) - EMPTY
    assert failed == set(), done.stderr
    for command in runbook.commands():
        # An ID stands for what a person has seen.
        if " ".join(command.words[1:3]) in HARMLESS and "ID" not in command.words:
            arguments = ["--config", str(running.deployment.config), *command.words[1:]]
            result = CliRunner().invoke(cli, arguments, standalone_mode=False)
            assert result.exception is None, f"{command}: {result.exception!r}"


def test_every_query_of_every_panel_is_answered_with_data(prometheus: Prometheus, running: Running) -> None:
    waiting = {(panel.board, panel.title): panel for panel in panels()}

    def all_answered() -> bool:
        running.send()
        for key in [key for key, panel in waiting.items() if is_answered(prometheus, panel)]:
            del waiting[key]
        return not waiting

    try:
        wait_until(all_answered, "every panel shows something")
    except AssertionError:
        pytest.fail(f"no data for {sorted(waiting)}")
    for board in boards().values():
        for choice in board["templating"]["list"]:
            if choice["type"] == "query":
                metric, label = choice["definition"].removeprefix("label_values(").removesuffix(")").split(", ")
                assert all(label in series["metric"] for series in prometheus.query(metric)), choice["name"]
    assert_the_page_of_metrics_names_all(prometheus)
    assert_faults_are_of_series_that_there_are(prometheus)
    assert_logs_keep_to_the_schema(running.deployment)
    assert_runbook_works(running)
    # Real faults: a payment that is none, a bundle that cannot be loaded, and then the deaths of two processes.
    running.send_nonsense()
    (running.deployment.bundle / MANIFEST).write_text("{}", encoding="utf-8")
    os.kill(running.serve.process.pid, signal.SIGHUP)
    told = {"PaywardenDeadLetters", "PaywardenSwapFails"}
    wait_until(lambda: told <= conditions(prometheus), "the alerts' first events are noticed")
    for process in running.deployment.running[:2]:
        process.kill()
    wait_until(lambda: {"PaywardenProcessDown", "PaywardenStreamDown"} <= conditions(prometheus), "both are noticed")
