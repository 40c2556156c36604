"""Generates the protocol's Python code beside the .proto file, or into the directory named by the first argument."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "wire" / "src"
PROTO = "longarm/policy/v1/policy_service.proto"


def generate(target: Path) -> None:
    """Writes messages, stubs and their types under target, in the folders of the protocol's package."""
    # The protocol's own folder, and the well-known types that grpc_tools brings
    paths = [f"--proto_path={ROOT}", f"--proto_path={files('grpc_tools') / '_proto'}"]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python", "mypy_grpc")]
    plugin = f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}"
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *paths, plugin, *outputs, PROTO], check=True)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
