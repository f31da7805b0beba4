"""The queries behind each figure of the evidence, in DuckDB's SQL. The report prints them as they are here.

    archive   payments, outcomes, decisions, and verdicts, drift_alerts, drift_acknowledgements if they are archived
    rates     currency, from_ms, rate: millionths of the reference currency's minor unit for one minor unit
    asked     one row: from_ms, to_ms, known_to_ms, channels (of remote payments)
    episode_features   catalogue_digest, place: where in the vectors of this catalogue an `episode` feature is, from 0

An auditor makes the views of the archive with PREPARED, and then runs any query alone.

A payment counts once, however often it was sent or decided; its first decision counts. It was executed unless that
decision, or anybody after it, declined it. A payment is a fraud if its newest outcome says so, and a dispute if any
outcome has the source `chargeback`. Outcomes that reached Kafka at `known_to_ms` or later do not count. A payment is
enumerated if an `episode` feature was 1 or more for any of its decisions.
"""

from __future__ import annotations

from typing import NamedTuple

PREPARED = """\
CREATE TABLE first_decision AS
SELECT * FROM decisions
QUALIFY row_number() OVER (PARTITION BY payment_id ORDER BY decided_time_ms, decision_id) = 1;

CREATE TABLE newest_outcome AS
SELECT payment_id, label, outcome_time_ms, disputed_ms
FROM (
    SELECT *, min(outcome_time_ms) FILTER (WHERE source = 'chargeback') OVER (PARTITION BY payment_id) AS disputed_ms
    FROM outcomes, asked WHERE kafka_timestamp_ms < known_to_ms
)
QUALIFY row_number() OVER (PARTITION BY payment_id ORDER BY outcome_time_ms DESC, label DESC) = 1;

CREATE TABLE episode_value AS
SELECT payment_id, hex(array_slice(vector, 4 * place + 1, 4 * place + 4)) AS low_first
FROM decisions JOIN episode_features USING (catalogue_digest);

-- A vector has float32 numbers, the low byte first. Positive ones sort as their bytes do, the high byte first.
CREATE TABLE enumeration AS
SELECT payment_id, bool_or(low_first[7:8] || low_first[5:6] || low_first[3:4] || low_first[1:2]
    BETWEEN '3F800000' AND '7F800000') AS in_episode  -- 1.0 and infinity
FROM episode_value GROUP BY payment_id;

CREATE TABLE payment AS
WITH sent AS (
    SELECT *, bool_or(coalesce(declined, false)) OVER (PARTITION BY payment_id) AS was_declined FROM payments
    QUALIFY row_number() OVER (
        PARTITION BY payment_id ORDER BY kafka_timestamp_ms, kafka_partition, kafka_offset) = 1
)
SELECT s.payment_id, s.merchant_id, s.event_time_ms, make_timestamp(s.event_time_ms * 1000) AS happened,
    NOT s.was_declined AND coalesce(d.action <> 'decline', true) AS executed,
    coalesce(list_contains(a.channels, s.channel), false) AS remote, s.exempted,
    (s.amount_minor::HUGEINT * r.rate + 500000) // 1000000 AS worth, d.decision_id IS NOT NULL AS decided,
    o.label, coalesce(o.label = 'fraud', false) AS fraud, o.outcome_time_ms, o.disputed_ms, e.in_episode
FROM sent s CROSS JOIN asked a
ASOF LEFT JOIN rates r ON s.currency = r.currency AND s.event_time_ms >= r.from_ms
LEFT JOIN first_decision d ON d.payment_id = s.payment_id
LEFT JOIN newest_outcome o ON o.payment_id = s.payment_id
LEFT JOIN enumeration e ON e.payment_id = s.payment_id;
"""


class Query(NamedTuple):
    """A table of the report. `texts`: how many columns on the left hold texts."""

    name: str
    title: str
    meaning: str
    sql: str
    texts: int = 1


