"""The MoE layer: a list of expert sets, and optionally one expert that is always on.

A homogeneous layer is one set, a heterogeneous layer two, the dense FFN is the always-on expert alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from slicedice.kernels import choose, row_alignment
from slicedice.moe import dispatch as moving
from slicedice.moe import exchange, routing, sending
from slicedice.moe.experts import Initializer, RoutedExperts, SwiGLU, weight
from slicedice.moe.native_experts import Stack, native_experts
from slicedice.parallel.gathering import gathered
from slicedice.parallel.mesh import size
from slicedice.parallel.table import EXPERT

EXPERT_ROWS = "expert_rows"
"""What experts' outputs are called for `jax.checkpoint`."""


class RouterBias(nnx.Variable):
    """The bias of loss-free balancing: moved after each step by the loads, outside the gradient."""


class Routing(NamedTuple):
    """How tokens reach experts, fixed in a program.

    capacity_factor: None for dropless.
    group: tokens over which capacity and the balance loss are counted; None for all that are there.
    slack: over a mesh's expert axis, assignments that a device has room for, over their mean; None for all there are.
    dispatch: over that axis, "gather" for all tokens to all devices, "send" for each to its own, "" for the cheaper.
    """

    capacity_factor: float | None = None
    group: int | None = None
    slack: float | None = None
    dispatch: str = ""


class SetAux(NamedTuple):
    """What one expert set reports beside its output.

    load_balancing_loss, z_loss: unweighted, means over routing groups.
    load: tokens that chose each expert, dropped ones too, [E].
    dropped: assignments that found no room under the capacity.
    lost: assignments that found no room on the device that has their expert; where there are any, outputs are wrong.
    """

    load_balancing_loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    load: Int[Array, " E"]
    dropped: Int[Array, ""]
    lost: Int[Array, ""]


LayerAux = tuple[SetAux, ...]


