"""The study's 50m scale: about 50m active parameters, trained for 20 tokens each."""

from ml_collections import ConfigDict

from slicedice.spec import study_config


def get_config() -> ConfigDict:
    """The dense model; grids override `model.experts`."""
    config = study_config()
    config.scale = "50m"
    config.model.d_model = 240
    config.model.layers = 5
    config.model.heads = 6
    config.budget.tokens = 1_000_000_000
    return config
