import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hw.errors import UserError
from quantize.verify import Joint
from tests.train.html_reader import HOSTILE, META, Reader
from tests.train.stories import EMPTY, joint, picture, run_summary, story
from train.report import write_report
from train.report.markup import VOID
from train.report.page import SECTIONS, page
from train.report.story import AnswerExample, RetrievalExample, SpikeExample


@pytest.fixture(scope="module")
def whole() -> Reader:
    return Reader(page(story()))


def test_the_page_asks_nothing_of_the_network(whole):
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in whole.elements}
    for tag, attrs in whole.elements:
        for key, value in attrs.items():
            if key in ("src", "srcset", "href", "xlink:href", "data", "action", "poster", "style"):
                assert value.startswith(("#", "data:image/png;base64,")) or (key == "style" and "url" not in value), (
                    tag,
                    key,
                )
            assert not key.startswith("on")
    assert "url(" not in whole.style
    assert "@import" not in whole.style


def test_the_markup_nests_and_only_html_elements_without_content_stay_open(whole):
    assert whole.open == []
    assert VOID == META


def test_ids_are_unique_and_every_link_has_its_target(whole):
    ids = [attrs["id"] for _, attrs in whole.elements if "id" in attrs]
    assert len(ids) == len(set(ids)) > 10
    links = {attrs["href"][1:] for attrs in whole.all("a")}
    assert links == {attrs["id"] for attrs in whole.all("section")}
    assert len(links) == len(SECTIONS)


def test_everything_can_be_read_without_seeing_it(whole):
    assert all(attrs["alt"] for attrs in whole.all("img"))
    drawings = [attrs for attrs in whole.all("svg") if "aria-hidden" not in attrs]
    assert len(drawings) == 6  # the line twice, three panels, one raster
    assert all(attrs["role"] == "img" for attrs in drawings)
    assert len(whole.all("title")) == 1 + len(drawings)
    assert whole.all("html") == [{"lang": "en"}]
    assert len(whole.all("h1")) == 1
    assert {attrs.get("scope") for attrs in whole.all("th")} == {"row", "col"}
    assert len(whole.all("caption")) == len(whole.all("table")) >= 4


# Separated by bars; on the page, the space before a percent sign does not break.
FIGURES = """
96.8 %|95.7 %|94.6 %|67.0 %|61.5 %|9,673|9.1 %|38.2 %|36.4 %|23.9 %|11.3 %|4.0 %|250 held-out concepts
22.13 %|9.61 %|of 4,096|of 512|of 4,608|23|lava against reference|c0ffee|2.10.9|an abacus
3,456|7,654|731|37|0.0003|48 px|int8|seed 917|step 30|27.2 %
conv 64, stride 2 \u2192 dense 128|itc \u00d7 1, scl \u00d7 0.2
83.1 %|11.2 %|52.7 %|24.4 %|a blue circle|a fish|a hat|a watermelon
"""


@pytest.mark.parametrize("figure", FIGURES.strip().replace("\n", "|").split("|"))
def test_every_figure_of_the_story_is_on_the_page(whole, figure):
    assert figure.replace(" %", "\u00a0%") in whole.text


def test_pictures_are_embedded_pixel_for_pixel():
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    text = page(replace(EMPTY, spikes=[SpikeExample(image=pixels, caption="noise", layers={})]))
    (image,) = Reader(text).all("img")
    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


def test_hostile_text_is_shown_and_never_run():
    run = replace(
        run_summary(), name=HOSTILE, config={"train": {"objectives": {HOSTILE: 1.0}}}, data={HOSTILE: HOSTILE}
    )
    for entry in run.log:
        entry[HOSTILE] = 1.0
    spikes = np.ones((4, 3), np.uint8)
    reader = Reader(
        page(
            story(
                title=HOSTILE,
                environment={HOSTILE: HOSTILE},
                runs=[run],
                accuracies=[(HOSTILE, 50.0, HOSTILE)],
                retrieval={HOSTILE: 1.0},
                joints=[Joint(left=HOSTILE, right=HOSTILE, samples=1, mismatches={HOSTILE: 0}, compared={HOSTILE: 1})],
                rates={HOSTILE: 0.1},
                spikes=[SpikeExample(image=picture(), caption=HOSTILE, layers={HOSTILE: spikes})],
                answers=[AnswerExample(image=picture(), question=HOSTILE, right=HOSTILE, top=[(HOSTILE, 0.5)])],
                retrievals=[RetrievalExample(query=HOSTILE, found=[(HOSTILE, True)])],
            )
        )
    )
    assert not reader.all("script")
    assert not any(key.startswith("on") for _, attrs in reader.elements for key in attrs)
    assert reader.text.count(HOSTILE) >= 20
    assert reader.open == []


def test_no_mismatching_spike_is_shown_as_a_success(whole):
    (card,) = whole.with_class("verdict")
    assert card["class"] == "card verdict good"
    assert "All 4,608 compared spikes are equal, at 1 joint." in whole.text
    assert not [attrs for attrs in whole.all("td") if attrs.get("class") == "bad"]
    assert len([attrs for attrs in whole.all("td") if attrs.get("class") == "good"]) == 3


