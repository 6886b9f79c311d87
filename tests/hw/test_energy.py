"""Operations counted from spikes, one by one against the kernel's sums; joules by hand; the machine's own counters."""

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from hw import Dense, Flatten, Input, Recurrent, SpikingProgram
from hw.chips import LOIHI1
from hw.energy import MODELS, NO_LOIHI2, count, estimates
from hw.meter import measured_joules
from hw.resources import resources
from hw.simulate import open_backend
from tests.hw.explicit import matrices
from tests.hw.strategies import cases
from tests.hw.test_resources import chips, conv, dense

NEURON = {"decay_u_int": 1000, "decay_v_int": 200, "v_th_mant": 120}


def fired(program: SpikingProgram, spikes: np.ndarray) -> dict[str | None, np.ndarray]:
    """uint8 [T, B, neurons] of the input (None) and of every layer, from the reference."""
    layers = open_backend("reference", program).run(spikes, layers=True).layers
    flat = {None: spikes != 0, **layers}
    return {name: values.reshape(*values.shape[:2], -1).astype(np.int64) for name, values in flat.items()}


def counted(program: SpikingProgram, spikes: np.ndarray, placed=None):
    layers = open_backend("reference", program).run(spikes, layers=True).layers
    return count(program, spikes, layers, placed)


@settings(deadline=None)
@given(cases())
def test_synaptic_operations_are_the_nonzero_weights_that_every_spike_meets(case):
    program, spikes = case
    explicit, flat = matrices(program), fired(program, spikes)
    found = counted(program, spikes)
    steps, samples = spikes.shape[:2]
    for name, layer in found.layers.items():
        met = sum(int((flat[source] @ (weight != 0).T).sum()) for source, weight in explicit[name].items())
        assert layer.synops == met
        assert layer.spikes == flat[name].sum()
        assert layer.rate == pytest.approx(flat[name].mean())
        assert layer.updates == flat[name].shape[2] * steps * samples
        assert layer.macs >= sum(np.count_nonzero(weight) for weight in explicit[name].values())
    assert found.input_spikes == flat[None].sum()
    assert found.total("synops") == sum(layer.synops for layer in found.layers.values())


@settings(max_examples=60, deadline=None)
@given(cases(), chips)
def test_messages_and_hops_are_counted_spike_by_spike_over_the_cores_that_hear(case, chip):
    program, spikes = case
    placed = resources(program, chip)
    found, flat = counted(program, spikes, placed), fired(program, spikes)
    if any((layer.cores < 0).any() for layer in placed.layers.values()):
        assert found.input_messages is None
        assert found.total("messages") is found.total("hops") is None
        return
    heard = matrices(program, heard=True)
    messages: dict[str | None, int] = dict.fromkeys(flat, 0)
    hops: dict[str | None, int] = dict.fromkeys(flat, 0)
    for source, values in flat.items():
        for neuron, times in enumerate(values.sum((0, 1)).tolist()):
            cores: set[int] = set()
            for target, sources in heard.items():
                if source in sources:
                    cores |= set(placed.layers[target].cores.reshape(-1)[sources[source][:, neuron] != 0].tolist())
            messages[source] += times * (len(cores) + (source == program.synaptic[-1].name))
            if source is not None:
                here = int(placed.layers[source].cores.reshape(-1)[neuron])
                hops[source] += times * sum(distance(here, core) for core in cores)
    assert found.input_messages == messages[None]
    for name, layer in found.layers.items():
        assert (layer.messages, layer.hops) == (messages[name], hops[name])


def distance(a: int, b: int) -> int:
    """Tiles of four cores, eight in a row, four rows to a chip, chips side by side."""

    def place(core: int) -> tuple[int, int]:
        chip, tile = core // 128, core // 4 % 32
        return chip * 8 + tile % 8, tile // 8

    return sum(abs(x - y) for x, y in zip(place(a), place(b), strict=True))


def test_hops_between_far_cores_and_between_chips_by_hand():
    chip = replace(LOIHI1, limits=(replace(LOIHI1.limits[0], value=1), *LOIHI1.limits[1:]))
    program = SpikingProgram(
        input_shape=(1,),
        steps=1,
        layers=(
            dense("a", np.array([[200]] * 150)),
            dense("b", np.eye(150, dtype=int)[[149]] * 200),
        ),
    )
    placed = resources(program, chip)
    assert placed.layers["a"].cores.tolist() == list(range(150))
    spikes = np.ones((1, 1, 1), np.uint8)
    layers = {"a": np.zeros((1, 1, 150), np.uint8), "b": np.zeros((1, 1, 1), np.uint8)}
    layers["a"][0, 0, 149] = 1
    # b is core 150: chip 1, tile 5; neuron 149 is core 149: chip 1, tile 5 too.
    assert placed.layers["b"].cores.tolist() == [150]
    assert count(program, spikes, layers, placed).layers["a"].hops == 0
    layers["a"][0, 0, :] = 0
    layers["a"][0, 0, 3] = 1
    assert count(program, spikes, layers, placed).layers["a"].hops == 0  # b does not hear neuron 3
    both = replace(program, layers=(program.layers[0], dense("b", np.full((1, 150), 200))))
    placed = resources(both, chip)
    # From core 3, tile (0, 0) of chip 0, to core 150, tile (5, 0) of chip 1: 8 + 5 tiles.
    assert count(both, spikes, layers, placed).layers["a"].hops == 13
    layers["a"][0, 0, :] = 0
    layers["a"][0, 0, 100] = 1  # core 100: tile 25, (1, 3): 12 across and 3 up
    assert count(both, spikes, layers, placed).layers["a"].hops == 15


