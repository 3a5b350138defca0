"""The study's 80m scale: about 80m active parameters, trained for 20 tokens each."""

from ml_collections import ConfigDict

from slicedice.spec import study_config


def get_config() -> ConfigDict:
    """The dense model; grids override `model.experts`."""
    config = study_config()
    config.scale = "80m"
    config.model.d_model = 336
    config.model.layers = 8
    config.model.heads = 7
    config.budget.tokens = 1_600_000_000
    return config
