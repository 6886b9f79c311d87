"""Bundles: torch's spikes, tokens and answers without torch, or no bundle at all."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ashnets.cli import main
from ashnets.model import AshNet, normalise
from ashnets.text import TextCodec, train_lexicon, train_tokenizer
from hw.bundle import HostModels, open_bundle
from hw.errors import BackendError, UserError
from tests.conftest import MICRO, micro_config, shorten
from train import export
from train.evaluate import pixels_of
from train.export import export_run, host_parts, write_part
from train.run import Run, load_model
from train.stages import load_split, new_run, qat_config, quantized_run, train_run

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def quantized(folder: Path, task: str) -> Run:
    source = train_run(new_run(folder / "float", micro_config(task, steps=2)), CPU)
    return train_run(quantized_run(source, folder / "int8", qat_config(source, 2)), CPU, init=source)


@pytest.fixture(scope="module")
def vqa(tmp_path_factory):
    """(run, meta of its bundle in RUN-bundle)."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        run = quantized(tmp_path_factory.mktemp("vqa"), "vqa")
        yield run, export_run(run, run.folder.with_name("bundle"), bundle=True)


@pytest.fixture
def bundle(vqa) -> Path:
    return vqa[0].folder.with_name("bundle")


@pytest.fixture
def picture(vqa, tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(load_split(vqa[0], "test").image(0)).save(path)
    return path


def ours(model: AshNet, pixels: torch.Tensor, texts: list[str], codec: TextCodec) -> np.ndarray:
    with torch.no_grad():
        tokens = codec.encode(texts)
        return model.answer(model.text(tokens), tokens.padding, model.vision(normalise(pixels)).v).numpy()


def test_no_input_spike_program_spike_or_answer_differs_on_the_whole_test_split(vqa):
    run, meta = vqa
    data = load_split(run, "test")
    checked = meta["checked"]
    assert checked["images"] == len(data)
    assert checked["texts"] == sum(len(data.texts(i)) for i in range(len(data)))
    a = run.config.model.abstract
    assert checked["input_spikes"] == len(data) * a.steps * a.channels * 4 * 4
    assert checked["mismatching_input_spikes"] == 0
    assert max(checked["largest_differences"].values()) < 1e-5
    assert len(checked["largest_differences"]) == 6


@pytest.mark.parametrize("backend", ["reference", "events"])
def test_a_bundle_gives_torchs_logits_for_one_picture_and_for_many(vqa, bundle, backend):
    run, _ = vqa
    model, data, opened = load_model(run, "qat", CPU), load_split(run, "test"), open_bundle(bundle, backend)
    for count in (1, 7):
        pixels = pixels_of(data, range(count))
        texts = [data.texts(i)[0] for i in range(count)]
        found = opened.logits(opened.see(pixels.numpy()), texts)
        np.testing.assert_allclose(found, ours(model, pixels, texts, run.codec), atol=1e-5)


def test_run_answers_from_a_file_as_torch_does(vqa, bundle, picture, capsys):
    run, _ = vqa
    texts = ["is there a red shape?", "what shape is in the image, if there is any at all?"]
    assert main(["run", str(bundle), "--image", str(picture), "--text", *texts, "--top", "3", "--json"]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    pixels = pixels_of(load_split(run, "test"), [0, 0])
    truth = torch.tensor(ours(load_model(run, "qat", CPU), pixels, texts, run.codec)).softmax(1)
    assert [result["text"] for result in results] == texts
    for result, row in zip(results, truth, strict=True):
        best = row.argsort(descending=True)[:3]
        assert [found["answer"] for found in result["answers"]] == [run.answers[i] for i in best]
        np.testing.assert_allclose([found["probability"] for found in result["answers"]], row[best], atol=1e-5)


def test_run_needs_neither_torch_nor_what_comes_with_it(bundle, picture):
    absent = ("torch", "brevitas", "timm", "transformers", "onnx", "matplotlib", "ashnets.model", "train.run")
    arguments = ["run", str(bundle), "--image", str(picture), "--text", "is there a red shape?", "--json"]
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {absent}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Absent())
from ashnets.cli import main
sys.exit(main({arguments}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["results"][0]["answers"]
    refused = subprocess.run(
        [sys.executable, "-c", code.replace("'--json'", "'--backend', 'batched'")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert refused.returncode == 2
    assert refused.stderr.startswith("ashnets: backend 'batched' needs the package 'torch', which is not installed; ")
    assert refused.stderr.count("\n") == 1


def test_a_bundle_of_a_run_that_retrieves_sorts_texts_as_torch_does(tmp_path, few_records, picture):
    run = quantized(tmp_path, "retrieval")
    meta = export_run(run, tmp_path / "bundle", bundle=True, samples=5)
    assert meta["checked"]["images"] == 5
    assert not (tmp_path / "bundle" / "answer.onnx").exists()
    texts = ["a cat", "two red circles", "flag"]
    results = open_bundle(tmp_path / "bundle").ask([picture], texts, top=2)
    model, tokens = load_model(run, "qat", CPU), run.codec.encode(texts)
    with torch.no_grad():
        z = model.embed_images(
            model.vision(normalise(torch.tensor(np.array(Image.open(picture))).permute(2, 0, 1)[None])).v
        )
        truth = (z @ model.embed_texts(model.text(tokens), tokens).T)[0]
    best = truth.argsort(descending=True)[:2]
    assert [result["text"] for result in results] == [texts[i] for i in best]
    np.testing.assert_allclose([result["similarity"] for result in results], truth[best], atol=1e-5)


VARIANTS = {
    "no lexicon": (replace(MICRO, text=replace(MICRO.text, lexicon=0)), "text"),
    "bert": (replace(MICRO, text=replace(MICRO.text, kind="bert")), "text"),
    "spikes on a grid": (replace(MICRO, abstract=replace(MICRO.abstract, dense=())), "readout"),
    "spikes of the whole concrete encoder": (
        replace(MICRO, abstract=replace(MICRO.abstract, reads="concrete")),
        "encode",
    ),
    "spikes alone": (replace(MICRO, fusion=replace(MICRO.fusion, spikes_alone=1.0)), "readout"),
    "a backbone of timm": (
        replace(MICRO, width=192, concrete=replace(MICRO.concrete, backbone="vit_tiny_patch16_224")),
        "encode",
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_of_other_models_equal_torch_in_batches_of_other_sizes(variant, tmp_path):
    config, name = VARIANTS[variant]
    texts = ["a red circle", "what colour is the circle of this picture?", "no"]
    codec = TextCodec(train_tokenizer(texts, 400, config.text.length), train_lexicon(texts, 300, least=1))
    model = AshNet(config, 3).eval()
    part = host_parts(model, codec)[name]
    write_part(model, part, tmp_path / f"{name}.onnx")
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    for count in (1, 3):
        with torch.no_grad():
            vision, tokens = model.vision(normalise(images[:count])), codec.encode(texts[:count])
            w = model.text(tokens)
            inputs, truth = {
                "encode": ((images[:count],), (vision.f, vision.s_in)),
                "readout": ((vision.s_out, vision.f), (vision.v,)),
                "text": (tokens, (w, model.embed_texts(w, tokens))),
            }[name]
        found = HostModels(tmp_path).run(name, **{k: x.numpy() for k, x in zip(part.inputs, inputs, strict=False)})
        for a, b in zip(found, truth, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("fault", ["spikes", "numbers", "program", "exporter"])
def test_an_export_that_gives_something_else_leaves_no_folder(fault, vqa, tmp_path, monkeypatch):
    run, _ = vqa
    if fault == "exporter":
        monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: 1 / 0)
        reason = r"encode.onnx: torch.onnx cannot export this part \(division by zero\)"
    elif fault == "program":
        other = export.run_program(run)
        last = replace(other.layers[-1], v_th_mant=np.zeros_like(other.layers[-1].v_th_mant))
        other = replace(other, layers=(*other.layers[:-1], last))
        monkeypatch.setattr(export, "run_program", lambda run: other)
        reason = r"the program gives \d+ of \d+ spikes otherwise than the quantized stack"
    else:
        run_part = HostModels.run

        def otherwise(self, name, **inputs):
            found = run_part(self, name, **inputs)
            if name == "encode" and fault == "spikes":
                found[1][0, 0, 0, 0, 0] = 1 - found[1][0, 0, 0, 0, 0]
            if name == "answer" and fault == "numbers":
                found[0] = found[0] * 1.001
            return found

        monkeypatch.setattr(HostModels, "run", otherwise)
        reason = "logits: onnxruntime differs from torch by 1.0e-03" if fault == "numbers" else "1 of .* input spikes"
    if fault != "exporter":  # the parts of the bundle that is there already, since making them takes its time
        made = run.folder.with_name("bundle")
        monkeypatch.setattr(export, "write_part", lambda model, part, path: shutil.copy(made / path.name, path))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(BackendError, match=reason):
        export_run(run, tmp_path / "out", bundle=True, samples=4)
    assert list(tmp_path.iterdir()) == []
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["encode.onnx", "answer.onnx", "program/weights.safetensors", "lexicon.json"])
def test_a_changed_or_missing_file_is_refused_by_name(name, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: differs from the SHA-256"):
        open_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name}: listed in the manifest and missing"):
        open_bundle(copy)


def test_a_bundle_about_pairs_answers_from_two_files_as_torch_does(tmp_path, few_records, capsys):
    run, bundle = quantized(tmp_path, "nlvr2"), tmp_path / "bundle"
    checked = export_run(run, bundle, bundle=True)["checked"]
    assert (checked["images"], checked["texts"], checked["mismatching_input_spikes"]) == (80, 40, 0)
    data, files = load_split(run, "test"), [tmp_path / "left.png", tmp_path / "right.png"]
    for path, pixels in zip(files, data.image(0), strict=True):
        Image.fromarray(pixels).save(path)
    for shown in (files, files[::-1]):
        texts = [data.texts(0)[0], "both are red"]
        arguments = ["run", str(bundle), "--image", *map(str, shown), "--text", *texts, "--json"]
        assert main(arguments) == 0
        results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
        pixels = torch.from_numpy(np.stack([np.array(Image.open(path)) for path in shown])).permute(0, 3, 1, 2)
        model = load_model(run, "qat", CPU)
        with torch.no_grad():
            tokens, v = run.codec.encode(texts), model.vision(normalise(pixels)).v
            truth = model.answer(model.text(tokens), tokens.padding, v.expand(2, -1, -1)).softmax(1)
        for result, row in zip(results, truth, strict=True):
            found = {answer["answer"]: answer["probability"] for answer in result["answers"]}
            np.testing.assert_allclose([found[answer] for answer in run.answers], row, atol=1e-5)
    assert main(["run", str(bundle), "--image", str(files[0]), "--text", "both are red"]) == 2
    assert capsys.readouterr().err == "ashnets: --image has 1 pictures; give 2, which a text of this bundle is about\n"


def test_bad_input_is_one_line(vqa, bundle, picture, tmp_path, capsys):
    def refused(folder: Path, image: Path, *rest: str) -> str:
        assert main(["run", str(folder), "--image", str(image), *rest]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    (tmp_path / "text.png").write_text("no picture")
    assert "text.png: not a picture in a known format" in refused(bundle, tmp_path / "text.png", "--text", "what?")
    assert "no.png: there is no such file" in refused(bundle, tmp_path / "no.png", "--text", "what?")
    assert "the text '  ' is empty" in refused(bundle, picture, "--text", "what?", "  ")
    assert "there is no text" in refused(bundle, picture, "--text")
    assert "is not Unicode" in refused(bundle, picture, "--text", "\udcff")
    assert "--top is 0" in refused(bundle, picture, "--text", "what?", "--top", "0")
    assert "kind 'run', expected 'bundle'" in refused(vqa[0].folder, picture, "--text", "what?")
    assert "there is no such folder" in refused(tmp_path / "nowhere", picture, "--text", "what?")
    assert "backend 'brain' is not known" in refused(bundle, picture, "--text", "what?", "--backend", "brain")


def test_the_models_alone_are_exported_for_a_quantized_run_only(vqa, tmp_path, monkeypatch, capsys):
    run, _ = vqa
    made = run.folder.with_name("bundle")
    monkeypatch.setattr(export, "write_part", lambda model, part, path: shutil.copy(made / path.name, path))
    out = tmp_path / "onnx"
    assert main(["export", str(run.folder), "--format", "onnx", "--out", str(out), "--samples", "3", "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["checked"]["images"] == 3
    names = {path.name for path in out.iterdir()}
    assert names == {f"{n}.onnx" for n in ("encode", "readout", "text", "image", "answer")} | {
        "manifest.json", "tokenizer.json", "lexicon.json"
    }  # fmt: skip
    assert main(["export", str(run.folder.with_name("float")), "--format", "bundle"]) == 2
    assert "has no quantized stack" in capsys.readouterr().err
    assert main(["export", str(run.folder / "program"), "--format", "bundle"]) == 2
    assert "kind 'program', expected 'run'" in capsys.readouterr().err
    assert main(["export", str(run.folder), "--format", "onnx", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
