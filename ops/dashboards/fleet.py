"""All hosts on one page: the effects on callers, and where to look next."""

from __future__ import annotations

from paywarden.ops.dashboards.grafana import Dashboard, DashboardSection, Panel, Query

_CALLERS = DashboardSection(
    "Effects on callers",
    (
        Panel(
            "Payments decided",
            "Decisions a second, of all hosts.",
            "reqps",
            (Query("sum(instance:paywarden_decisions:rate5m)"),),
            kind="stat",
            width=4,
        ),
        Panel(
            "Answers in time, 5 min",
            "Share of the requests and gRPC calls for one payment that were answered within 42 ms. Objective: 99 %.",
            "percentunit",
            (Query("fleet:paywarden_answers_in_time:ratio5m"),),
            alerts=("PaywardenRequestsSlow", "PaywardenCallsSlow"),
            kind="stat",
            width=4,
            maximum=1.0,
        ),
        Panel(
            "Answers in time, 1 h",
            "The same over an hour. At 99 % the whole allowance is used up.",
            "percentunit",
            (Query("fleet:paywarden_answers_in_time:ratio1h"),),
            kind="stat",
            width=4,
            maximum=1.0,
        ),
        Panel(
            "Answers in time, 1 day",
            "The same over a day.",
            "percentunit",
            (Query("fleet:paywarden_answers_in_time:ratio1d"),),
            kind="stat",
            width=4,
            maximum=1.0,
        ),
        Panel(
            "Hosts ready",
            "Scoring hosts with a worker that is ready to answer payments.",
            "short",
            (Query("sum(paywarden_scoring_ready)"),),
            kind="stat",
            width=4,
        ),
        Panel(
            "Alerts that fire",
            "Alerts of this product that fire now. Prometheus has a list of them under /alerts.",
            "short",
            (Query('count(ALERTS{alertstate="firing", alertname=~"Paywarden.+"}) or vector(0)'),),
            kind="stat",
            width=4,
            steps=((1, "red"),),
        ),
        Panel(
            "Latency by host, p99",
            "99th percentile of the time from a request's last byte read to its answer being written.",
            "s",
            (
                Query("instance:paywarden_request_seconds:p99_5m", "{{instance}} http"),
                Query("instance:paywarden_grpc_request_seconds:p99_5m", "{{instance}} grpc"),
            ),
            alerts=("PaywardenRequestsSlow", "PaywardenCallsSlow"),
            steps=((0.042, "red"),),
        ),
        Panel(
            "Payments by host",
            "Decisions a second, by host. A gateway spreads cards evenly: hosts of one size have about the same.",
            "reqps",
            (Query("instance:paywarden_decisions:rate5m", "{{instance}}"),),
            stacked=True,
        ),
        Panel(
            "Refused requests by host",
            "Requests a second answered by 429 or 5xx, and their like over gRPC. 0 on a quiet day.",
            "reqps",
            (Query("instance:paywarden_requests_refused:rate5m", "{{instance}}"),),
            alerts=("PaywardenRequestsRefused",),
        ),
    ),
)

_PROFILES = DashboardSection(
    "Profiles and decisions on their way",
    (
        Panel(
            "Age of the mirrors",
            "How far each host's profiles lag behind the payments stream.",
            "s",
            (Query("max by (instance) (paywarden_mirror_age_seconds)", "{{instance}}"),),
            alerts=("PaywardenMirrorStale", "PaywardenMirrorAbsent"),
            steps=((30, "red"),),
        ),
        Panel(
            "Stream: records not read",
            "Records on Kafka that no stream worker has taken, by topic.",
            "short",
            (Query("topic:paywarden_stream_consumer_lag:sum", "{{topic}}"),),
            alerts=("PaywardenStreamLags", "PaywardenStreamDown"),
            steps=((50_000, "red"),),
        ),
        Panel(
            "Decisions not shipped",
            "Bytes of decisions that a host has written down and Kafka does not have yet.",
            "bytes",
            (Query("sum by (instance) (paywarden_companion_outbox_waiting_bytes)", "{{instance}}"),),
            alerts=("PaywardenOutboxGrows", "PaywardenOutboxFills"),
            steps=((67_108_864, "red"),),
        ),
    ),
)

_HEALTH = DashboardSection(
    "Health of the processes",
    (
        Panel(
            "Ready",
            "1 where a process says it is ready: `serve` and `companion` by their /readyz, the stream while its store "
            "takes batches, a challenger while it runs; and where Kafka answers a companion.",
            "short",
            (
                Query("min by (job, instance) (paywarden_scoring_ready)", "{{job}} {{instance}}"),
                Query("min by (job, instance) (paywarden_companion_ready)", "{{job}} {{instance}}"),
                Query("min by (job, instance) (paywarden_stream_store_up)", "{{job}} {{instance}}"),
                Query("min by (instance) (paywarden_companion_kafka_up)", "Kafka, for {{instance}}"),
                Query(
                    "min by (job, instance, challenger) (paywarden_shadow_up)", "{{job}} {{instance}} {{challenger}}"
                ),
            ),
            alerts=(
                *("PaywardenHostNotReady", "PaywardenCompanionNotReady", "PaywardenStreamDown", "PaywardenStoreDown"),
                *("PaywardenShadowDown", "PaywardenKafkaDown"),
            ),
            maximum=1.0,
        ),
        Panel(
            "Processes that answer",
            "Processes that answer Prometheus, by job.",
            "short",
            (Query('sum by (job) (up{job=~"(paywarden-)?(serve|companion|stream|shadow|gateway)"})', "{{job}}"),),
            alerts=("PaywardenProcessDown",),
        ),
        Panel(
            "Workers that ended",
            "Scoring workers that ended unasked in the last 15 minutes and were started again. 0 on a quiet day.",
            "short",
            (
                Query(
                    "sum by (instance, reason) (increase(paywarden_worker_restarts_total[15m]))",
                    "{{instance}} {{reason}}",
                ),
            ),
            alerts=("PaywardenWorkersRestart", "PaywardenWorkerHung", "PaywardenForkFails"),
        ),
        Panel(
            "Bundles in use",
            "The bundle and policy that decide, by host. Hosts differ while a new bundle is being taken up.",
            "short",
            (
                Query(
                    "max by (instance, role, version, policy) (paywarden_bundle_info)",
                    "{{instance}} {{role}} {{version}}",
                ),
            ),
            alerts=("PaywardenSwapFails",),
            kind="table",
        ),
        Panel(
            "Processor time",
            "Cores used by the stream, the companions and the challengers' parents.",
            "short",
            (
                Query(
                    "sum by (job, instance) (rate(process_cpu_seconds_total[$__rate_interval]))", "{{job}} {{instance}}"
                ),
            ),
        ),
        Panel(
            "Resident memory",
            "Memory of the stream, the companions and the challengers' parents. The mirror's pages count as well.",
            "bytes",
            (Query("max by (job, instance) (process_resident_memory_bytes)", "{{job}} {{instance}}"),),
        ),
    ),
)

FLEET = Dashboard(
    "fleet",
    "Paywarden: fleet",
    "All hosts on one page: effects on callers, profiles and decisions on their way, health of the processes.",
    (_CALLERS, _PROFILES, _HEALTH),
)
