"""Known faults of the packages that the app runs on, as far as PyPI can be asked."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.request
import warnings
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

NEEDED = Path(__file__).parents[1] / "requirements.txt"
DATABASE = "https://pypi.org/pypi/pip/json"
SECONDS = 60


def test_no_package_has_a_known_fault_that_a_later_version_mends(tmp_path):
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed: see tests/requirements.txt")
    try:
        with urllib.request.urlopen(DATABASE, timeout=3) as told:
            json.load(told)["vulnerabilities"]  # a mirror may answer something else
    except (OSError, ValueError, KeyError) as error:
        pytest.skip(f"the database of faults cannot be reached: {error!r}")
    pinned = tmp_path / "pinned.txt"
    pinned.write_text("\n".join(f"{name}=={here}" for name, here in installed()))
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(pinned)]
    command += ["--no-deps", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", "5"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        packages = json.loads(told.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        pytest.skip(f"the database of faults did not answer: {error!r}")
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    if len(unknown) > len(packages) / 2:
        which = f"{len(unknown)} of {len(packages)} packages"
        pytest.skip(f"the database of faults does not know {which}")
    faults = [
        (f"{each['name']} {each['version']}: {fault['id']}", fault["fix_versions"])
        for each in packages
        for fault in each.get("vulns", ())
    ]
    for name, fixed in faults:
        if not fixed:
            warnings.warn(f"{name}, not mended yet", stacklevel=1)
    assert not [fault for fault in faults if fault[1]]


def test_what_is_audited_is_all_that_the_app_needs():
    names = {name for name, _ in installed()}
    assert {"gradio", "torch", "pillow", "starlette", "orjson", "brotli"} <= names
    assert "pytest" not in names


def installed() -> list[tuple[str, str]]:
    """What requirements.txt needs, and what that needs, each with its version here."""
    lines = NEEDED.read_text("utf-8").splitlines()
    wanted = [Requirement(line.partition("#")[0]) for line in lines if line.strip()]
    found: dict[str, str] = {}
    while wanted:
        name = wanted.pop().name.lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:  # for another system
            continue
        needs = map(Requirement, requires(name) or ())
        wanted += [each for each in needs if not each.marker or _here(each)]
    return sorted(found.items())


def _here(need: Requirement) -> bool:
    return need.marker.evaluate({"extra": ""})
