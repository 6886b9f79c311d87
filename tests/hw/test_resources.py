"""Cores, axons and memory: counts against explicit matrices, packing by its invariants, limits by their messages."""

from collections import defaultdict
from dataclasses import replace
from itertools import product
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hw import Conv, Dense, Flatten, Input, Recurrent, SpikingProgram, UserError
from hw.chips import CHIPS, LOIHI1, LOIHI2, RESOURCES, Chip, chip_named
from hw.connections import ConvLinks, DenseLinks, links_of
from hw.resources import BITS, IN_AXONS, NEURONS, OUT_AXONS, pack, resources
from tests.hw.explicit import conv_matrix, matrices
from tests.hw.strategies import conv_layers, programs

NEURON = {"decay_u_int": 1000, "decay_v_int": 200, "v_th_mant": 120}


def dense(name: str, weight: np.ndarray, **more) -> Dense:
    return Dense(name=name, weight_int=weight, **NEURON, **more)


def conv(name: str, weight: np.ndarray, **more) -> Conv:
    return Conv(name=name, weight_int=weight, **NEURON, **more)


def chain(shape: tuple[int, ...], *layers) -> SpikingProgram:
    return SpikingProgram(input_shape=shape, steps=4, layers=layers)


def small_chip(neurons: int, axons: int, out: int, bits: int) -> Chip:
    values = (neurons, axons, out, bits)
    return replace(
        LOIHI1, cores=4, limits=tuple(replace(limit, value=v) for limit, v in zip(LOIHI1.limits, values, strict=True))
    )


chips = st.builds(small_chip, st.integers(1, 40), st.integers(6, 60), st.integers(6, 60), st.integers(400, 6000))


def row_bits_one_by_one(weights: int, bits: int) -> int:
    """nengo-loihi's `bits_per_axon`, as a loop."""
    total = 0
    for start in range(0, weights, 64):
        total += 64 * ceil((min(64, weights - start) * bits + 10) / 64)
    return total


# What meets what


@settings(deadline=None)
@given(programs(netx=False))
def test_synapses_and_fan_out_are_the_nonzeros_of_the_explicit_matrices(program):
    explicit = matrices(program)
    for name, links in links_of(program).items():
        assert {link.source for link in links} == explicit[name].keys()
        for link in links:
            nonzero = explicit[name][link.source] != 0
            np.testing.assert_array_equal(link.fan_out().reshape(-1), nonzero.sum(0))
    found = resources(program, LOIHI2)
    for name, layer in found.layers.items():
        assert layer.synapses == sum(np.count_nonzero(matrix) for matrix in explicit[name].values())


@settings(deadline=None)
@given(st.data())
def test_a_block_of_a_convolution_hears_and_stores_what_the_explicit_matrix_says(data):
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))
    layer = data.draw(conv_layers("conv", shape, False))
    out = layer.output_shape(shape)
    starts = [data.draw(st.integers(0, n - 1)) for n in out]
    stops = [data.draw(st.integers(start + 1, n)) for start, n in zip(starts, out, strict=True)]
    assert_block(layer, shape, tuple(map(slice, starts, stops)))


def test_a_block_whose_indices_take_more_bits_stores_what_the_explicit_matrix_says():
    layer = conv("conv", np.arange(1, 10).reshape(1, 1, 3, 3))
    assert_block(layer, (1, 5, 45), (slice(0, 1), slice(0, 3), slice(0, 43)))  # up to 2 rows of 43 apart: 7 bits


