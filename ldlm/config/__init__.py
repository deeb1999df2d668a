"""Every setting of every stage: how settings are declared and read, the model and its recipe, one config per stage."""

from ldlm.config.baselines import (
    PUBLISHED_ETA,
    TOKEN_SAMPLERS,
    BackboneConfig,
    CANDIConfig,
    CANDINoiseConfig,
    ChainConfig,
    Drawing,
    DuoConfig,
    DuoCurriculumConfig,
    End,
    FLMBackboneConfig,
    FLMConfig,
    MDLMConfig,
    NucleusRule,
    PsiConfig,
    PsiMode,
    ReMDMConfig,
    SamplerOfTokens,
    TokenSamplerName,
    used,
)
from ldlm.config.distill import START, DistillConfig, DistilledConfig, distilled, halvings
from ldlm.config.drawing import drawing_config, owners
from ldlm.config.export import ExportConfig, WeightPrecision
from ldlm.config.fields import assignments, differences, from_dict, from_stored, identity, merge, setting, to_dict
from ldlm.config.launch import LaunchConfig
from ldlm.config.likelihood import LikelihoodConfig
from ldlm.config.methods import (
    LDLM,
    METHODS,
    AnyExportConfig,
    AnySampleConfig,
    AnyTrainConfig,
    CANDITrainConfig,
    DuoTrainConfig,
    FLMTrainConfig,
    MDLMTrainConfig,
    TokenExportConfig,
    TokenModelConfig,
    TokenSampleConfig,
    TokenTrainConfig,
    method_of,
    of_method,
    preset_for,
    stored_training,
    token_sampler,
    training_class,
    unknown,
)
from ldlm.config.model import (
    PAPERS_SAMPLER,
    PRESETS,
    PUBLISHED_NOISE,
    SAMPLERS,
    AutoencoderConfig,
    CosmosConfig,
    DecoderNoise,
    DenoiserConfig,
    DenoiserSizes,
    DiffusionConfig,
    Final,
    Grid,
    ModelConfig,
    OptimizerConfig,
    Preset,
    RecipeConfig,
    SamplerConfig,
    Shapes,
    Solver,
    TimestepConfig,
    TokenDecoderConfig,
    decoder_noise,
    preset,
)
from ldlm.config.paper import PaperConfig
from ldlm.config.prompts import PromptConfig
from ldlm.config.quickstart import QuickstartConfig
from ldlm.config.stages import (
    MAX_SEED,
    TEXTS_PER_SEED,
    ComputeConfig,
    EvaluateConfig,
    ExtractConfig,
    FinetuneConfig,
    InterpolateConfig,
    Precision,
    PretrainConfig,
    SampleConfig,
    StoriesConfig,
    SweepConfig,
    TrainConfig,
    autoencoder_steps,
    named_sampler,
    taken_up,
    total_steps,
)
from ldlm.config.sweeps import AnySweepConfig, FrontierConfig, TokenSweepConfig, sampler_in_words, sweep_of