def test_one_mismatching_spike_is_shown_as_a_failure():
    reader = Reader(page(story(joints=[joint(), joint(mismatches=1)])))
    (card,) = reader.with_class("verdict")
    assert card["class"] == "card verdict bad"
    assert "Failed: 1 of 9,216 compared spikes differ." in reader.text
    assert "are equal" not in reader.text
    assert "\u2717 1 " in reader.text
    assert (
        len([attrs for attrs in reader.all("td") if attrs.get("class") == "bad"]) == 2
    )  # the layer and its row's total


@pytest.mark.parametrize("joints", [[joint(compared=0)], [joint(), joint(compared=0)]])
def test_a_joint_that_compared_nothing_is_no_success(joints):
    reader = Reader(page(story(joints=joints)))
    (card,) = reader.with_class("verdict")
    assert card["class"] == "card verdict unknown"
    assert "Not verified" in reader.text
    assert "are equal" not in reader.text


def test_mismatches_where_nothing_was_counted_as_compared_are_still_a_failure():
    reader = Reader(page(story(joints=[joint(mismatches=2, compared=0)])))
    assert reader.with_class("verdict")[0]["class"] == "card verdict bad"
    assert "\u2717 2 " in reader.text


def test_a_story_without_data_has_no_sections_and_no_figures():
    reader = Reader(page(EMPTY))
    assert not any(reader.all(tag) for tag in ("section", "nav", "table", "img", "h2"))
    assert not reader.with_class("card")
    assert "Nothing yet" in reader.text


@pytest.mark.parametrize(
    ("field", "empty", "gone"),
    [
        ("runs", [], {"trained", "training", "reproduce"}),
        ("accuracies", [], {"accuracy"}),
        ("joints", [], {"joints"}),
        ("spikes", [], {"spikes"}),
        ("rates", {}, {"rates"}),
        ("retrieval", {}, {"retrieval"}),
        ("retrievals", [], {"found"}),
        ("answers", [], {"answers"}),
        ("environment", {}, {"environment"}),
    ],
)
def test_a_section_without_data_is_left_out_and_the_others_stay(whole, field, empty, gone):
    sections = {attrs["id"] for attrs in whole.all("section")}
    reader = Reader(page(story(**{field: empty})))
    assert {attrs["id"] for attrs in reader.all("section")} == sections - gone
    assert bool(reader.with_class("verdict")) == (field != "joints")


def test_a_run_without_a_log_shows_no_curves():
    run = replace(run_summary(), log=[], history=[], config={}, data={})
    reader = Reader(page(story(runs=[run])))
    assert "training" not in {attrs["id"] for attrs in reader.all("section")}
    assert not reader.with_class("panel")


def test_right_and_wrong_answers_differ_in_words(whole):
    assert [
        attrs["class"] for attrs in whole.all("article") if attrs["class"] in ("example right", "example wrong")
    ] == [
        "example right",
        "example wrong",
    ]
    assert whole.text.count("\u2713 right") == whole.text.count("\u2717 wrong") == 1
    assert "Right answer:  teal" in whole.text


def test_the_own_match_is_marked_with_its_rank(whole):
    assert "own match at rank 2" in whole.text
    assert "own match not among the first 2" in whole.text
    assert len([attrs for attrs in whole.all("li") if attrs.get("class") == "right"]) == 1


def test_the_best_reference_is_a_line_through_the_bars(whole):
    (bars,) = [attrs for attrs in whole.with_class("bars") if "data-reference" in attrs]
    assert bars["style"] == "--reference: 67.00%"
    assert len(whole.with_class("hatched")) == 2
    without = Reader(page(story(accuracies=[("float", 96.8, "")])))
    assert not [attrs for attrs in without.with_class("bars") if "data-reference" in attrs]


def test_the_same_story_makes_the_same_bytes():
    assert page(story()) == page(story())


def test_a_typical_report_stays_small(tmp_path):
    rng = np.random.default_rng(0)

    def noise() -> np.ndarray:
        return rng.integers(0, 256, (64, 64, 3), np.uint8)  # noise does not compress

    layers = {name: rng.integers(0, 2, (4, 2048), np.uint8) for name in ("input", "conv1", "conv2", "dense1")}
    log = [
        {"step": s, "split": "train", "loss": float(v), "rate": 0.1, "rate_in": 0.2}
        for s, v in enumerate(rng.random(5000))
    ]
    typical = story(
        runs=[replace(run_summary(), log=log)] * 3,
        spikes=[SpikeExample(image=noise(), caption="c", layers=layers)] * 3,
        answers=[AnswerExample(image=noise(), question="q", right="a", top=[("a", 0.5)] * 5) for _ in range(12)],
        retrievals=[RetrievalExample(query="q", found=[(noise(), False) for _ in range(5)]) for _ in range(6)],
    )
    path = write_report(typical, tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    assert path.stat().st_size < 3_000_000
    assert path.read_text(encoding="utf-8") == page(typical)


def test_an_unwritable_folder_is_a_user_error_that_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(story(), tmp_path / "file" / "report.html")
    with pytest.raises(UserError, match="is a folder"):
        write_report(story(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_story_that_cannot_be_drawn_leaves_the_old_report(tmp_path):
    path = write_report(story(), tmp_path / "report.html")
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_report(story(answers=[None]), path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]
