"""Helm and the reader of Compose files, built with Go: `python -m tests.services.deploy_tools`.

Both come as Go source, and Helm takes minutes to compile. A run of the tests therefore builds neither. It takes a
program from PATH or from the folder of the services, and skips the tests of one that is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.services.fetch import fetched, services_dir, tool
from tests.services.missing_tools import Tool

_HELM_VERSION = "v3.18.6"
_COMPOSE_VERSION = "v2.9.0"
_HELM = f"helm-{_HELM_VERSION}"
_COMPOSE = f"compose-go-{_COMPOSE_VERSION}"
HELM = Tool("helm", "python -m tests.services.deploy_tools, with Go")
COMPOSE = Tool("compose-go", "python -m tests.services.deploy_tools, with Go")
_BUILD_TIMEOUT_S = 1800.0
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


def helm() -> Path | None:
    """Returns the path of helm, or None where there is none."""
    return _found("helm", _HELM)


def compose() -> Path | None:
    """Returns the path of the reader of Compose files, or None where there is none: `compose FILE [PROFILE…]`."""
    return _found("paywarden-compose", _COMPOSE)


def _found(name: str, folder: str) -> Path | None:
    on_path = shutil.which(name)
    built = services_dir() / folder / name
    return Path(on_path) if on_path else built if built.exists() else None


def _build_helm(target: Path) -> None:
    target.mkdir()
    _go("install", f"helm.sh/helm/v3/cmd/helm@{_HELM_VERSION}", cwd=target, environment={"GOBIN": str(target)})


def _build_compose(target: Path) -> None:
    target.mkdir()
    (target / "main.go").write_text(_MAIN, encoding="utf-8")
    _go("mod", "init", "paywarden-compose", cwd=target)
    _go("get", f"github.com/compose-spec/compose-go/v2@{_COMPOSE_VERSION}", cwd=target)
    _go("mod", "tidy", cwd=target)
    _go("build", "-o", "paywarden-compose", ".", cwd=target)


def _go(*arguments: str, cwd: Path, environment: dict[str, str] | None = None) -> None:
    command = [tool("go"), *arguments]
    subprocess.run(command, cwd=cwd, env={**os.environ, **(environment or {})}, check=True, timeout=_BUILD_TIMEOUT_S)


def main() -> None:
    """Build both, and print their folders."""
    for name, build in ((_COMPOSE, _build_compose), (_HELM, _build_helm)):
        sys.stdout.write(f"{fetched(name, build)}\n")


if __name__ == "__main__":
    main()
