"""The HTTP endpoint, by real requests."""

import contextlib
import http.client
import logging
import socket
import struct
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from longarm_wire.http import MAX_CONNECTIONS, HttpEndpoint, not_listening


def get(port: int, path: str, **headers: str) -> tuple[int, str, str]:
    """Returns status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


def endpoint(**checks: object) -> HttpEndpoint:
    """Returns an endpoint with the checks, each given as its answer or as a callable."""
    registry = CollectorRegistry()
    Counter("longarm_things", "Things that happened.", ["outcome"], registry=registry).labels("good").inc(3)
    calls = {f"/{name}": answer if callable(answer) else lambda a=answer: a for name, answer in checks.items()}
    return HttpEndpoint("127.0.0.1", 0, registry, calls)


def test_checks_answer_200_or_503_with_their_reason() -> None:
    with endpoint(healthz=(True, "alive"), readyz=(False, "loading the policy")) as server:
        assert get(server.port, "/healthz") == (200, "text/plain; charset=utf-8", "alive\n")
        assert get(server.port, "/readyz") == (503, "text/plain; charset=utf-8", "loading the policy\n")


def test_a_check_is_asked_each_time() -> None:
    answers = iter([(True, "streaming"), (False, "stalled"), (True, "streaming")])
    with endpoint(healthz=lambda: next(answers)) as server:
        assert [get(server.port, "/healthz")[0] for _ in range(3)] == [200, 503, 200]


def test_a_check_that_raises_is_unhealthy_and_shows_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> tuple[bool, str]:
        raise RuntimeError("the secret")

    with endpoint(healthz=broken) as server, caplog.at_level(logging.ERROR):
        status, _, body = get(server.port, "/healthz")
    assert status == 503
    assert "secret" not in body
    assert "the secret" in caplog.text


def test_an_unknown_path_is_404_and_names_what_there_is() -> None:
    with endpoint(healthz=(True, "")) as server:
        assert get(server.port, "/")[::2] == (404, "Nothing at /. There is /metrics, /healthz\n")
        assert get(server.port, "/healthz/")[0] == 404


def test_a_query_is_ignored() -> None:
    with endpoint(healthz=(True, "alive")) as server:
        assert get(server.port, "/healthz?verbose=1")[0] == 200
        assert get(server.port, "/metrics?name=a&b")[0] == 200


def test_metrics_come_from_the_registry_alone() -> None:
    with endpoint() as server:
        status, kind, body = get(server.port, "/metrics")
        assert status == 200
        assert kind.startswith("text/plain")
        assert 'longarm_things_total{outcome="good"} 3.0\n' in body
        assert "python_info" not in body
        _, kind, body = get(server.port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert body.endswith("# EOF\n")


def test_other_methods_are_refused() -> None:
    with endpoint(healthz=(True, "alive")) as server:
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}/healthz", data=b"x", method="POST")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        assert refused.value.code == 501
        refused.value.close()


def test_a_port_that_is_taken_names_the_address_and_the_setting() -> None:
    with (
        endpoint() as server,
        pytest.raises(OSError, match=f"http://127.0.0.1:{server.port}: Address already in use") as caught,
    ):
        HttpEndpoint("127.0.0.1", server.port, CollectorRegistry(), {})
    assert not_listening(caught.value, "THE").endswith("in use. Set THE_PORT to another port, or to 0 for a free one.")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_not_ours_is_not_the_ports_fault(host: str) -> None:
    with pytest.raises(OSError, match=f"Cannot listen on http://{host}:0: ") as caught:
        HttpEndpoint(host, 0, CollectorRegistry(), {})
    assert not_listening(caught.value, "THE").endswith(". Set THE_HOST to an address of this machine.")


def test_close_frees_the_port_and_may_come_twice() -> None:
    server = endpoint(healthz=(True, "alive"))
    server.start()
    assert get(server.port, "/healthz")[0] == 200
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        get(server.port, "/healthz")
    with HttpEndpoint("127.0.0.1", server.port, CollectorRegistry(), {}) as again:
        assert again.port == server.port


def test_close_without_start() -> None:
    server = endpoint()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        get(server.port, "/metrics")


def test_a_client_that_says_nothing_blocks_nobody() -> None:
    with endpoint(healthz=(True, "alive")) as server, socket.create_connection(("127.0.0.1", server.port)):
        assert get(server.port, "/healthz")[0] == 200


def test_clients_that_hold_connections_do_not_use_the_process_up() -> None:
    """Any user of the machine can: gRPC aborted an edge that was out of files, and its arm was not left by rule."""
    threads = threading.active_count()
    with endpoint(healthz=(True, "alive")) as server, contextlib.ExitStack() as held:
        for _ in range(2 * MAX_CONNECTIONS):
            held.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(b"GET /")
        assert get(server.port, "/healthz")[0] == 200
        assert threading.active_count() - threads <= MAX_CONNECTIONS + 1, "one for each, and the server's own"


def test_a_client_that_hangs_up_is_no_news(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    gone, answered = threading.Event(), threading.Event()

    def slow() -> tuple[bool, str]:
        gone.wait(10)
        answered.set()
        return True, "x" * (1 << 20)

    with endpoint(slow=slow, healthz=(True, "alive")) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as rude:
            rude.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
            # Closing now resets the connection
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.set()
        assert answered.wait(10)
        assert get(server.port, "/healthz")[0] == 200
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
