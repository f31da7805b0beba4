"""Kept machine code: a change of a source recompiles it, nothing else does, and processes may share the code."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from paywarden.features.kernel.toolkit import machine_code
from tests.checkout import CHECKOUT
from tests.patience import PATIENCE_S
from tests.services.product import template

TOP = CHECKOUT
CALLEE = """\
from paywarden.features.kernel.toolkit.jit import inlined
FACTOR = 2

@inlined
def scaled(value):
    return FACTOR * value
"""
CALLER = """\
from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.models.callee import scaled

@compiled()
def answer(value):
    return scaled(value) + 1
"""
# Runs `python -m paywarden.run` in a fork (template.py). The fork has loaded numba, which takes a second of a core, and
# forgets what it has loaded of the product and what numba has read of the environment.
AFRESH = """\
import runpy, sys
from numba.core import config
for name in [name for name in sys.modules if name.partition(".")[0] == "paywarden"]:
    del sys.modules[name]
sys.dont_write_bytecode = True
config.reload_config()
runpy.run_module("paywarden.run", run_name="__main__", alter_sys=True)
"""
# Prints the result, and whether the machine code was kept from an earlier run.
RUN = """\
import sys
from paywarden.scoring.caller import answer
print(answer(eval(sys.argv[1])), sum(answer.stats.cache_hits.values()))
"""


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A package `paywarden` of two compiled files and our decorators. Python finds it before the installed one."""
    top = tmp_path / "paywarden"
    files = {"models/callee.py": CALLEE, "scoring/caller.py": CALLER, "run.py": RUN}
    files |= {"__init__.py": "", "features/kernel/__init__.py": "", "features/kernel/toolkit/__init__.py": ""}
    for name, text in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for name in ("jit.py", "machine_code.py"):
        shutil.copy(TOP / "features/kernel/toolkit" / name, top / "features/kernel/toolkit" / name)
    return top


def run(top: Path, argument: object = 10, **environment: str) -> str:
    return finished(top, argument, **environment).stdout.strip()


def finished(top: Path, argument: object = 10, **environment: str) -> subprocess.CompletedProcess[str]:
    # The suite may run with a cache directory of its own, which these tests must not use.
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    variables = {**inherited, **environment}
    done = template.run([repr(argument)], cwd=top.parent, environment=variables, timeout_s=PATIENCE_S, program=AFRESH)
    assert done.returncode == 0, done.stderr
    return done


def directories(parent: Path) -> list[Path]:
    return sorted(parent.glob("compiled-*"))


def beside(product: Path) -> Path:
    """Returns the default directory of machine code."""
    return product / "features/kernel/__pycache__"


def test_a_changed_callee_in_another_file_gives_the_new_result(product: Path) -> None:
    assert [run(product), run(product)] == ["21 0", "21 1"]
    (product / "models/callee.py").write_text(CALLEE.replace("FACTOR = 2", "FACTOR = 3"), encoding="utf-8")
    # numba alone would run the caller's kept machine code, with the old callee in it: "21 1".
    assert run(product) == "31 0"


def test_a_function_that_is_called_with_constants_is_compiled_once(product: Path) -> None:
    callee = CALLEE.replace("inlined", "compiled").replace("@compiled", "@compiled()")
    (product / "models/callee.py").write_text(callee.replace("FACTOR * value", "value // 5"), encoding="utf-8")
    (product / "scoring/caller.py").write_text(CALLER.replace("scaled(value)", "scaled(10) + scaled(20)"), "utf-8")
    assert run(product) == "7 0"
    assert len([*beside(product).rglob("callee.scaled*.nbc")]) == 1


def test_code_that_a_call_has_kept_is_found_by_the_names_of_its_types(product: Path) -> None:
    run(product)
    (product / "run.py").write_text(RUN.replace("print(", "answer.compile('int64(int64)')\nprint("), encoding="utf-8")
    assert run(product) == "21 1"


def test_a_file_without_compiled_code_may_change(product: Path) -> None:
    run(product)
    (product / "models/other.py").write_text("LIMIT = 1\n", encoding="utf-8")
    assert run(product) == "21 1"


