"""Checks the house style: rooms, floors, sizes, docstrings, no floats in money, nothing of one machine in the files."""

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
PACKAGE = ROOT / "ledger_sizer"
AT_THE_ROOT = {"__init__.py", "__main__.py", "config.py", "py.typed", "telemetry.py"}
TEST_FOLDERS_OF_NO_ROOM = {"bots", "campaign", "conformance", "lockstep", "repository", "support"}
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

PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))
STYLED_FILES = [
    *PACKAGE_FILES,
    *[path for folder in ("tests", "benchmarks", "campaign", "bots") for path in sorted((ROOT / folder).rglob("*.py"))],
]


def _folders(parent: Path) -> set[str]:
    return {path.parent.name for path in parent.glob("*/*.py")}


ROOMS = _folders(PACKAGE)


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


def _too_long(path: Path) -> list[str]:
    lines = len(path.read_text().splitlines())
    found = [f"{_name(path)} has {lines} lines"] if lines > FILE_LINES_MAX else []
    return found + [
        f"{_name(path)}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(_parsed(path))
        if isinstance(node, Function) and node.end_lineno and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]


def test_count_lines_when_file_is_ours_then_file_and_functions_stay_short() -> None:
    assert len(STYLED_FILES) > 300, "the files were not found"
    found = [line for path in STYLED_FILES for line in _too_long(path)]
    assert not found, f"{found}: which idea deserves a file or a function of its own?"


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


def test_read_source_when_name_is_public_then_it_has_a_docstring() -> None:
    bare = []
    for path in PACKAGE_FILES:
        module = _parsed(path)
        bare += [] if ast.get_docstring(module) else [f"{_name(path)} itself"]
        bare += [f"{_name(path)}: {name}" for name, node in _public(module.body) if not ast.get_docstring(node)]
    assert not bare, f"public names without a docstring: {bare}"


def test_list_the_package_when_somebody_opens_it_then_only_the_named_files_lie_beside_the_rooms() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == AT_THE_ROOT


@pytest.mark.parametrize("parent", [PACKAGE, ROOT / "tests"], ids=lambda path: path.name)
def test_open_a_folder_when_it_holds_code_then_one_sentence_says_what_is_in_it(parent: Path) -> None:
    silent = []
    for folder in sorted(_folders(parent)):
        start = parent / folder / "__init__.py"
        sentence = (ast.get_docstring(ast.parse(start.read_text())) or "") if start.is_file() else ""
        if not sentence.partition("\n\n")[0].endswith("."):
            silent.append(folder)
    assert not silent, f"folders whose __init__.py does not begin with a sentence: {silent}"


def test_list_the_tests_when_a_room_is_sought_then_its_folder_has_the_same_name() -> None:
    assert _folders(ROOT / "tests") - TEST_FOLDERS_OF_NO_ROOM <= ROOMS


def test_read_floors_when_a_room_exists_then_it_stands_on_exactly_one() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (floors,) = [contract["layers"] for contract in contracts if contract.get("containers") == ["ledger_sizer"]]
    placed = [name.strip() for floor in floors for name in floor.split("|")]
    assert sorted(placed) == sorted({*ROOMS, "config", "telemetry"})


def test_import_when_another_room_is_meant_then_its_private_names_are_not_used() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ledger_sizer."):
                other = (node.module or "").split(".")[1]
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                if private and not all(name.startswith("__") for name in private) and other != room:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {private} of {other}")
    assert not found


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


@pytest.mark.parametrize("script", [".ci/run", "scripts/programs", "scripts/setup", "scripts/setup_bots"])
def test_run_script_when_cloned_then_it_is_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK), f"{script} is not executable: chmod +x {script}"
