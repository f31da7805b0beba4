"""A quiet day as series of metrics, and a fault for each alert.

A fault changes series of the quiet day for a while:

    paywarden_stream_store_up        1 1 1 1 │ 0 0 0 0 │ 1 1 1 1
                                       quiet │  fault  │ healed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HOUR_S, DAY_S = 3600, 86_400


@dataclass(frozen=True)
class Gauge:
    """A number: `quiet`, and `fault` during the fault. None: the series is not there."""

    series: str
    quiet: float | None
    fault: float | None = None

    def samples(self, times: Sequence[int], fault: range) -> list[float | None]:
        return [self.fault if time in fault else self.quiet for time in times]


@dataclass(frozen=True)
class Count:
    """A counter that grows by `quiet` a second, and by `fault` during the fault."""

    series: str
    quiet: float
    fault: float = 0.0

    def samples(self, times: Sequence[int], fault: range) -> list[float | None]:
        step, value, found = times[1] - times[0], 0.0, list[float | None]()
        for time in times:
            found.append(value)
            value += step * (self.fault if time in fault else self.quiet)
        return found


@dataclass(frozen=True)
class Stamp:
    """The time of the last piece of work: `age` seconds ago, and standing still during the fault."""

    series: str
    age: int

    def samples(self, times: Sequence[int], fault: range) -> list[float | None]:
        return [max(1, (fault.start if time in fault else time) - self.age) for time in times]


@dataclass(frozen=True)
class Climb:
    """A number that climbs by `a_second` from `quiet` during the fault, and is back at once."""

    series: str
    quiet: float
    a_second: float

    def samples(self, times: Sequence[int], fault: range) -> list[float | None]:
        return [self.quiet + (self.a_second * (time - fault.start) if time in fault else 0.0) for time in times]


@dataclass(frozen=True)
class Starts:
    """The time at which a process was started. During the fault it is started again every `every_s` seconds."""

    series: str
    every_s: int

    def samples(self, times: Sequence[int], fault: range) -> list[float | None]:
        return [float(time - time % self.every_s if time in fault else 1) for time in times]


Series = Gauge | Count | Stamp | Climb | Starts


@dataclass(frozen=True)
class Fault:
    """An injected fault. `seconds` is its length, `step` the seconds between two scrapes, `before` those before it."""

    text: str
    changes: tuple[Series, ...]
    seconds: int = 1800
    step: int = 15
    before: int = 1200
    after: int = 2400


SERVE, COMPANION, STREAM, SHADOW = (
    f'instance="10.0.0.{host}:{port}", job="{job}"'
    for host, port, job in ((1, 9100, "serve"), (1, 9101, "companion"), (2, 9102, "stream"), (1, 9103, "shadow"))
)
GATEWAY = 'instance="10.0.0.3:8443", job="gateway"'
PROCESSES = (SERVE, COMPANION, STREAM, SHADOW, GATEWAY)


def of(labels: str, metric: str, **more: str) -> str:
    """Returns the name of a series of a process, such as `metric{instance="10.0.0.1:9100", …}`."""
    matchers = ", ".join([labels, *(f'{name}="{value}"' for name, value in more.items())])
    return f"{metric}{{{matchers}}}"


def serve(metric: str, **more: str) -> str:
    return of(SERVE, f"paywarden_{metric}", **more)


def companion(metric: str, **more: str) -> str:
    return of(COMPANION, f"paywarden_{metric}", **more)


def stream(metric: str, **more: str) -> str:
    return of(STREAM, f"paywarden_{metric}", **more)


def shadow(metric: str, **more: str) -> str:
    return of(SHADOW, f"paywarden_{metric}", challenger="b-42", **more)


QUIET: tuple[Series, ...] = (
    *(Gauge(of(labels, "up"), 1) for labels in PROCESSES),
    # 200 payments a second on a host, most of them within 42 ms; one in a thousand is shed.
    Count(serve("request_seconds_bucket", route="score", le="0.042"), 199.5),
    Count(serve("request_seconds_count", route="score"), 200),
    Count(serve("grpc_request_seconds_bucket", method="Score", le="0.042"), 199.5),
    Count(serve("grpc_request_seconds_count", method="Score"), 200),
    Count(serve("requests_total", route="score", code="200"), 199.8),
    Count(serve("requests_total", route="score", code="429"), 0.2),
    Count(serve("gc_pause_seconds_count"), 0.2),
    Count(serve("gc_pause_seconds_bucket", le="0.01"), 0.2),
    Count(serve("connections_evicted_total", protocol="http"), 0),
    Count(serve("connections_refused_total", protocol="http"), 0),
    Count(serve("mirror_lookups_total", entity="card", result="hit"), 195),
    Count(serve("mirror_lookups_total", entity="card", result="miss"), 5),
    *(Count(serve("flags_total", flag=flag), 0) for flag in ("mirror_absent", "profile_unreadable", "card_not_held")),
    Gauge(serve("mirror_age_seconds"), 1),
    Gauge(serve("model_out", model="primary"), 0),
    Count(serve("model_errors_total", model="primary"), 0),
    Count(serve("model_scored_total", model="primary"), 200),
    Count(serve("model_scored_total", model="none"), 0),
    Gauge(serve("outbox_unshipped_bytes"), 1e5),
    Gauge(serve("scoring_ready"), 1),
    *(Count(serve("watch_failures_total", step=step), 0) for step in ("outbox", "tokens")),
    *(Count(serve("worker_restarts_total", reason=reason), 0) for reason in ("hung", "killed")),
    Count(serve("fork_failures_total"), 0),
    Count(serve("swap_failures_total", step="check"), 0),
    Gauge(companion("companion_outbox_waiting_bytes", worker="worker-0"), 1e5),
    Gauge(companion("companion_ready"), 1),
    Gauge(companion("companion_kafka_up"), 1),
    Count(companion("companion_over_objective_total", entity="card"), 0.5),
    Count(companion("companion_event_to_mirror_seconds_count", entity="card"), 200),
    Gauge(companion("companion_outbox_set_aside_entries", worker="worker-0"), 0),
    Gauge(companion("companion_mirror_refuses"), 0),
    Gauge(companion("companion_shard_table_info", table="5d3a91c2"), 1),
    Gauge(companion("companion_mirror_bytes"), 5e8),
    Gauge(companion("companion_mirror_limit_bytes"), 1e9),
    Stamp(companion("companion_model_registry_synced_timestamp_seconds"), 5),
    Count(companion("companion_model_registry_failures_total"), 0),
    Count(companion("companion_unreadable_records_total"), 0),
    Gauge(companion("rollout_log_unreadable"), 0),
    *(
        Gauge(companion("rollout_phase", phase=phase), float(phase == "running"))
        for phase in ("pending", "running", "paused", "rolled_back", "promoted")
    ),
    *(Gauge(companion("rollout_finding", finding=finding), 0) for finding in ("mismatch", "no_data", "harm")),
    Stamp(companion("rollout_since_timestamp_seconds"), 3600),
    Stamp(companion("rollout_event_timestamp_seconds"), 120),
    Gauge(shadow("shadow_up"), 1),
    Count(shadow("shadow_evaluated_total"), 200),
    *(Count(shadow("shadow_left_out_total", reason=reason), 0.2) for reason in ("shed", "failed")),
    Gauge(stream("stream_consumer_lag", topic="payments", partition="0"), 40),
    Gauge(stream("stream_store_up"), 1),
    Gauge(stream("stream_expired_records_total", topic="payments"), 0),
    Gauge(stream("open_transaction_seconds", topic="payments"), 0),
    Count(stream("stream_over_objective_total", entity="card"), 0.5),
    Count(stream("stream_event_to_store_seconds_count", entity="card"), 200),
    *(
        Count(stream("store_failures_total", operation="write", reason=reason), 0)
        for reason in ("forbidden", "overload")
    ),
    Count(stream("store_second_faults_total"), 0),
    Gauge(stream("store_findings", level="warning"), 0),
    Count(stream("dead_letters_total", topic="payments", field="currency"), 0),
    Count(stream("stream_events_set_aside_total", entity="card"), 0),
    Count(stream("state_set_aside_total", kind="drift"), 0),
    Count(stream("stream_later_records_total", kind="changed"), 0),
    Stamp(stream("drift_evaluated_timestamp_seconds"), 420),
    Gauge(stream("drift_store_up"), 1),
    *(Gauge(stream("drift_open_alerts", severity=severity), 0) for severity in ("warning", "critical")),
    *(Gauge(stream("outcomes_open_alerts", severity=severity), 0) for severity in ("warning", "critical")),
    # The day is evaluated a week after its end: at most eight days lie between.
    Stamp(stream("outcomes_evaluated_timestamp_seconds"), 8 * DAY_S),
    Gauge(stream("outcomes_store_up"), 1),
    Count(stream("outcomes_rows_total", topic="outcomes", result="joined"), 2),
    Count(stream("outcomes_rows_total", topic="outcomes", result="late"), 0.02),
)

FAULTS: dict[str, Fault] = {
    "PaywardenProcessDown": Fault("the companion is killed", (Gauge(of(COMPANION, "up"), 1, 0),)),
    "PaywardenProcessRestarts": Fault(
        "a companion ends and is started again once a minute",
        (Starts('process_start_time_seconds{instance="10.0.0.1:9201", job="companion"}', 60),),
    ),
    "PaywardenHostNotReady": Fault("no worker of a host is ready", (Gauge(serve("scoring_ready"), 1, 0),)),
    "PaywardenRequestsSlow": Fault(
        "5 % of the HTTP requests take longer than 42 ms",
        (Count(serve("request_seconds_bucket", route="score", le="0.042"), 199.5, 190),),
    ),
    "PaywardenCallsSlow": Fault(
        "5 % of the gRPC calls take longer than 42 ms",
        (Count(serve("grpc_request_seconds_bucket", method="Score", le="0.042"), 199.5, 190),),
    ),
    "PaywardenGarbagePauses": Fault(
        "every second collection of garbage takes longer than 10 ms",
        (Count(serve("gc_pause_seconds_bucket", le="0.01"), 0.2, 0.1),),
    ),
    "PaywardenOutboxFills": Fault(
        "600 MB of an outbox are not shipped", (Gauge(serve("outbox_unshipped_bytes"), 1e5, 6e8),)
    ),
    "PaywardenRequestsRefused": Fault(
        "one request in ten is shed (429)",
        (
            Count(serve("requests_total", route="score", code="200"), 199.8, 180),
            Count(serve("requests_total", route="score", code="429"), 0.2, 20),
        ),
    ),
    "PaywardenConnectionsFull": Fault(
        "a connection a second is refused", (Count(serve("connections_refused_total", protocol="http"), 0, 1),)
    ),
    "PaywardenMirrorHitRatioLow": Fault(
        "the mirror lacks a fifth of the cards",
        (
            Count(serve("mirror_lookups_total", entity="card", result="hit"), 195, 160),
            Count(serve("mirror_lookups_total", entity="card", result="miss"), 5, 40),
        ),
    ),
    "PaywardenMirrorStale": Fault("the mirror stands still", (Climb(serve("mirror_age_seconds"), 1, 1),)),
    "PaywardenMirrorAbsent": Fault(
        "the mirror's file is removed", (Count(serve("flags_total", flag="mirror_absent"), 0, 200),)
    ),
    "PaywardenProfilesUnreadable": Fault(
        "a later release writes profiles that this one cannot read",
        (Count(serve("flags_total", flag="profile_unreadable"), 0, 2),),
    ),
    "PaywardenModelOut": Fault("the model fails on every payment", (Gauge(serve("model_out", model="primary"), 0, 1),)),
    "PaywardenModelErrors": Fault(
        "the model fails on one payment in a hundred", (Count(serve("model_errors_total", model="primary"), 0, 2),)
    ),
    "PaywardenRulesAlone": Fault("no model can be asked", (Count(serve("model_scored_total", model="none"), 0, 200),)),
    "PaywardenOutboxCannotRecord": Fault(
        "the outbox's disk is full", (Count(serve("watch_failures_total", step="outbox"), 0, 2),)
    ),
    "PaywardenWatchFails": Fault(
        "the file of tokens cannot be read", (Count(serve("watch_failures_total", step="tokens"), 0, 2),)
    ),
    "PaywardenWorkersRestart": Fault(
        "a worker ends once a minute", (Count(serve("worker_restarts_total", reason="killed"), 0, 1 / 60),)
    ),
    "PaywardenWorkerHung": Fault(
        "a worker stands still once", (Count(serve("worker_restarts_total", reason="hung"), 0, 1 / 15),), seconds=15
    ),
    "PaywardenForkFails": Fault("a worker cannot be forked", (Count(serve("fork_failures_total"), 0, 0.2),)),
    "PaywardenSwapFails": Fault(
        "a new bundle cannot be loaded", (Count(serve("swap_failures_total", step="check"), 0, 1 / 15),), seconds=15
    ),
    "PaywardenOutboxGrows": Fault(
        "Kafka takes nothing, at 200 decisions a second (1 MB/s)",
        (Climb(companion("companion_outbox_waiting_bytes", worker="worker-0"), 1e5, 1e6),),
    ),
    "PaywardenCompanionNotReady": Fault(
        "Kafka does not answer the companion", (Gauge(companion("companion_ready"), 1, 0),)
    ),
    "PaywardenMirrorLate": Fault(
        "5 % of the card profiles reach the mirror late",
        (Count(companion("companion_over_objective_total", entity="card"), 0.5, 10),),
    ),
    "PaywardenOutboxSetAside": Fault(
        "a record of an outbox is damaged",
        (Gauge(companion("companion_outbox_set_aside_entries", worker="worker-0"), 0, 1),),
    ),
    "PaywardenMirrorFull": Fault("the mirror is full", (Gauge(companion("companion_mirror_refuses"), 0, 1),)),
    "PaywardenMirrorNearlyFull": Fault(
        "the mirror has grown to 95 % of its limit", (Gauge(companion("companion_mirror_bytes"), 5e8, 9.5e8),)
    ),
    "PaywardenCardsNotHeld": Fault(
        "one payment in twenty comes to a host without its card",
        (Count(serve("flags_total", flag="card_not_held"), 0, 10),),
    ),
    "PaywardenShardTablesDiffer": Fault(
        "a host has another list of hosts",
        (
            Gauge(
                of('instance="10.0.0.9:9101", job="companion"', "paywarden_companion_shard_table_info", table="0c11"),
                None,
                1,
            ),
        ),
    ),
    "PaywardenOverlayFull": Fault(
        "the overlay drops ten payments a second", (Count(serve("overlay_full_total"), 0, 10),)
    ),
    "PaywardenOverlayUnused": Fault(
        "half of the payments are scored without the overlay", (Count(serve("overlay_unsure_total"), 0, 100),)
    ),
    "PaywardenRegistryBehind": Fault(
        "the topic of the registry is not read",
        (Stamp(companion("companion_model_registry_synced_timestamp_seconds"), 5),),
    ),
    "PaywardenRegistryFails": Fault(
        "the copy of the registry cannot be written",
        (Count(companion("companion_model_registry_failures_total"), 0, 0.2),),
    ),
    "PaywardenShadowDown": Fault("a challenger's process does not start", (Gauge(shadow("shadow_up"), 1, 0),)),
    "PaywardenShadowUnpaired": Fault(
        "a challenger leaves out 5 % of the decisions",
        (Count(shadow("shadow_left_out_total", reason="shed"), 0.2, 10),),
    ),
    "PaywardenStreamLags": Fault(
        "60,000 payments are not read",
        (Gauge(stream("stream_consumer_lag", topic="payments", partition="0"), 40, 6e4),),
    ),
    "PaywardenStreamDown": Fault("the only stream worker is killed", (Gauge(stream("stream_store_up"), 1, None),)),
    "PaywardenKafkaDown": Fault("the only broker is killed", (Gauge(companion("companion_kafka_up"), 1, 0),)),
    "PaywardenRecordsExpired": Fault(
        "records expire unread", (Gauge(stream("stream_expired_records_total", topic="payments"), 0, 12),)
    ),
    "PaywardenTransactionOpen": Fault(
        "a producer hangs in its transaction", (Gauge(stream("open_transaction_seconds", topic="payments"), 0, 90),)
    ),
    "PaywardenStreamLate": Fault(
        "5 % of the payments reach their card profiles late",
        (Count(stream("stream_over_objective_total", entity="card"), 0.5, 10),),
    ),
    "PaywardenStoreDown": Fault("the store takes no batch", (Gauge(stream("stream_store_up"), 1, 0),)),
    "PaywardenStoreForbidsWrites": Fault(
        "Aerospike refuses writes",
        (Count(stream("store_failures_total", operation="write", reason="forbidden"), 0, 5),),
    ),
    "PaywardenStoreNodeFails": Fault(
        "a node of Aerospike is gone",
        (Count(stream("store_failures_total", operation="write", reason="overload"), 0, 5),),
    ),
    "PaywardenStoreSecondFault": Fault(
        "a second node of Aerospike is gone while copies move", (Count(stream("store_second_faults_total"), 0, 1),)
    ),
    "PaywardenStoreUnsafe": Fault(
        "the namespace is set up with a single copy", (Gauge(stream("store_findings", level="warning"), 0, 1),)
    ),
    "PaywardenDeadLetters": Fault(
        "a producer sends payments without a currency",
        (Count(stream("dead_letters_total", topic="payments", field="currency"), 0, 1),),
    ),
    "PaywardenProfilesSetAside": Fault(
        "a card's profile cannot be read", (Count(stream("stream_events_set_aside_total", entity="card"), 0, 0.1),)
    ),
    "PaywardenStateSetAside": Fault(
        "a record of drift counts is damaged",
        (Count(stream("state_set_aside_total", kind="drift"), 0, 1 / 15),),
        seconds=15,
        after=HOUR_S + 600,
    ),
    "PaywardenChangelogUnreadable": Fault(
        "records of topic profiles cannot be read", (Count(companion("companion_unreadable_records_total"), 0, 0.1),)
    ),
    "PaywardenPaymentsChanged": Fault(
        "a producer uses ids twice",
        (Count(stream("stream_later_records_total", kind="changed"), 0, 0.1),),
        after=HOUR_S + 600,
    ),
    "PaywardenDriftBehind": Fault(
        "no worker evaluates decisions",
        (Stamp(stream("drift_evaluated_timestamp_seconds"), 420),),
        seconds=2 * HOUR_S,
    ),
    "PaywardenDriftStoreDown": Fault("the store takes no counts", (Gauge(stream("drift_store_up"), 1, 0),)),
    "PaywardenDriftCritical": Fault(
        "the scores of a model shift far", (Gauge(stream("drift_open_alerts", severity="critical"), 0, 1),)
    ),
    "PaywardenDriftWarning": Fault(
        "the input of a model shifts", (Gauge(stream("drift_open_alerts", severity="warning"), 0, 1),)
    ),
    "PaywardenOutcomesWorse": Fault(
        "recall drops by a fifth", (Gauge(stream("outcomes_open_alerts", severity="warning"), 0, 1),)
    ),
    "PaywardenOutcomesBehind": Fault(
        "no worker evaluates days, from the moment at which the next is due",
        (Stamp(stream("outcomes_evaluated_timestamp_seconds"), 8 * DAY_S),),
        seconds=DAY_S,
        step=300,
        before=9 * DAY_S,
        after=7200,
    ),
    "PaywardenOutcomesStoreDown": Fault("the store takes no outcomes", (Gauge(stream("outcomes_store_up"), 1, 0),)),
    "PaywardenOutcomesLate": Fault(
        "half of the outcomes come after the window",
        (Count(stream("outcomes_rows_total", topic="outcomes", result="late"), 0.02, 2),),
        seconds=6 * HOUR_S,
        step=300,
        before=DAY_S,
        after=2 * DAY_S,
    ),
    "PaywardenRolloutRolledBack": Fault(
        "a look finds harm, and the candidate is taken back",
        (
            Gauge(companion("rollout_phase", phase="rolled_back"), 0, 1),
            Gauge(companion("rollout_phase", phase="running"), 1, 0),
        ),
    ),
    "PaywardenRolloutSplitWrong": Fault(
        "decisions of one arm are lost", (Gauge(companion("rollout_finding", finding="mismatch"), 0, 1),)
    ),
    "PaywardenRolloutNoData": Fault(
        "the candidate's cards pay nothing",
        (Gauge(companion("rollout_finding", finding="no_data"), 0, 1),),
        seconds=2 * HOUR_S,
    ),
    "PaywardenRolloutNotLed": Fault(
        "`paywarden rollout lead` is stopped", (Stamp(companion("rollout_event_timestamp_seconds"), 120),)
    ),
    "PaywardenRolloutLogUnreadable": Fault(
        "the log of rollouts is damaged", (Gauge(companion("rollout_log_unreadable"), 0, 1),)
    ),
}
