"""The way of a new model to all cards: challengers in the shadow, the rollout, the bundles in use."""

from __future__ import annotations

from paywarden.ops.dashboards.grafana import Dashboard, DashboardSection, Panel, Query, Variable

_CHALLENGER = Variable("challenger", "Challenger", "label_values(paywarden_shadow_up, challenger)")
_OF = 'challenger=~"$challenger"'
_RATE = "[$__rate_interval]"


def _a_second(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{_OF}}}{_RATE}))"


_ROLLOUT = DashboardSection(
    "Rollout",
    (
        Panel(
            "Phase",
            "1 for the phase of the newest rollout. Without a rollout all are 0.",
            "short",
            (Query("max by (phase) (paywarden_rollout_phase)", "{{phase}}"),),
            alerts=("PaywardenRolloutRolledBack", "PaywardenRolloutNoData"),
            maximum=1.0,
        ),
        Panel(
            "Share of the cards",
            "Share of the cards that the candidate decides about.",
            "percentunit",
            (Query("max(paywarden_rollout_share)"),),
            maximum=1.0,
        ),
        Panel(
            "Finding of the newest look",
            "1 for the finding of the newest look at the step.",
            "short",
            (Query("max by (finding) (paywarden_rollout_finding)", "{{finding}}"),),
            alerts=("PaywardenRolloutSplitWrong", "PaywardenRolloutNoData"),
            maximum=1.0,
        ),
        Panel(
            "Age of step and log",
            "Seconds since the rollout came to its step, and since its log had an event. No line: there was none.",
            "s",
            (
                Query("time() - (max(paywarden_rollout_since_timestamp_seconds) > 0)", "step"),
                Query("time() - (max(paywarden_rollout_event_timestamp_seconds) > 0)", "newest event"),
            ),
            alerts=("PaywardenRolloutNotLed",),
        ),
        Panel(
            "Log cannot be read",
            "1 where the log of rollouts is damaged or cannot be read. 0 on a quiet day.",
            "short",
            (Query("max by (instance) (paywarden_rollout_log_unreadable)", "{{instance}}"),),
            alerts=("PaywardenRolloutLogUnreadable",),
            maximum=1.0,
        ),
        Panel(
            "Bundles in use",
            "The bundles and policies that workers have in memory, by host.",
            "short",
            (
                Query(
                    "max by (instance, role, version, policy, digest) (paywarden_bundle_info)",
                    "{{instance}} {{role}} {{version}}",
                ),
            ),
            alerts=("PaywardenSwapFails",),
            kind="table",
        ),
    ),
)

_SHADOW = DashboardSection(
    "Challengers in the shadow",
    (
        Panel(
            "Runs",
            "1 while the challenger's process runs and has loaded its files.",
            "short",
            (Query(f"min by (instance, challenger) (paywarden_shadow_up{{{_OF}}})", "{{challenger}} {{instance}}"),),
            alerts=("PaywardenShadowDown",),
            maximum=1.0,
        ),
        Panel(
            "Decisions with a partner",
            "Decisions a second that the challenger has decided about as well.",
            "short",
            (Query(_a_second("paywarden_shadow_evaluated_total", "challenger"), "{{challenger}}"),),
        ),
        Panel(
            "Decisions left out",
            "Decisions a second without a partner, by reason. No line: there was none.",
            "short",
            (Query(_a_second("paywarden_shadow_left_out_total", "challenger, reason"), "{{challenger}} {{reason}}"),),
            alerts=("PaywardenShadowUnpaired",),
        ),
        Panel(
            "Behind",
            "Age of the newest decision evaluated while others wait.",
            "s",
            (
                Query(
                    f"max by (instance, challenger) (paywarden_shadow_lag_seconds{{{_OF}}})",
                    "{{challenger}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Waiting, and gone",
            "Bytes of decisions that wait for the challenger, and bytes that were deleted before it read them.",
            "bytes",
            (
                Query(f"max by (challenger) (paywarden_shadow_waiting_bytes{{{_OF}}})", "waiting: {{challenger}}"),
                Query(
                    f"sum by (challenger) (increase(paywarden_shadow_gone_bytes_total{{{_OF}}}[1h]))",
                    "gone: {{challenger}}",
                ),
            ),
            alerts=("PaywardenShadowUnpaired",),
        ),
        Panel(
            "Processor time and restarts",
            "Cores that the challenger uses, and its restarts in an hour.",
            "short",
            (
                Query(_a_second("paywarden_shadow_cpu_seconds_total", "challenger"), "cores: {{challenger}}"),
                Query(
                    f"sum by (challenger) (increase(paywarden_shadow_restarts_total{{{_OF}}}[1h]))",
                    "restarts: {{challenger}}",
                ),
            ),
            alerts=("PaywardenShadowDown",),
        ),
    ),
)

ROLLOUT = Dashboard(
    "rollout",
    "Paywarden: rollout",
    "The way of a new model to all cards: challengers in the shadow, the rollout, the bundles in use.",
    (_ROLLOUT, _SHADOW),
    (_CHALLENGER,),
)
