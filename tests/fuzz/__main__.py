"""Run a target: see the package."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.checkout import CHECKOUT

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

_INCLUDED = ["paywarden"]
# The longest input. Longer ones find nothing new here and slow the search down.
_INPUT_BYTES_MAX = 4096
_TOKENS = (
    b"\0",
    b"\xff",
    b"\x80",
    b"\x7f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"{",
    b'"',
    b"[",
    b"\r\n",
    b"-1",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--target", metavar="NAME")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the random mutations")
    parser.add_argument("--plain", action="store_true", help="mutate at random, also where Atheris is installed")
    parser.add_argument("--seeds", action="store_true", help="write the seeds into the corpus, and end")
    asked = parser.parse_args()
    atheris = None if asked.plain or asked.seeds or asked.list else _atheris()
    if atheris is not None:
        # Everything that is imported from here on is instrumented.
        with atheris.instrument_imports(include=_INCLUDED, exclude=_compiled_modules()):
            from tests.fuzz.targets import TARGETS, made
    else:
        from tests.fuzz.targets import TARGETS, made
    from tests.fuzz.corpus import CORPUS, add, inputs, seeds

    if asked.list:
        sys.stdout.write("\n".join(TARGETS) + "\n")
        return
    if asked.seeds:
        for name in [asked.target] if asked.target else TARGETS:
            for data in seeds(name):
                add(name, data)
        return
    if asked.target not in TARGETS:
        parser.error(f"--target: wanted one of {', '.join(TARGETS)}")
    name = asked.target
    if atheris is not None:
        _guided(atheris, name, asked.seconds, CORPUS / name, made)
    else:
        known = [path.read_bytes() for path in inputs(name)] or list(seeds(name))
        sys.exit(_mutated(name, asked.seconds, asked.seed, known, made(name)))


def _compiled_modules() -> list[str]:
    """Return the modules with functions that numba compiles: it cannot compile instrumented ones."""
    paths = [path for room in ("features", "models", "scoring", "streams") for path in (CHECKOUT / room).rglob("*.py")]
    compiled = [path for path in paths if "kernel.toolkit.jit import" in path.read_text(encoding="utf-8")]
    return [".".join(("paywarden", *path.relative_to(CHECKOUT).with_suffix("").parts)) for path in compiled]


def _atheris() -> Any:
    try:
        import atheris
    except ImportError:
        sys.stderr.write("Atheris is not installed: inputs are mutated at random\n")
        return None
    return atheris


def _guided(atheris: Any, name: str, seconds: int, corpus: Path, made: Callable[[str], Target]) -> None:
    """Search by coverage. The interesting inputs of a run are in a folder of its own, which it names at the end."""
    found = Path(tempfile.mkdtemp(prefix=f"paywarden-fuzz-{name}-"))
    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-max_len={_INPUT_BYTES_MAX}",
        "-timeout=20",
        "-rss_limit_mb=3000",
        f"-artifact_prefix={found}/crash-",
        "-print_final_stats=1",
        str(found),
        str(corpus),
    ]
    with atheris.instrument_imports(include=_INCLUDED, exclude=_compiled_modules()):
        target = made(name)
    sys.stderr.write(f"new inputs go to {found}\n")
    atheris.Setup(arguments, target, enable_python_coverage=True)
    atheris.Fuzz()


def _mutated(name: str, seconds: float, seed: int, known: Sequence[bytes], target: Target) -> int:
    """Mutate at random. Returns the exit status."""
    chance = random.Random(seed)
    deadline, count = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        data = mutate(chance, known)
        count += 1
        try:
            target(data)
        except Exception:  # noqa: BLE001  # whatever a target raises is what this looks for
            path = Path(tempfile.mkdtemp(prefix=f"paywarden-fuzz-{name}-")) / "crash"
            path.write_bytes(data)
            traceback.print_exc()
            sys.stderr.write(f"{name}: input {count} fails; it is in {path}\n")
            return 1
    sys.stderr.write(f"{name}: {count} inputs, no failure\n")
    return 0


def mutate(chance: random.Random, known: Sequence[bytes]) -> bytes:
    """Return an input near the known ones."""
    data = bytearray(chance.choice(known))
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(data))
        match chance.randint(0, 6):
            case 0:
                data[at : at + 1] = bytes([chance.randint(0, 255)])
            case 1 if at < len(data):
                data[at] ^= 1 << chance.randint(0, 7)
            case 2:
                data[at:at] = chance.choice(_TOKENS)
            case 3:
                del data[at : at + chance.randint(1, 16)]
            case 4:
                data[at:at] = data[at : at + chance.randint(1, 64)]
            case 5:
                other = chance.choice(known)
                data[at:] = other[chance.randint(0, len(other)) :]
            case _:
                data[at:at] = bytes(chance.randint(0, 255) for _ in range(chance.randint(1, 8)))
    return bytes(data[:_INPUT_BYTES_MAX])


if __name__ == "__main__":
    main()
