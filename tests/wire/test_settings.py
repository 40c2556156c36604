"""Settings come from flag, environment, .env file and default, in this order, and a fault names its setting."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from longarm_wire.settings import ConfigurationError, ProcessSettings, environment_for_others, reference

SECRET = "hunter2-and-more"


class Replan(StrEnum):
    """Values differ from member names, as everywhere here."""

    AUTO = "auto"
    THRESHOLD = "threshold"


class Tunnel(BaseModel):
    """A group."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    ssh_port: int = Field(22, ge=1, le=65535)
    """Port of the SSH server."""
    password: SecretStr = SecretStr("")
    """Password | or none."""
    enabled: bool = False
    """Whether there is a tunnel."""


class Settings(ProcessSettings):
    """Settings of a test's process."""

    model_config = SettingsConfigDict(env_prefix="LONGARM_EDGE_")

    server_address: str = "127.0.0.1:8080"
    """Where the service answers."""
    fps: float = Field(30, gt=0)
    """Ticks per second,
    100 % of them."""
    actions_per_chunk: int | None = None
    """Most actions of a chunk."""
    verify_robot_cameras: bool = True
    """Compare cameras."""
    debug: bool = False
    """Say more."""
    always: Literal[True] = True
    """Cannot be turned off."""
    replan: Replan = Replan.AUTO
    """When to ask."""
    rename_map: dict[str, str] = Field(default_factory=dict)
    """Names of cameras."""
    limits: dict[str, tuple[float, float]] | None = None
    """Bounds by joint."""
    max_step: float | dict[str, float] | None = None
    """One bound, or by joint."""
    stages: tuple[str, ...] = ("a",)
    """Several words."""
    names: Annotated[tuple[str, ...], NoDecode] = ()
    """Words with commas."""
    plot: Path | None = None
    """Picture."""
    key: Path | None = None
    """Checked by a check that says what it found."""
    token: SecretStr = Field(SecretStr(""), max_length=16)
    """Secret."""
    tunnel: Tunnel = Tunnel(ssh_port=2222)

    @field_validator("names", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("key")
    @classmethod
    def _check_key(cls, value: Path | None) -> Path | None:
        if value is not None:
            raise ValueError(f"Expected {value} to be private, found mode 644: run chmod 600 {value}")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.debug and self.tunnel.enabled:
            raise ValueError("Expected no tunnel with debug")
        return self


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no .env file of the machine takes part."""
    for name in os.environ:
        if name.upper().startswith("LONGARM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def load(*arguments: str, **overrides: Any) -> Settings:
    """Returns the settings that these flags give here."""
    return Settings.load(arguments, program="longarm-test", **overrides)


def refused(*arguments: str) -> tuple[str, ...]:
    """Returns the lines of the refusal."""
    with pytest.raises(ConfigurationError) as error:
        load(*arguments)
    assert str(error.value) == "\n".join(error.value.problems)
    assert all("\n" not in line for line in error.value.problems)
    return error.value.problems


def dotenv(text: str) -> None:
    """Writes the .env file."""
    Path(".env").write_text(text)


def test_precedence_is_flag_environment_file_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().fps == 30
    dotenv("LONGARM_EDGE_FPS=31\nLONGARM_EDGE_TUNNEL__SSH_PORT=31\n")
    assert (load().fps, load().tunnel.ssh_port) == (31, 31)
    monkeypatch.setenv("LONGARM_EDGE_FPS", "32")
    monkeypatch.setenv("LONGARM_EDGE_TUNNEL__SSH_PORT", "32")
    assert (load().fps, load().tunnel.ssh_port) == (32, 32)
    settings = load("--fps=33", "--tunnel.ssh_port=33")
    assert (settings.fps, settings.tunnel.ssh_port) == (33, 33)
    assert load("--fps=33", fps=34).fps == 34


def test_parts_of_a_group_come_from_different_places(monkeypatch: pytest.MonkeyPatch) -> None:
    dotenv("LONGARM_EDGE_TUNNEL__PASSWORD=from-file\n")
    monkeypatch.setenv("LONGARM_EDGE_TUNNEL__ENABLED", "true")
    assert load("--tunnel.ssh_port=5").tunnel == Tunnel(ssh_port=5, password=SecretStr("from-file"), enabled=True)


def test_one_part_of_a_group_leaves_the_defaults_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group's own default is ssh_port=2222, its class says 22."""
    monkeypatch.setenv("LONGARM_EDGE_TUNNEL__ENABLED", "true")
    assert load().tunnel.ssh_port == 2222
    assert load("--tunnel.enabled").tunnel.ssh_port == 2222


VALUES: list[tuple[str, str, Any]] = [
    ("server_address", "gpu:1", "gpu:1"),
    ("server_address", "", ""),
    ("server_address", "None", "None"),
    ("fps", "12.5", 12.5),
    ("actions_per_chunk", "50", 50),
    ("actions_per_chunk", "", None),
    ("actions_per_chunk", "null", None),
    ("actions_per_chunk", "None", None),
    ("verify_robot_cameras", "false", False),
    ("verify_robot_cameras", "False", False),
    ("verify_robot_cameras", "0", False),
    ("debug", "true", True),
    ("debug", "True", True),
    ("always", "true", True),
    ("replan", "threshold", Replan.THRESHOLD),
    ("rename_map", '{"images.front": "images.top"}', {"images.front": "images.top"}),
    ("limits", '{"gripper.pos": [5, 95]}', {"gripper.pos": (5, 95)}),
    ("limits", "", None),
    ("max_step", "2.5", 2.5),
    ("max_step", '{"gripper.pos": 1}', {"gripper.pos": 1}),
    ("stages", '["x", "y,z"]', ("x", "y,z")),
    ("names", "x,y", ("x", "y")),
    ("plot", "run.png", Path("run.png")),
    ("plot", "", None),
    ("plot", "~/run.png", Path.home() / "run.png"),
    ("plot", "~nobody-of-this-name/run.png", Path("~nobody-of-this-name/run.png")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "value"), VALUES, ids=[f"{name}={text}" for name, text, _ in VALUES])
@pytest.mark.parametrize("source", ["flag=value", "flag value", "environment", "file"])
def test_a_value_is_the_same_from_every_source(
    monkeypatch: pytest.MonkeyPatch, source: str, name: str, text: str, value: object
) -> None:
    arguments: list[str] = []
    if source == "flag=value":
        arguments = [f"--{name}={text}"]
    elif source == "flag value":
        arguments = [f"--{name}", text]
    elif source == "environment":
        monkeypatch.setenv(f"LONGARM_EDGE_{name.upper()}", text)
    else:
        dotenv(f"LONGARM_EDGE_{name.upper()}='{text}'\n")
    assert getattr(load(*arguments), name) == value


@pytest.mark.parametrize(
    ("arguments", "cameras", "debug"),
    [
        (["--debug"], True, True),
        (["--debug", "--fps=3"], True, True),
        (["--debug=true", "--verify_robot_cameras=false"], False, True),
        (["--no-verify_robot_cameras", "--no-debug"], False, False),
        (["--debug", "--no-debug"], True, False),
        (["--verify_robot_cameras", "false", "--debug", "1"], False, True),
    ],
)
def test_switches_stand_alone_or_take_a_value(arguments: list[str], cameras: bool, debug: bool) -> None:
    """LeRobot's users write --flag=true."""
    settings = load(*arguments)
    assert (settings.verify_robot_cameras, settings.debug) == (cameras, debug)


def test_switches_in_a_group() -> None:
    assert load("--tunnel.enabled").tunnel.enabled
    assert not load("--tunnel.enabled", "--no-tunnel.enabled").tunnel.enabled


def test_the_last_of_two_flags_counts() -> None:
    settings = load("--fps=1", "--fps=2", '--stages=["x"]', '--stages=["y"]')
    assert (settings.fps, settings.stages) == (2, ("y",))


def test_entries_of_a_dict_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGARM_EDGE_RENAME_MAP__FRONT", "top")
    monkeypatch.setenv("LONGARM_EDGE_MAX_STEP__GRIPPER", "1.5")
    settings = load()
    assert settings.rename_map == {"front": "top"}
    assert settings.max_step == {"gripper": 1.5}


def test_a_dict_whole_and_by_entry_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two would be dropped in silence."""
    dotenv('LONGARM_EDGE_RENAME_MAP={"a": "b"}\n')
    monkeypatch.setenv("LONGARM_EDGE_RENAME_MAP__C", "d")
    assert refused() == (
        "LONGARM_EDGE_RENAME_MAP__C is an entry of LONGARM_EDGE_RENAME_MAP, which is set as well. Keep one of the two.",
    )


MISSPELT = [
    ("LONGARM_EDGE_FSP", "Did you mean LONGARM_EDGE_FPS?"),
    ("LONGARM_EGDE_FPS", "Did you mean LONGARM_EDGE_FPS?"),
    ("LONGARM_FPS", "Did you mean LONGARM_EDGE_FPS?"),
    ("LONGARM_EDGE_TUNNEL_SSH_PORT", "Did you mean LONGARM_EDGE_TUNNEL__SSH_PORT?"),
    ("LONGARM_EDGE_TUNNEL__SSH_PROT", "Did you mean LONGARM_EDGE_TUNNEL__SSH_PORT?"),
    ("LONGARM_EGDE_X", "See docs/settings.md."),
    ("LONGARM_EDGE_BOGUS", "See docs/settings.md."),
    ("longarm_edge_fsp", "Did you mean LONGARM_EDGE_FPS?"),
    ("LONGARM_", "See docs/settings.md."),
    ("LONGARM_EDGE_FPS__X", "Did you mean LONGARM_EDGE_FPS?"),
    (
        "LONGARM_EDGE_TUNNEL",
        (
            "It is a group: set "
            "LONGARM_EDGE_TUNNEL__SSH_PORT, LONGARM_EDGE_TUNNEL__PASSWORD, LONGARM_EDGE_TUNNEL__ENABLED."
        ),
    ),
]


@pytest.mark.parametrize("source", ["environment", "file"])
@pytest.mark.parametrize(("name", "hint"), MISSPELT)
def test_a_misspelt_variable_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, source: str, name: str, hint: str
) -> None:
    if source == "environment":
        monkeypatch.setenv(name, "1")
    else:
        dotenv(f"{name}=1\n")
    assert refused() == (f"{name} is not a setting. {hint}",)


def test_variables_of_others_are_no_business_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """One .env file serves both processes."""
    dotenv("LONGARM_SERVICE_PORT=1\nHF_TOKEN=x\nFPS=2\n")
    monkeypatch.setenv("LONGARM_SERVICE_NO_SUCH_THING", "1")
    monkeypatch.setenv("LONGARM_SSHD_PORT", "2222")
    monkeypatch.setenv("XLONGARM_EDGE_FSP", "1")
    assert load().fps == 30


def test_several_misspelt_variables_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    dotenv("LONGARM_EDGE_FSP=1\n")
    monkeypatch.setenv("LONGARM_EDGE_REPLAM", "auto")
    assert [line.split()[0] for line in refused()] == ["LONGARM_EDGE_FSP", "LONGARM_EDGE_REPLAM"]


def test_an_env_file_that_is_not_there_or_a_folder_is_none() -> None:
    Path(".env").mkdir()
    assert load() == load()


def test_a_line_of_the_env_file_that_cannot_be_read_is_an_error() -> None:
    """Left out, a bound on the arm would be off without a word. Lines about other things are others' business."""
    dotenv(f"OTHER WORDS\nLONGARM_EDGE_FPS=15\nLONGARM_EDGE_TOKEN='{SECRET}\n")
    assert refused() == (".env, line 3: expected NAME=value with quotes that end",)
    dotenv("OTHER WORDS\nLONGARM_EDGE_FPS=15\n")
    assert load().fps == 15


def test_an_env_file_that_is_no_text_is_an_error() -> None:
    """As an editor that writes UTF-16 leaves it."""
    Path(".env").write_text("LONGARM_EDGE_FPS=15\n", encoding="utf-16")
    (problem,) = refused()
    assert problem.startswith(".env cannot be read as UTF-8 text: ")


INVALID = [
    ("fps", "abc", "Input should be a valid number, unable to parse string as a number, found 'abc'"),
    ("fps", "", "Input should be a valid number, unable to parse string as a number, found ''"),
    ("fps", "-5", "Input should be greater than 0, found '-5'"),
    ("tunnel.ssh_port", "70000", "Input should be less than or equal to 65535, found '70000'"),
    ("replan", "AUTO", "Input should be 'auto' or 'threshold', found 'AUTO'"),
    ("debug", "maybe", "Input should be a valid boolean, unable to interpret input, found 'maybe'"),
    ("always", "false", "Input should be True, found False"),
    ("rename_map", "{a: b}", "Input should be a valid dictionary written as JSON, found '{a: b}'"),
    ("rename_map", "[1]", "Input should be a valid dictionary, found [1]"),
    ("stages", "a,b", "Input should be a valid tuple written as JSON, found 'a,b'"),
    (
        "limits",
        '{"a": [1, "x"], "b": 2}',
        (
            "Input should be a valid number, unable to parse string as a number, found 'x'; "
            "Input should be a valid tuple, found 2"
        ),
    ),
    (
        "max_step",
        "x",
        (
            "Input should be a valid number, unable to parse string as a number, found 'x'; "
            "Input should be a valid dictionary written as JSON, found 'x'"
        ),
    ),
    ("key", "/k", "Expected /k to be private, found mode 644: run chmod 600 /k"),
    ("fps", "x" * 500, f"Input should be a valid number, unable to parse string as a number, found '{'x' * 76}..."),
]


@pytest.mark.parametrize("source", ["flag", "environment", "file"])
@pytest.mark.parametrize(("name", "text", "message"), INVALID)
def test_an_invalid_value_names_variable_and_flag(
    monkeypatch: pytest.MonkeyPatch, source: str, name: str, text: str, message: str
) -> None:
    variable = f"LONGARM_EDGE_{name.replace('.', '__').upper()}"
    arguments: list[str] = []
    if source == "flag":
        arguments = [f"--{name}={text}"]
    elif source == "environment":
        monkeypatch.setenv(variable, text)
    else:
        dotenv(f"{variable}='{text}'\n")
    assert refused(*arguments) == (f"{variable} (--{name}): {message}",)


def test_every_invalid_value_gets_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGARM_EDGE_REPLAN", "never")
    lines = refused("--fps=0", "--tunnel.ssh_port=0")
    assert [line.split(":")[0] for line in lines] == [
        "LONGARM_EDGE_FPS (--fps)",
        "LONGARM_EDGE_REPLAN (--replan)",
        "LONGARM_EDGE_TUNNEL__SSH_PORT (--tunnel.ssh_port)",
    ]


def test_a_check_of_several_settings_says_only_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGARM_EDGE_TUNNEL__PASSWORD", SECRET)
    assert refused("--debug", "--tunnel.enabled") == ("Expected no tunnel with debug",)


def test_a_required_setting() -> None:
    class Required(ProcessSettings):
        model_config = SettingsConfigDict(env_prefix="LONGARM_EDGE_")
        robot: str
        """Which."""

    with pytest.raises(ConfigurationError, match=r"^LONGARM_EDGE_ROBOT \(--robot\): Field required$"):
        Required.load([], program="longarm-test")
    assert "| `LONGARM_EDGE_ROBOT` | `--robot` | (required) | Which. |" in reference(Required, "longarm-test")
    assert Required.load(["--robot=x"], program="longarm-test").robot == "x"


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGARM_EDGE_TUNNEL__PASSWORD", SECRET)
    monkeypatch.setenv("LONGARM_EDGE_TOKEN", SECRET)
    settings = load()
    assert settings.token.get_secret_value() == settings.tunnel.password.get_secret_value() == SECRET
    effective = settings.effective()
    assert effective["LONGARM_EDGE_TOKEN"] == effective["LONGARM_EDGE_TUNNEL__PASSWORD"] == "**********"
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert SECRET not in text


def test_an_invalid_secret_is_not_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGARM_EDGE_TUNNEL__PASSWORD", SECRET)
    monkeypatch.setenv("LONGARM_EDGE_TOKEN", SECRET + SECRET)
    lines = refused("--tunnel.ssh_port=x")
    assert len(lines) == 2
    assert SECRET not in "".join(lines)
    assert any(line.startswith("LONGARM_EDGE_TOKEN: ") and line.endswith("found **********") for line in lines)


@pytest.mark.parametrize("flags", [[f"--token={SECRET}"], ["--token", SECRET], ["--token"], ["--token=", "--fbs=1"]])
def test_a_secret_is_no_flag(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    """Command lines are for every user of the machine to read."""
    with pytest.raises(SystemExit) as left:
        load(*flags)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "--token is a secret" in said
    assert "Set the variable LONGARM_EDGE_TOKEN." in said
    assert SECRET not in said


def test_a_secret_given_as_a_flag_may_have_a_file_or_several_names(capsys: pytest.CaptureFixture[str]) -> None:
    class Deep(BaseModel):
        password: SecretStr = SecretStr("")
        password_file: Path | None = None
        secrets: dict[str, SecretStr] = Field(default_factory=dict)

    class Process(ProcessSettings):
        model_config = SettingsConfigDict(env_prefix="LONGARM_EDGE_")

        ssh: Deep = Deep()

    for flag, words in (
        ("--ssh.password", "LONGARM_EDGE_SSH__PASSWORD, or name a file with --ssh.password_file."),
        ("--ssh.secrets", "LONGARM_EDGE_SSH__SECRETS__NAME."),
    ):
        with pytest.raises(SystemExit, match="2"):
            Process.load([f"{flag}={SECRET}"], program="longarm-test")
        assert f"Set the variable {words}" in capsys.readouterr().err


def test_other_programs_get_the_environment_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGARM_EDGE_TOKEN", SECRET)
    monkeypatch.setenv("longarm_edge_tunnel__password", SECRET)
    monkeypatch.setenv("HF_HOME", "/data")
    environment = environment_for_others()
    assert environment["HF_HOME"] == "/data"
    assert SECRET not in environment.values()


def test_effective_has_every_setting_and_loads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        "--fps=12.5", '--rename_map={"ä": "b"}', "--debug", "--tunnel.ssh_port=7", "--names=x", "--plot=a b.png"
    )
    effective = settings.effective()
    assert list(effective) == list(Settings.variables())
    assert effective["LONGARM_EDGE_ACTIONS_PER_CHUNK"] == ""
    assert effective["LONGARM_EDGE_DEBUG"] == "true"
    assert effective["LONGARM_EDGE_REPLAN"] == "auto"
    del effective["LONGARM_EDGE_NAMES"]  # decoded by a rule of its own
    for name, text in effective.items():
        monkeypatch.setenv(name, text)
    assert load("--names=x") == settings


def test_effective_writes_a_dict_as_json() -> None:
    assert load('--limits={"a": [1, 2]}').effective()["LONGARM_EDGE_LIMITS"] == '{"a": [1.0, 2.0]}'


def test_settings_are_frozen() -> None:
    settings = load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.fps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.tunnel.ssh_port = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--fsp=1", "unknown flag --fsp. Did you mean --fps?"),
        ("--server-address=x", "unknown flag --server-address. Did you mean --server_address?"),
        ("--tunnel.ssh_prot=1", "unknown flag --tunnel.ssh_prot. Did you mean --tunnel.ssh_port?"),
        ("--serv=1", "unknown flag --serv. See --help."),
        ("stray", "unexpected argument 'stray'"),
        ("--fps", "argument --fps: expected one argument"),
    ],
)
def test_an_unknown_flag_exits_2_and_names_the_nearest(
    capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        load(argument)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.endswith(f"longarm-test: error: {message}\n")


def test_help_exits_0_and_shows_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        load("--help")
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    secrets = ("LONGARM_EDGE_TOKEN", "LONGARM_EDGE_TUNNEL__PASSWORD")
    for variable in Settings.variables():
        flag = variable.removeprefix("LONGARM_EDGE_").lower().replace("__", ".")
        assert (f" --{flag} " in shown) == (variable not in secrets)
    assert f"Secrets are no flags but variables: {', '.join(secrets)}." in shown
    assert "--replan {auto,threshold} When to ask. (default: auto)" in shown
    assert "--fps X Ticks per second, 100 % of them. (default: 30)" in shown
    assert "--debug [true|false] Say more. (default: false)" in shown
    assert "--tunnel.ssh_port N Port of the SSH server. (default: 2222)" in shown
    assert "--plot PATH" in shown


def test_help_works_also_with_a_misspelt_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGARM_EDGE_FSP", "1")
    with pytest.raises(SystemExit) as exit_:
        load("--help")
    assert exit_.value.code == 0


def test_the_reference_has_every_setting_with_flag_default_and_meaning() -> None:
    head, blank, *table = reference(Settings, "longarm-test").splitlines()
    assert (head, blank) == ("## `longarm-test`", "")
    rows = table[2:]
    assert [row.split("`")[1] for row in rows] == list(Settings.variables())
    assert "| `LONGARM_EDGE_FPS` | `--fps` | `30` | Ticks per second, 100 % of them. |" in rows
    assert "| `LONGARM_EDGE_TUNNEL__SSH_PORT` | `--tunnel.ssh_port` | `2222` | Port of the SSH server. |" in rows
    assert "| `LONGARM_EDGE_TUNNEL__PASSWORD` |  |  | Password \\| or none. |" in rows
    assert '| `LONGARM_EDGE_STAGES` | `--stages` | `["a"]` | Several words. |' in rows
    # Pipes inside a cell are escaped, so that every row has four cells
    assert all(row.replace("\\|", "").count("|") == 5 for row in table)
