"""The decoder's shape, and what follows from it by arithmetic: parameters and FLOPs."""

from dataclasses import dataclass
from fractions import Fraction

from slicedice.spec.layer import LayerSpec


@dataclass(frozen=True)
class ModelSpec:
    """An OLMo2-style decoder whose every layer is the MoE layer `layer`."""

    d_model: int
    layers: int
    heads: int
    d_ff: int
    vocab_size: int
    layer: LayerSpec

    def width(self, g: Fraction) -> int:
        """Hidden width of an expert of granularity `g`."""
        return int(g * self.d_ff)

    def _ffn(self, width: Fraction) -> int:
        # SwiGLU has three matrices: gate, up and down.
        return int(3 * self.d_model * self.d_ff * width)

    def router_parameters(self) -> int:
        """Parameters of all routers: one bias-free D x n matrix for each expert set of each layer."""
        return self.layers * self.d_model * sum(e.n for e in self.layer.experts)

    def non_embedding_parameters(self, *, active: bool = False, routers: bool = True) -> int:
        """Parameters outside the two embeddings.

        Args:
          active: count only what one token passes through.
          routers: count the routers (the study's table of totals leaves them out).
        """
        d = self.d_model
        ffn = self._ffn(self.layer.active_width if active else self.layer.sparsity)
        # Post-norms of attention and FFN, QK-norm over the full width, and the parallel wiring's own norm.
        norms = (5 if self.layer.wiring == "parallel" else 4) * d
        return self.layers * (4 * d * d + ffn + norms) + d + (self.router_parameters() if routers else 0)

    def parameters(self, *, active: bool = False, routers: bool = True) -> int:
        """All parameters, both embeddings included (they are untied), as the scales' names count them."""
        embeddings = 2 * self.vocab_size * self.d_model
        return embeddings + self.non_embedding_parameters(active=active, routers=routers)

    def flops_per_token(self, sequence_length: int) -> int:
        """Training FLOPs for one token, forward and backward.

        6 FLOPs a token for every active weight of a matrix product (the input embedding is a look-up and
        costs none) plus 12 * layers * d_model * sequence_length for attention scores and values, the count
        of PaLM, appendix B (arXiv 2204.02311), which does not halve for causality.
        """
        d = self.d_model
        matrices = self.layers * (4 * d * d + self._ffn(self.layer.active_width))
        matrices += self.router_parameters() + self.vocab_size * d
        return 6 * matrices + 12 * self.layers * d * sequence_length
