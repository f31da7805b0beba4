"""One scoring host, or several: answers, the mirror, models, the outbox, and the companion."""

from __future__ import annotations

from paywarden.ops.dashboards.grafana import Dashboard, DashboardSection, Panel, Query, Variable

_HOST = Variable("host", "Host", "label_values(paywarden_scoring_ready, instance)", r"/(.*):\d+/")
# `serve` and `companion` of a host have one address and two ports.
_ON = 'instance=~"$host:.+"'
_RATE = "[$__rate_interval]"


def _rate(by: str, metric: str, more: str = "") -> str:
    matchers = ", ".join(filter(None, (_ON, more)))
    return f"sum by ({by}) (rate({metric}{{{matchers}}}{_RATE}))"


def _quantile(quantile: float, by: str, metric: str, more: str = "") -> str:
    return f"histogram_quantile({quantile:g}, {_rate(f'{by}, le', f'{metric}_bucket', more)})"


def _latencies(metric: str, of: str) -> tuple[Query, ...]:
    return tuple(
        Query(_quantile(quantile, "instance", metric, of), f"p{name} {{{{instance}}}}")
        for quantile, name in ((0.5, "50"), (0.99, "99"), (0.999, "99.9"))
    )


_ANSWERS = DashboardSection(
    "Answers",
    (
        Panel(
            "Latency over HTTP",
            "From a request's last byte read to its answer being written: median, p99 and p99.9 of `POST /v1/score`.",
            "s",
            _latencies("paywarden_request_seconds", 'route="score"'),
            alerts=("PaywardenRequestsSlow",),
            steps=((0.042, "red"),),
        ),
        Panel(
            "Latency over gRPC",
            "The same for `Score`.",
            "s",
            _latencies("paywarden_grpc_request_seconds", 'method="Score"'),
            alerts=("PaywardenCallsSlow",),
            steps=((0.042, "red"),),
        ),
        Panel(
            "Time of each stage",
            "Average time of each stage for a payment. `wait` is the time until its batch begins.",
            "s",
            (Query(f"avg by (stage) (instance_stage:paywarden_stage_seconds:mean5m{{{_ON}}})", "{{stage}}"),),
            stacked=True,
        ),
        Panel(
            "Requests by answer",
            "Requests a second over HTTP, by status code.",
            "reqps",
            (Query(_rate("code", "paywarden_requests_total", 'route=~"score|score_batch|none"'), "{{code}}"),),
            alerts=("PaywardenRequestsRefused",),
            stacked=True,
        ),
        Panel(
            "Calls by answer",
            "gRPC calls a second, by status.",
            "reqps",
            (Query(_rate("code", "paywarden_grpc_requests_total", 'method=~"Score|ScoreBatch|none"'), "{{code}}"),),
            stacked=True,
        ),
        Panel(
            "Connections at the limit",
            "Connections a second that were closed or refused because there were too many. 0 on a quiet day.",
            "cps",
            (
                Query(_rate("protocol", "paywarden_connections_evicted_total"), "{{protocol}} closed"),
                Query(_rate("protocol", "paywarden_connections_refused_total"), "{{protocol}} refused"),
                Query(_rate("protocol", "paywarden_connections_closed_unread_total"), "{{protocol}} held, then closed"),
            ),
            alerts=("PaywardenConnectionsFull",),
        ),
        Panel(
            "Requests answered from memory",
            "Payments a second that were asked for again: the same decision, one under way in another worker, the id "
            "of another payment, a claim taken over from a dead worker, and decisions that could not be remembered.",
            "reqps",
            (
                Query(_rate("instance", "paywarden_answered_repeated_total"), "repeated"),
                Query(_rate("instance", "paywarden_answered_in_flight_total"), "under way"),
                Query(_rate("instance", "paywarden_answered_other_payment_total"), "other payment"),
                Query(_rate("instance", "paywarden_answered_taken_over_total"), "taken over"),
                Query(_rate("instance", "paywarden_answered_collisions_total"), "collision"),
                Query(_rate("instance", "paywarden_answered_full_total"), "no room"),
            ),
        ),
        Panel(
            "Collection of garbage",
            "Pauses a second that took longer than 10 ms. Workers collect garbage between batches.",
            "short",
            (
                Query(
                    f"{_rate('instance', 'paywarden_gc_pause_seconds_count')} - "
                    + _rate("instance", "paywarden_gc_pause_seconds_bucket", 'le="0.01"'),
                    "longer than 10 ms {{instance}}",
                ),
            ),
            alerts=("PaywardenGarbagePauses",),
        ),
        Panel(
            "Workers",
            "Workers that ended unasked, and workers that could not be started, in 15 minutes. 0 on a quiet day.",
            "short",
            (
                Query(
                    f"sum by (reason) (increase(paywarden_worker_restarts_total{{{_ON}}}[15m]))", "ended: {{reason}}"
                ),
                Query(f"sum(increase(paywarden_fork_failures_total{{{_ON}}}[15m]))", "not started"),
            ),
            alerts=("PaywardenWorkersRestart", "PaywardenWorkerHung", "PaywardenForkFails"),
        ),
    ),
)

