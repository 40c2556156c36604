"""Who may import whom, what may be imported nowhere, and what committed text must not contain."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Import name of each package, and the distribution that holds it
PACKAGES = {
    "longarm_wire": "wire",
    "longarm_service": "service",
    "longarm_edge": "edge",
    "lerobot_robot_longarm_sim": "sim",
}
# What a package must not import of ours. wire stands below everything; service and edge run on different machines
FORBIDDEN_PACKAGES = {
    "longarm_wire": {"longarm_service", "longarm_edge", "lerobot_robot_longarm_sim"},
    "longarm_service": {"longarm_edge", "lerobot_robot_longarm_sim"},
    "longarm_edge": {"longarm_service", "lerobot_robot_longarm_sim"},
    "lerobot_robot_longarm_sim": {"longarm_wire", "longarm_service", "longarm_edge"},
}
# The model stack appears in adapter modules only, named by a regular expression on the module's file name
MODEL_STACK = {"torch", "torchvision", "lerobot", "draccus", "transformers", "safetensors", "accelerate", "diffusers"}
ADAPTERS = {
    "longarm_wire": None,
    "longarm_service": re.compile(r"lerobot_\w+\.py"),
    "longarm_edge": re.compile(r"lerobot_\w+\.py"),
    "lerobot_robot_longarm_sim": re.compile(r"\w+\.py"),
}
# Each can run code out of data
CODE_IN_DATA = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
CODE_CALLS = {"eval", "exec", "torch.load", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
# The distribution that an import comes from, where the names differ
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "dotenv": "python-dotenv",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "grpc_status": "grpcio-status",
    "huggingface_hub": "huggingface-hub",
    "longarm": "longarm-wire",
    "longarm_edge": "longarm-edge",
    "longarm_service": "longarm-service",
    "longarm_wire": "longarm-wire",
    "prometheus_client": "prometheus-client",
    "pydantic_core": "pydantic",
    "pydantic_settings": "pydantic-settings",
    "rerun": "rerun-sdk",
    "yaml": "pyyaml",
}
# What comes with a dependency and has to be the version that this one wants: LeRobot's own stack
BROUGHT_ALONG = {
    "lerobot": {"draccus", "huggingface-hub", "numpy", "pillow", "safetensors", "torch", "torchvision", "tqdm"}
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yields the dotted name of everything imported anywhere in tree, `from a import b` as a.b."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=0) if module:
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(func) in ("__import__", "import_module", "importlib.import_module"):
                    yield name


def calls(tree: ast.AST) -> Iterator[str]:
    """Yields the names of everything called in tree, and `allow_pickle` where it is passed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)
            yield from (word.arg for word in node.keywords if word.arg == "allow_pickle")


def faults(package: str, file_name: str, source: str) -> list[str]:
    """Returns what a module of package breaks of the rules above."""
    tree = ast.parse(source)
    adapter = ADAPTERS[package]
    found = []
    for name in imports(tree):
        top = name.partition(".")[0]
        if top in FORBIDDEN_PACKAGES[package]:
            found.append(f"{package}/{file_name} imports {name}: {package} must not know {top}")
        if top in MODEL_STACK and not (adapter and adapter.fullmatch(file_name)):
            found.append(f"{package}/{file_name} imports {name}: only an adapter module may")
        if top in CODE_IN_DATA:
            found.append(f"{package}/{file_name} imports {name}: it can run code out of data")
    found += [
        f"{package}/{file_name} calls {name}: it can run code out of data"
        for name in calls(tree)
        if name.removeprefix("builtins.") in CODE_CALLS or name == "allow_pickle"
    ]
    return found


def modules(package: str) -> list[Path]:
    """Returns the modules of package."""
    return sorted((ROOT / PACKAGES[package] / "src" / package).rglob("*.py"))


