"""Training methods by name: LDLM and its rivals. Stages look a method up here, and ask nothing about its name."""

from __future__ import annotations

from ldlm.baselines.training import TokenTraining
from ldlm.config import AnyTrainConfig, TrainConfig
from ldlm.training.joint_method import JointTraining
from ldlm.training.method import AnyMethod


def training_method(config: AnyTrainConfig) -> AnyMethod:
    """The method that settings are of."""
    return JointTraining(config) if isinstance(config, TrainConfig) else TokenTraining(config)
