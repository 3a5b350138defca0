"""The study's 300m scale: about 300m active parameters, trained for 20 tokens each."""

from ml_collections import ConfigDict

from slicedice.spec import study_config


def get_config() -> ConfigDict:
    """The dense model; grids override `model.experts`."""
    config = study_config()
    config.scale = "300m"
    config.model.d_model = 832
    config.model.layers = 12
    config.model.heads = 13
    config.budget.tokens = 6_000_000_000
    return config