_DECISIONS = DashboardSection(
    "Decisions, models and the mirror",
    (
        Panel(
            "Flags",
            "Flags on decisions a second. A flag says that something was missing or unusual.",
            "reqps",
            (
                Query(
                    f"{_rate('flag', 'paywarden_flags_total')} > 0 or {_rate('instance', 'paywarden_flags_total')}",
                    "{{flag}}",
                ),
            ),
            alerts=("PaywardenMirrorAbsent", "PaywardenProfilesUnreadable", "PaywardenCardsNotHeld"),
        ),
        Panel(
            "Payments by model",
            "Payments a second by the model that scored them. `none`: rules and flags decided.",
            "reqps",
            (
                Query(_rate("model", "paywarden_model_scored_total"), "{{model}}"),
                Query(_rate("by", "paywarden_cascade_answered_total"), "cascade: {{by}}"),
            ),
            alerts=("PaywardenRulesAlone",),
        ),
        Panel(
            "Overlay",
            "Answered payments a second that count before they are in a profile, and those not: no room, too many "
            "for one profile, of another time, scored without the overlay.",
            "short",
            tuple(
                Query(_rate("instance", f"paywarden_overlay_{name}_total"), text)
                for name, text in (
                    *(("added", "pending"), ("folded", "counted"), ("full", "no room"), ("left_out", "too many")),
                    *(("untimely", "of another time"), ("unsure", "without the overlay")),
                )
            ),
            alerts=("PaywardenOverlayFull", "PaywardenOverlayUnused"),
        ),
        Panel(
            "Payments named by the changelog",
            "Payments a second that the changelog named as contained in a profile, and changes that named none.",
            "short",
            (
                Query(_rate("instance", "paywarden_companion_payments_named_total"), "named"),
                Query(_rate("instance", "paywarden_companion_changes_unnamed_total"), "changes without names"),
            ),
        ),
        Panel(
            "Shards of cards",
            "With [shards]: how many shards each host holds. How many tables of shards the hosts have: 1, but for the "
            "minutes of a change.",
            "short",
            (
                Query(f"max by (instance) (paywarden_companion_shards{{{_ON}}})", "{{instance}}"),
                Query("count(count by (table) (paywarden_companion_shard_table_info))", "tables of all hosts"),
            ),
            alerts=("PaywardenShardTablesDiffer",),
        ),
        Panel(
            "Profiles of other hosts",
            "Profiles of the changelog that other hosts hold.",
            "short",
            (Query(_rate("instance", "paywarden_companion_profiles_skipped_total"), "skipped"),),
        ),
        Panel(
            "Models that fail",
            "Payments a second that a model failed on, and 1 while a model is left out. 0 on a quiet day.",
            "short",
            (
                Query(_rate("model", "paywarden_model_errors_total"), "{{model}} fails"),
                Query(f"max by (model) (paywarden_model_out{{{_ON}}})", "{{model}} is out"),
            ),
            alerts=("PaywardenModelErrors", "PaywardenModelOut"),
        ),
        Panel(
            "Profiles found",
            "Share of the profiles looked for that the mirror had.",
            "percentunit",
            (Query(f"instance_entity:paywarden_mirror_lookups_hit:ratio5m{{{_ON}}}", "{{entity}} {{instance}}"),),
            alerts=("PaywardenMirrorHitRatioLow",),
            maximum=1.0,
        ),
        Panel(
            "Age of the mirror",
            "How far the mirror lags behind the payments stream, as decisions see it and as the companion measures it.",
            "s",
            (
                Query(f"max by (instance) (paywarden_mirror_age_seconds{{{_ON}}})", "decisions {{instance}}"),
                Query(f"max by (instance) (paywarden_companion_mirror_age_seconds{{{_ON}}})", "companion {{instance}}"),
            ),
            alerts=("PaywardenMirrorStale",),
            steps=((30, "red"),),
        ),
        Panel(
            "Changes of bundle and policy",
            "Swaps made, swaps that failed by step, and rounds of the watch in which a step failed, in 15 minutes.",
            "short",
            (
                Query(f"sum(increase(paywarden_swaps_total{{{_ON}}}[15m]))", "made"),
                Query(f"sum by (step) (increase(paywarden_swap_failures_total{{{_ON}}}[15m]))", "failed: {{step}}"),
                Query(f"sum by (step) (increase(paywarden_watch_failures_total{{{_ON}}}[15m]))", "watch: {{step}}"),
            ),
            alerts=("PaywardenSwapFails", "PaywardenWatchFails", "PaywardenOutboxCannotRecord"),
        ),
        Panel(
            "Time since the last change",
            "Seconds since a worker's last swap of the release.",
            "s",
            (Query(f"time() - (max by (instance) (paywarden_swap_timestamp_seconds{{{_ON}}}) > 0)", "{{instance}}"),),
        ),
    ),
)

