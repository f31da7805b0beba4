"""Fixtures for every test: the real services, each started when the first test asks for it."""

from __future__ import annotations

import gc
import os
import shlex
import shutil
import sys
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from paywarden.streams.kafka.client import KafkaSettings
from tests.order import ordered
from tests.services.fetch import ServiceMissing
from tests.services.made_once import VARIABLE
from tests.services.missing_tools import pytest_terminal_summary
from tests.services.product import forked_python, internals, template
from tests.services.product.deployment import Deployment
from tests.services.product.processes import logs_of_started
from tests.services.servers.kafka import KafkaServer
from tests.services.servers.registry import RegistryServer
from tests.services.shared import Service, SharedServices, shared, template_address

# pytest calls the hooks that it finds here.
__all__ = ["pytest_terminal_summary"]

# Forks of the template, and the processes that tests run in their own, take internal values from a file.
internals.install()

# Several processes share the cores. A waiting thread must leave the cores alone, and threads of OpenMP and of OpenBLAS
# would spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# An example that is slow on a busy machine is not a failure. Every run draws the same examples of a property, so that
# no run fails for a rare one that has nothing to do with a change; the variable looks for new ones.
hypothesis.settings.register_profile(
    "paywarden",
    deadline=None,
    max_examples=100 if "PAYWARDEN_RANDOM_EXAMPLES" in os.environ else 30,
    derandomize="PAYWARDEN_RANDOM_EXAMPLES" not in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("paywarden")


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder and the services that all processes of the run share. With xdist the controller does it."""
    if VARIABLE not in os.environ:
        folder = os.environ[VARIABLE] = tempfile.mkdtemp(prefix="paywarden-test-")

        services = SharedServices(Path(folder))

        def remove() -> None:
            services.stop()
            del os.environ[VARIABLE]
            shutil.rmtree(folder, ignore_errors=True)

        config.add_cleanup(remove)
        if config.getoption("tx", None):
            # Workers of xdist are forks as well.
            here = config.invocation_params.dir
            services.template([str(here / argument.partition("::")[0]) for argument in config.args])
            python = shlex.join([sys.executable, "-S", "-E", forked_python.__file__])
            config.option.tx = [f"{one}//python={python}" for one in config.option.tx]
    template.find_with(template_address)
    # Cleanups run last to first: the connection is closed before the template ends.
    config.add_cleanup(template.disconnect)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage meanwhile: there is none, and each full collection walks over all the tests found so far."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files that wait among those that compute. Each process of a run comes to the same order."""
    items[:] = ordered([(item.nodeid.partition("::")[0], item) for item in items])


def pytest_collection_finish() -> None:
    """Leave what was collected out of every garbage collection: a full one took 0.4 s each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure the logs of the processes that the test has started."""
    report = yield
    if report.failed:
        report.sections += logs_of_started()
    elif call.when == "teardown":
        logs_of_started()
    return report


@pytest.fixture(scope="session")
def kafka() -> KafkaServer:
    """One real broker for all tests of the run. Leave it running, and use topics of your own (`topic_prefix`)."""
    return _shared(KafkaServer)


@pytest.fixture(scope="session")
def registry() -> RegistryServer:
    """One real schema registry for all tests. They share its subjects, so set rules only on subjects of your own."""
    return _shared(RegistryServer)


def _shared(kind: type[Service]) -> Service:
    try:
        return shared(kind)
    except ServiceMissing as error:
        # A failure, not a skip: without a broker, the run would not test its claims.
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def topic_prefix() -> str:
    """A prefix for names on shared services that no other test has."""
    return f"t{uuid.uuid4().hex[:8]}-"


@pytest.fixture
def settings(kafka: KafkaServer, topic_prefix: str) -> KafkaSettings:
    """Settings with which clients find the broker and this test's topics on it."""
    return KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)


@pytest.fixture
def deployment(tmp_path: Path, settings: KafkaSettings) -> Iterator[Deployment]:
    """A configuration to start processes with. They end with the test; the topics exist."""
    with Deployment(tmp_path, settings.bootstrap, settings.topic_prefix) as deployed:
        deployed.create_topics()
        yield deployed
