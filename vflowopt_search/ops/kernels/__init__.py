"""Triton twins of the definitions in `ops`: same names, same signatures, same answers.

Only `ops.dispatch` calls them. Kernels take fp32, bf16 and fp16, compute in fp32, have no
gradients, and use no atomics: the same input gives the same bits.
"""
