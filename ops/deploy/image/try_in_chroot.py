"""Takes the steps of the Dockerfile without an engine: `try_in_chroot.py FOLDER BUNDLE [ARG=VALUE…] [OPTION]`.

It needs root, Debian's `debootstrap` and the package registries. Each stage becomes a root file system below FOLDER:

1. `debootstrap` makes the base once (FOLDER/base).
2. ARG, ENV, WORKDIR, COPY and RUN are taken one after the other; RUN by `chroot`.
   `--built` takes no step again. `--root` takes none: the last stage is the folder that it names, such as an engine's
   (`buildah mount`).
3. The last stage is tried as an engine runs it, with a copy of BUNDLE: as its USER, in namespaces of its own, the root
   file system read-only, /var/lib/paywarden and /dev/shm writable, without the network of the host.

    $ python3 ops/deploy/image/try_in_chroot.py /var/tmp/paywarden-image bundle
    RUN   python3 -m venv /opt/paywarden
    …
    try   paywarden --version: paywarden, version 1.0.0
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONTEXT = HERE.parents[2]
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What FROM's image has that matters: debootstrap's smallest system is what `debian:bookworm-slim` is made of.
_SUITE = "bookworm"
_CERTS = "authorities.crt"


@dataclass
class Instruction:
    """One instruction of a Dockerfile: its word in capitals, its options (--from=…), and the rest of its line."""

    word: str
    rest: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """The rest as words; of a JSON array its elements."""
        return list(json.loads(self.rest)) if self.rest.startswith("[") else shlex.split(self.rest)


def instructions(text: str) -> Iterator[Instruction]:
    """Yields the instructions of a Dockerfile. Comments go, and lines that end in a backslash are joined."""
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        options = {}
        while word.upper() != "RUN" and (option := re.match(r"--(\w[\w-]*)=(\S+)\s+", rest)):
            options[option[1]] = option[2]
            rest = rest[option.end() :]
        yield Instruction(word.upper(), rest.strip(), options)


@dataclass
class Stage:
    """A stage that is being built, in the folder `root`."""

    name: str
    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)

    def filled(self, text: str) -> str:
        """Returns the text with its ${VARIABLES}."""
        known = {**self.arguments, **self.environment}
        return _VARIABLE.sub(lambda found: known.get(found[1] or found[2], ""), text)


def build(text: str, folder: Path, given: dict[str, str], *, is_built: bool = False) -> Stage:
    """Take all steps below `folder`; returns the last stage. Raises CalledProcessError if one fails.

    With `is_built` the files exist already, and only the stage's arguments, environment and user are read.
    """
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    before_all: dict[str, str] = {}
    for step in instructions(text):
        if step.word == "FROM":
            name = step.words[2] if len(step.words) == 3 else f"stage-{len(stages)}"
            stage = stages[name] = Stage(name, folder / name)
            if is_built:
                continue
            print(f"FROM  {Stage('', folder, arguments=before_all).filled(step.words[0])} AS {name}", flush=True)
            shutil.rmtree(stage.root, ignore_errors=True)
            subprocess.run(["cp", "-a", str(_base(folder)), str(stage.root)], check=True)
        elif stage is None:
            _argument(step, before_all, given)
        elif not (is_built and step.word in ("COPY", "RUN")):
            _take(step, stage, stages, given)
    assert stage is not None, "a Dockerfile begins with FROM"
    return stage


def _take(step: Instruction, stage: Stage, stages: dict[str, Stage], given: dict[str, str]) -> None:
    if step.word == "ARG":
        _argument(step, stage.arguments, given)
    elif step.word == "ENV":
        for word in step.words:
            name, _, value = word.partition("=")
            stage.environment[name] = stage.filled(value)
    elif step.word == "WORKDIR":
        stage.directory = step.rest
        (stage.root / step.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif step.word == "USER":
        stage.user = step.rest
    elif step.word == "ENTRYPOINT":
        stage.entrypoint = step.words
    elif step.word == "COPY":
        _copy(step, stage, stages)
    elif step.word == "RUN":
        print(f"RUN   {step.rest}", flush=True)
        _in_chroot(stage, ["/bin/sh", "-c", f"cd {shlex.quote(stage.directory)} && {step.rest}"])
    elif step.word not in ("LABEL", "EXPOSE", "VOLUME", "STOPSIGNAL", "HEALTHCHECK", "CMD"):
        raise SystemExit(f"Dockerfile: {step.word} is no instruction that can be tried here")


def _argument(step: Instruction, arguments: dict[str, str], given: dict[str, str]) -> None:
    name, _, default = step.rest.partition("=")
    arguments[name] = given.get(name, default)


def _copy(step: Instruction, stage: Stage, stages: dict[str, Stage]) -> None:
    top = stages[step.options["from"]].root if "from" in step.options else CONTEXT
    *sources, target = step.words
    place = stage.root / os.path.normpath(os.path.join(stage.directory, target)).lstrip("/")
    for source in sources:
        path = top / source.lstrip("/")
        print(f"COPY  {source} {target}", flush=True)
        if path.is_dir():
            # .dockerignore leaves the same out.
            left_out = None if "from" in step.options else shutil.ignore_patterns("__pycache__", "node_modules")
            shutil.copytree(path, place, symlinks=True, dirs_exist_ok=True, ignore=left_out)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place / path.name)


def _in_chroot(stage: Stage, command: list[str]) -> None:
    """Run a command in a stage, with the network and the authorities of this machine, as an engine would build."""
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    environment = {**proxies, **stage.arguments, **stage.environment, "LC_ALL": "C.UTF-8", "PIP_CERT": f"/run/{_CERTS}"}
    root = shlex.quote(str(stage.root))
    mounts = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev", f"mount -t tmpfs tmpfs {root}/run"]
    for path, place in (
        ("/etc/ssl/certs/ca-certificates.crt", f"run/{_CERTS}"),
        ("/etc/resolv.conf", "etc/resolv.conf"),
    ):
        if Path(path).exists():
            mounts += [f"touch {root}/{place}", f"mount --bind {path} {root}/{place}"]
    script = " && ".join([*mounts, f"exec chroot {root} {shlex.join(command)}"])
    subprocess.run(["unshare", "--mount", "--pid", "--fork", "/bin/sh", "-c", script], env=environment, check=True)


def run_read_only(stage: Stage, state: Path, command: list[str]) -> str:
    """Run a command in the image as an engine would: as its user, read-only. Returns its stdout.

    `state` is the folder of /var/lib/paywarden. Raises CalledProcessError.
    """
    root = shlex.quote(str(stage.root))
    uid, _, gid = stage.user.partition(":")
    subprocess.run(["chown", "-R", f"{uid}:{gid}", str(state)], check=True)
    lines = [
        f"mount --bind {root} {root}",
        f"mount --bind {shlex.quote(str(state))} {root}/var/lib/paywarden",
        f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",
        f"mount -t tmpfs -o mode=0755 tmpfs {root}/dev",
        f"mkdir {root}/dev/shm && mount -t tmpfs -o mode=1777 tmpfs {root}/dev/shm",
        *(f"touch {root}/dev/{name} && mount --bind /dev/{name} {root}/dev/{name}" for name in ("null", "urandom")),
        f"mount -t proc proc {root}/proc",
        "ip link set lo up 2>/dev/null || true",
        f"mount -o remount,bind,ro {root}",
    ]
    drop = [
        "/usr/bin/setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        "--no-new-privs",
        "--inh-caps=-all",
    ]
    inside = ["/usr/sbin/chroot", str(stage.root), *drop, "--bounding-set=-all", *command]
    script = " && ".join([*lines, f"exec {shlex.join(inside)}"])
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child", "/bin/sh", "-c", script],
        env={**stage.environment, "LC_ALL": "C.UTF-8"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def _base(folder: Path) -> Path:
    base = folder / "base"
    if not (base / "usr").is_dir():
        unfinished = folder / "base.unfinished"
        subprocess.run(["debootstrap", "--variant=minbase", _SUITE, str(unfinished)], check=True)
        unfinished.rename(base)
    return base


def main() -> None:
    """Build below the folder that is named, try the result, and say how large it is."""
    if os.geteuid() != 0:
        raise SystemExit("try_in_chroot: wanted root, for chroot and mounts")
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    bundle = Path(sys.argv[2])
    options = [word for word in sys.argv[3:] if word.startswith("--")]
    given = dict(word.split("=", 1) for word in sys.argv[3:] if word not in options)
    stage = build((HERE / "Dockerfile").read_text(encoding="utf-8"), folder, given, is_built=bool(options))
    for option in options:
        if option.startswith("--root="):
            stage.root = Path(option.removeprefix("--root=")).absolute()
    used = subprocess.run(["du", "-sm", str(stage.root)], check=True, capture_output=True, text=True)
    print(f"size  {used.stdout.split()[0]} MB", flush=True)
    script = (HERE / "try_inside.py").read_text(encoding="utf-8")
    shutil.rmtree(folder / "state", ignore_errors=True)
    shutil.copytree(bundle, folder / "state" / "bundle")
    print(run_read_only(stage, folder / "state", ["python", "-P", "-c", script]), end="")


if __name__ == "__main__":
    main()
