"""As a data engineer does it: from a bucket of Parquet to a report, on a cluster, with Spark's own connector."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from paywarden.features.history.history import write_history
from tests.patience import PATIENCE_S
from tests.services.fetch import ServiceMissing, s3_dir, s3a_dir
from tests.services.kafka_classes import QUICK_JVM
from tests.services.product.processes import run_paywarden
from tests.services.servers.s3 import put, read, running_s3
from tests.worlds.small import small_world

pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
if shutil.which("java") is None:
    pytest.skip("Spark needs Java 17, and there is no java", allow_module_level=True)

# What docs/data-science/large-histories.md says to put into spark-defaults.conf, for a server on this machine.
DEFAULTS = """\
spark.jars {jars}
spark.hadoop.fs.s3a.endpoint {url}
spark.hadoop.fs.s3a.endpoint.region eu-central-1
spark.hadoop.fs.s3a.path.style.access true
spark.hadoop.fs.s3a.aws.credentials.provider org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider
spark.hadoop.fs.s3a.connection.expect.continue false
spark.hadoop.fs.s3a.access.key any
spark.hadoop.fs.s3a.secret.key any
spark.driver.host 127.0.0.1
spark.driver.bindAddress 127.0.0.1
spark.ui.enabled false
spark.sql.shuffle.partitions 2
spark.driver.extraJavaOptions {jvm}
spark.executor.extraJavaOptions {jvm}
"""
ROWS = 1000
SCORED = ["payment_id", "score", "action"]


def test_a_bucket_becomes_a_report_on_a_cluster_of_two_workers(tmp_path: Path) -> None:
    try:
        jars, _ = ",".join(path.as_uri() for path in sorted(s3a_dir().iterdir())), s3_dir()
    except ServiceMissing as error:
        pytest.skip(f"no S3 to test with: {error}")
    history, local = tmp_path / "history", tmp_path / "local"
    history.mkdir()
    payments, outcomes = small_world.tables()
    payments = payments.slice(0, 3 * ROWS)
    write_history(history, payments, outcomes.filter(pc.is_in(outcomes["payment_id"], payments["payment_id"])))
    replay = ["replay", "--bundle", str(small_world.trained_bundle()), "--lag", "0", "--from", "-2d"]
    done = run_paywarden(*replay, "--data", str(history), "--out", str(local))
    assert done.returncode == 0, done.stderr
    with running_s3() as url:
        defaults = DEFAULTS.format(jars=jars, url=url, jvm=" ".join(QUICK_JVM))
        (tmp_path / "spark-defaults.conf").write_text(defaults, encoding="utf-8")
        put(f"{url}/lake")
        for number in range(3):
            part = io.BytesIO()
            pq.write_table(payments.slice(number * ROWS, ROWS), part)
            put(f"{url}/lake/history/payments.parquet/part-{number}.parquet", part.getvalue())
        put(f"{url}/lake/history/outcomes.parquet", (history / "outcomes.parquet").read_bytes())
        cluster = ["--engine", "spark", "--master", "local-cluster[2,1,1024]", "--partitions", "2"]
        done = run_paywarden(
            *replay,
            *cluster,
            *("--data", "s3a://lake/history", "--out", "s3a://lake/replayed"),
            environment={"SPARK_CONF_DIR": str(tmp_path)},
            afresh=True,
            timeout_s=3 * PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        keys = sorted(re.findall("<Key>(.*?)</Key>", read(f"{url}/lake?list-type=2&prefix=replayed").decode()))
        assert read(f"{url}/lake/replayed/report.html") == (local / "report.html").read_bytes()
        files = [key for key in keys if key.endswith(".parquet")]
        decisions = pa.concat_tables(pq.read_table(io.BytesIO(read(f"{url}/lake/{key}"))) for key in files)
    wanted = pq.read_table(local / "decisions.parquet", columns=SCORED)
    assert decisions.select(SCORED).to_pylist() == wanted.to_pylist()
    names = {key.removeprefix("replayed/") for key in keys if key not in files}
    assert names == {"decisions.parquet/_SUCCESS", "metrics.json", "report.html"}
