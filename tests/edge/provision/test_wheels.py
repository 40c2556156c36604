"""Longarm's own packages for the far side."""

import shutil
import zipfile
from pathlib import Path

import pytest

from longarm_edge import __version__
from longarm_edge.provision.wheels import Checkout, Requirements, WheelDirectory, find_packages
from longarm_wire.settings import ConfigurationError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return Checkout(ROOT).build(tmp_path_factory.mktemp("wheels"))


def test_a_checkout_makes_both_wheels(wheels: list[Path]) -> None:
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["longarm_service", "longarm_wire"]
    with zipfile.ZipFile(wheels[0]) as archive:
        assert "longarm_service/supervisor.py" in archive.namelist()
    with zipfile.ZipFile(wheels[1]) as archive:
        assert "longarm/policy/v1/policy_service_pb2.py" in archive.namelist()


def test_a_wheel_directory_is_as_good(wheels: list[Path], tmp_path: Path) -> None:
    packages = find_packages(wheels[0].parent)
    assert packages.requirements(locked=False) == Checkout(ROOT).requirements(locked=False)
    assert [path.name for path in packages.build(tmp_path)] == [
        "longarm_wire-" + wheels[1].name.split("-", 1)[1],
        wheels[0].name,
    ]
    assert packages.digest == WheelDirectory(wheels[0].parent).digest


def test_a_lock_beside_the_wheels_is_used(wheels: list[Path], tmp_path: Path) -> None:
    for wheel in wheels:
        shutil.copy(wheel, tmp_path)
    (tmp_path / "requirements.txt").write_text("a==1 --hash=sha256:00\n")
    assert find_packages(tmp_path).requirements(locked=True).hashed
    assert not find_packages(tmp_path).requirements(locked=False).hashed


def test_missing_wheels_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"longarm_wire-{__version__}-\*\.whl .* --far.wheels"):
        find_packages(tmp_path)


def test_without_a_setting_it_is_this_checkout() -> None:
    assert isinstance(find_packages(None), Checkout)


def test_the_digest_follows_the_sources(tmp_path: Path) -> None:
    for name in ("wire", "service"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    before = Checkout(tmp_path).digest
    assert before == Checkout(ROOT).digest
    (tmp_path / "wire" / "src" / "longarm_wire" / "__pycache__").mkdir()
    (tmp_path / "wire" / "src" / "longarm_wire" / "__pycache__" / "x.pyc").write_text("")
    assert before == Checkout(tmp_path).digest
    (tmp_path / "service" / "src" / "longarm_service" / "cli.py").write_text("")
    assert before != Checkout(tmp_path).digest


def test_requirements_are_locked_where_a_lock_is() -> None:
    locked = Checkout(ROOT).requirements(locked=True)
    assert locked.hashed
    assert "\ntorch==" in locked.text
    assert "\ngrpcio==" in locked.text
    assert locked.cuda >= 12
    loose = Checkout(ROOT).requirements(locked=False)
    assert not loose.hashed
    assert "longarm" not in loose.text
    assert "torch>=2.7" in loose.text
    assert "smolvla" in loose.text


def test_torch_can_come_from_elsewhere() -> None:
    names = ["cuda-toolkit==13.0", "numpy==2", "torch==2.11.0", "torchcodec==0.1", "torchvision==0.26.0 ; x == 'y'"]
    blocks = [f"{name} \\\n    --hash=sha256:{number}\n" for number, name in enumerate(names)]
    lock = Requirements("".join(blocks), hashed=True)
    rest, torch = lock.without_torch()
    assert torch == ["torch==2.11.0", "torchvision==0.26.0"]
    assert rest.text == blocks[1] + blocks[3]
    assert lock.cuda == 13


def test_without_a_lock_torch_is_asked_for_by_range() -> None:
    loose = Requirements("lerobot>=0.6.1\n", hashed=False)
    assert loose.without_torch() == (loose, ["torch>=2.7,<2.12", "torchvision"])
