"""A property tester sends a running `serve` requests that the OpenAPI description allows, and many that it forbids."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.services.missing_tools import SCHEMATHESIS
from tests.services.product.processes import is_ready, run_paywarden, samples, wait_until
from tests.services.product.scoring_server import PATIENT, Server

TESTER = Path(sys.executable).with_name("schemathesis")
pytestmark = pytest.mark.skipif(not TESTER.exists(), reason=SCHEMATHESIS.reason)

HOUR_MS = 3_600_000
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "positive_data_acceptance"),
    *("unsupported_method", "allow_header_conformance"),
)
# In a JSON schema 12.0 is a whole number. The endpoint takes an amount of 12 and no other spelling.
WHOLE_NUMBERS = """
import schemathesis

def whole(value):
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

@schemathesis.hook
def map_body(context, body):
    return whole(body)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("openapi"), more=PATIENT) as one:
        writer = MirrorWriter(one.mirror)
        writer.apply({}, {0: 1}, time.time_ns() // 1_000_000)
        writer.close()
        one.start()
        wait_until(lambda: is_ready(one.target), "the host is ready")
        yield one


@pytest.fixture(scope="module")
def printed(server: Server) -> dict[str, Any]:
    """The description that the command prints for the server's configuration, without protobuf.

    The tester knows JSON; protobuf has fuzzers of its own.
    """
    done = run_paywarden("--config", str(server.config), "admin", "schemas", "--openapi")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    for path in ("/v1/score", "/v1/score:batch"):
        del document["paths"][path]["post"]["requestBody"]["content"]["application/x-protobuf"]
    return document


def narrowed(printed: dict[str, Any]) -> dict[str, Any]:
    """Returns the description with what the endpoint asks for in words alone: every payment it allows can be scored.

    Times are near now, currencies have a rate, no text is a card number, and no deadline is shorter than a busy machine
    needs.
    """
    document = copy.deepcopy(printed)
    now_ms = time.time_ns() // 1_000_000
    request = document["components"]["schemas"]["ScoreRequest"]["properties"]
    for field in request.values():
        if "maxLength" in field:
            field["pattern"] = "^[a-z][a-zäöü0-9-]{0,30}$"
    request["event_time_ms"] |= {"minimum": now_ms - HOUR_MS, "maximum": now_ms, "examples": [now_ms - HOUR_MS]}
    request["currency"] |= {"pattern": "^(EUR|USD|GBP)$"}
    for path in ("/v1/score", "/v1/score:batch"):
        example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        for payment in example.get("requests", [example]):
            payment["event_time_ms"] = now_ms - HOUR_MS
        for parameter in document["paths"][path]["post"]["parameters"]:
            if parameter["name"] == "x-deadline-ms":
                parameter["schema"]["minimum"] = parameter["example"] = 60_000
    return document


def test_every_answer_to_what_is_allowed_is_as_described(
    server: Server, printed: dict[str, Any], tmp_path: Path
) -> None:
    ask(server, narrowed(printed), tmp_path, "--mode", "positive", "--phases", "examples,coverage,fuzzing")
    for route in ("score", "score_batch"):
        wait_until(lambda: counted(server.target, route, "200") > 20, f"{route} has decided")  # noqa: B023


def test_every_request_that_is_not_allowed_is_refused(server: Server, printed: dict[str, Any], tmp_path: Path) -> None:
    ask(server, printed, tmp_path, "--mode", "negative", "--phases", "coverage,fuzzing")
    for route in ("score", "score_batch"):
        wait_until(lambda: counted(server.target, route, "400") > 20, f"{route} has refused")  # noqa: B023


def ask(server: Server, document: dict[str, Any], folder: Path, *options: str) -> None:
    """Run the tester. It fails for an answer that is not described, and for one that is no answer to its request."""
    (folder / "openapi.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "hooks.py").write_text(WHOLE_NUMBERS, encoding="utf-8")
    command = [str(TESTER), "run", "openapi.json", "--url", server.target, "--checks", ",".join(CHECKS), *options]
    command += ["--seed", "7", "--max-examples", "12", "--no-shrink", "--continue-on-failure"]
    command += ["--suppress-health-check", "all", "--request-timeout", "60"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "5 selected / 5 total" in done.stdout


def counted(target: str, route: str, code: str) -> float:
    return samples(target).get(("paywarden_requests_total", route, code), 0.0)
