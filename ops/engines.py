"""The options of commands that can run on an engine of partitions: processes with spill files, or a Spark cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from paywarden.ops.progress import progress_bar
from paywarden.schemas.errors import Misconfigured

if TYPE_CHECKING:
    from paywarden.features.dataflow.vectors import Passage
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.profiles.money import RateTable

_Command = TypeVar("_Command", bound=Callable[..., Any])
LOCAL, PROCESSES, SPARK = "local", "processes", "spark"


def engine_options(command: _Command) -> _Command:
    """Add the options of engines; the command passes them to EngineAsked."""
    options = (
        click.option(
            "--engine",
            "engine_name",
            type=click.Choice([LOCAL, PROCESSES, SPARK]),
            default=LOCAL,
            show_default=True,
            help="Where the work runs: here; in processes with spill files, for histories beyond memory; or on Spark.",
        ),
        click.option("--master", metavar="URL", help="With spark: the cluster (default: that of spark-submit)."),
        click.option(
            "--partitions",
            type=click.IntRange(1, 100_000),
            default=64,
            show_default=True,
            help="With processes or spark: how many partitions the work has.",
        ),
        click.option(
            "--work",
            metavar="PATH",
            help="With processes or spark: where intermediate rows lie; with spark any path that all of it can write "
            "(default: --out, where the command has it).",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class EngineAsked:
    """The values of `engine_options`."""

    name: str
    master: str | None
    partitions: int
    work: str | None

    def __post_init__(self) -> None:
        if self.master is not None and self.name != SPARK:
            raise Misconfigured("--master is for --engine spark")

    @property
    def is_local(self) -> bool:
        """Returns whether the command runs in this process, as it does without the options."""
        return self.name == LOCAL


@contextmanager
def opened_passage(
    asked: EngineAsked, data: str, out: str, *, features: FeatureEngine, rates: RateTable
) -> Iterator[tuple[Passage[Any], Callable[[list[Path]], object]]]:
    """Yield a history on an engine, and what puts finished files of this machine into `out`.

    `data`: a folder with payments.parquet and outcomes.parquet, each a file or a folder of files; with Spark also any
    path of its, or the catalogue and schema of two tables. Raises Misconfigured.
    """
    from paywarden.features.dataflow.vectors import Passage

    if asked.name == PROCESSES:
        from paywarden.features.dataflow.processes import ProcessEngine

        paths = [str(Path(data) / name) for name in ("payments.parquet", "outcomes.parquet")]
        processes = len(os.sched_getaffinity(0))
        folder = Path(asked.work or out)
        with ProcessEngine(folder, partitions=asked.partitions, processes=processes, progress=progress_bar) as engine:
            say("payments are joined with their outcomes, and sorted")
            yield Passage.open(engine, paths[0], paths[1], features=features, rates=rates), lambda _: None
        return
    from paywarden.features.dataflow.spark import SparkEngine, open_session

    is_table = "/" not in data and "." in data and not Path(data).exists()
    sources = [
        f"{data}.{name}" if is_table else f"{spark_path(data)}/{name}.parquet" for name in ("payments", "outcomes")
    ]
    session = open_session(asked.master)
    path = spark_path(asked.work or out)
    with SparkEngine(session, path, partitions=asked.partitions, progress=progress_bar) as spark:
        say("payments are joined with their outcomes, and sorted")
        passage = Passage.open(spark, sources[0], sources[1], features=features, rates=rates)
        yield passage, lambda files: spark.upload(files, out) if "://" in out else None


def spark_path(path: str) -> str:
    """Returns a path as Spark takes it: a folder of this machine as such, whatever Spark's default file system is."""
    return path.rstrip("/") if "://" in path else Path(path).absolute().as_uri()


def say(line: str) -> None:
    """Print a line about a stage on stderr."""
    click.echo(line, err=True)
