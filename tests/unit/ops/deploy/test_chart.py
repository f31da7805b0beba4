"""The Helm chart, rendered by Helm 3 and Helm 4 and held against the schemas of three versions of Kubernetes.

Helm 4 renders every combination of what can be turned on and off. Both render choices in which each pair of values of
all settings occurs. A start of helm costs more than a rendering. A chart that depends on this one once for each
combination therefore renders all of them in one start (`rendered_at_once`).

`ops/deploy/helm/everything.yaml` is what helm makes with everything turned on. It is checked without helm, too, and
`python -m tests.unit.ops.deploy.test_chart` writes it again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from paywarden.ops.configuration import section_problems, settings_types
from paywarden.schemas.settings import read_source
from tests.checkout import CHECKOUT
from tests.services.deploy_tools import HELM, HELM_RELEASES, helm

CHART = CHECKOUT / "ops/deploy/helm/paywarden"
KUBERNETES = ("1.33", "1.35", "1.37")
EVERYTHING = CHART.parent / "everything.yaml"
_HEAD = "# What helm makes with everything turned on: tests/unit/ops/deploy/test_chart.py.\n# Chart: {digest}\n"
# A resource of the Prometheus operator, not of Kubernetes.
CUSTOM = ("ServiceMonitor",)
NEEDED: Mapping[str, Any] = {
    "config": {
        "kafka": {"bootstrap": "kafka-0:9092,kafka-1:9092"},
        "aerospike": {"hosts": ["store-0:3000", "store-1:3000"], "namespace": "paywarden"},
        "serve": {"bundle": "/srv/paywarden/models/current"},
        "admission": {"deadline_ms": 30},
        "training": {"learning_rate": 0.25},
    },
    "models": {"claim": "bundles"},
    "secretFiles": "paywarden-files",
    "secretEnvironment": [{"name": "PAYWARDEN_KAFKA_SASL_PASSWORD", "secret": "kafka", "key": "password"}],
    "gateway": {"secret": "gateway"},
}
SWITCHES = (
    "scoring.shadow.enabled",
    "lead.enabled",
    "console.enabled",
    "gateway.enabled",
    "topics.create",
    "priorityClass.create",
    "disruption.enabled",
    "networkPolicy.enabled",
    "serviceMonitor.enabled",
)
# Settings that are not switches, with two values each.
OTHERS: Mapping[str, tuple[Any, Any]] = {
    "image.digest": ("", "sha256:" + "0" * 64),
    "image.pullSecrets": ([], ["registry"]),
    "networkPolicy.cidrs": ([], ["10.0.0.0/8"]),
    "networkPolicy.callers": ({}, {"app": "checkout"}),
    "networkPolicy.monitoringNamespace": ("", "monitoring"),
    "topologySpread.keys": ([], ["kubernetes.io/hostname"]),
    "scoring.nodeSelector": ({}, {"pool": "scoring"}),
    "scoring.tolerations": ([], [{"key": "scoring", "operator": "Exists"}]),
    "scoring.outbox.storageClass": ("", "fast"),
    "secretEnvironment": ([], NEEDED["secretEnvironment"]),
    "models.claim": ("", "bundles"),
    "gateway.scrapeSecret": ("", "monitoring"),
}


# The package reads megabytes of definitions for each resource.
_schema_contents = cache(kubernetes_validate.utils.schema_contents)


def validate(resource: Mapping[str, Any], version: str) -> None:
    """Raises ValidationError if Kubernetes of this version does not take a resource, or does not know all of it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kubernetes_validate.utils, "schema_contents", _schema_contents)
        kubernetes_validate.validate(resource, version, strict=True)


