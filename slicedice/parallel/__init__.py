"""Past one device: the mesh, the one table from logical axes to mesh axes, and what moves over it.

Every part of the model is written for one device's share. Run inside `jax.shard_map` it finds the mesh's axes around
it, and moves what it has to; on one device there are none, and nothing moves. `table` alone does without JAX.
"""