class ExpertSet(nnx.Module):
    """`n` experts, `k` active for a token, with a router of their own.

    1. Router logits and probabilities over all n, in float32.
    2. The k experts of highest probability plus loss-free bias; weights are the probabilities, as they are.
    3. Under a capacity, what exceeds it is dropped: it adds zero.
    4. Rows sorted by expert, `expert_ffn`, and the sum by weight back in token order; over a mesh's expert axis each
       device does this for all devices' tokens and its own experts.
    """

    def __init__(
        self,
        n: int,
        k: int,
        d_model: int,
        width: int,
        *,
        init: Initializer,
        implementation: str,
        rngs: nnx.Rngs,
    ):
        self.n, self.k, self.implementation = n, k, implementation
        self.router = weight(init, rngs.params(), d_model=d_model, choices=n)
        self.bias = RouterBias(jnp.zeros(n))
        self.experts = RoutedExperts(n, d_model, width, init=init, implementation=implementation, rngs=rngs)

    def route(
        self, x: Float[Array, "T D"], mask: Bool[Array, " T"], routing_: Routing
    ) -> tuple[routing.Assignment, SetAux]:
        """The experts of each token; those not in `mask` have none and are counted nowhere."""
        logits = jnp.dot(x.astype(jnp.float32), gathered(self.router, jnp.float32), precision="highest")
        group = routing_.group or x.shape[0]
        assignment, aux = jax.vmap(lambda logits, mask: self._route(logits, mask, routing_.capacity_factor))(
            logits.reshape(-1, group, self.n), mask.reshape(-1, group)
        )
        assignment = jax.tree.map(lambda a: a.reshape(-1, self.k), assignment)
        means = aux.load_balancing_loss.mean(), aux.z_loss.mean()
        return assignment, SetAux(*means, aux.load.sum(0), aux.dropped.sum(), jnp.int32(0))

    def apply(
        self,
        x: Float[Array, "A D"],
        assignment: routing.Assignment,
        slack: float | None,
        stack: Stack | None = None,
    ) -> tuple[Float[Array, "A D"], Int[Array, ""]]:
        """The sum by weight of what this device's experts make of tokens, and how many assignments found no room.

        Args:
          x: the tokens of all devices of the expert axis.
          assignment: of this device's own tokens.
          slack: see `Routing`.
          stack: where a kernel may read the matrices in place of these experts' own, on one device, in float32.
        """
        assignment, n, room = exchange.own_share(assignment, self.n, slack)
        return self._own(x, assignment, n, room, stack)

    def apply_by_sending(
        self, x: Float[Array, "T D"], assignment: routing.Assignment, slack: float | None
    ) -> tuple[Float[Array, "T D"], Int[Array, ""]]:
        """The sum by weight of what experts, wherever they are, make of this device's tokens, and as `apply`."""
        peers, rows = size(EXPERT), assignment.experts.size
        own = -(-self.n // peers)
        plan = moving.plan(assignment, self.n, 1)
        room = rows * peers if slack is None else min(int(slack * rows), rows * peers)
        letters = sending.letters(jnp.pad(plan.group_sizes, (0, peers * own - self.n)), room)
        here = sending.send(moving.dispatch(x, plan), room, letters.there, letters.back)
        experts, arrived = (part.reshape(room, 1) for part in (letters.experts, letters.arrived))
        arriving = routing.Assignment(jnp.where(arrived, experts, 0), jnp.ones((room, 1)), arrived)
        output, _ = self._own(here, arriving, own, room)
        output = sending.send(output, rows, letters.back, letters.there)
        return moving.combine(checkpoint_name(output, exchange.EXCHANGED), assignment.weights, plan), letters.lost

    def _own(self, x, assignment: routing.Assignment, n: int, room: int | None, stack: Stack | None = None):
        """The `n` experts of this device, with rows for at least `room` assignments; and how many found none."""
        alignment = row_alignment(room or assignment.experts.size, n, self.implementation)
        plan = moving.plan(assignment, n, alignment, room)
        if choose(self.implementation) == "native":
            matrices = self.experts.matrices(x.dtype)
            return native_experts(x, assignment.weights, *matrices, plan, stack), plan.lost
        rows = checkpoint_name(self.experts(moving.dispatch(x, plan), plan.group_sizes, alignment), EXPERT_ROWS)
        return moving.combine(rows, assignment.weights, plan), plan.lost

    def _route(self, logits, mask, capacity_factor: float | None) -> tuple[routing.Assignment, SetAux]:
        probabilities, log_sums = routing.probabilities(logits)
        experts, weights = routing.select(probabilities, self.bias[...], self.k)
        offered = kept = moving.all_offered(mask, self.k)
        load = routing.load(experts, offered, self.n)
        if capacity_factor is not None:
            limit = routing.capacity(mask.shape[0], self.n, self.k, capacity_factor)
            kept = routing.within_capacity(experts, offered, self.n, limit)
        aux = SetAux(
            load_balancing_loss=routing.load_balancing_loss(probabilities, load, mask, self.k),
            z_loss=routing.router_z_loss(log_sums, mask),
            load=load,
            dropped=offered.sum() - kept.sum(),
            lost=jnp.int32(0),
        )
        return routing.Assignment(experts, weights, kept), aux


class MoELayer(nnx.Module):
    """Expert sets and an always-on expert on the same tokens.

    The sets' outputs are averaged by their active experts, (k1*o1 + k2*o2) / (k1 + k2), as the study's
    heterogeneous layers are; one set's output is itself.
    """

    def __init__(
        self,
        sets: tuple[tuple[int, int, int], ...],
        always_on: int,
        d_model: int,
        *,
        init: Initializer,
        implementation: str = "",
        rngs: nnx.Rngs,
    ):
        """Makes the layer.

        Args:
          sets: (n, k, width) of each expert set.
          always_on: width of the expert that is always on; 0 for none.
          d_model: width of tokens.
          init: of all weights.
          implementation: of the grouped matmul.
          rngs: a `params` stream.
        """
        # Each part draws from a stream of its own, so that what it has in common with another layer's part begins
        # with the same values, whatever else the two layers hold.
        key = rngs.params()
        streams = [nnx.Rngs(params=jax.random.fold_in(key, part)) for part in range(1 + len(sets))]
        self.sets = nnx.List(
            [
                ExpertSet(n, k, d_model, width, init=init, implementation=implementation, rngs=stream)
                for (n, k, width), stream in zip(sets, streams[1:], strict=True)
            ]
        )
        self.always_on = SwiGLU(d_model, always_on, init=init, rngs=streams[0]) if always_on else None

    def stacks(self, index: Int[Array, ""]) -> tuple[Stack, ...]:
        """Of all layers of a model, with a leading axis before every leaf: where the matrices of one of them lie."""
        experts = [expert_set.experts for expert_set in self.sets]
        return tuple(Stack(e.gate[...], e.up[...], e.down[...], index) for e in experts)

    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], routing_: Routing, stacks: tuple[Stack, ...] = ()
    ):
        """Routed and always-on experts on the same input, added up: [B, S, D] and a `LayerAux`."""
        routed, aux = self.routed(x, mask, routing_, stacks)
        return (routed if self.always_on is None else routed + self.always_on(x)), aux

    def routed(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"], routing_: Routing, stacks: tuple[Stack, ...] = ()
    ) -> tuple[Float[Array, "B S D"], LayerAux]:
        """The expert sets alone; zeros if there is none. `stacks` are as `ExpertSet.apply` takes one, of each set."""
        if not self.sets:
            return jnp.zeros_like(x), ()
        tokens, flat_mask = x.reshape(-1, x.shape[-1]), mask.reshape(-1)
        total = sum(s.k for s in self.sets)
        gathers = exchange.is_cheaper(total) if not routing_.dispatch else routing_.dispatch == "gather"
        gathers = gathers or size(EXPERT) == 1
        everyone = exchange.to_all(tokens) if gathers else tokens
        output, auxes = jnp.zeros_like(everyone), []
        for number, expert_set in enumerate(self.sets):
            assignment, aux = expert_set.route(tokens, flat_mask, routing_)
            if gathers:
                stack = stacks[number] if stacks else None
                out, lost = expert_set.apply(everyone, assignment, routing_.slack, stack)
            else:
                out, lost = expert_set.apply_by_sending(everyone, assignment, routing_.slack)
            output += out if len(self.sets) == 1 else out * (expert_set.k / total)
            auxes.append(aux._replace(lost=lost))
        return (exchange.back(output) if gathers else output).reshape(x.shape), tuple(auxes)
