"""Runs what a systemd unit starts as the unit runs it, where no systemd does: `as_unit.py JSON`. Wants root.

    {"settings": {"ExecStart": ["…"], …}, "uid": 4711, "root": "/tmp/…", "binds": {"/var/lib/paywarden": "/tmp/…"}}

1. A mount namespace of its own, with everything read-only (`ProtectSystem=strict`). `/home`, `/root` and `/tmp` are
   empty (`ProtectHome`, `PrivateTmp`), `/dev` has no devices (`PrivateDevices`), `/proc` shows own processes
   (`ProtectProc`). `binds` are folders of this machine: those that the unit may write, and what is installed.
2. Limits and priorities (`LimitNOFILE`, `OOMScoreAdjust`, `UMask`), as far as this root may set them.
3. User and group, no capability in any set, and none to be had again (`NoNewPrivileges`).
4. System calls and families of addresses by libseccomp (`SystemCallFilter`, `RestrictAddressFamilies`).
5. `ExecStart` with the variables of `Environment`.

Left out: control groups, reload and restart, and the filters of real-time priority, set-user-id, personality and
namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shlex
import socket
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

_CLONE_NEWNS = 0x00020000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001
_COMPARE_EQUAL = 4
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


class _Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def main() -> None:
    """Become what the unit starts."""
    os.umask(0o022)
    given: dict[str, Any] = json.loads(sys.argv[1])
    settings, uid = given["settings"], int(given["uid"])
    allowed = system_calls(settings["SystemCallFilter"])
    # A container's root may raise neither of them.
    files = min(int(settings["LimitNOFILE"][0]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    with contextlib.suppress(PermissionError):
        Path("/proc/self/oom_score_adj").write_text(settings.get("OOMScoreAdjust", ["0"])[0], encoding="ascii")
    _mount_all(Path(given["root"]), given["binds"], settings, uid)
    os.umask(int(settings["UMask"][0], 8))
    _become(uid)
    _filter(allowed, settings["RestrictAddressFamilies"][0].split())
    os.chdir(settings["WorkingDirectory"][0])
    variables = dict(word.split("=", 1) for line in settings["Environment"] for word in line.split())
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": settings["WorkingDirectory"][0], **variables}
    words = shlex.split(string.Template(settings["ExecStart"][0]).substitute(variables))
    os.execve(words[0], words, environment)


def system_calls(lines: list[str]) -> set[str]:
    """Returns the calls that `SystemCallFilter=` leaves, by what systemd itself says of its groups."""
    allowed: set[str] = set()
    for line in lines:
        if line.startswith("~"):
            allowed -= _calls_of(line[1:].split())
        else:
            allowed |= _calls_of(line.split())
    return allowed


def _calls_of(words: list[str]) -> set[str]:
    found: set[str] = set()
    for word in words:
        if not word.startswith("@"):
            found.add(word)
            continue
        told = subprocess.run(
            ["systemd-analyze", "syscall-filter", "--no-pager", word], capture_output=True, text=True, check=True
        )
        lines = [line.strip() for line in told.stdout.splitlines()[1:]]
        found |= _calls_of([line for line in lines if line and not line.startswith("#")])
    return found


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _mount_all(root: Path, binds: dict[str, str], settings: dict[str, list[str]], uid: int) -> None:
    """Make a root file system of this machine's, and enter it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("--make-rprivate", "/")
    _mount("--rbind", "/", str(root))
    # /etc is a copy, so that a folder can be added. The interpreter may lie in a person's home.
    interpreter = Path(sys.base_prefix)
    for place in ("etc", "opt", "srv", "home", "root", "tmp", "var/tmp", "var/lib", "run", "dev", "proc"):
        if not (root / place).is_dir():
            continue
        mode = "1777" if place.endswith("tmp") else "755"
        if place == "proc":
            _mount("-t", "proc", "-o", "hidepid=invisible", "proc", str(root / place))
            # ProtectKernelTunables: made read-only below, as /proc itself is not.
            _mount("--bind", str(root / "proc/sys"), str(root / "proc/sys"))
            continue
        _mount("-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", str(root / place))
    subprocess.run(["cp", "-a", "/etc/.", str(root / "etc")], check=True)
    (root / "dev/shm").mkdir()
    for name in _DEVICES:
        (root / "dev" / name).touch()
        _mount("--bind", f"/dev/{name}", str(root / "dev" / name))
    writable = {*settings["ReadWritePaths"], *settings["WorkingDirectory"]}
    for target, source in {str(interpreter): str(interpreter), **binds}.items():
        place_of_it = root / target.lstrip("/")
        if Path(source).is_dir():
            place_of_it.mkdir(parents=True, exist_ok=True)
        else:
            place_of_it.parent.mkdir(parents=True, exist_ok=True)
            place_of_it.touch()
        _mount("--bind", source, str(place_of_it))
        if target in writable:
            os.chown(place_of_it, uid, uid)
            place_of_it.chmod(0o700)
    kept = [str(root / path.lstrip("/")) for path in (*writable, "/tmp", "/var/tmp", "/proc")]
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        point = line.split()[4].replace("\\040", " ")
        if (point == str(root) or point.startswith(f"{root}/")) and point not in kept:
            # Files under a mount cannot be reached, and need not be.
            subprocess.run(["mount", "-o", "remount,bind,ro", point], check=False, stderr=subprocess.DEVNULL)
    os.chroot(root)


def _become(uid: int) -> None:
    """Be a user of no group but its own, with no capability, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


def _filter(allowed: set[str], families: list[str]) -> None:
    """Let these system calls through, and answer EPERM to all others."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(_EPERM))
    for name in sorted(allowed):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        # Below 0: not of this machine.
        if number >= 0 and name != "socket":
            seccomp.seccomp_rule_add_exact(context, ctypes.c_uint32(_ALLOW), number, 0)
    number = seccomp.seccomp_syscall_resolve_name(b"socket")
    for family in families:
        comparison = (_Comparison * 1)(_Comparison(0, _COMPARE_EQUAL, int(getattr(socket, family)), 0))
        seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(_ALLOW), number, 1, comparison)
    if seccomp.seccomp_load(context):
        raise OSError("seccomp_load")


if __name__ == "__main__":
    main()
