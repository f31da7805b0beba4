"""The settings that reach the official client, and those that are refused before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import aerospike
import pytest

from paywarden.features.stores.aerospike.client import _client_config, batch_policy, check_settings
from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from tests.standin.aerospike_server import Fault, StandIn
from tests.standin.patience import quick_settings, wait_until

PKI = {"auth_mode": "pki", "tls": True, "tls_certificate_file": "own.pem", "tls_key_file": "own.key"}
EXTERNAL = {"auth_mode": "external", "tls": True, "user": "scorer", "password": "hunter2-secret"}


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


def config_of(**settings: object) -> dict[str, Any]:
    changed: AerospikeSettings = replace(AerospikeSettings(), **settings)  # type: ignore[arg-type]
    check_settings(changed)
    return _client_config(changed, every_node=True)


def test_settings_that_a_bank_needs_reach_the_client() -> None:
    config = config_of(
        rack_ids=(3, 1),
        cluster_name="live",
        use_services_alternate=True,
        connection_count_min=7,
        app_id="fraud-eu",
    )
    wanted = {
        "rack_aware": True,
        "rack_ids": [3, 1],
        "cluster_name": "live",
        "use_services_alternate": True,
        "min_conns_per_node": 7,
        "app_id": "fraud-eu",
    }
    assert wanted.items() <= config.items()


def test_tls_options_reach_the_client() -> None:
    config = config_of(tls=True, tls_name="node", tls_crl_check=True, tls_ca_file="ca.pem")
    assert config["tls"] == {
        "enable": True,
        "cafile": "ca.pem",
        "crl_check": True,
        "crl_check_all": True,
    }


@pytest.mark.parametrize(
    ("settings", "mode"),
    [({}, aerospike.AUTH_INTERNAL), (EXTERNAL, aerospike.AUTH_EXTERNAL), (PKI, aerospike.AUTH_PKI)],
    ids=["internal", "external", "pki"],
)
def test_the_way_to_log_in_reaches_the_client(settings: dict[str, object], mode: int) -> None:
    assert config_of(**settings)["policies"]["auth_mode"] == mode


@pytest.mark.parametrize(
    ("settings", "blamed"),
    [
        ({"auth_mode": "ldap"}, "auth_mode"),
        ({"read_mode_sc": "dirty"}, "read_mode_sc"),
        ({"cluster_check": "yes"}, "cluster_check"),
        (EXTERNAL | {"tls": False}, "tls"),
        (EXTERNAL | {"user": ""}, "user"),
        (PKI | {"tls": False}, "tls"),
        (PKI | {"tls_key_file": ""}, "tls_key_file"),
        (PKI | {"user": "scorer", "password": "p"}, "user must be empty"),
        ({"rack_ids": (0,)}, "rack_ids"),
        ({"marker_days": -1}, "marker_days"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(settings: dict[str, object], blamed: str) -> None:
    with pytest.raises(Misconfigured, match=blamed) as refused:
        config_of(**settings)
    assert "secret" not in str(refused.value)


def test_reads_ask_all_copies_and_linearize_unless_told_otherwise() -> None:
    policy = batch_policy(AerospikeSettings(), is_strong=True)
    assert policy["read_mode_ap"] == aerospike.POLICY_READ_MODE_AP_ALL
    assert policy["read_mode_sc"] == aerospike.POLICY_READ_MODE_SC_LINEARIZE
    assert policy["replica"] == aerospike.POLICY_REPLICA_SEQUENCE
    chosen = AerospikeSettings(read_mode_ap="one", read_mode_sc="session", rack_ids=(2,))
    other = batch_policy(chosen, is_strong=True)
    assert other["read_mode_ap"] == aerospike.POLICY_READ_MODE_AP_ONE
    assert other["read_mode_sc"] == aerospike.POLICY_READ_MODE_SC_SESSION
    assert other["replica"] == aerospike.POLICY_REPLICA_PREFER_RACK


# With the client and the stand-in


def test_the_client_knows_every_option_that_it_gets(server: StandIn) -> None:
    settings = replace(quick_settings(server.address), rack_ids=(1,), use_services_alternate=True, app_id="fraud-eu")
    with closing(AerospikeStore(settings)) as store:
        store.write({b"card:1": b"value"}, ttl_s=0)
        assert store.read([b"card:1"]) == [b"value"]
    with pytest.raises(StoreUnavailable):
        # No TLS there: the connection fails, and not the options.
        AerospikeStore(
            replace(
                settings,
                tls=True,
                tls_name="node",
                tls_crl_check=True,
                connect_timeout_ms=200,
            )
        )


@pytest.mark.parametrize("is_enterprise", [True, False], ids=["enterprise", "community"])
def test_reads_are_linearized_only_where_a_server_can_do_it(server: StandIn, is_enterprise: bool) -> None:
    """A Community server refuses a linearized read, and one of strong consistency is asked for nothing less."""
    server.records.is_enterprise = is_enterprise
    for strong in (False, True) if is_enterprise else (False,):
        server.records.strong_consistency = strong
        with closing(AerospikeStore(quick_settings(server.address))) as store:
            store.write({b"card:1": b"value", b"card:2": b"value"}, ttl_s=0)
            assert store.read([b"card:1", b"card:2"]) == [b"value"] * 2
            assert store.read([b"card:1"]) == [b"value"]
        assert server.records.linearized_count == (3 if strong else 0)


def test_a_node_that_does_not_say_what_its_namespace_is_is_unavailable(server: StandIn) -> None:
    server.info_faults.add(Fault.drop())
    with pytest.raises(StoreUnavailable, match="what the namespace is"):
        AerospikeStore(quick_settings(server.address))


def test_a_cluster_of_another_name_is_not_used(server: StandIn) -> None:
    server.cluster_name = "live"
    settings = replace(quick_settings(server.address), connect_timeout_ms=500)
    with pytest.raises(StoreUnavailable):
        AerospikeStore(replace(settings, cluster_name="test"))
    AerospikeStore(replace(settings, cluster_name="live")).close()


def test_connections_are_kept_ready_if_wanted(server: StandIn) -> None:
    with closing(AerospikeStore(replace(quick_settings(server.address), connection_count_min=5))):
        wait_until(lambda: len(server._connections) >= 5)
