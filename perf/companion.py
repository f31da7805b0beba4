"""The rate at which a companion puts profiles from the changelog into its mirror.

Measured: `paywarden companion`, a process of its own with an empty mirror, reads a changelog of a real Kafka from its
beginning. The records are the profiles of a day of made payments, and copies of them under other keys, in random order
as the stream sends them. `profiles_per_second`: profiles by the companion's CPU time: the rate of one full core.
`applied_per_second` is by the clock: Kafka works on the same cores. Used for: how many payments a second a host can
follow, since each host applies the whole changelog: every payment changes a profile of each kind of entity.

With `--skipped` the records are of cards alone, and the host holds one in 64 of them ([shards]):
`cpu_us_per_skipped_profile` is the CPU time of a record that the companion leaves out.

    python -m perf.companion [--profiles N] [--skipped] [--json FILE]

Needs the services that `make services` fetches.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

from paywarden.ops.demo.processes import running_parts
from paywarden.ops.demo.verdict import MetricsReading
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from perf.tools.measuring import arguments_of, finish
from perf.worlds.kafka_world import kafka_world, timed_work
from perf.worlds.payments_load import send_all
from perf.worlds.scoring_world import WorldSize, copied, make_past, profiles_of

# With `--skipped` this host holds one card in 64.
_HOSTS = 64


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--profiles", {"type": int, "default": 1_000_000, "help": "records of the changelog"}),
        ("--skipped", {"action": "store_true", "help": "measure records of cards that other hosts hold"}),
    )
    past = make_past(WorldSize())
    profiles = profiles_of(past.history, past.engine)
    if arguments.skipped:
        profiles = {key: state for key, state in profiles.items() if key.startswith("card:")}
    with kafka_world() as world:
        send_all(world.kafka, "profiles", _records(profiles, arguments.profiles))
        shards = _shards(world.folder) if arguments.skipped else ""
        config = world.write_config(more=f"[companion]\nfill_from_store = false\n{shards}")
        with running_parts(config, world.folder, ["companion"]) as parts:
            work = timed_work(parts.parts[0], _applied, arguments.profiles)
    figures = {
        "profiles": work.records,
        "profiles_per_second": work.records / work.cpu_s,
        "applied_per_second": work.records / work.took_s,
        f"cpu_us_per_{'skipped_' if arguments.skipped else ''}profile": work.cpu_s / work.records * 1e6,
    }
    finish(figures, arguments.json)


def _shards(folder: Path) -> str:
    """Return settings by which this host holds a small part of the cards."""
    (folder / "route-key").write_text("5d" * 32, encoding="ascii")
    names = [f"scoring-{number}" for number in range(_HOSTS)]
    return f"""\
[shards]
count = 1024
copies = 1
host = "{names[0]}"
hosts = {json.dumps(names)}
route_key_file = "{folder}/route-key"
"""


def _records(profiles: dict[str, bytes], count: int) -> Iterator[tuple[str, bytes]]:
    """Yield records of the changelog."""
    encoder = Encoder("profiles", LocalSchemaIds().id_of("profiles"))
    # The same payments change the same cards again and again, but rarely within one batch.
    keys = random.Random(1).sample(sorted(profiles), len(profiles))
    now_ms = time.time_ns() // 1_000_000
    for number in range(count):
        key = keys[number % len(keys)]
        record = {
            "entity": key.partition(":")[0],
            "state": profiles[key],
            "written_time_ms": now_ms,
            "complete_to_time_ms": None,
            "arrived_time_ms": now_ms,
        }
        yield copied(key, number // len(keys)), encoder.encode(record)


def _applied(reading: MetricsReading) -> int:
    names = ("applied", "skipped")
    return sum(reading.total(f"paywarden_companion_profiles_{name}_total") for name in names)


if __name__ == "__main__":
    main()
