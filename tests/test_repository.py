"""The house style, checked by machine: sizes, docstrings, no floats in money, nothing of one machine in the files."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
MONEY_MODULES = (
    "model/decisions",
    "model/domain",
    "model/instruments",
    "model/units",
    "rules/batch",
    "rules/decide",
    "rules/sizing",
    "rules/state",
    "storage/write_store",
)

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef

PACKAGE_FILES = sorted((ROOT / "ledger_sizer").rglob("*.py"))
STYLED_FILES = [*PACKAGE_FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=_name(path))


def _repository_files() -> list[Path]:
    """What is committed or would be: everything that git does not ignore."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def _locked() -> dict[str, str]:
    """Version by package of requirements.lock."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


@pytest.mark.parametrize("path", STYLED_FILES, ids=_name)
def test_count_lines_when_file_is_ours_then_file_and_functions_stay_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES_MAX, f"{_name(path)} has {lines} lines: which idea deserves a file of its own?"
    long = {
        f"{node.name} (line {node.lineno})": node.end_lineno - node.lineno + 1
        for node in ast.walk(_parsed(path))
        if isinstance(node, Function) and node.end_lineno and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    }
    assert not long, f"functions of more than {FUNCTION_LINES_MAX} lines in {_name(path)}: {long}"


@pytest.mark.parametrize("module", MONEY_MODULES)
def test_read_source_when_module_handles_money_then_it_holds_no_float(module: str) -> None:
    path = ROOT / "ledger_sizer" / f"{module}.py"
    found = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(_parsed(path))
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float")
    ]
    assert not found, f"{_name(path)} turns money into floats: {found}"


def _public(nodes: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Documented]]:
    """Public functions and classes with their public methods, but for setters and overloads, which repeat another."""
    for node in nodes:
        if not isinstance(node, Documented) or node.name.startswith("_"):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if any(name.endswith((".setter", "overload")) for name in decorators):
            continue
        yield f"{prefix}{node.name} (line {node.lineno})", node
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body, f"{node.name}.")


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=_name)
def test_read_source_when_name_is_public_then_it_has_a_docstring(path: Path) -> None:
    module = _parsed(path)
    assert ast.get_docstring(module), f"{_name(path)} does not say what it is for"
    bare = [name for name, node in _public(module.body) if not ast.get_docstring(node)]
    assert not bare, f"{_name(path)} has public names without a docstring: {bare}"


def test_import_when_name_is_exported_then_it_is_there() -> None:
    package = importlib.import_module("ledger_sizer")
    assert package.__all__, "ledger_sizer exports nothing"
    assert len(set(package.__all__)) == len(package.__all__), "ledger_sizer.__all__ names something twice"
    missing = [name for name in package.__all__ if getattr(package, name, None) is None]
    assert not missing, f"ledger_sizer.__all__ names what cannot be imported: {missing}"


def test_read_files_when_committed_then_no_path_of_one_machine_is_in_them() -> None:
    folders = [re.escape(str(folder)) for folder in (ROOT, Path.home()) if folder != Path("/")]
    machine = re.compile(rf"(?:{'|'.join(folders)})/|(?<![\w.])/(?:home|Users)/\w+/")
    found = []
    for path in _repository_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # an image, or compressed data
        found += [f"{_name(path)}:{number}" for number, line in enumerate(text.splitlines(), 1) if machine.search(line)]
    assert not found, f"absolute paths of a machine in {found}"


def test_read_lock_when_committed_then_it_names_no_host_and_hashes_everything() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--(?:extra-)?index-url|--find-links| @ ", text), (
        "run `make lock`: no address belongs there"
    )
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)
    unhashed = [entry.splitlines()[0] for entry in entries if "==" in entry and "--hash=sha256:" not in entry]
    assert not unhashed, f"without a hash: {unhashed}"


def test_read_lock_when_pyproject_asks_for_a_version_then_the_lock_holds_one_that_fits() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *pyproject["project"]["dependencies"],
        *(line for lines in pyproject["project"]["optional-dependencies"].values() for line in lines),
        *pyproject["dependency-groups"]["dev"],
        *pyproject["dependency-groups"]["build"],
    ]
    locked = _locked()
    wrong = []
    for line in asked:
        requirement = Requirement(line)
        version = locked.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{line}: locked is {version}")
    assert not wrong, f"requirements.lock is behind pyproject.toml, run `make lock`: {wrong}"


def test_list_targets_when_makefile_declares_them_then_help_describes_each() -> None:
    text = (ROOT / "Makefile").read_text()
    declared = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())
    described = set(re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE))
    assert declared == described


@pytest.mark.parametrize("script", [".ci/run", "scripts/chromium", "scripts/setup"])
def test_run_script_when_cloned_then_it_is_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK), f"{script} is not executable: chmod +x {script}"
