"""CUBA-LIF over all T steps in one pass. `lif` is the operator; on processors it runs `cpu`, which `numba_lif` is
compiled for, and on graphics cards `cuda`, with `triton_lif`."""
