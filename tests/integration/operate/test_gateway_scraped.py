"""The job `gateway` of ops/prometheus.yml in a real Prometheus, for gateways that require certificates of callers."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.integration.operate.test_gateway import head
from tests.services.certificates import Authority
from tests.services.missing_tools import PROMETHEUS
from tests.services.product.processes import wait_until
from tests.services.servers.gateways import TARGETS, missing_tool, patient_description, running_gateway
from tests.services.servers.prometheus import OPS, running_prometheus

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason=PROMETHEUS.reason)


@pytest.mark.parametrize("target", TARGETS)
def test_a_gateway_that_requires_certificates_is_up_for_who_has_one(target: str, tmp_path: Path) -> None:
    """The example had no certificate, and PaywardenProcessDown would have fired for ever."""
    if (tool := missing_tool(target)) is not None:
        pytest.skip(tool.reason)
    authority = Authority(tmp_path)
    certificate, key = authority.sign("gateway")
    monitoring = authority.sign("monitoring")
    described = patient_description(tmp_path, "k" * 32, [9], 9)
    tls = replace(
        described.tls,
        certificate=certificate,
        key=key,
        client_ca=authority.path,
        client_certificates="required",
    )
    with running_gateway(target, replace(described, tls=tls), tmp_path / target, authority.path) as gateway:
        jobs = [_job("without", gateway.http_port), _job("with", gateway.http_port, monitoring)]
        with running_prometheus(tmp_path / "prometheus", {}, rules={}, jobs=jobs) as prometheus:
            wait_until(lambda: len(prometheus.query("up")) == 2, "both jobs are scraped")
            wait_until(lambda: bool(prometheus.query('up{job="with"} == 1')), "the certificate opens /livez")
            assert prometheus.query('up{job="without"} == 0')
        with gateway.connected(monitoring) as raw:
            raw.sendall(f"POST /v1/score HTTP/1.1\r\nHost: g\r\n{head(None)}Content-Length: 2\r\n\r\n{{}}".encode())
            assert raw.recv(64).startswith(b"HTTP/1.1 401 ")


def _job(name: str, port: int, certificate: tuple[str, str] | None = None) -> dict[str, object]:
    """The job of the example, with the lines that a certificate asks for if there is one."""
    text = (OPS / "prometheus.yml").read_text(encoding="utf-8")
    if certificate is not None:
        for setting, file in zip(("cert_file", "key_file"), certificate, strict=True):
            text, count = re.subn(rf"# {setting}: monitoring\.\w+$", f"{setting}: {file}", text, flags=re.MULTILINE)
            assert count == 1
    (job,) = [one for one in yaml.safe_load(text)["scrape_configs"] if one["job_name"] == "gateway"]
    return {**job, "job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
