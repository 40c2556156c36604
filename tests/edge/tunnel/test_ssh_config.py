"""SSH configuration files as people have them, for the backend that has to read them itself."""

from pathlib import Path

import pytest

from longarm_edge.tunnel import PermanentTunnelError, SshSettings
from longarm_edge.tunnel.ssh_config import Hop, route


def hops(tmp_path: Path, text: str, **settings) -> list[Hop]:
    file = tmp_path / "config"
    file.write_text(text)
    return route(SshSettings(**({"host": "gpu", "config_file": file} | settings)))


def test_an_alias_gives_what_is_not_set(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("")
    text = f"Host gpu\n HostName 10.0.0.1\n Port 2222\n User robot\n IdentityFile {key}\n IdentityFile /nowhere\n"
    assert hops(tmp_path, text) == [Hop("10.0.0.1", 2222, "robot", "[10.0.0.1]:2222", [key])]
    (hop,) = hops(tmp_path, text, port=22, user="root")
    assert (hop.port, hop.user, hop.known_as) == (22, "root", "10.0.0.1")


def test_a_host_key_alias_names_the_host(tmp_path: Path) -> None:
    assert hops(tmp_path, "Host gpu\n HostKeyAlias box\n")[0].known_as == "box"


def test_jump_hosts_come_first_in_their_order(tmp_path: Path) -> None:
    text = "Host gpu\n ProxyJump me@one:1022,two\nHost two\n HostName two.example.com\n User you\n"
    one, two, gpu = hops(tmp_path, text)
    assert (one.host, one.port, one.user) == ("one", 1022, "me")
    assert (two.host, two.port, two.user) == ("two.example.com", 22, "you")
    assert gpu.host == "gpu"


def test_no_file_and_no_entry_will_do(tmp_path: Path) -> None:
    assert hops(tmp_path, "")[0].host == "gpu"
    assert route(SshSettings(host="gpu", config_file=None))[0].port == 22


def test_includes_stand_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "cloud").mkdir()
    (tmp_path / "cloud" / "a").write_text("Host gpu\n Port 1\n")
    (tmp_path / "cloud" / "b").write_text("Host other\n Port 2\n")
    text = f"Host gpu\n Include {tmp_path}/cloud/*\n User robot\nHost *\n Port 3\n"
    (hop,) = hops(tmp_path, text)
    assert (hop.port, hop.user) == (1, "robot")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Host gpu\n ProxyCommand nc %h %p\n", "BACKEND=openssh"),
        ("Host gpu\n ProxyJump one\nHost one\n ProxyJump two\n", "BACKEND=openssh"),
        ("Host gpu\n Port many\n", "cannot be used"),
        ("Host gpu\n nonsense\n", "cannot be used"),
    ],
)
def test_what_it_cannot_do_it_says(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PermanentTunnelError, match=words):
        hops(tmp_path, text)
