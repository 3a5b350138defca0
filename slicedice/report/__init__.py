"""What a person sees: progress, tables, figures, one HTML page. Reads the store and grids; imports no JAX."""
