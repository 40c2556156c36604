"""What edge and service really export, and what a query asks of it."""

import re
from collections import defaultdict

from prometheus_client import CollectorRegistry

from longarm_edge.link import LinkState
from longarm_edge.metrics import EdgeMetrics
from longarm_edge.tunnel.metrics import TunnelMetrics
from longarm_service.metrics import ServiceMetrics
from longarm_service.policy import DeviceMemory

# Labels that Prometheus adds by its configuration
TARGET_LABELS = {"job", "robot", "instance"}

type Samples = dict[str, dict[str, set[str]]]


def samples() -> Samples:
    """Returns every exported sample name, with the values of its labels."""
    edge = EdgeMetrics(CollectorRegistry())
    edge.watch(lambda: 0, lambda: 0, lambda: 0, lambda: LinkState.CONNECTING, dict)
    TunnelMetrics(edge.registry)
    service = ServiceMetrics()
    service.describe({"device": "cuda"}, lambda: [DeviceMemory("cuda:0", 1, 2, 3, 0.5)])
    found: Samples = {}
    for registry in (edge.registry, service.registry):
        for family in registry.collect():
            for sample in family.samples:
                labels = found.setdefault(sample.name, defaultdict(set))
                for label, value in sample.labels.items():
                    labels[label].add(value)
    return found


def metrics(query: str) -> set[str]:
    """Returns the names of Longarm's metrics, recorded ones included, that a query asks for."""
    return {name for name in re.findall(r"[a-zA-Z_:][\w:]*", query) if "longarm_" in name}


def selected(query: str) -> list[tuple[str, str, str]]:
    """Returns metric, label and value for every value that a query selects by = or =~, where metrics set it."""
    return [
        (metric, label, value)
        for metric, selector in re.findall(r"(\w*longarm_\w+)\{([^}]*)\}", query)
        for label, values in re.findall(r'(\w+)!?=~?"([^"]*)"', selector)
        if label not in TARGET_LABELS
        for value in values.split("|")
    ]


def unknown(query: str, exported: Samples, recorded: set[str]) -> list[str]:
    """Returns what a query asks for and nobody exports."""
    missing = [name for name in metrics(query) if name not in recorded and name not in exported]
    for metric, label, value in selected(query):
        if metric in exported and value not in exported[metric].get(label, set()):
            missing.append(f'{metric}{{{label}="{value}"}}')
    return missing
