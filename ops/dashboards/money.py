"""Panels of the money that decisions are worth, in the reference currency, and of the decisions by action."""

from __future__ import annotations

from paywarden.ops.dashboards.grafana import Dashboard, DashboardSection, Panel, Query

_LATER = "Once the labels of a day are mature ([outcomes] label_delay_days). In minor units of the reference currency."
_BY = "version, variant, days"

_DECISIONS = DashboardSection(
    "Decisions",
    (
        Panel(
            "Decisions by action",
            "Decisions a second, by action.",
            "short",
            (Query("action:paywarden_decisions:rate5m", "{{action}}"),),
            stacked=True,
        ),
        Panel(
            "Share of each action",
            "Share of the decisions, by action. A step here is money: payments declined, or frauds approved.",
            "percentunit",
            (
                Query(
                    "action:paywarden_decisions:rate5m / on () group_left () sum(action:paywarden_decisions:rate5m)",
                    "{{action}}",
                ),
            ),
            stacked=True,
            maximum=1.0,
        ),
        Panel(
            "Scores: median, p90 and p99",
            "Quantiles of the scores given.",
            "percentunit",
            tuple(
                Query(
                    f"histogram_quantile({quantile:g}, sum by (le) (rate(paywarden_score_bucket[$__rate_interval])))",
                    f"p{100 * quantile:g}",
                )
                for quantile in (0.5, 0.9, 0.99)
            ),
            maximum=1.0,
        ),
    ),
)

_WORTH = DashboardSection(
    "Worth",
    (
        Panel(
            "Worth of the decisions",
            f"Worth of the decisions against approving everything. {_LATER}",
            "short",
            (Query(f"max by ({_BY}) (paywarden_outcomes_net_minor)", "{{version}} {{variant}} {{days}} days"),),
            alerts=("PaywardenOutcomesWorse",),
            minimum=None,
        ),
        Panel(
            "Frauds that were approved",
            f"Money lost to frauds that were approved. {_LATER}",
            "short",
            (
                Query(
                    f"max by ({_BY}) (paywarden_outcomes_fraud_missed_minor)", "{{version}} {{variant}} {{days}} days"
                ),
            ),
            alerts=("PaywardenOutcomesWorse",),
        ),
        Panel(
            "Price of exploration",
            "Amounts, in an hour, of payments that exploration approved and the policy would have declined. In minor "
            "units of the reference currency.",
            "short",
            (Query("sum(increase(paywarden_explored_minor_total[1h]))", "minor units an hour"),),
        ),
        Panel(
            "Payments explored",
            "Payments, in an hour, that exploration approved and the policy would decline. 0 without exploration.",
            "short",
            (Query("sum(increase(paywarden_explored_total[1h]))", "payments an hour"),),
        ),
        Panel(
            "Decisions without an amount",
            "Decisions in an hour whose currency has no rate: they count as 0 in the sums above. 0 on a quiet day.",
            "short",
            (Query("sum(increase(paywarden_outcomes_without_amount_total[1h]))", "an hour"),),
        ),
    ),
)

MONEY = Dashboard(
    "money",
    "Paywarden: money",
    "The worth of decisions in the reference currency, and decisions by action.",
    (_DECISIONS, _WORTH),
)
