"""What the page can be asked, the page itself over HTTP, and in a browser (make test-all)."""

import gc
import shutil
import socket
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ashnets.cli import main
from hw.errors import UserError
from hw.simulate import open_backend
from tests.conftest import MICRO, micro_config, shorten
from train.evaluate import evaluate_answers, evaluate_retrieval
from train.metrics.retrieval import Similarities
from train.run import load_model, run_program
from train.serve.looks import open_looks
from train.serve.page import served
from train.stages import new_run, qat_config, quantized_run, train_run

CPU = torch.device("cpu")
# gradio leaves event loops and sockets to the garbage collector, and asks pandas for what is going away.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore{which}")
    for which in ("::ResourceWarning", "::pytest.PytestUnraisableExceptionWarning", "::pandas.errors.Pandas4Warning")
]


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Quantized micro runs, one that retrieves as the pre-training does, one that answers."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        for task, options in (("retrieval", {"neighbours": 3, "views": True}), ("vqa", {})):
            folder = tmp_path_factory.mktemp(task)
            source = train_run(new_run(folder / "float", micro_config(task, steps=2, **options)), CPU)
            made[task] = train_run(quantized_run(source, folder / "int8", qat_config(source, 2)), CPU, init=source)
        yield {task: run.folder for task, run in made.items()}


@pytest.fixture
def looks(folders):
    return open_looks(list(folders.values()), None, "test", CPU)


@pytest.mark.parametrize("stack", ["float", "program"])
def test_a_text_and_a_picture_find_what_the_evaluation_ranks_first(looks, stack):
    search, _ = looks
    model = load_model(search.run, {"float": "float", "program": "reference"}[stack], CPU)
    scores = evaluate_retrieval(model, search.data, search.run.codec, ranking=search.ranking).similarities.matrix()
    for t, text in enumerate(search.texts[:12]):
        found = [i for i, _ in search.pictures(text, stack, 5)]
        np.testing.assert_allclose(scores[found, t], np.sort(scores[:, t])[::-1][:5], atol=1e-5)
    for i in range(6):
        told = [text for text, _ in search.captions(search.data.image(i), stack, 3)]
        assert len(told) == len(set(told)) == 3
        best = np.argsort(-scores[i])[0]
        assert scores[i, best] - scores[i, search.texts.index(told[0])] < 1e-4


def test_similarities_of_another_text_or_image_rank_as_the_matrix_does():
    rng = np.random.default_rng(0)
    images, texts, image_hub, text_hub = (rng.normal(size=shape) for shape in ((7, 4), (9, 4), 7, 9))
    near = Similarities(images=images, texts=texts, image_hub=image_hub, text_hub=text_hub)
    for t in range(9):
        np.testing.assert_array_equal(np.argsort(near.of_text(near.texts[t])), np.argsort(near.matrix()[:, t]))
    for i in range(7):
        np.testing.assert_array_equal(np.argsort(near.of_image(near.images[i])), np.argsort(near.matrix()[i]))


@pytest.mark.parametrize("stack", ["float", "program"])
def test_answers_are_the_evaluations(looks, stack):
    _, answers = looks
    model = load_model(answers.run, {"float": "float", "program": "reference"}[stack], CPU)
    scores = evaluate_answers(
        "vqa", model, answers.data, answers.run.codec, answers.run.answers, samples=3, keep_scores=True
    ).scores
    wanted = torch.from_numpy(scores).softmax(1).numpy()
    asked = [(i, text) for i in range(3) for text in answers.data.texts(i)]
    for (i, text), row in zip(asked, wanted, strict=True):
        found = answers.answer(answers.data.image(i), text, stack)
        assert list(found) == answers.run.answers
        np.testing.assert_allclose(list(found.values()), row, atol=1e-5)