def test_every_source_its_name_and_the_compiler_are_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(**sources: bytes) -> str:
        return machine_code.digest_of(sources)

    known = digest(a=b"1", b=b"2")
    others = {digest(a=b"1", b=b"3"), digest(a=b"1", c=b"2"), digest(a=b"1"), digest(a=b"12", b=b"")}
    for name in ("BOUNDSCHECK", "OPT"):
        with monkeypatch.context() as changed:
            changed.setattr(f"numba.core.config.{name}", 17)
            others.add(digest(a=b"1", b=b"2"))
    with monkeypatch.context() as changed:
        changed.setattr("numba.__version__", "17")
        others.add(digest(a=b"1", b=b"2"))
    assert len(others) == 7
    assert known not in others
    assert digest(b=b"2", a=b"1") == known


def test_the_directory_that_an_operator_names_comes_first(product: Path, tmp_path: Path) -> None:
    run(product, NUMBA_CACHE_DIR=str(tmp_path / "named"))
    assert len(directories(tmp_path / "named")) == 1
    assert not beside(product).exists()


def test_a_read_only_package_uses_the_users_cache(product: Path, tmp_path: Path) -> None:
    # A file where the folder should be: root can write to a read-only folder.
    beside(product).write_text("", encoding="utf-8")
    home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert [run(product, **home), run(product, **home)] == ["21 0", "21 1"]
    (kept,) = directories(tmp_path / "cache" / "paywarden")
    assert kept.stat().st_mode & 0o077 == 0


def test_without_any_place_code_is_compiled_and_a_warning_says_so(product: Path, tmp_path: Path) -> None:
    beside(product).write_text("", encoding="utf-8")
    (tmp_path / "cache").write_text("", encoding="utf-8")
    done = finished(product, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.stdout == "21 0\n"
    assert "set NUMBA_CACHE_DIR" in done.stderr


# Runs as on a read-only file system, for any user.
RUN_READ_ONLY = """\
import os
def refuse(*arguments):
    raise OSError(30, "Read-only file system")
os.utime = refuse
from paywarden.scoring.caller import answer
print(answer(10), sum(answer.stats.cache_hits.values()))
"""


def test_code_in_a_read_only_image_is_used_where_it_lies(product: Path, tmp_path: Path) -> None:
    home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert run(product, **home) == "21 0"
    (product / "run.py").write_text(RUN_READ_ONLY, encoding="utf-8")
    assert finished(product, **home).stdout == "21 1\n"


def test_a_new_directory_begins_with_the_code_of_the_image(product: Path, tmp_path: Path) -> None:
    assert run(product) == "21 0"
    named = {"NUMBA_CACHE_DIR": str(tmp_path / "named")}
    assert [run(product, **named), run(product, 10.5, **named), run(product, 10.5, **named)] == [
        "21 1",
        "22.0 0",
        "22.0 1",
    ]
    # The image's files are not changed.
    assert run(product, 10.5) == "22.0 0"


def test_code_that_others_can_change_is_not_taken(product: Path, tmp_path: Path) -> None:
    assert run(product) == "21 0"
    (kept,) = directories(beside(product))
    kept.chmod(0o777)
    done = finished(product, NUMBA_CACHE_DIR=str(tmp_path / "named"))
    assert done.stdout == "21 0\n"
    assert "can be written by others" in done.stderr


def test_an_import_writes_nothing(product: Path) -> None:
    (product / "run.py").write_text("import paywarden.scoring.caller\n", encoding="utf-8")
    run(product)
    assert not beside(product).exists()


def test_files_that_were_cut_short_are_compiled_anew(product: Path) -> None:
    run(product)
    for path in beside(product).rglob("*.nb*"):
        path.write_bytes(path.read_bytes()[:10])
    assert [run(product), run(product)] == ["21 0", "21 1"]


# Prints whether another process could write while this one saves.
RUN_LOCKED = """\
import fcntl
from paywarden.features.kernel.toolkit import machine_code
from numba.core import caching

save = caching.FunctionCache.save_overload

def watched(self, sig, data):
    with (machine_code.directory() / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print("free")
        except BlockingIOError:
            print("locked")
    save(self, sig, data)

caching.FunctionCache.save_overload = watched
from paywarden.scoring.caller import answer
print(answer(10))
"""


def test_only_one_process_writes_at_a_time(product: Path) -> None:
    # Two that compile one function for different types would take the same number for different machine code.
    (product / "run.py").write_text(RUN_LOCKED, encoding="utf-8")
    assert run(product).split() == ["locked", "locked", "21"]


def test_processes_that_start_together_share_the_directory(product: Path) -> None:
    arguments: list[object] = [10, 10.5, True]
    with ThreadPoolExecutor(len(arguments)) as threads:
        answers = list(threads.map(lambda argument: run(product, argument), arguments))
    assert [answer.split()[0] for answer in answers] == ["21", "22.0", "3"]
    assert [len(list(beside(product).rglob(f"caller*.{number}.nbc"))) for number in (1, 2, 3, 4)] == [1, 1, 1, 0]


def test_only_the_last_used_directories_stay(product: Path) -> None:
    for age in range(machine_code.DIRECTORIES_KEPT + 5):
        old = beside(product) / f"compiled-{age}"
        old.mkdir(parents=True)
        (old / "code.nbc").write_bytes(b"old")
        os.utime(old, (time.time() - 60 * (age + 1),) * 2)
    run(product)
    kept = {path.name for path in directories(beside(product))}
    assert len(kept) == machine_code.DIRECTORIES_KEPT + 1
    assert {f"compiled-{age}" for age in range(machine_code.DIRECTORIES_KEPT)} < kept


# Changes that the digest must cover.

LIBRARIES = ("math", "numba", "numpy", "typing", "collections.abc", "llvmlite", "zlib")


class Source:
    """A compiled source: what its compiled functions read of the module."""

    def __init__(self, name: str) -> None:
        self.tree = ast.parse((TOP / name).read_bytes())
        self.imported: dict[str, str] = {}
        self.assigned: dict[str, list[ast.AST]] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom):
                folder = TOP / (node.module or "").removeprefix("paywarden.").replace(".", "/")
                self.imported |= {alias.asname or alias.name: node.module or "" for alias in node.names}
                # `from paywarden.features import kernel` names a module.
                self.imported |= {
                    alias.asname or alias.name: f"{node.module}.{alias.name}"
                    for alias in node.names
                    if (folder / f"{alias.name}.py").exists()
                }
            elif isinstance(node, ast.Import):
                self.imported |= {alias.asname or alias.name: alias.name for alias in node.names}
            elif isinstance(node, ast.Assign):
                for name_node in (n for target in node.targets for n in ast.walk(target)):
                    if isinstance(name_node, ast.Name):
                        self.assigned.setdefault(name_node.id, []).append(node.value)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.assigned.setdefault(node.target.id, []).append(node.value)

    def read_by_compiled_code(self) -> Iterator[str]:
        """The modules that compiled functions, and what they read here, take names from."""
        waiting: list[ast.AST] = [
            statement
            for node in self.tree.body
            if isinstance(node, ast.FunctionDef)
            and any("compiled" in ast.dump(each) or "inlined" in ast.dump(each) for each in node.decorator_list)
            for statement in node.body
        ]
        seen: set[str] = set()
        while waiting:
            for node in ast.walk(waiting.pop()):
                if isinstance(node, ast.Name) and node.id not in seen:
                    seen.add(node.id)
                    waiting += self.assigned.get(node.id, [])
                    if node.id in self.imported:
                        yield self.imported[node.id]


