"""Longarm's own packages for the far side, and what they require: from a source checkout, or from ready wheels."""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from typing import Protocol

import longarm_edge
from longarm_edge.provision.errors import ProvisionError
from longarm_wire.settings import ConfigurationError, environment_for_others

NAMES = ("longarm_wire", "longarm_service")
# The policies that a checkpoint may hold need more than LeRobot alone
POLICY_STACK = "lerobot[diffusion,smolvla]>=0.6.1"
# In a checkout, the hashed locks: torch with what it needs, and the rest. The first of the latter that is there
TORCH_LOCK = "torch.txt"
LOCKS = ("service.txt", "dev.txt")
# Wheels are zip files with times in them: with this one, the same sources give the same bytes
EPOCH = "315532800"
BUILD_TIMEOUT = 300.0


@dataclass(frozen=True)
class Requirements:
    """What our packages require.

    Attributes:
      text: As pip reads it from a file.
      hashed: Whether it is a lock: every version, each with its hashes.
    """

    text: str
    hashed: bool

    @property
    def digest(self) -> str:
        """Changes when the requirements do."""
        return _digest([self.text.encode()])

    @property
    def cuda(self) -> int:
        """Major release of CUDA that the locked torch is built for. Without a lock, that of the torch of the day."""
        found = re.search(r"^cuda-toolkit==(\d+)", self.text, re.MULTILINE)
        return int(found[1]) if found else 0 if self.hashed else 13

    def without_torch(self) -> tuple["Requirements", list[str]]:
        """Returns the requirements without torch and its libraries, and torch's own, to be taken from another index."""
        if not self.hashed:
            return self, ["torch>=2.7,<2.12", "torchvision"]
        # A requirement is one line and its indented hash lines
        blocks = re.split(r"^(?=\S)", self.text, flags=re.MULTILINE)
        torch = [block.split()[0] for block in blocks if re.match(r"(torch|torchvision)==", block)]
        rest = [block for block in blocks if not re.match(r"(torch|torchvision|triton)==|nvidia-|cuda-", block)]
        return Requirements("".join(rest), hashed=True), torch


class Packages(Protocol):
    """Where our packages come from."""

    digest: str
    """Changes when the packages do."""

    def requirements(self, *, locked: bool) -> Requirements:
        """Returns what they require, from the lock if there is one and it is asked for."""

    def build(self, target: Path) -> list[Path]:
        """Puts the wheels into target and returns their paths. Raises ProvisionError if they cannot be built."""


def find_packages(wheels: Path | None) -> Packages:
    """Returns our packages.

    Args:
      wheels: A directory with wheels; None for the checkout that longarm-edge runs from, or the wheels in its package.

    Raises:
      ConfigurationError: There are none.
    """
    package = Path(longarm_edge.__file__).resolve().parent
    root = package.parents[2]
    if wheels is None and all((root / name / "pyproject.toml").is_file() for name in ("wire", "service")):
        return Checkout(root)
    return WheelDirectory(wheels or package / "wheels")


class Checkout:
    """A source checkout."""

    def __init__(self, root: Path) -> None:
        """Reads the sources below root."""
        self._root = root
        self._projects = [root / "wire", root / "service"]
        files = sorted(path for project in self._projects for path in _sources(project))
        self.digest = _digest(
            [part for path in files for part in (str(path.relative_to(root)).encode(), path.read_bytes())]
        )

    def requirements(self, *, locked: bool) -> Requirements:
        """See Packages.requirements."""
        folder = self._root / "images" / "requirements"
        lock = next((folder / name for name in LOCKS if (folder / name).is_file()), None)
        if locked and lock is not None and (folder / TORCH_LOCK).is_file():
            return Requirements((folder / TORCH_LOCK).read_text() + lock.read_text(), hashed=True)
        projects = [tomllib.loads((project / "pyproject.toml").read_text())["project"] for project in self._projects]
        return _unlocked(line for project in projects for line in project["dependencies"])

    def build(self, target: Path) -> list[Path]:
        """See Packages.build."""
        # Elsewhere, for setuptools leaves its own files behind, and takes in what it left the last time
        with tempfile.TemporaryDirectory() as folder:
            copies = [Path(folder, project.name) for project in self._projects]
            for project, copy in zip(self._projects, copies, strict=True):
                for path in _sources(project):
                    place = copy / path.relative_to(project)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, place)
            _pip_wheel(copies, target)
        return sorted(target.glob("*.whl"))


class WheelDirectory:
    """Ready wheels, those of this version."""

    def __init__(self, directory: Path) -> None:
        """Finds the wheels.

        Raises:
          ConfigurationError: One is missing.
        """
        self._wheels = []
        for name in NAMES:
            found = sorted(directory.glob(f"{name}-{longarm_edge.__version__}-*.whl"))
            if not found:
                remedy = "`pip wheel --no-deps ./wire ./service -w DIR` in Longarm's sources, then --far.wheels=DIR"
                pattern = f"{name}-{longarm_edge.__version__}-*.whl"
                raise ConfigurationError([f"Expected {pattern} in {directory}, found none. Make it: {remedy}"])
            self._wheels.append(found[-1])
        self.digest = _digest([path.read_bytes() for path in self._wheels])

    def requirements(self, *, locked: bool) -> Requirements:
        """See Packages.requirements. A lock is a file requirements.txt beside the wheels."""
        lock = self._wheels[0].with_name("requirements.txt")
        if locked and lock.is_file():
            return Requirements(lock.read_text(), hashed=True)
        return _unlocked(line for wheel in self._wheels for line in _requires(wheel))

    def build(self, target: Path) -> list[Path]:
        """See Packages.build."""
        return [Path(shutil.copy(wheel, target)) for wheel in self._wheels]


def _sources(project: Path) -> list[Path]:
    files = [path for path in (project / "src").rglob("*") if path.is_file()]
    kept = [path for path in files if "__pycache__" not in path.parts and not path.parent.name.endswith(".egg-info")]
    return [project / "pyproject.toml", *kept]


def _unlocked(lines: Iterable[str]) -> Requirements:
    foreign = {line for line in lines if not line.startswith("longarm")}
    return Requirements("\n".join(sorted({*foreign, POLICY_STACK})) + "\n", hashed=False)


def _requires(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    return [line for line in lines if "extra ==" not in line]


def _pip_wheel(projects: list[Path], target: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    try:
        subprocess.run(  # noqa: S603
            [*command, "--no-build-isolation", "--wheel-dir", str(target), *map(str, projects)],
            env={**environment_for_others(), "SOURCE_DATE_EPOCH": EPOCH},
            capture_output=True,
            check=True,
            text=True,
            timeout=BUILD_TIMEOUT,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = "".join(str(error.stderr or error).splitlines(keepends=True)[-8:])
        raise ProvisionError(f"Longarm's wheels cannot be built with {sys.executable} -m pip:\n{said}") from error


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8))
        total.update(part)
    return total.hexdigest()[:16]
