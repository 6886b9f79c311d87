"""CUBA-LIF over all T steps in one pass: `lif` is the operator, `cpu` what it runs on processors."""