_SHIPPING = DashboardSection(
    "Outbox and companion",
    (
        Panel(
            "Outbox",
            "Bytes not shipped in the fullest outbox, as workers see it, and by worker, as the companion sees it.",
            "bytes",
            (
                Query(f"max by (instance) (paywarden_outbox_unshipped_bytes{{{_ON}}})", "fullest {{instance}}"),
                Query(f"max by (worker) (paywarden_companion_outbox_waiting_bytes{{{_ON}}})", "{{worker}}"),
            ),
            alerts=("PaywardenOutboxFills", "PaywardenOutboxGrows"),
        ),
        Panel(
            "Decisions shipped",
            "Decisions a second that Kafka has acknowledged, and decisions sent that it has yet to acknowledge.",
            "short",
            (
                Query(_rate("instance", "paywarden_companion_decisions_shipped_total"), "a second"),
                Query(f"sum(paywarden_companion_decisions_under_way{{{_ON}}})", "under way"),
            ),
        ),
        Panel(
            "Outbox in trouble",
            "Appends refused a second, and entries set aside because they cannot be read. 0 on a quiet day.",
            "short",
            (
                Query(_rate("instance", "paywarden_outbox_refused_total"), "refused"),
                Query(f"sum(paywarden_companion_outbox_set_aside_entries{{{_ON}}})", "entries set aside"),
                Query(f"sum(paywarden_companion_outbox_set_aside_bytes{{{_ON}}})", "bytes set aside"),
                Query(
                    f"sum(increase(paywarden_companion_outbox_set_aside_total{{{_ON}}}[15m]))", "set aside in 15 min"
                ),
            ),
            alerts=("PaywardenOutboxSetAside", "PaywardenOutboxCannotRecord"),
        ),
        Panel(
            "Payment to mirror, p99",
            "From the arrival on Kafka of the newest payment in a profile until the profile is in the mirror.",
            "s",
            (
                Query(
                    f"instance_entity:paywarden_companion_event_to_mirror_seconds:p99_5m{{{_ON}}}",
                    "{{entity}} {{instance}}",
                ),
                Query(
                    f"max by (entity) (paywarden_companion_freshness_objective_seconds{{{_ON}}})",
                    "objective: {{entity}}",
                ),
            ),
            alerts=("PaywardenMirrorLate",),
        ),
        Panel(
            "Profiles later than the objective",
            "Profiles a second that were in the mirror later than `[companion] freshness_objective_ms`.",
            "short",
            (Query(_rate("entity", "paywarden_companion_over_objective_total"), "{{entity}}"),),
            alerts=("PaywardenMirrorLate",),
        ),
        Panel(
            "Changelog",
            "Records of topic `profiles` that the mirror does not have yet, and profiles put in and erased a second.",
            "short",
            (
                Query(f"sum(paywarden_companion_changelog_lag{{{_ON}}})", "not read"),
                Query(_rate("instance", "paywarden_companion_profiles_applied_total"), "put in a second"),
                Query(_rate("instance", "paywarden_companion_profiles_erased_total"), "erased a second"),
            ),
        ),
        Panel(
            "Size of the mirror",
            "Bytes used of the mirror's file, and the size that it may grow to.",
            "bytes",
            (
                Query(f"max by (instance) (paywarden_companion_mirror_bytes{{{_ON}}})", "used {{instance}}"),
                Query(f"max by (instance) (paywarden_companion_mirror_limit_bytes{{{_ON}}})", "limit {{instance}}"),
            ),
            alerts=("PaywardenMirrorFull", "PaywardenMirrorNearlyFull"),
        ),
        Panel(
            "Companion in trouble",
            "Starts and unreadable records in 15 minutes; 1 while the mirror takes no changes; 1 while the companion "
            "is not ready. 0 on a quiet day.",
            "short",
            (
                Query(
                    f'sum(changes(process_start_time_seconds{{{_ON},job=~"(paywarden-)?companion"}}[15m]))', "starts"
                ),
                Query(f"sum(increase(paywarden_companion_unreadable_records_total{{{_ON}}}[15m]))", "unreadable"),
                Query(f"max(paywarden_companion_mirror_refuses{{{_ON}}})", "mirror takes nothing"),
                Query(f"1 - min(paywarden_companion_ready{{{_ON}}})", "not ready"),
            ),
            alerts=(
                *("PaywardenProcessRestarts", "PaywardenCompanionNotReady", "PaywardenMirrorFull"),
                "PaywardenChangelogUnreadable",
            ),
        ),
        Panel(
            "Model registry",
            "Seconds since the companion's copy was last equal to the topic's, and failures in 15 minutes.",
            "s",
            (
                Query(
                    "time() - (max by (instance) "
                    f"(paywarden_companion_model_registry_synced_timestamp_seconds{{{_ON}}}) > 0)",
                    "{{instance}}",
                ),
                Query(f"sum(increase(paywarden_companion_model_registry_failures_total{{{_ON}}}[15m]))", "failures"),
            ),
            alerts=("PaywardenRegistryBehind", "PaywardenRegistryFails"),
        ),
    ),
)

HOST = Dashboard(
    "host",
    "Paywarden: scoring host",
    "One scoring host, or several: answers, decisions and models, the mirror, the outbox and the companion.",
    (_ANSWERS, _DECISIONS, _SHIPPING),
    (_HOST,),
)
