"""Each client gets into a project by the line of docs/integrate/clients.md, from a clean folder, and works there.

The project asks about a payment of -1 while no service runs. It used to be approved by a stand-in.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.checkout import CHECKOUT
from tests.services.clients.client_drivers import CLIENTS, require_node
from tests.services.fetch import ServiceMissing, services_dir, tool
from tests.services.missing_tools import GO

PAGE = (CHECKOUT / "docs/integrate/clients.md").read_text(encoding="utf-8")
# A first download on a slow line takes minutes.
TIMEOUT_S = 900.0
PYTHON = """
from paywarden_client import Client, ClientSettings, Payment, StandInPolicy, WrongRequest

policy = StandInPolicy.parse(b'{"name": "p", "otherwise": "approve", "limits": []}')
with Client(ClientSettings("http://127.0.0.1:9", policy=policy)) as client:
    for amount in (1, -1):
        try:
            print(client.score(Payment("p", 1_700_000_000_000, "c", "m", amount, "EUR")).action)
        except WrongRequest as error:
            print(error.field)
"""
TYPESCRIPT = """
import { Client, StandInPolicy } from "paywarden-client";

const policy = StandInPolicy.parse('{"name": "p", "otherwise": "approve", "limits": []}');
const client = new Client({ urls: "http://127.0.0.1:9", policy });
const payment = { payment_id: "p", event_time_ms: 1700000000000, card_id: "c", merchant_id: "m", currency: "EUR" };
for (const amount_minor of [1, -1]) {
  try {
    console.log((await client.score({ ...payment, amount_minor })).action);
  } catch (error) {
    console.log(error.field);
  }
}
await client.close();
"""
GO_PROGRAM = """
package main

import (
	"context"
	"errors"
	"fmt"

	"paywarden"
)

func main() {
	policy, err := paywarden.ParsePolicy([]byte(`{"name": "p", "otherwise": "approve", "limits": []}`))
	if err != nil {
		panic(err)
	}
	settings := paywarden.Settings{URLs: []string{"http://127.0.0.1:9"}, Policy: policy}
	client, err := paywarden.New(settings, paywarden.Hooks{})
	if err != nil {
		panic(err)
	}
	defer client.Close()
	for _, amount := range []int64{1, -1} {
		decision, err := client.Score(context.Background(), &paywarden.Payment{
			PaymentID: "p", EventTimeMS: 1700000000000, CardID: "c", MerchantID: "m",
			AmountMinor: amount, Currency: "EUR",
		})
		var wrong *paywarden.WrongRequest
		if errors.As(err, &wrong) {
			fmt.Println(wrong.Field)
		} else {
			fmt.Println(decision.Action)
		}
	}
}
"""
JAVA = """
import paywarden.client.*;

public class Shop {
    public static void main(String[] arguments) {
        String text = "{\\"name\\": \\"p\\", \\"otherwise\\": \\"approve\\", \\"limits\\": []}";
        StandInPolicy policy = StandInPolicy.parse(text);
        try (PaywardenClient client = new PaywardenClient(new ClientSettings("http://127.0.0.1:9").policy(policy))) {
            for (long amount : new long[] {1, -1}) {
                try {
                    System.out.println(client.score(Payment.of("p", 1700000000000L, "c", "m", amount, "EUR")).action());
                } catch (WrongRequest error) {
                    System.out.println(error.field);
                }
            }
        }
    }
}
"""
POM = """
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>shop</groupId><artifactId>shop</artifactId><version>1</version>
  <properties>
    <maven.compiler.source>17</maven.compiler.source><maven.compiler.target>17</maven.compiler.target>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>DEPENDENCY</dependencies>
</project>
"""
ANSWERS = ["approve", "amount_minor"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the repository's clients as a checkout has them, without anything built."""
    built = shutil.ignore_patterns("node_modules", "dist", "target", "build", "*.egg-info", "__pycache__")
    shutil.copytree(CLIENTS, tmp_path / "paywarden/ops/clients", ignore=built)
    return tmp_path


def line_of(program: str) -> list[str]:
    """Returns the page's command that begins with this program."""
    (line,) = re.findall(rf"^{program} .*ops/clients.*$", PAGE, re.MULTILINE)
    return shlex.split(line)


def run(command: list[str], folder: Path, more: Mapping[str, str] | None = None) -> list[str]:
    """Run a command, and returns the lines that it prints."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(more or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{shlex.join(command)}: {(done.stdout + done.stderr)[-4000:]}"
    return done.stdout.splitlines()


def test_the_python_client_installs_into_a_project(project: Path) -> None:
    run([sys.executable, "-m", "venv", "env"], project)
    python = project / "env/bin/python"
    program, *arguments = line_of("pip")
    run([str(python), "-m", program, *arguments], project)
    assert run([str(python), "-c", PYTHON], project) == ANSWERS


def test_the_typescript_client_installs_into_a_project(project: Path) -> None:
    try:
        require_node()
    except ServiceMissing as error:
        pytest.skip(str(error))
    (project / "package.json").write_text('{"name": "shop", "type": "module", "private": true}', encoding="utf-8")
    run(line_of("npm"), project)
    (project / "shop.js").write_text(TYPESCRIPT, encoding="utf-8")
    assert run(["node", "shop.js"], project) == ANSWERS


@pytest.mark.skipif(shutil.which("go") is None, reason=GO.reason)
def test_the_go_client_gets_into_a_project(project: Path) -> None:
    run(["go", "mod", "init", "example.com/shop"], project)
    run(line_of("go"), project)
    (project / "main.go").write_text(GO_PROGRAM, encoding="utf-8")
    assert run(["go", "run", "."], project, {"GOFLAGS": "-buildvcs=false"}) == ANSWERS


def test_the_java_client_gets_into_a_project(project: Path) -> None:
    try:
        tool("mvn")
    except ServiceMissing as error:
        pytest.skip(str(error))
    # Nothing is left among the packages of this machine's user; what Maven fetches is kept for the next run.
    kept = services_dir() / "maven-of-clients"
    maven = {"MAVEN_OPTS": f"-Dmaven.repo.local={kept}"}
    program, *arguments = line_of("mvn")
    quiet = ["--batch-mode", "--quiet"]
    run([program, *quiet, *arguments], project, maven)
    (dependency,) = re.findall(r"^<dependency>.*</dependency>$", PAGE, re.MULTILINE)
    (project / "pom.xml").write_text(POM.replace("DEPENDENCY", dependency), encoding="utf-8")
    source = project / "src/main/java/Shop.java"
    source.parent.mkdir(parents=True)
    source.write_text(JAVA, encoding="utf-8")
    run([program, *quiet, "compile"], project, maven)
    jar = kept / "paywarden/paywarden-client/1.0.0/paywarden-client-1.0.0.jar"
    assert run(["java", "-cp", f"target/classes:{jar}", "Shop"], project) == ANSWERS
