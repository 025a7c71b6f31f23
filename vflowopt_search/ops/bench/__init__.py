"""How fast the kernels are beside what bounds them: `python -m vflowopt_search.ops.bench`."""
