"""Official formats: what is wrong is refused with file and record, or told by the check."""

import json
import re
from pathlib import Path

import pytest

from hw.errors import UserError
from tests.train.official import MAKERS, NOTES, QUESTIONS, dump, picture, rewrite
from train.data import load
from train.data.check import check_folder
from train.data.formats import FORMATS, open_folder


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASHNETS_CACHE", str(tmp_path / "cache"))


def broken(root: Path) -> list[Path]:
    """Every file of annotations, made unreadable one after the other."""
    return [p for p in root.rglob("*") if p.suffix in (".json", ".jsonl", ".token", ".csv", ".tar")]


def test_a_file_that_is_cut_is_refused_by_name(made):
    name, root = made
    for path in broken(root):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(0.4 * len(whole)) + 3])
        with pytest.raises(UserError, match=re.escape(str(root))):
            read_all(name, root)
        path.write_bytes(whole)
    read_all(name, root)


def read_all(name: str, root: Path) -> None:
    for split in ("train", "val", "test"):
        if FORMATS[name].files(root, split):
            load(f"{name}:{root}", split, 8)


def test_a_missing_picture_is_told_with_its_record(made):
    name, root = made
    if name in ("shards", "classes"):
        pytest.skip("pictures are inside the shards, or are the records themselves")
    split_data = load(str(root), "train", 8)
    path = split_data.records[0].images[0]  # type: ignore[attr-defined]
    path.unlink()
    with pytest.raises(UserError, match=rf"(annotation|image|line|record|question|row|file) \d+: .*'.*{path.name}'"):
        load(str(root), "train", 8)
    problems = open_folder(name, root, "train", 8)[1]
    assert {p.kind for p in problems} == {"missing"}


def test_a_broken_picture_is_counted_by_the_check_and_named(made, tmp_path):
    name, root = made
    if name == "shards":
        pytest.skip("tested below")
    path = load(str(root), "train", 8).records[0].images[0]  # type: ignore[attr-defined]
    path.write_bytes(b"\xff\xd8\xff" + bytes(50))
    reports = check_folder(name, root, tmp_path / "sheet.png")
    assert reports[0].summary()["broken"] == 1
    assert path.name in str(reports[0].problems[0])
    assert sum(r.summary()["broken"] for r in reports[1:]) == 0


def rewrite_line(path: Path, number: int, change) -> None:
    lines = path.read_text().splitlines()
    row = json.loads(lines[number])
    change(row)
    lines[number] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n")


COCO = "annotations/captions_train2014.json"

