"""
A kubelet's pod-resources service: a real gRPC server on a unix socket, with messages of the real protobuf
library, made from podresources.proto as the tests start.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent import futures
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTO = Path(__file__).with_name("podresources.proto")


@cache
def messages() -> dict[str, Any]:
    """Message classes by name, as protoc reads the .proto."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO.parent}"]
        subprocess.run([*command, f"--descriptor_set_out={out}", PROTO.name], check=True)
        found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.Add(file)
    classes = message_factory.GetMessageClassesForFiles([PROTO.name], pool)
    return {name.removeprefix("v1."): made for name, made in classes.items()}


def answer(*pods: dict[str, Any]) -> bytes:
    """
    An answer to List on the wire.

    Args:
        pods: ``name``, ``namespace`` and ``containers``, as the messages call them.
    """
    made: bytes = messages()["ListPodResourcesResponse"](pod_resources=pods).SerializeToString()
    return made


def holding(
    name: str, *ids: str, resource: str = "nvidia.com/gpu", namespace: str = "chat"
) -> dict[str, Any]:
    """A pod whose container was given these devices."""
    devices = [{"resource_name": resource, "device_ids": ids}]
    containers = [{"name": "vllm", "devices": devices}]
    return {"name": name, "namespace": namespace, "containers": containers}


def claiming(name: str, device: str, *cdi: str, driver: str = "gpu.nvidia.com") -> dict[str, Any]:
    """A pod whose container was given a device by dynamic resource allocation."""
    resource = {
        "driver_name": driver,
        "pool_name": "node-a",
        "device_name": device,
        "cdi_devices": [{"name": each} for each in cdi],
    }
    claim = {"claim_name": "c", "claim_namespace": "chat", "claim_resources": [resource]}
    containers = [{"name": "vllm", "dynamic_resources": [claim]}]
    return {"name": name, "namespace": "chat", "containers": containers}


class FakeKubelet:
    """
    The server.

    Attributes:
        says: The answer's bytes.
        code: Refuse with this status instead.
        delay: Seconds before each answer.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.says = answer()
        self.code: grpc.StatusCode | None = None
        self.delay = 0.0
        self.asked = 0
        self._server: grpc.Server | None = None

    def start(self) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(self._list)
        service = grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler})
        server.add_generic_rpc_handlers((service,))
        server.add_insecure_port(f"unix:{self.socket}")
        server.start()
        self._server = server

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None
        self.socket.unlink(missing_ok=True)

    def _list(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.asked += 1
        assert request == messages()["ListPodResourcesRequest"]().SerializeToString()
        time.sleep(self.delay)
        if self.code is not None:
            context.abort(self.code, "as told")
        return self.says

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