def test_spikes_beside_an_answer_are_those_of_its_run_and_lava_differs_in_none(looks):
    _, answers = looks
    picture = answers.data.image(2)
    answers.answer(picture, "what shape is this?", "Lava")
    runs = answers.backend("lava").backend.run
    answers.backend("lava").backend.run = None  # a second run would be seen
    lava = answers.spikes(picture, "Lava")
    answers.backend("lava").backend.run = runs
    program = answers.spikes(picture, "program")
    assert lava.differing == program.differing == 0
    assert lava.compared == sum(v.size for name, v in lava.layers.items() if name != "input") > 0
    assert list(lava.layers) == ["input", "conv1", "conv2", "dense1"]
    assert answers.spikes(picture, "float").differing is None
    for name, values in program.layers.items():
        np.testing.assert_array_equal(values, lava.layers[name])


def test_spikes_that_differ_are_counted(looks):
    _, answers = looks
    program = run_program(answers.run)
    last = program.layers[-1]
    loud = replace(last, bias_mant=np.full_like(last.bias_mant, 4000), bias_exp=6)
    broken = replace(program, layers=(*program.layers[:-1], loud))
    answers.backends["auto"] = open_backend("reference", broken)
    assert answers.spikes(answers.data.image(0), "program").differing > 0


def test_an_unknown_text_is_refused(looks):
    with pytest.raises(UserError, match="knows no part of these words"):
        looks[0].pictures("ыыы", "float", 3)


@pytest.fixture
def page(looks):
    """A client of the served page, and its address."""
    from gradio_client import Client

    with ExitStack() as stack:
        address, _ = stack.enter_context(served(*looks, host="127.0.0.1", port=free_port()))
        yield Client(address, verbose=False), address


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


def test_the_page_finds_tells_and_answers_over_http(page, looks, tmp_path):
    from gradio_client import handle_file

    client, _ = page
    search, answers = looks
    gallery, spikes = client.predict(search.texts[0], "program", api_name="/find")
    assert [item["caption"].split("  ")[1] for item in gallery] == [
        search.data.texts(i)[0] for i, _ in search.pictures(search.texts[0], "program", 12)
    ]
    assert "program against the reference: 0 of" in spikes
    assert spikes.count('class="raster"') == 4
    picture = tmp_path / "picture.png"
    Image.fromarray(answers.data.image(1)).save(picture)
    told, spikes = client.predict(handle_file(picture), "what is this?", "float", api_name="/ask")
    wanted = answers.answer(answers.data.image(1), "what is this?", "float")
    assert told["label"] == max(wanted, key=wanted.__getitem__)
    assert "reference" not in spikes


def test_the_page_says_in_one_line_what_is_wrong(page, tmp_path):
    from gradio_client import handle_file

    client, _ = page
    with pytest.raises(Exception, match=r"^there is nothing to look for; type a text first$"):
        client.predict("  ", "float", api_name="/find")
    with pytest.raises(Exception, match=r"^there is no picture; upload one"):
        client.predict(None, "what?", "float", api_name="/ask")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 50)
    with pytest.raises(Exception, match=r"^broken\.png: does not decode \(Truncated File Read\); save it again"):
        client.predict(handle_file(tmp_path / "broken.png"), "what?", "float", api_name="/ask")


def test_a_visitor_reads_no_file_that_was_not_uploaded(page, tmp_path):
    import httpx

    _, address = page
    picture = tmp_path / "private.png"
    Image.new("RGB", (32, 32)).save(picture)
    named = {"path": str(picture), "meta": {"_type": "gradio.FileData"}}
    asked = httpx.post(f"{address}gradio_api/call/ask", json={"data": [named, "what?", "float"]}).json()
    answer = httpx.get(f"{address}gradio_api/call/ask/{asked['event_id']}").text
    assert answer.startswith("event: error")