def sources(package: str) -> Iterator[tuple[str, str]]:
    """Yields file name and text of each module of package."""
    for path in modules(package):
        yield path.name, path.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    assert [fault for name, text in sources(package) for fault in faults(package, name, text)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_something_to_look_at(package: str) -> None:
    names = [name for name, _ in sources(package)]
    assert "__init__.py" in names
    assert len(names) > 5


@pytest.mark.parametrize("package", ["longarm_service", "longarm_edge"])
def test_the_model_stack_is_found_where_it_is_allowed(package: str) -> None:
    """The rule is not kept by a walker that sees nothing."""
    users = {
        name for name, text in sources(package) if MODEL_STACK & {n.split(".")[0] for n in imports(ast.parse(text))}
    }
    assert users
    assert all(name.startswith("lerobot_") for name in users)


BAD_MODULES = [
    ("longarm_wire", "a.py", "import longarm_service", "must not know longarm_service"),
    ("longarm_wire", "a.py", "from longarm_edge.queue import Queue", "must not know longarm_edge"),
    ("longarm_wire", "lerobot_x.py", "import torch", "only an adapter module"),
    ("longarm_service", "a.py", "def f():\n    from longarm_edge import x", "must not know longarm_edge"),
    ("longarm_edge", "a.py", "import longarm_service.app as app", "must not know longarm_service"),
    ("longarm_edge", "a.py", "import importlib\nimportlib.import_module('longarm_service')", "must not know"),
    ("longarm_edge", "a.py", "import numpy, torch.nn", "imports torch.nn: only an adapter"),
    ("longarm_edge", "robot.py", "from lerobot.robots import Robot", "only an adapter module"),
    ("longarm_service", "policy.py", "if True:\n    import lerobot", "only an adapter module"),
    ("longarm_service", "a.py", "from typing import TYPE_CHECKING as T\nif T:\n    import torch", "only an adapter"),
    ("longarm_service", "lerobot_x.py", "import pickle", "code out of data"),
    ("longarm_edge", "a.py", "from cloudpickle import loads", "code out of data"),
    ("longarm_edge", "a.py", "__import__('marshal')", "code out of data"),
    ("longarm_edge", "a.py", "eval('1')", "calls eval"),
    ("longarm_edge", "a.py", "import builtins\nbuiltins.exec('1')", "calls builtins.exec"),
    ("longarm_service", "lerobot_x.py", "import torch\ntorch.load('x')", "calls torch.load"),
    ("lerobot_robot_longarm_sim", "a.py", "import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
]


@pytest.mark.parametrize(("package", "file_name", "source", "message"), BAD_MODULES)
def test_a_bad_module_is_found(package: str, file_name: str, source: str, message: str) -> None:
    (fault,) = faults(package, file_name, source)
    assert message in fault


GOOD_MODULES = [
    ("longarm_wire", "a.py", "from longarm.policy.v1 import policy_service_pb2\nimport numpy"),
    ("longarm_service", "lerobot_loader.py", "import torch\nfrom lerobot.policies import x\npolicy.eval()"),
    ("longarm_edge", "lerobot_robot.py", "from lerobot.robots import Robot\nfrom . import robot"),
    ("longarm_edge", "a.py", "from longarm_wire import tensors\nimport re\nre.compile('x')"),
    ("lerobot_robot_longarm_sim", "longarm_sim.py", "import lerobot, mujoco"),
]


@pytest.mark.parametrize(("package", "file_name", "source"), GOOD_MODULES)
def test_a_good_module_is_left_alone(package: str, file_name: str, source: str) -> None:
    assert faults(package, file_name, source) == []


def declared(folder: str) -> set[str]:
    """Returns the distributions that folder's dependencies and extras give, through longarm-wire too: it is pinned."""
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {}).values()
    lines = [line for lines in (project["dependencies"], *extras) for line in lines]
    names = {re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0].lower() for line in lines}
    if f"longarm-wire=={project['version']}" in project["dependencies"]:
        names |= declared("wire")
    return names.union(*(BROUGHT_ALONG.get(name, set()) for name in names), {project["name"]})


