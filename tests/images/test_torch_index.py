"""TORCH_INDEX_URL, as one passes it for an image without CUDA, and the classic builder: both in one build each.

No index with torch's CPU builds need be reachable: a tiny one stands in, whose torch is a file with a version in it. So
these images cannot run a policy, but all of their other packages are real.
"""

import functools
import os
import re
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.images.conftest import BUILD_SECONDS, ROOT, docker, packages, run, shell

pytestmark = pytest.mark.timeout(2 * BUILD_SECONDS)


def locked(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)", (ROOT / "images/requirements/torch.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def make_wheel(folder: Path, name: str, version: str) -> None:
    """Puts a wheel that holds nothing but its version into folder."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f'__version__ = "{version}"\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: nvidia-cublas\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def index() -> Iterator[str]:
    """Address of an index on this machine's loopback that has torch and torchvision and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("torch", "torchvision"):
            make_wheel(Path(folder, name), name, f"{locked(name)}+cpu")
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module", params=["server", "client"])
def image(request: pytest.FixtureRequest, engine: None, index: str) -> Iterator[str]:
    """An image made by the classic builder with torch from that index. It leaves nothing behind."""
    tag = f"longarm-test-classic-{request.param}"
    # The machine's own network: the index listens on its loopback, as no other address is let through without TLS
    options = ["--network", "host", "--build-arg", f"TORCH_INDEX_URL={index}", "-f", f"Dockerfile.{request.param}"]
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    done = docker("build", *options, "-t", tag, ".", cwd=ROOT, env=environment, timeout=BUILD_SECONDS)
    yield tag
    # The classic builder keeps every stage
    layers = re.findall(r"^ ---> ([0-9a-f]{12})$", done.stdout, re.MULTILINE)
    docker("rmi", "-f", tag, check=False)
    for layer in reversed(layers):
        if docker("image", "inspect", "-f", "{{.RepoTags}}", layer, check=False).stdout.strip() == "[]":
            docker("rmi", layer, check=False)


def test_the_classic_builder_builds_it_without_cuda(image: str) -> None:
    listed = packages(image)
    for name in ("torch", "torchvision"):
        assert listed[name] == f"{locked(name)}+cpu"
    assert [name for name in listed if re.match(r"nvidia|cuda|triton", name)] == []
    assert shell(image, "find /usr -name 'libcu*.so*' -o -name 'libnv*.so*' -o -name 'libnccl*'") == ""
    # The rest is as locked: what another builder or index makes differs in torch alone
    lock = {"server": "service", "client": "client"}[image.rpartition("-")[2]]
    requirements = (ROOT / f"images/requirements/{lock}.txt").read_text()
    for name, version in re.findall(r"^([\w.-]+)==(\S+) \\$", requirements, re.MULTILINE):
        assert listed[name] == version
    done = run(image, "check-config")
    assert done.returncode == 0, done.stderr
