"""The stream workers: from payments and outcomes on Kafka to profiles in the store."""

from __future__ import annotations

from paywarden.ops.dashboards.grafana import Dashboard, DashboardSection, Panel, Query, Variable

_INSTANCE = Variable("worker", "Stream worker", "label_values(paywarden_stream_store_up, instance)")
_OF = 'instance=~"$worker"'


def _rate(by: str, metric: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{_OF}}}[$__rate_interval]))"


def _total(metric: str) -> str:
    return f"sum(rate({metric}{{{_OF}}}[$__rate_interval]))"


def _recent(metric: str, by: str = "", minutes: int = 15) -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (increase({metric}{{{_OF}}}[{minutes}m]))"


_WORK = DashboardSection(
    "Work",
    (
        Panel(
            "Records a second",
            "Payments, outcomes and batches that the workers have taken a second.",
            "short",
            (
                Query(_total("paywarden_stream_payments_total"), "payments"),
                Query(_total("paywarden_stream_payments_unknown_rate_total"), "payments without an exchange rate"),
                Query(_total("paywarden_stream_outcomes_total"), "outcomes"),
                Query(_total("paywarden_stream_batches_total"), "batches"),
            ),
        ),
        Panel(
            "Records not read",
            "Records on Kafka that no worker has taken, by topic.",
            "short",
            (Query("topic:paywarden_stream_consumer_lag:sum", "{{topic}}"),),
            alerts=("PaywardenStreamLags", "PaywardenStreamDown"),
            steps=((50_000, "red"),),
        ),
        Panel(
            "Payment to store, p99",
            "From a payment's arrival on Kafka until the store has acknowledged the profile.",
            "s",
            (
                Query("entity:paywarden_stream_event_to_store_seconds:p99_5m", "{{entity}}"),
                Query("max by (entity) (paywarden_stream_freshness_objective_seconds)", "objective: {{entity}}"),
            ),
            alerts=("PaywardenStreamLate",),
        ),
        Panel(
            "Events and profiles",
            "Events applied to profiles and profiles written a second, by kind of entity.",
            "short",
            (
                Query(_rate("entity", "paywarden_stream_profile_events_total"), "events: {{entity}}"),
                Query(_rate("entity", "paywarden_stream_profiles_written_total"), "written: {{entity}}"),
            ),
        ),
        Panel(
            "Time of each stage of a batch",
            "Mean time of a batch in each stage.",
            "s",
            (
                Query(
                    f"{_rate('stage', 'paywarden_stream_stage_seconds_sum')}"
                    f" / {_rate('stage', 'paywarden_stream_stage_seconds_count')}",
                    "{{stage}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Later than the objective",
            "Payments a second that were in a profile later than `[stream] freshness_objective_ms`.",
            "short",
            (Query(_rate("entity", "paywarden_stream_over_objective_total"), "{{entity}}"),),
            alerts=("PaywardenStreamLate",),
        ),
        Panel(
            "Records that count once",
            "Records a second that changed nothing: duplicates, events that a profile had already, later records of a "
            "known payment by what is new in them, and events too late for a tile.",
            "short",
            (
                Query(_total("paywarden_stream_duplicates_total"), "duplicates"),
                Query(_rate("entity", "paywarden_stream_replayed_total"), "had already: {{entity}}"),
                Query(_rate("kind", "paywarden_stream_later_records_total"), "later: {{kind}}"),
                Query(_rate("entity", "paywarden_stream_late_total"), "too late: {{entity}}"),
            ),
            alerts=("PaywardenPaymentsChanged",),
        ),
        Panel(
            "Outcomes that wait",
            "Outcomes whose payments the workers have not seen yet.",
            "short",
            (Query(f"sum(paywarden_stream_waiting_outcomes{{{_OF}}})"),),
        ),
    ),
)

_TROUBLE = DashboardSection(
    "Trouble",
    (
        Panel(
            "Batches that wait or were dropped",
            "Times in 15 minutes that a batch waited for the store, met another worker's write, was dropped because "
            "its partition moved. 0 on a quiet day.",
            "short",
            (
                Query(_recent("paywarden_stream_store_retries_total"), "waited for the store"),
                Query(_recent("paywarden_stream_store_conflicts_total"), "conflict"),
                Query(_recent("paywarden_stream_abandoned_batches_total"), "dropped"),
            ),
            alerts=("PaywardenStoreDown",),
        ),
        Panel(
            "Store takes batches",
            "1 while the store takes batches, 0 while one waits for it.",
            "short",
            (Query(f"min by (instance) (paywarden_stream_store_up{{{_OF}}})", "{{instance}}"),),
            alerts=("PaywardenStoreDown",),
            maximum=1.0,
        ),
        Panel(
            "Clock against the broker's",
            "How far a worker's host is ahead of the broker's clock, or behind it. Beyond 10 s the worker waits.",
            "s",
            (Query(f"paywarden_stream_clock_ahead_seconds{{{_OF}}}", "{{instance}}"),),
        ),
        Panel(
            "Dead letters",
            "Records in 15 minutes that could not be used, by topic, as the worker that met them counts them and as "
            "the topic `dead-letters` shows them. No line: there was none since the worker's start.",
            "short",
            (
                Query(_recent("paywarden_dead_letters_total", "topic, field"), "{{topic}} {{field}}"),
                Query(_recent("paywarden_stream_dead_letters_total", "topic"), "set aside: {{topic}}"),
                Query(_recent("paywarden_dead_letters_undecodable_total"), "not dead letters"),
            ),
            alerts=("PaywardenDeadLetters",),
        ),
        Panel(
            "Age of the newest dead letter",
            "Seconds since the newest dead letter was written. No line: there is none.",
            "s",
            (Query(f"time() - (max(paywarden_dead_letter_newest_timestamp_seconds{{{_OF}}}) > 0)"),),
            alerts=("PaywardenDeadLetters",),
        ),
        Panel(
            "Records that expired",
            "Records that expired on Kafka before a worker read them: they are in no profile. No line: there was none.",
            "short",
            (Query(f"sum by (topic) (paywarden_stream_expired_records_total{{{_OF}}})", "{{topic}}"),),
            alerts=("PaywardenRecordsExpired",),
        ),
        Panel(
            "Open transactions",
            "For how long readers have stood behind a transaction that a producer leaves open. 0 on a quiet day.",
            "s",
            (Query("max by (topic) (paywarden_open_transaction_seconds)", "{{topic}}"),),
            alerts=("PaywardenTransactionOpen",),
        ),
        Panel(
            "Profiles set aside",
            "Profiles in an hour that could not be read, events that wait for them, and profiles that came back. "
            "0 on a quiet day.",
            "short",
            (
                Query(_recent("paywarden_stream_profiles_set_aside_total", "entity", 60), "profiles: {{entity}}"),
                Query(_recent("paywarden_stream_events_set_aside_total", "entity", 60), "events: {{entity}}"),
                Query(_recent("paywarden_stream_profiles_restored_total", "entity", 60), "came back: {{entity}}"),
            ),
            alerts=("PaywardenProfilesSetAside",),
        ),
    ),
)

_AEROSPIKE = DashboardSection(
    "Aerospike (`[store] kind` aerospike)",
    (
        Panel(
            "Calls to the cluster",
            "Calls a second, by operation, and attempts that the client made again by itself.",
            "short",
            (
                Query("sum by (operation) (rate(paywarden_store_calls_total[$__rate_interval]))", "{{operation}}"),
                Query("sum(rate(paywarden_store_retries_total[$__rate_interval]))", "again"),
            ),
        ),
        Panel(
            "Time of a call, p99",
            "99th percentile of the time of a call, the client's own attempts included.",
            "s",
            (
                Query(
                    "histogram_quantile(0.99, sum by (operation, le) "
                    "(rate(paywarden_store_call_seconds_bucket[$__rate_interval])))",
                    "{{operation}}",
                ),
            ),
        ),
        Panel(
            "Records",
            "Records a second that were read, written, deleted, scanned, confirmed or in conflict.",
            "short",
            (Query("sum by (what) (rate(paywarden_store_records_total[$__rate_interval]))", "{{what}}"),),
        ),
        Panel(
            "Calls that fail",
            "Calls in 15 minutes that failed, by reason. No line: none failed.",
            "short",
            (
                Query(
                    "sum by (instance, reason) (increase(paywarden_store_failures_total[15m]))",
                    "{{instance}} {{reason}}",
                ),
            ),
            alerts=("PaywardenStoreForbidsWrites", "PaywardenStoreNodeFails", "PaywardenStoreDown"),
        ),
        Panel(
            "Copies that move",
            "Partitions whose copies have yet to move, and nodes that went meanwhile: these may hide records.",
            "short",
            (
                Query("max by (instance) (paywarden_store_moving_partitions)", "{{instance}} partitions"),
                Query("sum by (instance) (increase(paywarden_store_second_faults_total[1h]))", "{{instance}} nodes"),
            ),
            alerts=("PaywardenStoreSecondFault",),
        ),
        Panel(
            "Findings about the cluster",
            "Findings of `paywarden doctor --only store` about the cluster's settings, by level.",
            "short",
            (Query("max by (level) (paywarden_store_findings)", "{{level}}"),),
            alerts=("PaywardenStoreUnsafe",),
        ),
    ),
)

STREAM = Dashboard(
    "stream",
    "Paywarden: stream",
    "The stream workers: from payments and outcomes on Kafka to profiles in the store.",
    (_WORK, _TROUBLE, _AEROSPIKE),
    (_INSTANCE,),
)