def test_compiled_code_reads_only_what_the_digest_covers() -> None:
    sources = machine_code.compiled_sources(TOP)
    paths = (name.removesuffix(".py").removesuffix("/__init__") for name in sources)
    modules = {f"paywarden.{path.replace('/', '.')}" for path in paths}
    assert {
        "paywarden.features.kernel.layout",
        "paywarden.scoring.idempotency.claim_table",
        "paywarden.streams.profiles.fast_intake",
        "paywarden.models.drift.counts",
    } <= modules
    outside = {
        f"{name}: {module}"
        for name in sources
        for module in Source(name).read_by_compiled_code()
        if module not in modules and not module.startswith(LIBRARIES)
    }
    assert outside == set()


def test_every_compiled_function_is_made_by_our_decorators() -> None:
    # One that numba's own `njit` makes would keep machine code by its own file alone.
    for room in ("features", "models", "scoring", "streams"):
        for path in (TOP / room).rglob("*.py"):
            if path.name != "jit.py" or path.parent.name != "toolkit":
                assert "njit" not in path.read_text(encoding="utf-8"), path


def test_a_file_that_the_digest_misses_cannot_hold_compiled_code() -> None:
    from paywarden.features.kernel.toolkit.jit import inlined

    with pytest.raises(AssertionError, match=r"features\.kernel\.toolkit\.jit"):
        inlined(lambda value: value)