def documents_of(text: str) -> list[dict[str, Any]]:
    """Returns the resources of a text."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(text, Loader=loader) if document]


@cache
def validated(text: str) -> tuple[str, str]:
    """Returns kind and name of a resource that every version of Kubernetes takes. Raises what `validate` raises."""
    (document,) = documents_of(text)
    for version in KUBERNETES if document["kind"] not in CUSTOM else ():
        validate(document, version)
    return document["kind"], document["metadata"]["name"]


@pytest.fixture(scope="module", params=HELM_RELEASES, ids=lambda release: f"helm-{release}")
def program(request: pytest.FixtureRequest) -> Path:
    found = helm(request.param)
    if found is None:
        pytest.skip(HELM.reason)
    return found


def values_of(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of an installation with these settings, named with dots."""
    values: dict[str, Any] = json.loads(json.dumps(NEEDED))
    for name, value in choice.items():
        *sections, last = name.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = json.loads(json.dumps(value))
    return values


def pairwise(seed: int = 1) -> Iterator[dict[str, Any]]:
    """Yields choices until every pair of two names has had every pair of their two values."""
    choices: dict[str, tuple[Any, Any]] = dict.fromkeys(SWITCHES, (False, True)) | dict(OTHERS)
    waiting = set(itertools.product(itertools.combinations(choices, 2), (0, 1), (0, 1)))
    rng = random.Random(seed)
    while waiting:
        tried = [{name: rng.randrange(2) for name in choices} for _ in range(40)]
        covered = [{pair for pair in waiting if _is_in(pair, draw)} for draw in tried]
        best = max(range(len(tried)), key=lambda place: len(covered[place]))
        waiting -= covered[best]
        yield {name: choices[name][number] for name, number in tried[best].items()}


def _is_in(pair: tuple[tuple[str, str], int, int], draw: Mapping[str, int]) -> bool:
    (one, other), first, second = pair
    return draw[one] == first and draw[other] == second


def combinations() -> list[dict[str, Any]]:
    """Returns every combination of the switches."""
    switched = itertools.product((False, True), repeat=len(SWITCHES))
    return [dict(zip(SWITCHES, chosen, strict=True)) for chosen in switched]


def run(program: Path, *arguments: str, values: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments, "--values", "-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        check=False,
        cwd=CHART,
    )


def rendered(program: Path, choice: Mapping[str, Any], version: str = KUBERNETES[-1]) -> list[dict[str, Any]]:
    done = run(program, "template", "pw", ".", "--kube-version", version, values=values_of(choice))
    assert done.returncode == 0, done.stderr
    return documents_of(done.stdout)


def rendered_at_once(program: Path, choices: Sequence[Mapping[str, Any]], folder: Path) -> list[list[str]]:
    """Returns the resources of each choice as texts, with one start of helm. `rendered` reads the same resources."""
    names = [f"choice{number:04}x" for number in range(len(choices))]
    shutil.copytree(CHART, folder / "charts/paywarden")
    described = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    needed = [{"name": "paywarden", "version": described["version"], "alias": name} for name in names]
    chart = {"apiVersion": "v2", "name": "many", "version": "1.0.0", "dependencies": needed}
    (folder / "Chart.yaml").write_text(json.dumps(chart), encoding="utf-8")
    values = {name: values_of(choice) for name, choice in zip(names, choices, strict=True)}
    done = run(program, "template", "pw", str(folder), "--kube-version", KUBERNETES[-1], values=values)
    assert done.returncode == 0, done.stderr
    made: dict[str, list[str]] = {name: [] for name in names}
    for text in re.split(r"^---$", done.stdout, flags=re.MULTILINE)[1:]:
        (name,) = re.findall(r"^# Source: many/charts/(\w+)/", text, re.MULTILINE)
        made[name].append(text.replace(f"many/charts/{name}/", "paywarden/").replace(name, "paywarden").strip() + "\n")
    return list(made.values())


