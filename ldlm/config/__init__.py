"""Every setting of every stage: how settings are declared and read, the model and its recipe, one config per stage."""

from ldlm.config.model import *  # noqa: F403
from ldlm.config.model import _bounded  # noqa: F401
from ldlm.config.stages import *  # noqa: F403
