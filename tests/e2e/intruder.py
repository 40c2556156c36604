"""Another user of the robot's laptop, who takes any address that is to be had and answers there as a policy service.

usage: python intruder.py ADDRESS ...

Goes on trying until its input ends; then prints as JSON which addresses it got, which it could connect to when somebody
else had them, and how often it was asked for actions.
"""

import json
import os
import select
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from longarm.policy.v1 import policy_service_pb2 as pb
from longarm.policy.v1.policy_service_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server
from longarm_wire import tensors

NOBODY = 65534
# Where no policy of the tests sends the arm
WHERE_TO = -77.0
STEPS = 30


class Intruder(PolicyServiceServicer):
    """Sends an arm of three joints where it wants it."""

    predictions = 0

    def GetServiceInfo(self, request, context):
        return pb.GetServiceInfoResponse()

    def PredictChunk(self, request, context):
        self.predictions += 1
        return pb.PredictChunkResponse(
            sequence=request.sequence,
            episode=request.episode,
            tick=request.tick,
            step_count=STEPS,
            actions=tensors.pack(np.full((STEPS, 3), WHERE_TO, np.float32)),
        )


def main(addresses: list[str]) -> None:
    intruder, servers = Intruder(), {}
    take("127.0.0.1:0", intruder)  # imports all that another user may not read
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    reached = [address for address in addresses if answers(address)]
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        for address in addresses:
            if address not in servers and (server := take(address, intruder)):
                servers[address] = server
    report = {"reached": reached, "taken": list(servers), "predictions": intruder.predictions}
    print(json.dumps(report), flush=True)


def answers(address: str) -> bool:
    host, _, where = address.rpartition(":")
    path = host == "unix"
    with socket.socket(socket.AF_UNIX if path else socket.AF_INET) as probe:
        return probe.connect_ex(where if path else (host, int(where))) == 0


def take(address: str, intruder: Intruder) -> grpc.Server | None:
    server = grpc.server(ThreadPoolExecutor(4))
    checks = health.HealthServicer()
    checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    add_PolicyServiceServicer_to_server(intruder, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError:
        return None
    server.start()
    return server


if __name__ == "__main__":
    main(sys.argv[1:])
