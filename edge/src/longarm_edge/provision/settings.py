"""Settings of bringing up a service, LONGARM_EDGE_FAR__*."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FarSettings(BaseModel):
    """The policy service on the far machine."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, validate_default=True)

    directory: str = "~/.longarm"
    """Directory on the far machine that holds everything of Longarm. On a rented machine, the disk that is kept."""
    policy: Path | None = None
    """Policy directory on this machine, to be sent there."""
    python: str = ""
    """Python interpreter on the far machine, 3.12 or newer. Empty: the first that is found."""
    reuse_packages: bool = False
    """Use the packages that this interpreter has already, such as the torch of a rented machine's image. Only what is
    missing is installed, and versions are the image's, not the locked ones."""
    wheels: Path | None = None
    """Directory with the wheels of longarm-wire and longarm-service. Unset: this checkout, or what came with
    longarm-edge."""
    manager: Literal["auto", "systemd", "own"] = "auto"
    """Who keeps the service running: systemd (also after a reboot), own (Longarm's supervisor alone), or auto: systemd
    where it can be used."""
    pip_index_url: str = ""
    """Package index for the far machine. Empty: as pip is configured there."""
    pip_extra_index_url: str = ""
    """Further package indexes for the far machine, separated by spaces."""
    torch_index_url: str = ""
    """Package index for torch alone, with builds for another CUDA version or for the CPU."""
    hf_endpoint: str = ""
    """Model hub, or a mirror of it, for the far machine."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Further environment variables of the service, such as LONGARM_SERVICE_COMPILE or HF_HOME, as JSON. Kept on the
    far disk."""
    secrets: dict[str, SecretStr] = Field(default_factory=dict)
    """Environment variables that are on no command line, in no log and not on the far disk, such as HF_TOKEN. Best set
    as LONGARM_EDGE_FAR__SECRETS__HF_TOKEN. A rebooted machine has forgotten them. After a
    change: stop, then up."""
    ready_timeout: Seconds = 900.0
    """Seconds that the service may take to load the policy."""

    @field_validator("environment", "secrets", mode="before")
    @classmethod
    def _upper_case(cls, value: object) -> object:
        """Names given one by one as NAME__KEY have lost their case."""
        return {str(name).upper(): text for name, text in value.items()} if isinstance(value, dict) else value

    @field_validator("environment", "secrets")
    @classmethod
    def _check_names(cls, value: dict[str, object]) -> dict[str, object]:
        for name in value:
            if not name.replace("_", "a").isalnum() or not name.isascii() or name[:1].isdigit():
                raise ValueError(f"Expected names of environment variables, found {name!r}")
        return value

    @field_validator("pip_index_url", "pip_extra_index_url", "torch_index_url", "hf_endpoint")
    @classmethod
    def _check_no_password(cls, value: str) -> str:
        if any(urlsplit(url).password for url in value.split()):
            raise ValueError("Expected an address without a password: set far.secrets instead, as PIP_INDEX_URL say")
        return value

    @field_validator("directory")
    @classmethod
    def _check_directory(cls, value: str) -> str:
        # It is removed whole in the end
        if value.rstrip("/") in ("", "~", ".", ".."):
            raise ValueError("Expected a directory of Longarm's own, such as ~/.longarm")
        if not re.fullmatch(r"[\w/.~@+ -]+", value):
            raise ValueError("Expected a directory of letters, digits and / . _ - + @ ~ and spaces")
        return value.rstrip("/")