def test_a_taken_port_and_wrong_runs_are_refused(folders, few_records, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        assert main(["serve", str(folders["vqa"]), "--port", port]) == 2
    pairs = new_run(tmp_path / "pairs", micro_config("nlvr2"))
    assert main(["serve", str(pairs.folder)]) == 2
    coded = replace(MICRO, abstract=replace(MICRO.abstract, codebook=8))
    config = replace(micro_config("vqa"), model=coded)
    assert main(["serve", str(new_run(tmp_path / "coded", config).folder)]) == 2
    assert main(["serve", str(folders["vqa"]), str(folders["vqa"])]) == 2
    assert main(["serve"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(f"port {port} of 127.0.0.1: Address already in use" in line for line in lines)
    assert any("reads pairs of pictures" in line for line in lines)
    assert any("holds a codebook where spikes would be" in line for line in lines)
    assert any("is a second run for the same task" in line for line in lines)


@pytest.mark.parametrize("missing", ["login", "certificate", "key"])
def test_the_network_is_refused_without_keys(missing, folders, tmp_path, capsys):
    given = []
    for name in {"login", "certificate", "key"} - {missing}:
        (tmp_path / name).write_text("name:password123")
        given += [f"--{name}", str(tmp_path / name)]
    assert main(["serve", str(folders["vqa"]), "--host", "0.0.0.0", *given]) == 2
    assert "is open to the network" in capsys.readouterr().err


def test_a_login_without_a_password_is_refused(folders, tmp_path, capsys):
    (tmp_path / "login").write_text("name:short")
    assert main(["serve", str(folders["vqa"]), "--login", str(tmp_path / "login")]) == 2
    assert "expected one line NAME:PASSWORD" in capsys.readouterr().err


def test_a_visitor_without_the_login_sees_nothing(looks):
    import httpx

    with served(*looks, host="127.0.0.1", port=free_port(), login=("ada", "password1")) as (address, _):
        assert httpx.get(f"{address}config").status_code == 401
        with httpx.Client() as client:
            answer = client.post(f"{address}login", data={"username": "ada", "password": "password1"})
            assert answer.status_code == 200
            assert client.get(f"{address}config").status_code == 200


@pytest.mark.slow
def test_a_browser_shows_pictures_answers_and_spikes(looks):
    """Chromium of the system, which asks nobody but the page for anything."""
    from playwright.sync_api import sync_playwright

    browser_file = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser_file, "this test needs Chromium: apt install chromium"
    search, answers = looks
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with ExitStack() as stack:
        address, _ = stack.enter_context(served(*looks, host="127.0.0.1", port=free_port()))
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=browser_file, args=quiet)
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_label("Text").fill(search.texts[0])
        page.get_by_role("button", name="Find").first.click()
        page.locator("svg.raster:visible").first.wait_for()
        assert page.locator("button.thumbnail-item:visible, .grid-container button:visible").count() == 12
        page.locator(".grid-container button:visible").nth(2).click()
        page.get_by_text("The spikes of picture 3").wait_for()
        page.get_by_role("tab", name="Ask about a picture").click()
        page.get_by_label("Lava").last.click()
        page.locator("button.gallery-item:visible").first.click()
        page.get_by_label("Question, or a claim").fill(answers.data.texts(0)[0])
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_text("Lava against the reference: 0 of").wait_for(timeout=90_000)
        wanted = answers.answer(answers.data.image(0), answers.data.texts(0)[0], "program")
        assert page.get_by_text(max(wanted, key=wanted.__getitem__), exact=True).first.is_visible()
        browser.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def test_what_the_page_cannot_take_is_said_in_one_line(folders, few_records, tmp_path, capsys):
    (tmp_path / "login").write_bytes("müller:passwörter".encode("latin-1"))
    assert main(["serve", str(folders["vqa"]), "--login", str(tmp_path / "login")]) == 2
    (tmp_path / "pem").write_text("nothing of the kind")
    pair = ["--certificate", str(tmp_path / "pem"), "--key", str(tmp_path / "pem")]
    assert main(["serve", str(folders["vqa"]), *pair]) == 2
    assert main(["serve", str(folders["vqa"]), "--data", "few_pairs", "--port", "0"]) == 2
    login, pem, pairs = capsys.readouterr().err.splitlines()
    assert "is not UTF-8" in login
    assert "no certificate and its key" in pem
    assert "shows pairs of pictures, the page one" in pairs
