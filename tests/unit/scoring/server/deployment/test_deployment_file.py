"""The deployment file: written and read whole, and refused by the name of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.server.deployment.deployment_file import (
    Deployment,
    ReleasePaths,
    read_deployment,
    write_deployment,
)
from paywarden.scoring.server.deployment.releases import read_orders

ACTIVE = {"bundle": "/b"}


def test_a_deployment_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deployment.json"
    assert read_deployment(path) is None
    for deployment in (
        Deployment(ReleasePaths("/b")),
        Deployment(
            ReleasePaths("/b", "/p.toml", "ab", "cd"),
            ReleasePaths("/a"),
            ReleasePaths("/c"),
            rollout="r-1",
            share=500,
            salt="00" * 16,
        ),
    ):
        write_deployment(path, deployment)
        assert read_deployment(path) == deployment
    assert [each.name for each in tmp_path.iterdir()] == ["deployment.json"]
    assert list(deployment.releases) == ["active", "previous", "candidate"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "wanted a deployment of version 1"),
        ({"version": 2, "active": ACTIVE}, "wanted a deployment of version 1"),
        ({"version": 1}, "active is missing"),
        ({"version": 1, "active": "/b"}, "active: wanted an object, got str"),
        ({"version": 1, "active": {"policy": "/p"}}, "active bundle is missing"),
        ({"version": 1, "active": ACTIVE, "candidate": {"bundle": 3}}, "candidate bundle: wanted a text, got int"),
        ({"version": 1, "active": {"bundle": "/b\0"}}, "active bundle: no file can have this name: '/b\\x00'"),
        ({"version": 1, "active": {"bundle": "/b\ud800"}}, "active bundle: no file can have this name"),
        ({"version": 1, "active": ACTIVE | {"digest": ""}}, "active has no field 'digest'"),
        ({"version": 1, "active": ACTIVE, "shares": 1}, "there is no field 'shares'"),
        ({"version": 1, "active": ACTIVE, "share": 0.5}, "share: wanted a whole number of basis points, 0 to 10000"),
        ({"version": 1, "active": ACTIVE, "share": 10_001}, "share: wanted a whole number of basis points"),
        ({"version": 1, "active": ACTIVE, "share": 1, "salt": "0g" * 16}, "salt: wanted 32 hex digits"),
        ({"version": 1, "active": ACTIVE, "share": 1, "salt": "00" * 16}, "share: there is no candidate"),
        ({"version": 1, "active": ACTIVE, "rollout": 7}, "rollout: wanted a text, got int"),
    ],
)
def test_a_wrong_deployment_is_refused_by_file_and_field(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "deployment.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(Misconfigured) as refused:
        read_deployment(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)


def test_a_file_that_is_no_json_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "deployment.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(Misconfigured, match="is not JSON"):
        read_deployment(path)
    with pytest.raises(Misconfigured, match="cannot write"):
        write_deployment(tmp_path / "gone" / "deployment.json", Deployment(ReleasePaths("/b")))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", "7", '{"active": 7}', '{"generation": "1", "active": "a"}',
                '{"active": "a", "share": 10001}', '{"active": "a", "salt": "0x"}', '{"active": "a", "share": true}']
)  # fmt: skip
def test_orders_of_another_form_are_refused_by_their_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "orders-1.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Misconfigured, match=r"orders-1\.json cannot be read"):
        read_orders(path)
