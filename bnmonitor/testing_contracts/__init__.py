"""Tests that every rule, sink, layer kind and integration has to pass: derive a class, and pytest runs them."""

from bnmonitor.testing_contracts.integrations import IntegrationContract
from bnmonitor.testing_contracts.layer_case import LayerCase
from bnmonitor.testing_contracts.layers import LayerKindContract
from bnmonitor.testing_contracts.rules import RuleContract
from bnmonitor.testing_contracts.sinks import SinkContract

__all__ = [
    "IntegrationContract",
    "LayerCase",
    "LayerKindContract",
    "RuleContract",
    "SinkContract",
]
