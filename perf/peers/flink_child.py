"""A Flink job in SQL for perf/flink.py, in its own environment: payments in, three rolling windows each, out."""

from __future__ import annotations

import json
import sys

from pyflink.table import EnvironmentSettings, TableEnvironment

_PAYMENTS = """
CREATE TABLE payments (
  payment_id STRING NOT NULL, event_time_ms BIGINT NOT NULL, card_id STRING NOT NULL, merchant_id STRING NOT NULL,
  device_id STRING, ip STRING, amount_minor BIGINT NOT NULL, currency STRING NOT NULL, mcc STRING, country STRING,
  channel STRING, utc_offset_minutes INT, declined BOOLEAN,
  moment AS TO_TIMESTAMP_LTZ(event_time_ms, 3), WATERMARK FOR moment AS moment - INTERVAL '1' SECOND
) WITH ('connector' = 'kafka', 'topic' = '{prefix}payments', 'properties.bootstrap.servers' = '{bootstrap}',
  'scan.startup.mode' = 'earliest-offset', 'format' = 'avro')
"""
_WINDOWS = """
CREATE TABLE {entity}_windows (entity STRING, payment_id STRING, payments BIGINT, amount_minor BIGINT)
WITH ('connector' = 'kafka', 'topic' = '{prefix}{entity}', 'properties.bootstrap.servers' = '{bootstrap}',
  'properties.transaction.timeout.ms' = '600000', 'sink.delivery-guarantee' = 'exactly-once',
  'sink.transactional-id-prefix' = '{prefix}{entity}', 'format' = 'avro')
"""
_INSERT = """
INSERT INTO {entity}_windows
SELECT {entity}_id, payment_id, COUNT(*) OVER past, SUM(amount_minor) OVER past FROM payments
WINDOW past AS (PARTITION BY {entity}_id ORDER BY moment RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW)
"""


def main() -> None:
    """Run the job until it is stopped. Its argument is the JSON that perf/flink.py makes."""
    asked = json.loads(sys.argv[1])
    environment = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    for name, value in {
        "pipeline.jars": asked["jars"],
        "parallelism.default": "1",
        "execution.checkpointing.interval": f"{asked['checkpoint']} s",
        # Memory takes 5 MiB of an operator, and the job then starts again for ever.
        "execution.checkpointing.storage": "filesystem",
        "execution.checkpointing.dir": asked["folder"],
    }.items():
        environment.get_config().set(name, value)
    environment.execute_sql(_PAYMENTS.format(**asked))
    inserts = environment.create_statement_set()
    for entity in asked["entities"]:
        environment.execute_sql(_WINDOWS.format(entity=entity, **asked))
        inserts.add_insert_sql(_INSERT.format(entity=entity))
    inserts.execute().wait()


if __name__ == "__main__":
    main()
