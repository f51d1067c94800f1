from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.integrations.common import Truth, evaluated, gradients_seen, seed, serious, state, without_and_with

pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: make test-integrations")

from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from bnmonitor.integrations.stable_baselines3 import BatchNormCallback


class Normalized(BaseFeaturesExtractor):
    def __init__(self, observation_space: Any, features_dim: int = 16) -> None:
        super().__init__(observation_space, features_dim)
        size = observation_space.shape[0]
        self.net = nn.Sequential(nn.Linear(size, features_dim, bias=False), nn.BatchNorm1d(features_dim), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        return self.net(observations)


OFF = {"learning_starts": 64, "train_freq": 4, "gradient_steps": 4, "batch_size": 32, "buffer_size": 2000}

CASES: dict[str, tuple[Any, str, dict[str, Any], str]] = {
    "DQN": (DQN, "CartPole-v1", {**OFF, "target_update_interval": 40}, "q_net.features_extractor.net.1"),
    "SAC": (SAC, "Pendulum-v1", OFF, "critic.features_extractor.net.1"),
    "PPO": (PPO, "CartPole-v1", {"n_steps": 128, "batch_size": 32, "n_epochs": 4}, "features_extractor.net.1"),
}


def learn(case: str, *callbacks: Any, steps: int = 384, truth: bool = False, **options: Any) -> tuple[Any, Any]:
    kind, environment, arguments, layer = CASES[case]
    seed(0)
    model = kind(
        "MlpPolicy", environment, seed=0, device="cpu", **{**arguments, **options},
        policy_kwargs={"features_extractor_class": Normalized, "net_arch": [16]},
    )  # fmt: skip
    found = Truth(model.policy.get_submodule(layer)) if truth else None
    model.learn(steps, callback=list(callbacks) or None)
    return model, found


@pytest.mark.parametrize("case", CASES)
def test_a_training_is_the_same_and_its_numbers_are_true(case: str) -> None:
    layer = CASES[case][-1]

    def train(watched: bool) -> tuple[dict[str, Tensor], Any]:
        callback = BatchNormCallback(sinks=[])
        model, truth = learn(case, *([callback] if watched else []), truth=watched)
        return state(model.policy), (callback, truth)

    callback, truth = without_and_with(train)
    monitor = callback.monitor
    assert monitor.failure == ""
    assert monitor.steps[-1] >= 40
    if case == "DQN":
        assert truth.error(monitor, layer) < 1e-4
    assert gradients_seen(monitor, layer) == 1.0
    assert evaluated(monitor, layer.replace("critic", "actor"))
    assert not monitor.running


def test_the_target_network_is_watched_beside_the_policy() -> None:
    callback = BatchNormCallback(sinks=[])
    learn("DQN", callback)
    names = callback.monitor.layers.names
    assert "q_net.features_extractor.net.1" in names
    assert "q_net_target.features_extractor.net.1" in names
    assert [said for said in serious(callback.incidents) if "BN505" in said] == []


def test_a_rate_that_is_too_high_is_found_and_stops_the_learning() -> None:
    callback = BatchNormCallback(sinks=[], on_alert="stop")
    model, _ = learn("DQN", callback, learning_rate=30.0, steps=1000)
    assert serious(callback.incidents)
    assert model.num_timesteps < 1000


def test_the_hook_of_the_optimizer_is_removed() -> None:
    callback = BatchNormCallback(sinks=[])
    model, _ = learn("PPO", callback, steps=128)
    assert isinstance(model.policy.optimizer, torch.optim.Optimizer)
    assert not model.policy.optimizer._optimizer_step_post_hooks