# (format, what happens to its files, what is said of it)
WRONG = [
    ("coco", lambda r: rewrite(r / COCO, lambda v: v["annotations"][4].pop("caption")),
     r"captions_train2014.json: annotation 5: 'caption' is missing; it holds id, image_id"),
    ("coco", lambda r: rewrite(r / COCO, lambda v: v["annotations"].append(v["annotations"][0])),
     r"annotation 34: '1000' was there before"),
    ("coco", lambda r: rewrite(r / COCO, lambda v: v["images"].append(v["images"][0])),
     r"image 7: image '1' was there before"),
    ("coco", lambda r: rewrite(r / COCO, lambda v: v["annotations"][0].update(image_id=99)),
     r"annotation 1: image_id '99' is not among"),
    ("coco", lambda r: rewrite(r / COCO, lambda v: v["annotations"][0].update(caption=7)),
     r"annotation 1: 'caption' is 7, expected str"),
    ("coco", lambda r: rewrite(r / COCO, lambda v: v["annotations"][0].update(caption=" ")),
     r"annotation 1: has an empty text"),
    ("coco", lambda r: rewrite(r / COCO, lambda v: v.pop("annotations")),
     r"there is no list 'annotations'"),
    ("coco", lambda r: dump(r / "annotations/captions_train2017.json", {}), r"holds both captions_train2014.json and"),
    ("coco", lambda r: picture(r / "copy/COCO_train2014_000000000001.jpg", 1), r"annotation 1: .* more than once"),
    ("karpathy", lambda r: rewrite(r / "dataset_coco.json", lambda v: v["images"][1].update(split="trian")),
     r"image 2: split is 'trian'"),
    ("karpathy", lambda r: rewrite(r / "dataset_coco.json", lambda v: v["images"][4].update(cocoid=500)),
     r"image 5: image '500' was there before"),
    ("karpathy", lambda r: rewrite(r / "dataset_coco.json", lambda v: v["images"][0].update(sentences=[])),
     r"image 1: 'sentences' is empty; leave the image out"),
    ("flickr30k", lambda r: (r / "train.txt").unlink(), r"tells no splits, and beside it there is not one train.txt"),
    ("flickr30k", lambda r: (r / "train.txt").write_text("1000\n77\n"),
     r"train.txt: list, image 1: '77' has no captions"),
    ("flickr30k", lambda r: (r / "results_20130124.token").write_text("1000.jpg#0 without a tab\n"),
     r"results_20130124.token: line 1: expected ID.jpg#NUMBER"),
    ("albef", lambda r: rewrite(r / "own_train.json", lambda v: v[1].update(image="images/3.jpg")),
     r"record 2: image id 'own_train/0' stands for 3.jpg here, for 0.jpg at .*record 1"),
    ("albef", lambda r: rewrite(r / "own_train.json", lambda v: v[1].update(caption=[1])),
     r"record 2: 'caption' holds 1"),
    ("vqa", lambda r: rewrite(r / NOTES, lambda v: v["annotations"].pop(3)),
     r"question 4: question '2001' has no annotation"),
    ("vqa", lambda r: rewrite(r / QUESTIONS, lambda v: v["questions"].pop(3)),
     r"annotation of question 1: '2001' is not among the questions"),
    ("vqa", lambda r: rewrite(r / NOTES, lambda v: v["annotations"][3].update(image_id=1)),
     r"question 4: question '2001' is about image 2, its annotation about 1"),
    ("vqa", lambda r: rewrite(r / NOTES, lambda v: v["annotations"][3].update(answers=[])),
     r"annotation 4: 'answers' is empty"),
    ("nlvr2", lambda r: rewrite_line(r / "train.json", 2, lambda v: v.update(label="true")),
     r"line 3: label is 'true'"),
    ("nlvr2", lambda r: rewrite_line(r / "train.json", 2, lambda v: v.update(identifier="x-1")),
     r"line 3: identifier is 'x-1', expected SPLIT-SET-PAIR-SENTENCE"),
    ("nlvr2", lambda r: rewrite_line(r / "train.json", 1, lambda v: v.update(identifier="train-5-0-0")),
     r"line 2: 'train-5-0-0' was there before"),
    ("snli_ve", lambda r: rewrite_line(r / "snli_ve_train.jsonl", 0, lambda v: v.update(gold_label="-")),
     r"line 1: gold_label is '-', expected one of entailment"),
    ("snli_ve", lambda r: rewrite_line(r / "snli_ve_train.jsonl", 1, lambda v: v.pop("Flikr30kID")),
     r"line 2: 'Flickr30K_ID' is missing"),
    ("snli_ve", lambda r: rewrite_line(r / "snli_ve_train.jsonl", 1, lambda v: v.update(sentence2="a \ud800")),
     r"line 2: has half a character"),
    ("table", lambda r: (r / "captions.csv").write_text("image,text,split\n0.png,a,train\n"),
     r"captions.csv: there is no column 'caption' among image, text, split"),
    ("table", lambda r: (r / "captions.csv").write_text("image,caption,split\n0.png,a\n"),
     r"row 1: has 2 fields on line 2, the header 3"),
    ("table", lambda r: (r / "captions.csv").write_text("split,image,caption\ntrain,0.png,a dog, a cat and a ball\n"),
     r"row 1: has 4 fields on line 2, the header 3; quote a field that holds commas or tabs"),
    ("table", lambda r: (r / "captions.csv").write_text("image,caption,split,caption\n0.png,a,train,b\n"),
     r"captions.csv: column 'caption' is there 2 times; keep one"),
    ("table", lambda r: (r / "captions.csv").write_bytes(b"image,caption,split\n0.png,Stra\xdfe,train\n"),
     r"is not UTF-8"),
    ("table", lambda r: (r / "captions.csv").write_text('image,caption,split\n0.png,"a" b,train\n'), r"line 2: "),
    ("table", lambda r: (r / "captions.csv").write_text(""), r"captions.csv: is empty"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_what_is_wrong_is_told_with_file_and_record(case, tmp_path):
    name, spoil, expected = WRONG[case]
    MAKERS[name](tmp_path)
    load(f"{name}:{tmp_path}", "train", 8)
    spoil(tmp_path)
    with pytest.raises(UserError, match=expected) as caught:
        load(f"{name}:{tmp_path}", "train", 8)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_question_without_an_answer_is_refused_where_others_have_one(tmp_path):
    rows = ["image,question,answer,split", "0.png,a?,red,train", "1.png,b?, ,train", "0.png,c?,,test", "1.png,d?,,test"]
    (tmp_path / "questions.csv").write_text("\n".join(rows))
    for k in (0, 1):
        picture(tmp_path / f"{k}.png", k)
    with pytest.raises(
        UserError, match=r"questions.csv: row 2: has no answer, and other rows of its split have; write"
    ):
        load(str(tmp_path), "train", 8)
    report, _, test = check_folder("table", tmp_path)
    assert (report.summary()["missing"], report.answers, test.problems) == (1, {"red": 1}, [])
    assert [load(str(tmp_path), "test", 8).answers(i) for i in (0, 1)] == [(), ()]


def test_a_folder_of_two_formats_must_be_told_which(tmp_path):
    MAKERS["vqa"](tmp_path)
    MAKERS["coco"](tmp_path)
    with pytest.raises(UserError, match=rf"holds coco and vqa; say which, for example coco:{tmp_path}"):
        load(str(tmp_path), "train", 8)
    assert len(load(f"vqa:{tmp_path}", "train", 8)) == 3


@pytest.mark.parametrize("name", ["", "table:", ","])
def test_an_empty_name_is_not_the_folder_that_one_stands_in(name, tmp_path, monkeypatch):
    MAKERS["table"](tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="' names no data; give a data set at hand, FOLDER or FORMAT:FOLDER"):
        load(name, "train", 8)
    assert len(load(".", "train", 8)) == len(load("table:.", "train", 8)) > 0


def test_an_unknown_folder_is_refused_with_what_is_known(tmp_path):
    with pytest.raises(UserError, match=r"no annotations in a known format \(coco: captions_train2014.json"):
        load(str(tmp_path), "train", 8)
    with pytest.raises(UserError, match="there is no such folder"):
        load(f"coco:{tmp_path}/nothing", "train", 8)


def test_tasks_are_not_joined(tmp_path):
    for kind in ("coco", "nlvr2", "vqa"):
        (tmp_path / kind).mkdir()
        MAKERS[kind](tmp_path / kind)
    with pytest.raises(UserError, match="some of them have answers and some have none"):
        load(f"coco:{tmp_path}/coco,vqa:{tmp_path}/vqa", "train", 8)
    with pytest.raises(UserError, match="some are of single images and some of pairs"):
        load(f"nlvr2:{tmp_path}/nlvr2,vqa:{tmp_path}/vqa", "train", 8)
    with pytest.raises(UserError, match="has no split 'test'"):
        load(f"coco:{tmp_path}/coco,coco:{tmp_path}/coco", "test", 8)