def of_kind(documents: Sequence[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [one for one in documents if one["kind"] == kind and one["metadata"]["name"].endswith(name)]
    return found


def pods(documents: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents:
        template = document.get("spec", {}).get("template")
        if template:
            yield document["metadata"]["name"], template["spec"]


def test_the_chart_has_no_fault_that_helm_knows(program: Path) -> None:
    done = run(program, "lint", ".", "--strict", "--kube-version", KUBERNETES[-1], values=NEEDED)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_combination_is_right_for_every_version_of_kubernetes(program: Path, tmp_path: Path) -> None:
    choices = [*pairwise(), *(combinations() if program == helm(HELM_RELEASES[-1]) else ())]
    made = rendered_at_once(program, choices, tmp_path)
    for texts in made:
        names = [validated(text) for text in texts]
        assert len(set(names)) == len(names)
    assert len({text for texts in made for text in texts}) > 50


def test_no_container_of_ours_has_a_right_that_it_does_not_need(program: Path) -> None:
    documents = rendered(program, dict.fromkeys(SWITCHES, True))
    for name, spec in pods(documents):
        security = spec["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"], name
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            claims = {"state"} if "state" in mounted else set()
            assert mounted <= {volume["name"] for volume in spec["volumes"]} | claims, name


def test_the_companion_outlives_serve_and_both_see_the_same_processes(program: Path) -> None:
    spec = of_kind(rendered(program, {}), "StatefulSet", "-scoring")["spec"]["template"]["spec"]
    (companion,) = spec["initContainers"]
    assert companion["name"] == "companion"
    # A sidecar: Kubernetes starts it before the other containers, and ends it after them.
    assert companion["restartPolicy"] == "Always"
    assert spec["shareProcessNamespace"] is True
    (serve,) = spec["containers"]
    shared = [
        [mount for mount in one["volumeMounts"] if not mount["name"].startswith("secrets-")]
        for one in (companion, serve)
    ]
    assert shared[0] == shared[1]


_FOLDER = "/run/secrets/paywarden"
_SECRETS: Mapping[str, Any] = {
    "config": {
        **NEEDED["config"],
        "kafka": {"bootstrap": "kafka-0:9092", "ssl_ca_location": f"{_FOLDER}/kafka.pem"},
        "features": {"identity_key_file": f"{_FOLDER}/identity.key"},
        "auth": {"tokens_file": f"{_FOLDER}/tokens"},
        "tls": {"certificate": f"{_FOLDER}/tls.crt", "key": f"{_FOLDER}/tls.key"},
        "bundles": {"trusted_keys": [f"{_FOLDER}/release.pem"]},
        "models": {"people": f"{_FOLDER}/people.toml", "key_file": f"{_FOLDER}/lead.pem"},
    },
    "secretEnvironment": [
        {"name": name, "secret": "secrets", "key": name.lower()}
        for name in (
            "PAYWARDEN_KAFKA_SASL_PASSWORD",
            "PAYWARDEN_REGISTRY_PASSWORD",
            "PAYWARDEN_AEROSPIKE_PASSWORD",
            "PAYWARDEN_DECISION_INDEX_ADDRESS",
            "PAYWARDEN_POLICY_REVIEW_AT",
        )
    ],
}


def test_each_container_gets_the_secrets_of_its_own_work_alone(program: Path) -> None:
    """`serve` had the passwords of Kafka and of the store, and the companion the tokens of all callers."""
    variables, files = {}, {}
    for _, spec in pods(rendered(program, {**dict.fromkeys(SWITCHES, True), **_SECRETS})):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            name = container["name"]
            if name == "envoy":
                continue
            variables[name] = {one["name"].removeprefix("PAYWARDEN_") for one in container.get("env") or ()}
            mounted = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == _FOLDER]
            assert len(mounted) <= 1
            files[name] = {item["key"] for volume in mounted for item in volumes[volume]["secret"]["items"]}
    brokers = {"KAFKA_SASL_PASSWORD", "REGISTRY_PASSWORD"}
    assert variables == {
        "topics": brokers,
        "key": set(),
        "serve": {"POLICY_REVIEW_AT"},
        "shadow": brokers | {"POLICY_REVIEW_AT"},
        "lead": brokers | {"POLICY_REVIEW_AT"},
        "stream": brokers | {"AEROSPIKE_PASSWORD", "POLICY_REVIEW_AT"},
        "companion": brokers | {"AEROSPIKE_PASSWORD", "POLICY_REVIEW_AT"},
        "console": brokers | {"DECISION_INDEX_ADDRESS", "POLICY_REVIEW_AT"},
    }
    shared = {"identity.key", "release.pem", "people.toml"}
    assert files == {
        "topics": {"kafka.pem"},
        "key": {"lead.pem"},
        "serve": shared | {"tokens", "tls.crt", "tls.key"},
        "lead": shared | {"kafka.pem", "lead.pem"},
        **dict.fromkeys(("shadow", "stream", "companion", "console"), shared | {"kafka.pem"}),
    }


def test_the_settings_are_right_and_say_what_the_chart_says(program: Path, tmp_path: Path) -> None:
    text = of_kind(rendered(program, {}), "ConfigMap")["data"]["paywarden.toml"]
    settings = tomllib.loads(text)
    assert settings["kafka"]["bootstrap"] == "kafka-0:9092,kafka-1:9092"
    assert settings["aerospike"]["hosts"] == ["store-0:3000", "store-1:3000"]
    assert settings["admission"] == {"deadline_ms": 30}
    assert settings["training"] == {"learning_rate": 0.25}
    assert settings["mirror"]["size_mb"] == 4096
    (tmp_path / "paywarden.toml").write_text(text, encoding="utf-8")
    source = read_source(str(tmp_path / "paywarden.toml"))
    wrong = [fault for name, kind in settings_types().items() for fault in section_problems(source, name, kind)]
    assert wrong == []


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"config.kafka.bootstrap": ""}, "config.kafka.bootstrap: wanted the brokers"),
        ({"config.aerospike.hosts": []}, "config.aerospike.hosts: wanted a list of host:port"),
        ({"gateway.enabled": True, "gateway.secret": ""}, "gateway.secret: wanted the Secret with envoy.json"),
        (
            {"secretFiles": "", "config.auth": {"tokens_file": "/run/secrets/paywarden/tokens"}},
            "secretFiles: wanted the Secret with tokens, which settings of serve name",
        ),
        ({"scoring.workers": 0}, r"scoring[./]workers"),
        ({"scorring.replicas": 3}, "scorring"),
        ({"config.store": {"kind": "lmdb"}}, r"config"),
        ({"secretEnvironment": [{"name": "HOME", "secret": "a", "key": "b"}]}, r"secretEnvironment"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(program: Path, choice: dict[str, Any], wanted: str) -> None:
    done = run(program, "template", "pw", ".", "--kube-version", KUBERNETES[0], values=values_of(choice))
    assert done.returncode != 0
    assert re.search(wanted, done.stderr), done.stderr


def digest() -> str:
    """Returns the digest of all files of the chart."""
    made = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        content = path.read_bytes()
        made.update(f"{path.relative_to(CHART).as_posix()} {len(content)}\n".encode() + content)
    return made.hexdigest()[:16]


def everything(program: Path) -> str:
    """Returns the content of `everything.yaml`. Releases of helm differ in empty lines."""
    values = values_of(dict.fromkeys(SWITCHES, True))
    done = run(program, "template", "pw", ".", "--kube-version", KUBERNETES[0], values=values)
    assert done.returncode == 0, done.stderr
    return _HEAD.format(digest=digest()) + re.sub(r"\n+---\n", "\n---\n", done.stdout).strip() + "\n"


def test_what_was_rendered_is_of_this_chart_and_right_for_every_version() -> None:
    """Without helm, too."""
    text = EVERYTHING.read_text(encoding="utf-8")
    assert text.startswith(_HEAD.format(digest=digest())), "python -m tests.unit.ops.deploy.test_chart writes it again"
    documents = documents_of(text)
    assert len(documents) > 15
    for document, version in itertools.product(documents, KUBERNETES):
        if document["kind"] not in CUSTOM:
            validate(document, version)


def test_what_was_rendered_is_what_helm_makes(program: Path) -> None:
    assert EVERYTHING.read_text(encoding="utf-8") == everything(program)


if __name__ == "__main__":
    found = helm(HELM_RELEASES[-1])
    if found is None:
        raise SystemExit(HELM.reason)
    EVERYTHING.write_text(everything(found), encoding="utf-8")