COVERAGE = Query(
    "coverage",
    "What the figures rest on",
    "A payment without a label counts as genuine. Payments in a currency without a rate are in no sum of money. "
    "Episodes of enumeration are read from the vectors of decisions by the catalogue of the settings.",
    """\
SELECT year(happened) || ' Q' || quarter(happened) AS quarter, count(*) AS payments,
    count(*) FILTER (WHERE decided) AS decided, count(*) FILTER (WHERE executed) AS executed,
    count(*) FILTER (WHERE label IS NOT NULL) AS labelled, count(*) FILTER (WHERE worth IS NULL) AS without_rate,
    count(in_episode) AS episodes_read
FROM payment, asked WHERE event_time_ms >= from_ms AND event_time_ms < to_ms
GROUP BY ALL ORDER BY quarter""",
)
EXEMPTIONS = Query(
    "exemptions",
    "Fraud rates of remote payments, for the exemption by transaction risk analysis",
    "The fraud rate is the value of frauds by the value of all executed remote payments of the quarter, with and "
    "without strong authentication. The reference rates for cards are 13, 6 and 1 basis points, for exemptions up to "
    "EUR 100, 250 and 500: the rate of all payments decides which of them may be used (Commission Delegated Regulation "
    "(EU) 2018/389, articles 18 and 19, annex). The bands and the exempted payments show where fraud is.",
    """\
WITH band (band, low, high, reference_bp) AS (
    VALUES ('all', -1, 9000000000000000000, NULL), ('up to 100', -1, 10000, 13), ('100 to 250', 10000, 25000, 6),
        ('250 to 500', 25000, 50000, 1), ('above 500', 50000, 9000000000000000000, NULL)
)
SELECT year(happened) || ' Q' || quarter(happened) AS quarter, band, reference_bp,
    count(*) AS payments, sum(worth) AS value_minor, count(*) FILTER (WHERE fraud) AS frauds,
    coalesce(sum(worth) FILTER (WHERE fraud), 0) AS fraud_minor,
    10000.0 * fraud_minor / nullif(value_minor, 0) AS fraud_bp,
    count(*) FILTER (WHERE exempted) AS exempted, coalesce(sum(worth) FILTER (WHERE exempted), 0) AS exempted_minor,
    coalesce(sum(worth) FILTER (WHERE exempted AND fraud), 0) AS exempted_fraud_minor,
    10000.0 * exempted_fraud_minor / nullif(exempted_minor, 0) AS exempted_fraud_bp
FROM payment, asked, band
WHERE event_time_ms >= from_ms AND event_time_ms < to_ms AND executed AND remote AND worth > low AND worth <= high
GROUP BY quarter, band, reference_bp, low ORDER BY quarter, low, band = 'up to 100'""",
    texts=2,
)
MERCHANTS = Query(
    "merchants",
    "Ratios of merchants by month",
    "Frauds and disputes count in the month in which they became known. Visa's ratio (VAMP) is frauds and disputes by "
    "the executed payments of the month. Mastercard's chargeback ratio is disputes by the executed payments of the "
    "month before; its fraud ratio is the value of frauds by the value of the month's payments. The schemes count "
    "settled payments and their own reports: these figures are early warnings. A merchant without a fraud and a "
    "dispute is left out. merchants.csv has the other merchants, the report those with the most.",
    """\
WITH paid AS (
    SELECT merchant_id, date_trunc('month', happened) AS month, count(*) AS payments, sum(worth) AS value_minor
    FROM payment WHERE executed GROUP BY ALL
), reported AS (
    SELECT merchant_id, date_trunc('month', make_timestamp(outcome_time_ms * 1000)) AS month, 1 AS frauds,
        worth AS fraud_minor, 0 AS disputes FROM payment WHERE fraud AND executed
    UNION ALL
    SELECT merchant_id, date_trunc('month', make_timestamp(disputed_ms * 1000)), 0, 0, 1
    FROM payment WHERE disputed_ms IS NOT NULL AND executed
), months AS (
    SELECT merchant_id, month, sum(frauds) AS frauds, coalesce(sum(fraud_minor), 0) AS fraud_minor,
        sum(disputes) AS disputes FROM reported GROUP BY ALL
)
SELECT strftime(m.month, '%Y-%m') AS month, m.merchant_id, coalesce(p.payments, 0) AS payments,
    coalesce(p.value_minor, 0) AS value_minor, frauds, fraud_minor, disputes,
    (frauds + disputes) / p.payments AS visa_ratio, 10000.0 * disputes / b.payments AS mastercard_chargeback_bp,
    10000.0 * fraud_minor / nullif(p.value_minor, 0) AS mastercard_fraud_bp
FROM months m CROSS JOIN asked
LEFT JOIN paid p ON p.merchant_id = m.merchant_id AND p.month = m.month
LEFT JOIN paid b ON b.merchant_id = m.merchant_id AND b.month = m.month - INTERVAL 1 MONTH
WHERE epoch_ms(m.month) >= from_ms AND epoch_ms(m.month) < to_ms
ORDER BY month, frauds + disputes DESC, m.merchant_id""",
    texts=2,
)
ENUMERATION = Query(
    "enumeration",
    "Enumerated payments of merchants by month",
    "Visa's enumeration ratio: payments during an episode of card testing by all payments, declined ones too. An "
    "episode is on while a feature of the kind episode is 1 or more. A merchant without an enumerated payment is left "
    "out.",
    """\
SELECT strftime(happened, '%Y-%m') AS month, merchant_id, count(*) AS payments,
    count(*) FILTER (WHERE in_episode) AS enumerated,
    coalesce(sum(worth) FILTER (WHERE in_episode), 0) AS enumerated_minor, enumerated / payments AS enumeration_ratio
FROM payment, asked WHERE event_time_ms >= from_ms AND event_time_ms < to_ms
GROUP BY month, merchant_id HAVING count(*) FILTER (WHERE in_episode) > 0
ORDER BY month, enumerated DESC, merchant_id""",
    texts=2,
)
VERSIONS = Query(
    "versions",
    "What decided",
    "Each bundle and policy that decided, from the records of the decisions themselves.",
    """\
SELECT model_version, bundle_digest, policy_digest, catalogue_digest,
    strftime(make_timestamp(min(decided_time_ms) * 1000), '%Y-%m-%d %H:%M:%S') AS first,
    strftime(make_timestamp(max(decided_time_ms) * 1000), '%Y-%m-%d %H:%M:%S') AS last, count(*) AS decisions,
    count(*) FILTER (WHERE action = 'approve') AS approved, count(*) FILTER (WHERE action = 'review') AS reviewed,
    count(*) FILTER (WHERE action = 'decline') AS declined
FROM decisions, asked WHERE decided_time_ms >= from_ms AND decided_time_ms < to_ms
GROUP BY ALL ORDER BY first, bundle_digest, policy_digest""",
    texts=6,
)
SAMPLE = Query(
    "sample",
    "Decisions with their reasons",
    "Twenty reviewed or declined payments, chosen by the digest of their id, so by nobody. "
    "`paywarden decisions explain` decides each of them again, to the bit.",
    """\
SELECT strftime(make_timestamp(decided_time_ms * 1000), '%Y-%m-%d %H:%M:%S') AS decided, decision_id, action,
    array_to_string(reasons, ', ') AS reasons, model_version, policy_digest, round(score, 6) AS score
FROM first_decision, asked
WHERE decided_time_ms >= from_ms AND decided_time_ms < to_ms AND action <> 'approve'
ORDER BY sha256(payment_id), decision_id LIMIT 20""",
    texts=6,
)
REVIEWS = Query(
    "reviews",
    "Reviewers",
    "Verdicts of each first review, and how many of them a second reviewer, or the outcome known later, agrees with.",
    """\
WITH verdict AS (SELECT DISTINCT ON (verdict_id) * FROM verdicts), first AS (
    SELECT v.*, make_timestamp(kafka_timestamp_ms * 1000) AS reviewed FROM verdict v, asked
    WHERE turn = 1 AND kafka_timestamp_ms >= from_ms AND kafka_timestamp_ms < to_ms
), second AS (
    SELECT decision_id, any_value(verdict ORDER BY verdict_id) AS verdict FROM verdict WHERE turn = 2 GROUP BY ALL
)
SELECT year(reviewed) || ' Q' || quarter(reviewed) AS quarter, count(*) AS reviews,
    count(*) FILTER (WHERE first.verdict = 'fraud') AS fraud,
    count(*) FILTER (WHERE first.verdict = 'genuine') AS genuine,
    count(second.verdict) AS reviewed_twice, count(*) FILTER (WHERE first.verdict = second.verdict) AS reviewers_agree,
    count(o.label) FILTER (WHERE first.verdict <> 'unsure') AS with_outcome,
    count(*) FILTER (WHERE first.verdict = o.label) AS outcome_agrees
FROM first LEFT JOIN second USING (decision_id) LEFT JOIN newest_outcome o ON o.payment_id = first.payment_id
GROUP BY ALL ORDER BY quarter""",
)
ALERTS = Query(
    "alerts",
    "Drift alerts, and what was done",
    "Each alert that was raised, with its end and who acknowledged it.",
    """\
WITH done AS (
    SELECT alert_id, string_agg(DISTINCT "by", ', ' ORDER BY "by") AS people,
        string_agg(note, '; ' ORDER BY time_ms, note) FILTER (WHERE note <> '') AS notes
    FROM drift_acknowledgements GROUP BY ALL
)
SELECT strftime(make_timestamp(min(time_ms) * 1000), '%Y-%m-%d %H:%M:%S') AS raised, alert_id, subject, segment,
    CASE max(CASE severity WHEN 'critical' THEN 2 WHEN 'warning' THEN 1 ELSE 0 END)
        WHEN 2 THEN 'critical' WHEN 1 THEN 'warning' ELSE 'info' END AS severity,
    coalesce(
        strftime(make_timestamp(max(time_ms) FILTER (WHERE state = 'cleared') * 1000), '%Y-%m-%d %H:%M:%S'), 'open'
    ) AS cleared,
    coalesce(people, 'nobody') AS acknowledged_by, coalesce(notes, '') AS notes
FROM drift_alerts LEFT JOIN done USING (alert_id), asked
GROUP BY alert_id, subject, segment, people, notes, from_ms, to_ms
HAVING min(time_ms) >= from_ms AND min(time_ms) < to_ms ORDER BY raised, alert_id""",
    texts=8,
)
QUERIES = (COVERAGE, EXEMPTIONS, MERCHANTS, ENUMERATION, VERSIONS, SAMPLE, REVIEWS, ALERTS)
"""All of them, in the order of the report."""
