"""Shows the study's main effect on two CPU cores: bytes, 2 layers, under a minute a run.

The learning rate is far above the study's, since a run has under a thousand steps; `docs/nano.md` tells how
widths, tokens and learning rate were chosen.
"""

from ml_collections import ConfigDict

from slicedice.spec import study_config


def get_config() -> ConfigDict:
    """The dense model; grids override `model.experts`."""
    config = study_config()
    config.scale = "nano"
    config.compute_dtype = "float32"  # bfloat16 is emulated on CPU
    config.model.d_model = 64
    config.model.layers = 2
    config.model.heads = 4
    config.model.vocab_size = 256
    config.router.group = 0
    config.data.sequence_length = 128
    config.optimizer.learning_rate = 4e-3
    config.budget.tokens = 1_600_000
    config.budget.batch_size = 16
    config.evaluation.tokens = 65_536
    config.execution.unroll = 2  # 2 layers: faster to run and to compile than a loop
    config.execution.checkpoint_seconds = 60.0
    config.execution.micro_batch = 0
    return config
