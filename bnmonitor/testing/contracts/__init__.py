"""Tests that every rule, sink, layer kind and integration has to pass: derive a class, and pytest runs them."""

from bnmonitor.testing.contracts.integrations import IntegrationContract
from bnmonitor.testing.contracts.layer_case import LayerCase
from bnmonitor.testing.contracts.layers import LayerKindContract
from bnmonitor.testing.contracts.rules import RuleContract
from bnmonitor.testing.contracts.sinks import SinkContract

__all__ = [
    "IntegrationContract",
    "LayerCase",
    "LayerKindContract",
    "RuleContract",
    "SinkContract",
]
