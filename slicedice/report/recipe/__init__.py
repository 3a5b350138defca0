"""The recipe: granularity, count and routing for a budget, from a law fitted to a store's results."""

from slicedice.report.recipe.recipe import TOKENS_PER_PARAMETER, Recipe, Request, make_recipe

__all__ = ["TOKENS_PER_PARAMETER", "Recipe", "Request", "make_recipe"]
