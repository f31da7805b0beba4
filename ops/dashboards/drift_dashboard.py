"""Drift of the input and of the scores, and how good decisions turn out to be once their labels are known."""

from __future__ import annotations

from paywarden.ops.dashboards.grafana import Dashboard, DashboardSection, Panel, Query, Variable

_VERSION = Variable("version", "Model version", "label_values(paywarden_drift_actions_total, version)")
_OF = 'version=~"$version"'
_RATE = "[$__rate_interval]"
_LAST_DAYS = "The workers evaluate a day once its labels are mature ([outcomes] label_delay_days)."


def _measure(name: str) -> Query:
    return Query(
        f"max by (version, variant, days) (paywarden_outcomes_{name}{{{_OF}}})", "{{version}} {{variant}} {{days}} days"
    )


_DRIFT = DashboardSection(
    "Drift",
    (
        Panel(
            "Open alerts",
            "Drift alerts and outcome alerts that have not cleared, by severity. `paywarden drift status` lists them.",
            "short",
            (
                Query("max by (severity) (paywarden_drift_open_alerts)", "drift: {{severity}}"),
                Query("max by (severity) (paywarden_outcomes_open_alerts)", "outcomes: {{severity}}"),
            ),
            alerts=("PaywardenDriftCritical", "PaywardenDriftWarning", "PaywardenOutcomesWorse"),
        ),
        Panel(
            "Distance of the scores",
            "Distance of the newest block's scores from the reference's, by statistic and length of the block.",
            "short",
            (
                Query(
                    f"max by (version, length, statistic) (paywarden_drift_score_distance{{{_OF}}})",
                    "{{version}} {{statistic}} {{length}}",
                ),
            ),
            alerts=("PaywardenDriftCritical", "PaywardenDriftWarning"),
        ),
        Panel(
            "Distance from training",
            "PSI of the newest week against the training window, beyond the natural distance between weeks.",
            "short",
            (Query(f"max by (version, group) (paywarden_drift_training_distance{{{_OF}}})", "{{version}} {{group}}"),),
        ),
        Panel(
            "Actions of the newest block",
            "Share of the newest block's payments by action.",
            "percentunit",
            (
                Query(
                    f"max by (version, length, action) (paywarden_drift_action_share{{{_OF}}})",
                    "{{action}} {{version}} {{length}}",
                ),
            ),
            maximum=1.0,
        ),
        Panel(
            "Actions as they come",
            "Decisions counted a second, by model version and action.",
            "short",
            (
                Query(
                    f"sum by (version, action) (rate(paywarden_drift_actions_total{{{_OF}}}{_RATE}))",
                    "{{version}} {{action}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Scores: median, p90 and p99",
            "Quantiles of the scores counted, by model version.",
            "percentunit",
            tuple(
                Query(
                    f"histogram_quantile({quantile:g}, "
                    f"sum by (version, le) (rate(paywarden_drift_score_bucket{{{_OF}}}{_RATE})))",
                    f"p{100 * quantile:g} {{{{version}}}}",
                )
                for quantile in (0.5, 0.9, 0.99)
            ),
            maximum=1.0,
        ),
    ),
)

_COUNTING = DashboardSection(
    "Counting of decisions",
    (
        Panel(
            "Time since the last evaluation",
            "Seconds since the end of the last block that was evaluated.",
            "s",
            (Query("time() - (max(paywarden_drift_evaluated_timestamp_seconds) > 0)", "block of drift"),),
            alerts=("PaywardenDriftBehind",),
            steps=((1800, "red"),),
        ),
        Panel(
            "Partitions behind",
            "How far the counts of each partition of topic `decisions` are behind now.",
            "s",
            (Query("max by (partition) (paywarden_drift_partition_behind_seconds)", "{{partition}}"),),
            alerts=("PaywardenDriftBehind",),
        ),
        Panel(
            "Decisions counted",
            "Decisions a second that were read and saved, and blocks evaluated an hour.",
            "short",
            (
                Query(f"sum(rate(paywarden_drift_decisions_total{_RATE}))", "decisions a second"),
                Query("sum(increase(paywarden_drift_blocks_total[1h]))", "blocks an hour"),
                Query("sum(paywarden_drift_unsaved)", "read, not saved"),
            ),
        ),
        Panel(
            "Decisions not counted as usual",
            "Decisions a second that came late, from the future, too old, of an unknown version, of one version too "
            "many, or that cannot be decoded. 0 on a quiet day.",
            "short",
            (
                Query(f"sum(rate(paywarden_drift_late_total{_RATE}))", "late"),
                Query(f"sum(rate(paywarden_drift_future_total{_RATE}))", "future"),
                Query(f"sum(rate(paywarden_drift_old_total{_RATE}))", "old"),
                Query(f"sum(rate(paywarden_drift_unknown_version_total{_RATE}))", "unknown version"),
                Query(f"sum(rate(paywarden_drift_other_version_total{_RATE}))", "other version"),
                Query(f"sum(rate(paywarden_drift_undecodable_total{_RATE}))", "undecodable"),
            ),
        ),
        Panel(
            "State of drift and outcomes",
            "1 while the store takes counts and outcomes.",
            "short",
            (
                Query("min by (instance) (paywarden_drift_store_up)", "drift {{instance}}"),
                Query("min by (instance) (paywarden_outcomes_store_up)", "outcomes {{instance}}"),
            ),
            alerts=("PaywardenDriftStoreDown", "PaywardenOutcomesStoreDown"),
            maximum=1.0,
        ),
        Panel(
            "State in trouble",
            "In an hour: saves that waited for the store, partitions dropped because another worker has them, records "
            "that were trimmed, counts not added up, damaged records set aside. 0 on a quiet day.",
            "short",
            (
                Query("sum(increase(paywarden_drift_store_retries_total[1h]))", "drift waited"),
                Query("sum(increase(paywarden_outcomes_store_retries_total[1h]))", "outcomes waited"),
                Query("sum(increase(paywarden_drift_trimmed_total[1h]))", "trimmed"),
                Query("sum(increase(paywarden_drift_unmerged_total[1h]))", "not added up"),
                Query("sum by (kind) (increase(paywarden_state_set_aside_total[1h]))", "set aside: {{kind}}"),
            ),
            alerts=("PaywardenStateSetAside", "PaywardenDriftStoreDown", "PaywardenOutcomesStoreDown"),
        ),
    ),
)

_OUTCOMES = DashboardSection(
    "Outcomes",
    (
        Panel(
            "Precision",
            f"Share of frauds among reviewed and declined payments. {_LAST_DAYS}",
            "percentunit",
            (_measure("precision"),),
            alerts=("PaywardenOutcomesWorse",),
            maximum=1.0,
        ),
        Panel(
            "Recall",
            f"Share of the frauds that were reviewed or declined. {_LAST_DAYS}",
            "percentunit",
            (_measure("recall"),),
            alerts=("PaywardenOutcomesWorse",),
            maximum=1.0,
        ),
        Panel(
            "Average precision",
            f"Average precision of the scores. {_LAST_DAYS}",
            "percentunit",
            (_measure("average_precision"),),
            alerts=("PaywardenOutcomesWorse",),
            maximum=1.0,
        ),
        Panel(
            "Calibration",
            f"Brier score and expected calibration error: less is better. {_LAST_DAYS}",
            "short",
            (_measure("brier_score"), _measure("calibration_error")),
        ),
        Panel(
            "Time to the label",
            "Quantiles of the time from a decision to its label, on mature days.",
            "s",
            (
                Query(
                    "max by (version, variant, days, quantile) "
                    f"(paywarden_outcomes_label_lag_quantile_seconds{{{_OF}}})",
                    "p{{quantile}} {{version}} {{variant}} {{days}} days",
                ),
            ),
        ),
        Panel(
            "Time to the label, as outcomes come",
            "Median time from a decision to the outcome that counts, of the outcomes of the last day.",
            "s",
            (
                Query(
                    "histogram_quantile(0.5, "
                    "sum by (label, le) (rate(paywarden_outcomes_label_lag_seconds_bucket[1d])))",
                    "{{label}}",
                ),
            ),
        ),
        Panel(
            "Rows joined",
            "Decisions and outcomes processed a second, by effect.",
            "short",
            (
                Query(f"sum by (topic, result) (rate(paywarden_outcomes_rows_total{_RATE}))", "{{topic}} {{result}}"),
                Query("sum(paywarden_outcomes_unsaved)", "read, not saved"),
            ),
            alerts=("PaywardenOutcomesLate",),
        ),
        Panel(
            "Time since the last day evaluated",
            "Seconds since the end of the last day that was evaluated, and days evaluated in a day.",
            "s",
            (
                Query("time() - (max(paywarden_outcomes_evaluated_timestamp_seconds) > 0)", "since"),
                Query("sum(increase(paywarden_outcomes_days_total[1d]))", "days a day"),
            ),
            alerts=("PaywardenOutcomesBehind",),
        ),
        Panel(
            "Outcomes not counted as usual",
            "A second: outcomes that cannot be decoded, decisions of a version or variant too many. 0 on a quiet day.",
            "short",
            (
                Query(f"sum(rate(paywarden_outcomes_undecodable_total{_RATE}))", "undecodable"),
                Query(f"sum(rate(paywarden_outcomes_other_arm_total{_RATE}))", "other arm"),
            ),
        ),
    ),
)

DRIFT = Dashboard(
    "drift",
    "Paywarden: drift and outcomes",
    "Drift of the input and of the scores, and how good decisions turn out to be once their labels are known.",
    (_DRIFT, _COUNTING, _OUTCOMES),
    (_VERSION,),
)
