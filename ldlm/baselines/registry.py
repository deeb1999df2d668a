"""Training methods by name: LDLM and its rivals. Stages look methods up here and never test their names."""

from __future__ import annotations

from ldlm.baselines.training import TokenTraining
from ldlm.config import AnyTrainConfig, TrainConfig
from ldlm.training.joint_method import JointTraining
from ldlm.training.method import AnyMethod


def training_method(config: AnyTrainConfig) -> AnyMethod:
    """The method to which settings belong."""
    return JointTraining(config) if isinstance(config, TrainConfig) else TokenTraining(config)