def assert_block(layer: Conv, shape: tuple[int, ...], box: tuple[slice, ...]) -> None:
    out, needs = layer.output_shape(shape), ConvLinks(None, shape, layer).needs(box)
    taps = conv_matrix(layer, shape, np.ones_like(layer.weight_int)).reshape(*out, *shape)[box]
    heard = taps.any((0, 1, 2))  # [C, H, W]
    pixels = heard.any(0)
    np.testing.assert_array_equal(needs.heard.grid(), heard)
    assert needs.axons == pixels.sum()
    whole = tuple(slice(0, n) for n in shape)
    assert needs.heard.slots(whole) == 2 * pixels.sum()

    # Pixels share a set of weights if the same taps lie over each of them; `marked` tells which they are.
    marks = np.arange(1, layer.weight_int[0, 0].size + 1).reshape(1, 1, *layer.weight_int.shape[2:])
    marked = conv_matrix(layer, shape, np.broadcast_to(marks, layer.weight_int.shape)).reshape(*out, *shape)[box]
    weights = conv_matrix(layer, shape, layer.weight_int).reshape(*out, *shape)[box]
    sets, largest = {}, 0
    for y, x in np.argwhere(pixels):
        under = np.argwhere(marked[:, :, :, :, y, x].any((0, 3)))  # outputs (row, column) that the pixel reaches
        key = frozenset(np.unique(marked[..., y, x]).tolist())
        sets[key] = np.count_nonzero(weights[..., y, x])
        (top, left), (bottom, right) = under.min(0), under.max(0)
        span = (len(taps) - 1) * taps[0, :, :, 0, 0, 0].size
        largest = max(largest, span + (bottom - top) * taps.shape[2] + right - left)
    index = max(6, int(largest).bit_length()) if largest else 0
    assert needs.bits == sum(row_bits_one_by_one(n, 8 + index) for n in sets.values())


def test_positions_beyond_the_256_that_a_base_names_take_weights_of_their_own():
    one = np.full((1, 1, 1, 1), 3)
    for side, sets in ((16, 1), (17, 2), (23, 3)):  # 256, 289 and 529 positions
        links = ConvLinks(None, (1, side, side), conv("conv", one))
        assert links.needs((slice(0, 1), slice(0, side), slice(0, side))).bits == 64 * sets


@given(
    arrays(np.int64, st.tuples(st.integers(1, 90), st.integers(1, 5)), elements=st.integers(-1, 1)),
    st.booleans(),
    st.integers(2, 8),
)
def test_a_dense_row_is_stored_in_full_or_as_a_list_whichever_is_smaller(weight, delays, bits):
    needs = DenseLinks(None, weight.shape[1:], weight, bits, delays).needs((slice(0, len(weight)),))
    width = {7: 8}.get(bits, bits) + 6 * delays
    index = max(6, (len(weight) - 1).bit_length()) if len(weight) > 1 else 0
    rows = [n for n in np.count_nonzero(weight, axis=0) if n]
    full = row_bits_one_by_one(len(weight), width)
    assert needs.axons == len(rows)
    assert needs.bits == sum(min(full, row_bits_one_by_one(n, width + index)) for n in rows)


# By hand


def test_a_small_dense_layer_by_hand():
    found = resources(chain((100,), dense("out", np.ones((10, 100), int))), LOIHI1)
    # A row: 10 weights of 8 bits and 10 of overhead, 90 bits, in words of 64: 128.
    assert found.layers["out"].needs.tolist() == [10, 100, 10, 100 * 128]
    assert (found.cores, found.chips, found.misfits) == (1, 1, ())
    sparse = np.zeros((10, 100), int)
    sparse[3] = 5  # one weight of 8 bits, an index of 6, 10 of overhead: 24 bits, one word
    assert resources(chain((100,), dense("out", sparse)), LOIHI1).layers["out"].needs[BITS] == 100 * 64
    late = dense("out", np.ones((10, 100), int), delay=np.full(100, 3))  # 10 weights of 14 bits: 150, in 192
    assert resources(chain((100,), late), LOIHI1).layers["out"].needs[BITS] == 100 * 192


def test_a_small_convolution_by_hand():
    program = chain((2, 4, 4), conv("conv", np.ones((3, 2, 3, 3), int)), Flatten(), dense("out", np.ones((5, 12), int)))
    layer = resources(program, LOIHI1).layers["conv"]
    # 2 x 2 positions: each axis has 4 input rows under taps {0}, {0, 1}, {1, 2}, {2}, so 16 sets of 1, 2 or 4 taps.
    # A weight has 8 bits and an index below 12, of 6; a tap is 2 x 3 weights.
    sets = {taps: row_bits_one_by_one(6 * taps, 14) for taps in (1, 2, 4)}
    assert layer.needs.tolist() == [12, 16, 12, 4 * sets[1] + 8 * sets[2] + 4 * sets[4]]
    assert layer.synapses == 4 * 3 * 2 * 9


