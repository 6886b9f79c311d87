"""Every hardware constant that we rely on, each with its source.

Sources:
    [lava]   lava-nc 0.10.0, `lava/proc/lif/models.py` and `lava/proc/dense/process.py` (bit-accurate models and
    docstrings) [brian2] brian2-loihi, `brian2_loihi/neurongroup.py` (Loihi 1 ranges)
    [netx]   lava-dl 0.6.0, `lava/lib/dl/netx/hdf5.py` and `utils.py`
"""

STATE_BITS = 24  # u and v [lava: uv_bitwidth]
STATE_LIMIT = 1 << (STATE_BITS - 1)  # u wraps past +-2**23, v saturates at +-(2**23 - 1) [lava]
STATE_SHIFT = 6  # synaptic input and threshold are aligned to the states by << 6 [lava: act_shift, vth_shift]
DECAY_UNITY = 4096  # a decay of 4096 forgets everything [lava: decay_unity; brian2: 0..4096]
WEIGHT_BITS_MAX = 8  # of one weight, 1..8 [lava: num_weight_bits; nengo-loihi: WEIGHT_BITS_MAP]
WEIGHT_MIN, WEIGHT_MAX = -256, 255  # 8 bits and a sign mode: mixed is even in [-256, 254] [lava: clip_weights]
SIGNED_WEIGHT_MIN, SIGNED_WEIGHT_MAX = (
    -128,
    127,
)  # any int8 of both signs: netx stores it with exponent -1 [netx: utils]
BIAS_MANT_MIN, BIAS_MANT_MAX = -4096, 4095  # 13 bits, signed [lava]
BIAS_BITS = 13
BIAS_EXP_MAX = 7  # 3 bits, unsigned [lava]
NETX_BIAS_EXP = 6  # netx runs every layer with this bias exponent [netx: get_neuron_params]
V_TH_MANT_MAX = 131071  # 17 bits [lava; brian2]
SCALE_EXP_LIMIT = 126  # ours: a power of two that float32 holds
EXACT_FLOAT32 = 1 << 24  # integers below this magnitude are exact in float32
DELAY_MAX = 62  # steps [netx: clamps to it; Loihi 2 holds 0..63]
MESSAGE_BITS_MAX = 24  # of a graded spike [Loihi 2, lava-nc: s_in precision 24]
