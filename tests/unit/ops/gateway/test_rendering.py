"""Rendering: the decisions that the real Envoy and nginx of the integration tests do not show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from paywarden.ops.cli import cli
from paywarden.ops.gateway.description import GatewayDescription
from paywarden.ops.gateway.envoy import envoy_configuration
from paywarden.ops.gateway.nginx import nginx_configuration
from paywarden.schemas.errors import Misconfigured
from tests.worlds.operate.gateway_described import (
    ISSUER,
    KEY,
    SECRET,
    TEXT,
    described,
    write_credentials,
    write_description,
)

Renderer = Callable[[GatewayDescription], str]


def values_of(tree: object, name: str) -> Iterator[Any]:
    """Yields every value of this name in a JSON document."""
    if isinstance(tree, dict):
        if name in tree:
            yield tree[name]
        tree = list(tree.values())
    if isinstance(tree, list):
        for item in tree:
            yield from values_of(item, name)


@pytest.mark.parametrize("render", [envoy_configuration, nginx_configuration])
def test_a_configuration_holds_neither_key_nor_secret_and_is_the_same_again(tmp_path: Path, render: Renderer) -> None:
    description = described(tmp_path)
    text = render(description)
    assert KEY not in text
    assert SECRET not in text
    assert render(description) == text


def test_envoy_never_takes_a_host_out_for_what_it_answers(tmp_path: Path) -> None:
    clusters = json.loads(envoy_configuration(described(tmp_path)))["static_resources"]["clusters"]
    assert [cluster["name"] for cluster in clusters] == ["v1_http", "v2_http", "v1_grpc", "v2_grpc"]
    for cluster in clusters:
        outlier = cluster["outlier_detection"]
        assert outlier["split_external_local_origin_errors"] is True
        enforced = {name for name, value in outlier.items() if name.startswith("enforcing_") and value}
        assert enforced == {"enforcing_consecutive_local_origin_failure"}
        assert cluster["lb_policy"] == "MAGLEV"


@pytest.mark.parametrize("render", [envoy_configuration, nginx_configuration])
def test_hosts_have_an_order_only_if_they_hold_a_part_of_the_cards(tmp_path: Path, render: Renderer) -> None:
    assert "local shard" not in render(described(tmp_path))
    assert "local shard" in render(described(tmp_path, TEXT + "[shards]\ncount = 4\n"))


def test_envoy_sends_a_call_again_only_if_no_host_has_taken_it(tmp_path: Path) -> None:
    configuration = json.loads(envoy_configuration(described(tmp_path)))
    policies = list(values_of(configuration, "retry_policy"))
    assert {(policy["retry_on"], policy["num_retries"]) for policy in policies} == {
        ("connect-failure,refused-stream,reset-before-request", 1)
    }
    # No predicate and no priority: the same hash finds the same host.
    assert {name for policy in policies for name in policy} == {"retry_on", "num_retries", "retry_back_off"}
    assert {budget["budget_percent"]["value"] for budget in values_of(configuration, "retry_budget")} == {20}


def test_envoy_does_only_what_a_description_needs(tmp_path: Path) -> None:
    """Each filter, count and question of the Lua code costs every call some microseconds."""
    text = TEXT
    for line in (
        'client_ca = "clients.pem"',
        'client_certificates = "optional"',
        'certificates = ["CN=checkout,O=Shop"]',
        "calls_per_second = 500",
    ):
        text = text.replace(line, "")
    bare, whole = (envoy_configuration(described(tmp_path, whole)) for whole in (text, TEXT + ISSUER))
    filters, more = (
        [one["name"].rpartition(".")[2] for one in next(values_of(json.loads(one), "http_filters"))]
        for one in (bare, whole)
    )
    assert filters == ["set_filter_state", "lua", "buffer", "router"]
    assert more == ["set_filter_state", "jwt_authn", "lua", "buffer", "local_ratelimit", "router"]
    for word in ("peerCertificatePresented", "jwt_authn"):
        assert word not in bare
        assert word in whole
    # The Lua code changes headers, but no route depends on them.
    assert list(values_of(json.loads(whole), "clear_route_cache")) == [False, False]
    matches = list(values_of(json.loads(whole), "match"))
    assert {name for match in matches for name in match} <= {"path", "prefix"}
    # Counts are kept for the admin page, and for nobody else.
    with_page = TEXT.replace("[listen]", '[listen]\nadmin = "127.0.0.1:9901"')
    assert json.loads(bare)["stats_config"] == {"stats_matcher": {"reject_all": True}}
    assert "stats_config" not in json.loads(envoy_configuration(described(tmp_path, with_page)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (ISSUER, r"\[\[issuers\]\]: nginx cannot check a JWT"),
        ('[listen]\nadmin = "127.0.0.1:9901"', r"\[listen\] admin: nginx has no such page"),
        ('[to_hosts]\nca = "server.pem"', r"\[to_hosts\] name: nginx needs"),
    ],
)
def test_settings_that_nginx_lacks_are_refused(tmp_path: Path, change: str, message: str) -> None:
    section = change.partition("\n")[0]
    text = TEXT.replace(section, change, 1) if section and section in TEXT else TEXT + change
    with pytest.raises(Misconfigured, match=message):
        nginx_configuration(described(tmp_path, text))


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["gateway", *arguments], standalone_mode=False)
    return result.exit_code, result.stdout if result.exception is None else str(result.exception)


def test_the_command_prints_configuration_tokens_and_keys(tmp_path: Path) -> None:
    path = str(write_description(tmp_path))
    write_credentials(tmp_path)
    assert run("render", "--target", "nginx", "--description", path)[1].startswith("# Made by `paywarden gateway")
    status, printed = run("render", "--target", "hosts", "--description", path)
    assert (status, printed.splitlines()[1][:9]) == (0, "checkout:")
    assert [line.split()[0] for line in run("render", "--target", "key")[1].splitlines()] == ["key", "sha256"]
    (tmp_path / "server.key").unlink()
    assert "[tls] key: cannot read" in run("render", "--target", "envoy", "--description", path)[1]
    assert run("render", "--target", "envoy", "--elsewhere", "--description", path)[0] == 0


@pytest.mark.parametrize("target", ["envoy", "nginx"])
def test_the_command_renders_nothing_for_an_expired_certificate(tmp_path: Path, target: str) -> None:
    path = write_description(tmp_path)
    write_credentials(tmp_path, days=-1)
    status, message = run("render", "--target", target, "--description", str(path))
    assert status != 0
    assert message.startswith(f"{path}: [tls] certificate: {tmp_path}/server.pem has expired on ")
    # Their machine may have other ones.
    assert run("render", "--target", target, "--elsewhere", "--description", str(path))[0] == 0