def test_channels_of_a_pixel_share_two_output_axons_to_a_convolution():
    first, second = conv("a", np.ones((8, 1, 1, 1), int)), conv("b", np.ones((4, 8, 3, 3), int))
    found = resources(chain((1, 5, 5), first, second), LOIHI1)
    assert found.layers["a"].needs[OUT_AXONS] == 2 * 25
    assert found.layers["b"].needs[OUT_AXONS] == 4 * 9  # to the host, one a neuron


def test_a_recurrent_layer_hears_itself():
    weight = np.ones((4, 3), int)
    layer = Recurrent(name="loop", weight_int=weight, weight_rec_int=np.eye(4, dtype=int), **NEURON)
    found = resources(chain((3,), layer), LOIHI1).layers["loop"]
    assert found.needs[[NEURONS, IN_AXONS, OUT_AXONS]].tolist() == [4, 3 + 4, 4 + 4]
    assert found.synapses == 12 + 4


def test_an_input_layer_has_neurons_and_no_synapses():
    image = Input.of(2, name="image", decay_v_int=np.array(0), v_th_mant=np.array(9))
    program = replace(chain((2, 3, 3), image, Flatten(), dense("out", np.ones((5, 18), int))), input_bits=13)
    found = resources(program, LOIHI1)
    assert found.layers["image"].needs.tolist() == [18, 0, 18, 0]
    assert found.layers["image"].synapses == 0
    assert not found.misfits  # the host writes biases, no graded spike


# Cutting and packing


