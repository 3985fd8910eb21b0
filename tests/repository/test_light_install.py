"""Tests that the base alone, without the extra `service`, is enough for a bot, in a fresh environment without more."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ledger_sizer.model.extras import SERVICE_PACKAGES

ROOT = Path(__file__).resolve().parent.parent.parent
TRADE = """
import sys
from decimal import Decimal
from importlib.util import find_spec

from ledger_sizer import Ledger
from ledger_sizer.adapters.desk import Desk
from ledger_sizer.client import AsyncLedgerClient, LedgerClient
from ledger_sizer.paper import PaperControl, ccxt_config

with Ledger.open("sqlite:///ledger.db") as ledger:
    ledger.set_cap(key="cap", cap=Decimal(100))
    assert ledger.reserve(key="own", amount_usd=Decimal(30)).granted
    desk = Desk(ledger, tags={"bot": "a"}, patience_seconds=20)
    assert desk.ask("BTC/USDT:USDT", Decimal(90)) == 70
    assert desk.settle({"BTC/USDT:USDT": (Decimal("0.001"), Decimal(50_000))})
    desk.close()
    assert ledger.exposure("main").whole.open == 50
    assert ledger.verify().ok
with LedgerClient("http://127.0.0.1:1") as client:
    assert client is not None
served_with = sys.argv[1:]
assert not [name for name in served_with if name in sys.modules]
assert not [name for name in served_with if find_spec(name)], "the environment has more than the base"
"""


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel and what it needs without extras.

    The packages are links to those that are installed here, so that nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for installed in _sizes().brought().values():
        tops = {file.parts[0] for file in installed.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            (site / top).symlink_to(Path(str(installed.locate_file(top))))
    return folder / "bin" / "python"


def _sizes() -> ModuleType:
    spec = spec_from_file_location("install_sizes", ROOT / "scripts" / "install_sizes.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_trade_when_only_the_base_is_installed_then_ledger_client_and_desk_work(python: Path, tmp_path: Path) -> None:
    ran = _run(python, tmp_path, "-W", "error", "-c", TRADE, *SERVICE_PACKAGES, "starlette")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("command", ["caps set main 50", "exposure", "verify", "db upgrade", "db current"])
def test_command_when_only_the_base_is_installed_then_it_works(python: Path, tmp_path: Path, command: str) -> None:
    assert _run(python, tmp_path, "-m", "ledger_sizer", "caps", "set", "main", "5000").returncode == 0
    ran = _run(python, tmp_path, "-m", "ledger_sizer", *command.split())
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("command", ["ledger_sizer serve", "ledger_sizer demo --seconds 1", "ledger_sizer.paper"])
def test_command_when_it_needs_the_service_then_it_names_the_extra(python: Path, tmp_path: Path, command: str) -> None:
    ran = _run(python, tmp_path, "-m", *command.split())
    assert ran.returncode == 2, ran.stderr
    assert re.fullmatch(r'error: .* pip install "ledger-sizer\[service\]"\n', ran.stderr), ran.stderr
    assert not ran.stdout


def test_read_extra_when_it_brings_a_package_then_the_error_knows_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {Requirement(line).name for line in extras["service"]}
    imported = {
        name
        for name, owners in packages_distributions().items()
        if wanted & {str(canonicalize_name(owner)) for owner in owners}
    }
    assert imported == {*SERVICE_PACKAGES}


def test_measure_when_the_service_is_left_out_then_it_prints_that_less_is_brought() -> None:
    ran = _run(Path(sys.executable), ROOT, "scripts/install_sizes.py")
    assert ran.returncode == 0, ran.stderr
    figures = re.findall(r"^ledger-sizer(\S*) +(\d+) packages +([\d.]+) MB$", ran.stdout, re.MULTILINE)
    (base, packages, size), (extra, more_packages, more_size) = figures
    assert (base, extra) == ("", "[service]")
    assert int(packages) < int(more_packages)
    assert float(size) < float(more_size)
