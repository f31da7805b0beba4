"""Prints the pinned packages of extras, with their hashes: `python3 requirements.py serve,stream > requirements.txt`.

pip refuses hashes in a file of constraints beside a folder such as `.`, which has no hash. So packages come first, by
`pip install --require-hashes --no-deps --requirement requirements.txt`, which resolves nothing and accepts no other
file. Then `pip install --no-deps --no-build-isolation .` installs Paywarden with what is there.

A block of constraints.txt is a package. Its comment names the extras of pyproject.toml that need it, `base` for every
installation, `build` for the package that builds Paywarden, and `image` for the list of an image's parts:

    # base
    click==8.3.3 \\
        --hash=sha256:…

`base` and `build` are always printed, but with `image`. A name may also be that of one package.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from pathlib import Path

PINS = Path(__file__).resolve().parents[2] / "constraints.txt"
_ALWAYS = ("base", "build")
# Installed into an environment of its own.
_ALONE = "image"


def blocks(text: str) -> Iterator[tuple[str, set[str], str]]:
    """Yields each package of constraints.txt: its name, the extras that need it, and its lines."""
    for block in text.split("\n\n"):
        comment, _, lines = block.partition("\n")
        if "==" in lines:
            yield lines.partition("==")[0], set(comment.removeprefix("# ").split(", ")), lines


def requirements(text: str, wanted: Collection[str]) -> str:
    """Returns the lines of all packages that the extras need. Raises SystemExit for a name that is not there."""
    found = list(blocks(text))
    if unknown := set(wanted) - {name for package, extras, _ in found for name in (package, *extras)}:
        raise SystemExit(f"requirements: constraints.txt has nothing for {', '.join(sorted(unknown))}")
    names = {*wanted} if _ALONE in wanted else {*wanted, *_ALWAYS}
    return "\n".join(lines.rstrip() for package, extras, lines in found if names & {package, *extras}) + "\n"


def main() -> None:
    """Print the packages of the extras in the arguments, with blanks or commas between them."""
    wanted = [name for name in ",".join(sys.argv[1:]).split(",") if name]
    sys.stdout.write(requirements(PINS.read_text(encoding="utf-8"), wanted))


if __name__ == "__main__":
    main()
