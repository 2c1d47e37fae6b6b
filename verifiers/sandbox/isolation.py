"""Isolation method for untrusted code on this machine: detected once, or an error that says how to fix it.

`bwrap` is the default: namespaces created by bubblewrap, as root or as an ordinary user. `landlock` must be requested
by name and confines only Python: it has no pid, network or mount namespace, but Landlock restricts the file system and
seccomp restricts system calls. `unsafe-none` confines nothing. The environment variable WHETSTONE_SANDBOX selects the
method; if it is not set, only bwrap is used.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CHOICE = "WHETSTONE_SANDBOX"
CHOICES = ("bwrap", "landlock", "unsafe-none")
FIRST_UID, UIDS = 60_000, 5_000  # samples started by root run as these users, who own no files
SETTINGS = Path("/proc/sys")
GUEST_DIR = Path(__file__).parent / "guest"

Profile = Literal["candidate", "judge", "shell"]

_PYTHON_INSIDE = "/opt/python"
_GUEST_INSIDE = "/opt/whetstone"
_BOOT = "import sys; sys.path.append({!r}); from guest.zygote import main; main()"
_CAPABILITIES = ("SYS_ADMIN", "SETUID", "SETGID", "KILL", "DAC_READ_SEARCH")  # of the zygote; samples drop them
_DEVICES = ("null", "zero", "random", "urandom")
_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32")
_PROGRAMS = ("/usr/bin", "/usr/sbin", "/usr/share", "/usr/libexec", "/etc/alternatives", "/etc/ld.so.cache")
_DIRECTORIES = ("/usr", "/etc", "/dev", "/tmp", "/opt", _PYTHON_INSIDE, f"{_PYTHON_INSIDE}/bin", _GUEST_INSIDE)
_MERGED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# samples are killed first when the machine is out of memory, so that the trainer is not
_FIRST_TO_DIE = ("/bin/sh", "-c", 'echo 1000 > /proc/self/oom_score_adj 2> /dev/null; exec "$@"', "sh")


class SandboxUnavailable(RuntimeError):
    """Untrusted code cannot be isolated on this machine; the message says how to fix it."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """One way to start a worker. needs_user: samples run as a different user than this process."""

    kind: Literal["bwrap", "landlock", "unsafe-none"]
    user_namespace: bool = False

    @property
    def changes_user(self) -> bool:
        return os.geteuid() == 0 and not self.user_namespace and self.kind != "unsafe-none"

    def command(self, profile: Profile, number: int, scratch: str) -> tuple[list[str], Mapping[str, str]]:
        """Command line and environment of worker `number`."""
        python, prefix = _interpreter()
        settings: dict[str, Any] = {
            "is_shell": profile == "shell",
            "uid": FIRST_UID + (61 * os.getpid() + number) % UIDS if self.changes_user else None,
            "confinement": {"bwrap": "namespaces", "landlock": "landlock"}.get(self.kind, "none"),
            "readable": [],
            "scratch": scratch,
        }
        if self.kind == "bwrap":
            zygote = _zygote(f"{_PYTHON_INSIDE}/bin/{os.path.basename(python)}", _GUEST_INSIDE, settings)
            return [*_FIRST_TO_DIE, *self._bwrap(profile), *zygote], {}
        settings["readable"] = [prefix, *_LIBRARIES, *(p for p in _MERGED if p.startswith("/lib"))]
        zygote = _zygote(python, str(GUEST_DIR.parent), settings)
        return [*_FIRST_TO_DIE, *zygote], _environment(prefix, scratch)

    def _bwrap(self, profile: Profile) -> list[str]:
        shell = profile == "shell"
        bwrap = shutil.which("bwrap") or "bwrap"  # it starts in an environment without PATH
        command = [bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        command += ["--unshare-user"] if self.user_namespace else []
        command += ["--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        command += [word for name in _CAPABILITIES for word in ("--cap-add", f"CAP_{name}")]
        command += ["--hostname", "sandbox", "--clearenv"]
        command += [word for pair in _environment(_PYTHON_INSIDE, "/tmp").items() for word in ("--setenv", *pair)]
        for path in _DIRECTORIES:  # else bwrap creates them itself, readable only by root
            command += ["--dir", path]
        for path in (*_LIBRARIES, *(_PROGRAMS if shell else ())):
            command += ["--ro-bind-try", path, path]
        command += _merged_directories(shell)
        command += _python_inside()
        command += ["--ro-bind", str(GUEST_DIR), f"{_GUEST_INSIDE}/guest"]
        for device in _DEVICES:
            command += ["--dev-bind-try", f"/dev/{device}", f"/dev/{device}"]
        if shell:
            command += ["--proc", "/proc", "--symlink", "/proc/self/fd", "/dev/fd"]
            for number, name in enumerate(("stdin", "stdout", "stderr")):
                command += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
        return [*command, "--remount-ro", "/", "--chdir", "/", "--"]


def _zygote(python: str, guest_parent: str, settings: Mapping[str, Any]) -> list[str]:
    return [python, "-s", "-S", "-B", "-P", "-W", "ignore", "-c", _BOOT.format(guest_parent), json.dumps(settings)]


def _environment(prefix: str, scratch: str) -> dict[str, str]:
    environment = {
        "PATH": f"/usr/bin:/bin:{prefix}/bin",
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # reproducible verdicts, also for code that iterates over a set
        "MALLOC_ARENA_MAX": "2",  # else each thread reserves 64 MiB of address space
    }
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and prefix != "/usr":
        environment["LD_LIBRARY_PATH"] = f"{prefix}/lib"
    return environment


def _interpreter() -> tuple[str, str]:
    """Path of the running interpreter outside any virtual environment, and its prefix."""
    prefix = os.path.realpath(sys.base_prefix)
    named = os.path.join(prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    python = named if os.path.exists(named) else os.path.realpath(sys.executable)
    return python, prefix


def _python_inside() -> list[str]:
    """Mount the interpreter and its library at a neutral path, so that no home directory is visible.

    Installed packages are not mounted: they may contain private data.
    """
    python, prefix = _interpreter()
    name = os.path.basename(python)
    words = ["--ro-bind", os.path.realpath(python), f"{_PYTHON_INSIDE}/bin/{name}"]
    words += ["--symlink", name, f"{_PYTHON_INSIDE}/bin/python3"]
    for library in ("lib", "lib64"):
        words += ["--ro-bind-try", f"{prefix}/{library}", f"{_PYTHON_INSIDE}/{library}"]
    for packages in (f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages", "python3/dist-packages"):
        if os.path.isdir(f"{prefix}/lib/{packages}"):
            words += ["--tmpfs", f"{_PYTHON_INSIDE}/lib/{packages}"]
    if os.path.isdir("/usr/lib/python3/dist-packages"):
        words += ["--tmpfs", "/usr/lib/python3/dist-packages"]
    return words


def _merged_directories(shell: bool) -> list[str]:
    words = []
    for path in _MERGED:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path) and (shell or path.startswith("/lib")):
            words += ["--ro-bind", path, path]
    return words


def candidates(environment: Mapping[str, str] | None = None) -> Sequence[Isolation]:
    """The isolation methods to try, best first. Raises SandboxUnavailable or, for an unknown choice, ValueError."""
    choice = (environment if environment is not None else os.environ).get(CHOICE, "bwrap")
    if choice not in CHOICES:
        raise ValueError(f"{CHOICE}={choice!r}; have: {', '.join(CHOICES)}")
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable("the sandbox needs Linux; run the verifiers of code in a Linux container")
    if choice != "bwrap":
        return [Isolation("landlock" if choice == "landlock" else "unsafe-none")]
    if shutil.which("bwrap") is None:
        raise SandboxUnavailable(
            "untrusted code needs bubblewrap, and there is no `bwrap` here: apt-get install bubblewrap "
            f"(or, weaker and for Python only, set {CHOICE}=landlock)"
        )
    ordinary = Isolation("bwrap", user_namespace=True)
    return [Isolation("bwrap"), ordinary] if os.geteuid() == 0 else [ordinary]


def fix_for(isolation: Isolation, complaint: str) -> str:
    """How the user can fix a worker that did not start."""
    if isolation.kind == "landlock":
        return f"the Landlock fallback does not start ({complaint}); it needs Linux 5.13 or later with Landlock on"
    hint = "run in an environment that allows namespaces (for Docker: --security-opt seccomp=unconfined)"
    for name, bad, good in (
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "10000"),
    ):
        setting = SETTINGS / name.replace(".", "/")
        if setting.exists() and setting.read_text().strip() == bad:
            hint = f"this system forbids ordinary users their namespaces; as root: sysctl -w {name}={good}"
            break
    return f"bubblewrap cannot isolate here ({complaint}): {hint}; or, weaker and for Python only, {CHOICE}=landlock"