def test_a_recurrent_layers_own_spikes_count_and_delays_change_nothing():
    weight, own = np.array([[9000], [9000]]), np.array([[0, 1], [1, 1]])
    common = {"decay_u_int": 4096, "decay_v_int": 4096, "v_th_mant": 10}
    program = SpikingProgram(
        input_shape=(1,),
        steps=3,
        layers=(Recurrent(name="loop", weight_int=weight, weight_rec_int=own, **common),),
    )
    spikes = np.ones((3, 1, 1), np.uint8)
    late = replace(
        program,
        layers=(Dense(name="loop", weight_int=weight, delay=np.array([2]), **common),),
    )
    layers = {"loop": np.ones((3, 1, 2), np.uint8)}
    assert count(program, spikes, layers).layers["loop"].synops == 3 * 2 + 3 * (1 + 2)
    assert count(late, spikes, layers).layers["loop"].synops == 3 * 2  # also the spikes that are never heard


def test_a_core_that_hears_two_blocks_gets_one_message_of_a_spike():
    common = {"decay_u_int": 4096, "decay_v_int": 4096, "v_th_mant": 10}
    own = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0]])  # hears neurons 0 and 2
    loop = Recurrent(name="loop", weight_int=np.ones((3, 1), int), weight_rec_int=own, **common)
    layers = (loop, dense("next", np.array([[0, 9, 9]])))  # hears neurons 1 and 2, on the same core
    program = SpikingProgram(input_shape=(1,), steps=1, layers=layers)
    placed = resources(program, LOIHI1)
    assert placed.cores == 1
    result = {"loop": np.ones((1, 1, 3), np.uint8), "next": np.ones((1, 1, 1), np.uint8)}
    found = count(program, np.ones((1, 1, 1), np.uint8), result, placed)
    assert found.layers["loop"].messages == 3
    assert found.layers["next"].messages == 1  # to the host


# Joules


def hand() -> tuple[SpikingProgram, np.ndarray, dict[str, np.ndarray]]:
    """Two layers of 3 and 2 neurons, 2 samples of 5 steps, 4 input spikes and 3 of the first layer."""
    program = SpikingProgram(
        input_shape=(4,), steps=5, layers=(dense("a", np.ones((3, 4), int)), dense("b", np.ones((2, 3), int)))
    )
    spikes, a = np.zeros((5, 2, 4), np.uint8), np.zeros((5, 2, 3), np.uint8)
    spikes[[0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 2, 3]] = 1
    a[[1, 1, 4], [0, 0, 1], [0, 1, 2]] = 1
    return program, spikes, {"a": a, "b": np.zeros((5, 2, 2), np.uint8)}


def test_joules_by_hand():
    program, spikes, layers = hand()
    found = count(program, spikes, layers, resources(program, LOIHI1))
    # Synaptic operations 4 * 3 + 3 * 2 = 18, updates (3 + 2) * 5 * 2 = 50, spikes 3, messages 3, hops 0; 2 samples.
    keras, sana, accumulates, once, every = estimates(found)
    assert keras.low == pytest.approx((18 * 23.6 + 50 * 81) * 1e-12 / 2)
    assert keras.high == pytest.approx((18 * 27.1 + 50 * 81) * 1e-12 / 2)
    assert sana.low == pytest.approx((18 * 24.0 + 50 * 51.2 + 3 * 69.3 + 3 * 76.8) * 1e-12 / 2)
    assert sana.high == pytest.approx((18 * 35.5 + 50 * 72.8 + 3 * 69.3 + 3 * 111.0) * 1e-12 / 2)
    assert accumulates.low == accumulates.high == pytest.approx(18 * 0.9e-12 / 2)
    assert once.low == once.high == pytest.approx((12 + 6) * 4.6e-12)
    assert every.low == pytest.approx(5 * (12 + 6) * 4.6e-12)
    assert "5 steps" in every.name


