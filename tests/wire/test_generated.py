"""The generated protocol code is what the .proto gives, and the .proto keeps its own rules."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "wire" / "src"
PROTO = "longarm/policy/v1/policy_service.proto"
GENERATED = sorted(path.name for path in (SOURCES / PROTO).parent.glob("*_pb2*"))


def generator() -> ModuleType:
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("generate_proto", ROOT / "scripts" / "generate_proto.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("generated")
    generator().generate(target)
    return target / Path(PROTO).parent


def test_nothing_is_missing_and_nothing_is_left_over(regenerated: Path) -> None:
    assert sorted(path.name for path in regenerated.iterdir()) == GENERATED
    assert [f"policy_service_pb2{end}" for end in (".py", ".pyi", "_grpc.py", "_grpc.pyi")] == GENERATED


@pytest.mark.parametrize("name", GENERATED)
def test_regenerating_changes_nothing(regenerated: Path, name: str) -> None:
    """`make proto` was forgotten, or the generated code was edited, if this fails."""
    assert (regenerated / name).read_bytes() == ((SOURCES / PROTO).parent / name).read_bytes()


@pytest.fixture(scope="module")
def proto(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    """The parsed .proto with its comments."""
    return parse(SOURCES, PROTO, tmp_path_factory.mktemp("descriptor"))


def parse(folder: Path, name: str, scratch: Path) -> FileDescriptorProto:
    """Returns the descriptor of a .proto with its comments."""
    target = scratch / "set.bin"
    well_known = str(files("grpc_tools") / "_proto")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={folder}",
            f"--proto_path={well_known}",
            "--include_source_info",
            f"--descriptor_set_out={target}",
            name,
        ],
        check=True,
    )
    (file,) = FileDescriptorSet.FromString(target.read_bytes()).file
    return file


# Field numbers in descriptor.proto, which make up the paths of source locations
MESSAGE, ENUM, SERVICE = 4, 5, 6
FIELD, METHOD, VALUE = 2, 2, 2


def elements(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields everything that needs a comment, with its path."""
    for i, service in enumerate(file.service):
        yield service.name, (SERVICE, i)
        for j, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (SERVICE, i, METHOD, j)
    for i, message in enumerate(file.message_type):
        yield message.name, (MESSAGE, i)
        for j, field in enumerate(message.field):
            yield f"{message.name}.{field.name}", (MESSAGE, i, FIELD, j)
    for i, enum in enumerate(file.enum_type):
        yield enum.name, (ENUM, i)
        for j, value in enumerate(enum.value):
            yield f"{enum.name}.{value.name}", (ENUM, i, VALUE, j)


def without_comment(file: FileDescriptorProto) -> list[str]:
    """Returns the names of what has no comment above it."""
    commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
    return [name for name, path in elements(file) if path not in commented]


def snake_upper(name: str) -> str:
    """Returns ImageCodec as IMAGE_CODEC."""
    return "".join(f"_{letter}" if letter.isupper() else letter for letter in name).lstrip("_").upper()


def test_everything_has_a_comment(proto: FileDescriptorProto) -> None:
    assert len(list(elements(proto))) > 80
    assert without_comment(proto) == []


def test_a_missing_comment_is_found(tmp_path: Path) -> None:
    """The test above must be able to fail."""
    (tmp_path / "bad.proto").write_text(
        'syntax = "proto3";\n// Good.\nmessage A {\n int32 x = 1;\n // Good.\n int32 y = 2;\n}\nenum E {\n Z = 0;\n}\n'
    )
    assert without_comment(parse(tmp_path, "bad.proto", tmp_path)) == ["A.x", "E", "E.Z"]


def test_package_and_folder_carry_the_version(proto: FileDescriptorProto) -> None:
    assert proto.syntax == "proto3"
    assert proto.package == "longarm.policy.v1"
    assert Path(PROTO).parent == Path(*proto.package.split("."))


def test_every_method_has_messages_of_its_own(proto: FileDescriptorProto) -> None:
    (service,) = proto.service
    assert service.name == "PolicyService"
    names = [method.name for method in service.method]
    assert names == ["GetServiceInfo", "OpenSession", "PredictChunk", "ResetSession", "CloseSession"]
    for method in service.method:
        assert method.input_type == f".{proto.package}.{method.name}Request"
        assert method.output_type == f".{proto.package}.{method.name}Response"
        assert not method.client_streaming
        assert method.server_streaming == (method.name == "OpenSession")


def test_enum_values_are_prefixed_and_zero_is_unspecified(proto: FileDescriptorProto) -> None:
    assert proto.enum_type
    for enum in proto.enum_type:
        prefix = snake_upper(enum.name)
        assert (enum.value[0].name, enum.value[0].number) == (f"{prefix}_UNSPECIFIED", 0)
        assert all(value.name.startswith(f"{prefix}_") for value in enum.value)
    assert not any(message.enum_type for message in proto.message_type)


def field_types(proto: FileDescriptorProto) -> Sequence[str]:
    """Returns the types of messages that fields have."""
    return [field.type_name for message in proto.message_type for field in message.field if field.type_name]


def test_no_field_can_hold_anything_at_all(proto: FileDescriptorProto) -> None:
    """google.protobuf.Any and Struct would be a way round the contract."""
    ours = tuple(f".{proto.package}.{m.name}" for m in [*proto.message_type, *proto.enum_type])
    assert {t for t in field_types(proto) if not t.startswith(ours)} == {".google.protobuf.Duration"}