@settings(max_examples=60, deadline=None)
@given(programs(netx=False), chips)
def test_every_neuron_of_a_placed_layer_lies_on_one_core_and_no_core_is_over_a_limit(program, chip):
    found = resources(program, chip)
    unplaced = {misfit.layer for misfit in found.misfits if misfit.what in RESOURCES}
    seen = {name: np.zeros(layer.cores.shape, int) for name, layer in found.layers.items()}
    loads = np.zeros((found.cores, 4), int)
    for core, block in found.placed:
        seen[block.layer][block.box] += 1
        np.testing.assert_array_equal(found.layers[block.layer].cores[block.box], core)
        loads[core] += block.needs
    for name, times in seen.items():
        assert (times == (name not in unplaced)).all()
        assert ((found.layers[name].cores < 0) == (name in unplaced)).all()
    np.testing.assert_array_equal(found.loads, loads)
    assert (loads <= chip.values).all()
    assert (loads[:, NEURONS] > 0).all()
    assert found.cores >= max((-(-loads.sum(0) // chip.values)).max(initial=0), 0)
    assert found.chips == ceil(found.cores / 4)


@settings(max_examples=60, deadline=None)
@given(programs(netx=False), chips)
def test_output_axons_are_those_that_the_blocks_behind_hear(program, chip):
    found = resources(program, chip)
    if any(misfit.what in RESOURCES for misfit in found.misfits):
        return
    heard = matrices(program, heard=True)
    kinds = {layer.name: layer for layer in program.synaptic}
    last = program.synaptic[-1].name
    for core, block in found.placed:
        shape = found.layers[block.layer].cores.shape
        mine = np.zeros(shape, bool)
        mine[block.box] = True
        expected = mine.sum() if block.layer == last else 0
        for _, target in found.placed:
            if block.layer in heard[target.layer]:
                theirs = np.zeros(found.layers[target.layer].cores.shape, bool)
                theirs[target.box] = True
                lead = heard[target.layer][block.layer][theirs.reshape(-1)].any(0).reshape(shape) & mine
                expected += 2 * lead.any(0).sum() if isinstance(kinds[target.layer], Conv) else lead.sum()
        assert block.needs[OUT_AXONS] == expected, (core, block)


@given(st.data())
def test_first_fit_decreasing_packs_every_block_once_within_the_limits(data):
    limits = np.array([data.draw(st.integers(1, 30)) for _ in range(3)])
    sizes = st.tuples(*(st.integers(0, int(limit)) for limit in limits))
    needs = np.array(data.draw(st.lists(sizes, max_size=25)), int).reshape(-1, 3)
    cores = pack(needs, limits)
    used = cores.max(initial=-1) + 1
    loads = np.zeros((used, 3), int)
    np.add.at(loads, cores, needs)
    assert len(cores) == len(needs)
    assert sorted(set(cores.tolist())) == list(range(used))  # none is empty
    assert (loads <= limits).all()
    assert used >= (-(-needs.sum(0) // limits)).max(initial=0)
    firsts = [cores.tolist().index(core) for core in range(used)]
    assert firsts == sorted(firsts)
    for a, b in product(range(used), repeat=2):  # no two cores could have been one
        assert a == b or (loads[a] + loads[b] > limits).any()


def test_a_layer_larger_than_a_core_is_cut_into_the_fewest_blocks():
    program = chain((64,), dense("wide", np.ones((2500, 64), int)))
    found = resources(program, LOIHI1)
    assert found.layers["wide"].blocks == found.cores == 3  # 2500 neurons, 1024 a core
    counts = defaultdict(int)
    for core in found.layers["wide"].cores:
        counts[int(core)] += 1
    assert max(counts.values()) - min(counts.values()) < 3
    assert resources(program, LOIHI2).cores == 1


def test_small_layers_share_a_core():
    layers = [dense(f"fc{i}", np.ones((10, 10), int)) for i in range(5)]
    found = resources(chain((10,), *layers), LOIHI1)
    assert found.cores == 1
    assert found.loads[0].tolist()[:3] == [50, 50, 50]


def test_a_network_larger_than_a_chip_takes_more_of_them():
    chip = small_chip(10, 4096, 4096, 1 << 20)
    found = resources(chain((8,), dense("wide", np.ones((95, 8), int))), chip)
    assert (found.cores, found.chips) == (10, 3)


# What does not fit


def test_a_neuron_with_too_many_inputs_is_named_with_value_limit_and_source_and_not_placed():
    program = chain((5000,), dense("fan_in", np.ones((6, 5000), int)), dense("out", np.ones((2, 6), int)))
    found = resources(program, LOIHI1)
    (misfit,) = found.misfits
    line = str(misfit)
    assert line.startswith("layer 'fan_in': input axons 5,000, the chip holds 4,096 (nengo-loihi, block.py)")
    assert (found.layers["fan_in"].cores == -1).all()
    assert (found.layers["out"].cores == 0).all()
    assert found.layers["fan_in"].needs[IN_AXONS] == 5000
    second = resources(program, LOIHI2).misfits[0]
    assert second.source.startswith("Loihi 1-derived")


def test_graded_spikes_do_not_fit_loihi_1():
    program = replace(chain((3,), dense("out", np.ones((2, 3), int))), input_bits=4)
    (misfit,) = resources(program, LOIHI1).misfits
    assert (misfit.layer, misfit.value, misfit.limit) == ("out", 4, 1)
    assert resources(program, LOIHI1).cores == 1  # it is placed all the same
    assert resources(program, LOIHI2).misfits == ()


def test_every_limit_has_a_source_and_loihi_1s_are_those_of_nengo_loihi():
    assert LOIHI1.values.tolist() == [1024, 4096, 4096, 1_048_576]
    assert LOIHI2.values.tolist() == [8192, 4096, 4096, 192 * 1024 * 8]
    for chip in CHIPS.values():
        assert tuple(limit.what for limit in chip.limits) == RESOURCES
        assert all(limit.source for limit in chip.limits)
        assert chip.cores == 128


def test_an_unknown_chip_is_refused():
    with pytest.raises(UserError, match="chip 'loihi3' is not known; choose one of loihi1, loihi2"):
        chip_named("loihi3")
