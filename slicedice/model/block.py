"""One layer of the decoder: norms come after attention and after the experts, as in OLMo 2."""

from flax import nnx
from jaxtyping import Array, Bool, Float

from slicedice.model.attention import Attention
from slicedice.model.norm import RMSNorm
from slicedice.moe import LayerAux, MoELayer, Routing, Stack
from slicedice.moe.experts import Initializer
from slicedice.spec import ModelSpec


class Block(nnx.Module):
    """h = x + norm(attention(x)); out = h + norm(moe(h)).

    With a generalist in parallel wiring, out = [h + norm(generalist(h))] + norm2(routed(x)).
    """

    def __init__(self, spec: ModelSpec, *, init: Initializer, implementation: str, rngs: nnx.Rngs):
        layer = spec.layer
        self.attention = Attention(spec.d_model, spec.heads, init=init, rngs=rngs)
        self.attention_norm = RMSNorm(spec.d_model)
        self.moe = MoELayer(
            tuple((e.n, e.k, spec.width(e.g)) for e in layer.experts),
            spec.width(layer.generalist) if layer.generalist else 0,
            spec.d_model,
            init=init,
            implementation=implementation,
            rngs=rngs,
        )
        self.moe_norm = RMSNorm(spec.d_model)
        self.routed_norm = RMSNorm(spec.d_model) if layer.wiring == "parallel" else None

    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], routing: Routing, stacks: tuple[Stack, ...] = ()
    ) -> tuple[Float[Array, "B S D"], LayerAux]:
        """Returns the block's output and what its expert sets report; `stacks` are as `MoELayer.routed` takes them."""
        h = x + self.attention_norm(self.attention(x))
        if self.routed_norm is None:
            y, aux = self.moe(h, mask, routing, stacks)
            return h + self.moe_norm(y), aux
        assert self.moe.always_on is not None
        routed, aux = self.moe.routed(x, mask, routing, stacks)
        return h + self.moe_norm(self.moe.always_on(h)) + self.routed_norm(routed), aux