def test_a_graded_spike_is_a_multiplication_under_the_45_nm_model():
    program, spikes, layers = hand()
    found = count(replace(program, input_bits=3), spikes * 5, layers)
    assert found.graded == 12
    assert found.input_spikes == 4  # counted once, whatever it carries
    assert estimates(found)[2].low == pytest.approx((12 * 4.6 + 6 * 0.9) * 1e-12 / 2)


def test_hops_and_messages_of_a_layer_that_is_not_placed_are_not_made_up():
    program = SpikingProgram(input_shape=(5000,), steps=2, layers=(dense("fan_in", np.ones((2, 5000), int)),))
    spikes, layers = np.ones((2, 1, 5000), np.uint8), {"fan_in": np.ones((2, 1, 2), np.uint8)}
    keras, sana, *_ = estimates(count(program, spikes, layers, resources(program, LOIHI1)))
    assert keras.low is not None
    assert sana.low is sana.high is None
    assert "not placed" in sana.note


def test_dense_multiplications_of_a_convolution_are_kernel_times_positions():
    program = SpikingProgram(
        input_shape=(2, 6, 6),
        steps=1,
        layers=(
            conv("c", np.zeros((4, 2, 3, 3), int) + 1, padding=(1, 1)),
            Flatten(),
            dense("d", np.eye(3, 144, dtype=int)),
        ),
    )
    layers = {"c": np.zeros((1, 1, 4, 6, 6), np.uint8), "d": np.zeros((1, 1, 3), np.uint8)}
    found = count(program, np.zeros((1, 1, 2, 6, 6), np.uint8), layers)
    assert found.layers["c"].macs == 4 * 36 * 2 * 9
    assert found.layers["d"].macs == 3 * 144  # zeros too


def test_an_input_layer_costs_updates_and_no_synaptic_operation():
    image = Input.of(1, name="image", decay_v_int=np.array(0), v_th_mant=np.array(9))
    program = SpikingProgram(input_shape=(1, 2, 2), steps=3, layers=(image,), input_bits=13)
    found = count(program, np.full((3, 1, 1, 2, 2), 7), {"image": np.ones((3, 1, 1, 2, 2), np.uint8)})
    assert (found.layers["image"].synops, found.layers["image"].updates, found.graded) == (0, 12, 0)


def test_every_model_names_its_source_and_no_model_claims_loihi_2():
    assert all(model.source and model.note for model in MODELS)
    assert not [model.name for model in MODELS if "Loihi 2" in model.name]
    assert NO_LOIHI2.startswith("Loihi 2 has no public table")


# The machine's own counters


def zone(folder: Path, name: str, energy: int, span: int = 1000) -> Path:
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    return folder / "energy_uj"


def test_rapl_counts_top_level_zones_and_wraps(tmp_path):
    package = zone(tmp_path / "intel-rapl:0", "package-0", 900)
    zone(tmp_path / "intel-rapl:0:0", "core", 5)  # a part of the package
    other = zone(tmp_path / "intel-rapl:1", "package-1", 100)

    def work() -> str:
        package.write_text("150\n")  # beyond its range of 1000
        other.write_text("350\n")
        return "done"

    value, found = measured_joules(work, tmp_path, "no-such-library.so")
    assert value == "done"
    assert found.joules == pytest.approx({"package-0": 250e-6, "package-1": 250e-6})


def test_a_machine_without_counters_gives_no_figure_and_a_reason(tmp_path):
    value, found = measured_joules(lambda: 3, tmp_path / "nowhere", "no-such-library.so")
    assert (value, found.joules) == (3, None)
    assert f"{tmp_path / 'nowhere'} does not exist" in found.reason
    assert "no NVIDIA driver" in found.reason
    assert measured_joules(lambda: 3, tmp_path, "no-such-library.so")[1].reason.startswith(f"{tmp_path} holds no intel")


def test_a_counter_that_may_not_be_read_gives_no_figure_and_a_reason(tmp_path):
    zone(tmp_path / "intel-rapl:0", "package-0", 1).unlink()
    _, found = measured_joules(lambda: 3, tmp_path, "no-such-library.so")
    assert found.joules is None
    assert "energy_uj: No such file" in found.reason


class FakeNvml:
    """Two GPUs, of which the second is too old to count; the first draws 1500 mJ between readings."""

    def __init__(self) -> None:
        self.millijoules = 7000

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, number) -> int:  # noqa: N802
        number._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle) -> int:  # noqa: N802
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, energy) -> int:  # noqa: N802
        if handle.value == 2:
            return 3
        energy._obj.value = self.millijoules
        return 0


def test_a_gpu_that_counts_is_measured_and_one_that_does_not_is_left_out(tmp_path, monkeypatch):
    library = FakeNvml()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)

    def work() -> None:
        library.millijoules += 1500

    _, found = measured_joules(work, tmp_path / "nowhere")
    assert found.joules == pytest.approx({"gpu 0": 1.5})