def needed(texts: Iterable[str], standard: frozenset[str]) -> set[str]:
    """Returns the distributions that modules import from."""
    found = set()
    for text in texts:
        for name in imports(ast.parse(text)):
            top, _, rest = name.partition(".")
            # Namespace packages: google.protobuf and google.rpc come from different places
            name = f"{top}.{rest.partition('.')[0]}" if top == "google" else top
            if top not in standard:
                found.add(DISTRIBUTIONS.get(name, name.lower()))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_cover_what_is_imported(package: str) -> None:
    """A package that works only because something else was installed breaks on the other machine."""
    missing = needed((text for _, text in sources(package)), sys.stdlib_module_names) - declared(PACKAGES[package])
    assert missing == set()


def test_a_missing_dependency_is_found() -> None:
    texts = ["import os, PIL.Image, tenacity", "from google.rpc import x", "def f():\n    import yaml"]
    assert needed(texts, sys.stdlib_module_names) == {"pillow", "tenacity", "googleapis-common-protos", "pyyaml"}


# Written in two pieces, or this file would be its own first fault
PRIVATE_PATHS = ("/" + "root/", "/" + "work/")
REGISTRIES = tuple(
    name + end
    for name, end in (
        ("pypi.", "org"),
        ("pythonhosted.", "org"),
        ("download.", "pytorch.org"),
        ("/simple", "/"),
        ("pypi.tuna", ".tsinghua"),
        ("mirrors.", "aliyun.com"),
        ("npmjs.", "org"),
        ("npmjs.", "com"),
        ("crates.", "io"),
        ("anaconda.", "org"),
        ("pypi.", "nvidia.com"),
    )
)
# Texts that are not ours to write
FOREIGN_TEXTS = {"LICENSE"}


def committed() -> list[tuple[str, str]]:
    """Returns path and text of every file that is or could be committed."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    found = []
    for name in sorted(set(listing.stdout.split("\0")) - FOREIGN_TEXTS - {""}):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" not in data:
            found.append((name, data.decode("utf-8")))
    return found


def mentions(texts: Iterable[tuple[str, str]], words: Iterable[str]) -> list[str]:
    """Returns where one of words stands, as path:line: word."""
    return [
        f"{name}:{number}: {word}"
        for name, text in texts
        for number, line in enumerate(text.splitlines(), 1)
        for word in words
        if word in line
    ]


def test_no_path_of_one_machine_is_committed() -> None:
    texts = committed()
    assert len(texts) > 30
    assert mentions(texts, PRIVATE_PATHS) == []


def test_no_package_registry_is_committed() -> None:
    """Where packages come from is the machine's business: a mirror, a cache, an index without a route elsewhere."""
    assert mentions(committed(), REGISTRIES) == []


def test_the_locks_have_hashes_and_no_addresses() -> None:
    locks = [(path.name, path.read_text(encoding="utf-8")) for path in (ROOT / "images/requirements").glob("*.txt")]
    assert {"dev.txt", "torch.txt"} <= {name for name, _ in locks}
    assert mentions(locks, ["://", "--index-url", "--extra-index-url", "--find-links"]) == []
    for name, text in locks:
        pins = [line for line in text.splitlines() if line and not line[0].isspace() and line[0] not in "#-"]
        assert pins, name
        assert all("==" in line for line in pins), name
        assert text.count("--hash=sha256:") >= len(pins), name


def test_a_mention_is_found() -> None:
    texts = [("a.md", f"x\nsee {PRIVATE_PATHS[0]}x"), ("b.txt", f"https://{REGISTRIES[0]}/simple")]
    assert mentions(texts, PRIVATE_PATHS) == [f"a.md:2: {PRIVATE_PATHS[0]}"]
    assert mentions(texts, REGISTRIES) == [f"b.txt:1: {REGISTRIES[0]}"]
