"""Faults of scoring hosts: their processes, files, connections and callers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil

from paywarden.models.bundle.bundle import MANIFEST
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest
from perf.parts.alert_site import PATIENT, Fault, Pulses, Site, SiteOptions
from perf.parts.broken_model import BrokenModel
from tests.services.product.processes import wait_until
from tests.worlds.small import small_world

TOKEN = "alert-faults-0123456789"


def workers(site: Site) -> list[int]:
    """Returns the pids of the workers of `serve`."""
    parent, port = psutil.Process(site.processes["serve"].pid), site.ports["http"]
    found = []
    for child in parent.children():
        with suppress(psutil.NoSuchProcess):
            if port in {connection.laddr.port for connection in child.net_connections("tcp")}:
                found.append(child.pid)
    return found


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A memory file system that is full after so many megabytes. Needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "paywarden", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Until:
    """Something that is done again and again in a thread, until it is ended."""

    def __init__(self, do: Callable[[], object], every_s: float) -> None:
        self._do, self._every_s = do, every_s
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with suppress(OSError, http.client.HTTPException, psutil.Error):
                self._do()
            if self._ended.wait(self._every_s):
                return


def host(options: SiteOptions, stack: ExitStack) -> None:
    """Tokens, bundles, connections, cards that the mirror lacks, a damaged outbox."""
    tokens = options.folder / "tokens"
    tokens.write_text(f"{TOKEN}\n", encoding="utf-8")
    tokens.chmod(0o600)
    site = Site(
        replace(
            options,
            settings={
                "auth": f'tokens_file = "{tokens}"\n',
                "http": "connections_max = 24\n",
            },
        ),
        stack,
    )
    site.payments.token = TOKEN
    site.start("stream", "companion", "serve")
    manifest = site.deployment.bundle / MANIFEST
    whole = manifest.read_text(encoding="utf-8")
    port, held = site.ports["http"], list[socket.socket]()

    def hold() -> None:
        for _ in range(40):
            held.append(socket.create_connection(("127.0.0.1", port), 5))
        while len(held) > 60:
            held.pop(0).close()

    crowd = Until(hold, 5.0)

    def unreadable_tokens() -> None:
        tokens.rename(f"{tokens}.away")
        tokens.mkdir()

    def readable_tokens() -> None:
        tokens.rmdir()
        Path(f"{tokens}.away").rename(tokens)

    def bad_bundle() -> None:
        manifest.write_text("{}", encoding="utf-8")
        site.signal("serve", signal.SIGHUP)

    def good_bundle() -> None:
        manifest.write_text(whole, encoding="utf-8")
        site.signal("serve", signal.SIGHUP)

    def leave() -> None:
        crowd.end()
        for one in held:
            one.close()

    def damage_outbox() -> None:
        """The companion is away for a moment, and one record that it has not read is overwritten."""
        site.kill("companion")
        before = _segments(site)[-1].stat().st_size
        wait_until(lambda: _segments(site)[-1].stat().st_size > before + 20_000, "records wait", 60)
        with _segments(site)[-1].open("r+b") as file:
            file.seek(before + 200)
            file.write(b"\xff" * 64)
        site.run("companion")

    def drop_damage() -> None:
        listed = json.loads(site.deployment.run("outbox", "list", "--json").stdout)
        done = site.deployment.run("outbox", "discard", *(row["id"] for row in listed))
        site.say(f"outbox discard: {done.returncode} {(done.stdout + done.stderr).strip()[:300]}")

    site.together(
        [Fault(("PaywardenWatchFails",), "the file of tokens cannot be read", unreadable_tokens, readable_tokens)],
        [Fault(("PaywardenSwapFails",), "a new bundle cannot be loaded", bad_bundle, good_bundle)],
        [Fault(("PaywardenConnectionsFull",), "callers hold more connections than there may be", crowd.begin, leave)],
        [
            Fault(
                ("PaywardenMirrorHitRatioLow",),
                "a third of the payments are of cards whose payments are not on the topic",
                lambda: setattr(site.payments, "unknown_share", 0.4),
                lambda: setattr(site.payments, "unknown_share", 0.0),
            )
        ],
    )
    site.suffer(Fault(("PaywardenOutboxSetAside",), "a record of an outbox is damaged", damage_outbox, drop_damage))


def _segments(site: Site) -> Sequence[Path]:
    return sorted(site.deployment.outbox.glob("*/*.log"), key=lambda path: path.stat().st_mtime)


def workers_end(options: SiteOptions, stack: ExitStack) -> None:
    """Workers that hang, end or cannot be forked; a companion that is killed; a mirror that is removed."""
    site = Site(replace(options, settings={"serve": "hang_timeout_s = 5\n"}), stack)
    site.start("stream", "companion", "serve")
    group = Path("/sys/fs/cgroup/pids") / f"paywarden-{os.getpid()}"

    def send(number: signal.Signals) -> None:
        for pid in workers(site):
            os.kill(pid, number)

    killer = Until(partial(send, signal.SIGKILL), 20.0)

    def cannot_fork() -> None:
        """The control group of `serve` has no room for another process, and its worker ends."""
        group.mkdir()
        parent = psutil.Process(site.processes["serve"].pid)
        pids = [parent.pid, *(child.pid for child in parent.children(recursive=True))]
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid), encoding="utf-8")
        (group / "pids.max").write_text("1", encoding="utf-8")
        send(signal.SIGKILL)

    def can_fork() -> None:
        (group / "pids.max").write_text("max", encoding="utf-8")

    def leave_group() -> None:
        with suppress(OSError):
            for pid in (group / "cgroup.procs").read_text(encoding="utf-8").split():
                (group.parent / "cgroup.procs").write_text(pid, encoding="utf-8")
            time.sleep(0.5)
            group.rmdir()

    stack.callback(leave_group)
    site.suffer(
        Fault(
            ("PaywardenProcessDown",),
            "the companion is killed",
            lambda: site.kill("companion"),
            lambda: site.start("companion"),
            follow=("PaywardenMirrorStale",),
        )
    )
    site.suffer(
        Fault(
            ("PaywardenForkFails", "PaywardenHostNotReady"),
            "the host's only worker ends and cannot be forked: its control group is full",
            cannot_fork,
            can_fork,
        )
    )
    site.suffer(
        Fault(
            ("PaywardenWorkerHung",),
            "the worker stands still once (SIGSTOP)",
            partial(send, signal.SIGSTOP),
            lambda: None,
        )
    )
    site.suffer(Fault(("PaywardenWorkersRestart",), "the worker is killed every 20 s", killer.begin, killer.end))


def disks(options: SiteOptions, stack: ExitStack) -> None:
    """A full disk under the outbox, and a mirror that grows to its limit."""
    disk = stack.enter_context(small_disk(options.folder / "disk", 150))
    site = Site(
        replace(
            options,
            replaced={
                f'directory = "{options.folder / options.name / "outbox"}"': f'directory = "{disk / "outbox"}"',
                "size_mb = 256": "size_mb = 8",
            },
        ),
        stack,
    )
    site.start("stream", "companion", "serve")
    filler = disk / "filler"

    def fill_disk() -> float:
        """Fill the disk, and return when the first decision could not be written down.

        The outbox has room in its segment until then.
        """
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        log = site.processes["serve"].log
        wait_until(lambda: "cannot append" in log.read_text(encoding="utf-8"), "the outbox is full", 300, 0.2)
        return time.time()

    def fill_mirror(share: float, cards: str) -> float:
        """Let new cards pay until so much of the mirror is taken; returns when it was."""
        number = 0
        deadline = time.monotonic() + 400
        while (used := _used(site)) < share and time.monotonic() < deadline:
            for _ in range(400 if used < 0.8 else 60):
                number += 1
                site.payments.pay(site.payments.request(f"{cards}-{number}"))
            site.payments.flush()
            time.sleep(1.5)
        site.say(f"{number} new cards: {_used(site):.3f} of the mirror is taken")
        return time.time()

    def larger_mirror() -> None:
        text = site.deployment.config.read_text(encoding="utf-8")
        site.deployment.config.write_text(text.replace("size_mb = 8", "size_mb = 64"), encoding="utf-8")
        site.restart("companion")
        site.restart("serve")
        site.start()

    site.together(
        [
            Fault(
                ("PaywardenOutboxCannotRecord", "PaywardenHostNotReady", "PaywardenRequestsRefused"),
                "the outbox's disk is full",
                fill_disk,
                lambda: filler.unlink(),
            )
        ],
        [
            Fault(
                ("PaywardenMirrorNearlyFull",),
                "new cards fill the mirror to more than 90 %",
                lambda: fill_mirror(0.915, "new"),
                lambda: None,
                clears=False,
            ),
            Fault(
                ("PaywardenMirrorFull",),
                "new cards fill the mirror",
                lambda: fill_mirror(0.999, "newer"),
                larger_mirror,
            ),
        ],
    )


def _used(site: Site) -> float:
    with urllib.request.urlopen(f"{site.address('companion')}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    values = {
        line.split()[0]: float(line.split()[1])
        for line in text.splitlines()
        if line.startswith("paywarden_companion_mirror_")
    }
    if values.get("paywarden_companion_mirror_refuses"):
        return 1.0
    return values["paywarden_companion_mirror_bytes"] / values["paywarden_companion_mirror_limit_bytes"]


def slow(options: SiteOptions, stack: ExitStack) -> None:
    """A host and a stream that get no core for a part of the time, and more payments than a caller may send."""
    model = BrokenModel(options.folder / "slow-model", small_world.trained_bundle())
    limits = {"admission": f"caller_payments_per_second = 300\n{PATIENT}"}
    site = Site(replace(options, settings=limits, bundle=model.bundle), stack)
    site.start("stream", "companion", "serve")
    companion_pulses = Pulses(lambda: [site.processes["companion"].pid], stopped_s=4.0, running_s=6.0)
    stream_pulses = Pulses(lambda: [site.processes["stream"].pid], stopped_s=4.0, running_s=6.0)
    client = http.client.HTTPConnection("127.0.0.1", site.ports["http"], timeout=5)

    def flood() -> None:
        body = ScoreBatchRequest(requests=[site.payments.request() for _ in range(200)]).SerializeToString()
        client.request("POST", "/v1/score:batch", body, {"Content-Type": "application/x-protobuf"})
        client.getresponse().read()

    noisy = Until(flood, 0.3)
    site.together(
        [
            Fault(
                ("PaywardenRequestsSlow", "PaywardenCallsSlow"),
                "the model takes 60 ms longer",
                lambda: model.fail("s"),
                model.heal,
            ),
            Fault(
                ("PaywardenRequestsRefused",),
                "a caller sends more than twice the payments that it may",
                noisy.begin,
                noisy.end,
            ),
        ],
        [
            Fault(
                ("PaywardenMirrorLate",),
                "the companion gets no core for 4 s of every 10 (SIGSTOP)",
                companion_pulses.begin,
                companion_pulses.end,
            ),
        ],
        [
            Fault(
                ("PaywardenStreamLate",),
                "the stream worker gets no core for 4 s of every 10 (SIGSTOP)",
                stream_pulses.begin,
                stream_pulses.end,
                follow=("PaywardenMirrorLate",),
            ),
        ],
    )


def quiet(options: SiteOptions, stack: ExitStack) -> None:
    """Nothing happens, and nothing may be told."""
    site = Site(options, stack)
    site.start("stream", "companion", "serve")
