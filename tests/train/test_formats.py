"""Official formats: every record read right."""

import json

import numpy as np
import pytest

from ashnets.cli import main
from hw.errors import UserError
from tests.train.official import MAKERS, NOTES, QUESTIONS, dump, picture, rewrite
from train.data import collate, load
from train.data.check import check_folder
from train.data.formats import NoSplitError, detect
from train.metrics.retrieval import Similarities, rank
from train.metrics.vqa import soft_scores

# (records, texts) of train, val and test; None where the format has no such split
COUNTS = {
    "coco": [(6, 33), (6, 33), None],
    "karpathy": [(3, 16), (2, 10), (1, 5)],
    "flickr30k": [(3, 15), (2, 10), (1, 5)],
    "albef": [(2, 4), (1, 2), (1, 2)],
    "visual_genome": [(2, 4), (1, 2), None],
    "vqa": [(3, 6), (2, 4), (2, 4)],
    "nlvr2": [(3, 4), (3, 4), (3, 4)],
    "snli_ve": [(3, 9), (3, 9), (3, 9)],
    "shards": [(6, 6), (3, 3), None],
    "classes": [(6, 6), (4, 4), (2, 2)],
    "table": [(2, 4), (1, 2), (1, 2)],
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASHNETS_CACHE", str(tmp_path / "cache"))


def test_a_folder_is_known_by_its_files_and_read_whole(made):
    name, root = made
    assert detect(root) == name
    for split, count in zip(("train", "val", "test"), COUNTS[name], strict=True):
        if count is None:
            with pytest.raises(UserError, match=f"has no split '{split}'"):
                load(str(root), split, 8)
            continue
        data = load(str(root), split, 8)
        assert (len(data), sum(len(data.texts(i)) for i in range(len(data)))) == count
        assert len({data.image_id(i) for i in range(len(data))}) == (2 if name == "classes" else len(data))
        for i in range(len(data)):
            assert data.image(i).dtype == np.uint8
            assert data.image(i).shape == ((2, 8, 8, 3) if name == "nlvr2" else (8, 8, 3))
            assert len(data.text_ids(i)) == len(data.texts(i)) == len(set(data.text_ids(i)))
        assert data.fingerprint == load(f"{name}:{root}", split, 8).fingerprint


def test_the_check_finds_nothing_wrong_and_draws_a_sheet(made, tmp_path, monkeypatch, capsys):
    name, root = made
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["format"] == name
    assert [(s["images"], s["texts"]) for s in found["splits"]] == [c for c in COUNTS[name] if c]
    assert (tmp_path / "data.png").stat().st_size > 1000


def test_annotators_disagree_and_the_answer_to_learn_is_in_its_official_form(tmp_path):
    MAKERS["vqa"](tmp_path)
    data = load(str(tmp_path), "train", 8)
    assert data.answers(0) == ("2", "yes")
    assert data.votes(0)[1][:4] == ("yes", "no", "yes", "Yes.")
    assert data.text_ids(0) == ("1000", "1001")
    assert data.kinds(0) == ("number", "yes/no")
    test = load(str(tmp_path), "test", 8)
    assert test.answers(0) == ()
    assert test.votes(0) == ((), ())
    assert test.kinds(0) == ()


def test_every_question_has_its_place_among_the_answers_where_any_has_one(tmp_path):
    MAKERS["vqa"](tmp_path)
    rewrite(tmp_path / NOTES, lambda v: [a.update(multiple_choice_answer="the") for a in v["annotations"][:2]])
    data = load(str(tmp_path), "train", 8)
    assert [data.answers(i) for i in range(3)] == [("", ""), ("2", "yes"), ("2", "yes")]
    assert collate(data, [0, 1, 2], np.random.default_rng(0), None).answers == ["", "", "2", "yes", "2", "yes"]


def test_pictures_of_a_table_that_share_an_id_are_the_same_thing(tmp_path):
    rows = [f"{k}.png,a mug {k // 2},mug{k // 2},{s},{n}" for s in ("train", "val") for k in range(4) for n in "ab"]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption,image_id,split,note", *rows]))
    for k in range(4):
        picture(tmp_path / f"{k}.png", k)
    data = load(str(tmp_path), "train", 8)
    assert [data.image_id(i) for i in range(len(data))] == ["mug0", "mug0", "mug1", "mug1"]
    assert [data.records[i].images[0].name for i in range(4)] == ["0.png", "1.png", "2.png", "3.png"]
    assert [data.text_ids(i) for i in (0, 1)] == [("mug0#0", "mug0#1"), ("mug0#2", "mug0#3")]
    ids, near = [data.image_id(i) for i in range(4)], np.repeat(np.eye(2), 2, 0)
    assert set(rank(Similarities(images=near, texts=near), ids, np.arange(4)).recalls().values()) == {100.0}
    assert [report.summary()["images"] for report in check_folder("table", tmp_path)] == [4, 4, 0]
    assert all(not report.problems for report in check_folder("table", tmp_path))


def test_what_a_lone_annotator_said_is_in_the_form_that_is_learned(tmp_path):
    MAKERS["vqa"](tmp_path)

    def lone(value: dict) -> None:
        for row, said in zip(value["annotations"], ("Two", "The dog") * 3, strict=True):
            row.update(multiple_choice_answer=said, answers=[{"answer": said, "answer_id": 1}])

    rewrite(tmp_path / NOTES, lone)
    data = load(str(tmp_path), "train", 8)
    for i in range(len(data)):
        assert data.answers(i) == ("2", "dog")
        assert [soft_scores(votes) for votes in data.votes(i)] == [{"2": 1.0}, {"dog": 1.0}]


def test_pictures_of_one_class_are_found_by_its_name(tmp_path):
    MAKERS["classes"](tmp_path)
    data = load(str(tmp_path), "train", 8)
    assert [data.image_id(i) for i in range(6)] == ["käfig"] * 3 + ["red_ball"] * 3
    near = np.repeat(np.eye(2), 3, 0)
    found = rank(Similarities(images=near, texts=near), [data.image_id(i) for i in range(6)], np.arange(6))
    assert set(found.recalls().values()) == {100.0}
    (tmp_path / "train" / "red_ball" / ".DS_Store").touch()
    (tmp_path / "train" / ".cache" / "0").mkdir(parents=True)
    assert len(load(str(tmp_path), "train", 8)) == 6
    (tmp_path / "train" / "red_ball" / "small").mkdir()
    with pytest.raises(UserError, match="red_ball: file 4: 'small' is a folder in a class; put its pictures beside it"):
        load(str(tmp_path), "train", 8)


def test_a_list_that_begins_with_many_captions_is_known(tmp_path):
    MAKERS["albef"](tmp_path)
    path = next(tmp_path.glob("*_train.json"))
    rows = json.loads(path.read_text())
    rows[0] = {"caption": [f"{k} of many words about one picture" for k in range(99)], "image": rows[0]["image"]}
    path.write_text(json.dumps(rows))
    assert len(load(str(tmp_path), "train", 8).texts(0)) == 99


def test_texts_of_any_script_come_through(tmp_path):
    MAKERS["karpathy"](tmp_path)
    said = " ".join(text for split in ("train", "val", "test") for text in all_texts(load(str(tmp_path), split, 8)))
    assert all(words in said for words in ("grüner Käfig", "κόκκινη", "赤いボール"))


def all_texts(data) -> list[str]:
    return [text for i in range(len(data)) for text in data.texts(i)]


def test_blank_lines_of_a_table_are_passed_over(tmp_path):
    MAKERS["table"](tmp_path)
    whole = all_texts(load(str(tmp_path), "train", 8))
    path = tmp_path / "captions.csv"
    path.write_text("\n" + "\n\n".join(path.read_text("utf-8-sig").splitlines()) + "\n\n")
    assert all_texts(load(str(tmp_path), "train", 8)) == whole


def test_a_table_of_all_is_not_looked_at_beside_tables_of_splits(tmp_path):
    picture(tmp_path / "1.png", 1)
    (tmp_path / "train.csv").write_text("image,caption\n1.png,a ball\n")
    (tmp_path / "data.csv").write_text("what,ever\n1,2\n")
    assert [report.split for report in check_folder("table", tmp_path)] == ["train"]
    with pytest.raises(NoSplitError, match="has no split 'test' in the format table; it has train"):
        load(str(tmp_path), "test", 8)


def test_the_test_questions_of_the_server_are_preferred_to_the_development_ones(tmp_path):
    MAKERS["vqa"](tmp_path)
    dump(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": []})
    assert len(load(str(tmp_path), "test", 8)) == 2


def test_a_folder_without_any_split_is_refused_by_the_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", "vqa:empty"]) == 2
    assert "empty: has no split in the format vqa; expected v2_OpenEnded_mscoco_" in capsys.readouterr().err
    assert not (tmp_path / "empty.png").exists()


def test_a_written_data_set_passes_the_check(tmp_path, monkeypatch, capsys):
    from train.data.easy_nlvr2 import SENTENCES

    for split in SENTENCES:
        monkeypatch.setitem(SENTENCES, split, 12)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "write", "pairs", "--name", "easy_nlvr2"]) == 0
    assert main(["data", "check", "pairs"]) == 0
    assert "images 48, texts 48" in capsys.readouterr().out
    assert main(["data", "write", "pairs", "--name", "easy_nlvr2"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["pairs", "pairs.png"]


def test_several_data_sets_are_one_and_their_ids_never_meet(tmp_path):
    for kind in ("coco", "karpathy", "shards"):
        (tmp_path / kind).mkdir()
        MAKERS[kind](tmp_path / kind)
    name = ", ".join(f"{kind}:{tmp_path / kind}" for kind in ("coco", "shards", "karpathy"))
    data = load(name, "train", 8)
    parts = [load(one.strip(), "train", 8) for one in name.split(",")]
    assert len(data) == sum(map(len, parts)) == 15
    assert all_texts(data) == [text for part in parts for text in all_texts(part)]
    assert len({data.image_id(i) for i in range(len(data))}) == 15
    for i, (part, k) in enumerate([(one, k) for one in parts for k in range(len(one))]):
        np.testing.assert_array_equal(data.image(i), part.image(k))
        assert data.text_ids(i) == part.text_ids(k)
        assert data.kinds(i) == part.kinds(k) == ()
    assert len(load(name, "test", 8)) == 1  # only Karpathy's has one
    assert load(name, "val", 8).fingerprint != data.fingerprint
    table = tmp_path / "table"
    MAKERS["table"](table)
    rows = (table / "captions.csv").read_text("utf-8-sig").splitlines()
    (table / "captions.csv").write_text("\n".join(row for row in rows if ",test," not in row))
    assert len(load(f"table:{table},karpathy:{tmp_path / 'karpathy'}", "test", 8)) == 1  # its table has no such row


def test_the_left_picture_of_a_pair_is_the_first_and_its_label_goes_with_it(tmp_path):
    MAKERS["nlvr2"](tmp_path)
    data = load(str(tmp_path), "train", 8)
    for i, record in enumerate(data.records):
        assert [path.name for path in record.images] == [f"train-5-{i}-img{side}.png" for side in (0, 1)]
        assert data.answers(i) == (str(i == 1),) * (1 + (i == 0))
    assert not np.array_equal(data.image(0)[0], data.image(0)[1])


def test_development_questions_are_about_pictures_of_the_test(tmp_path):
    MAKERS["vqa"](tmp_path)
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").rename(
        tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    )
    data = load(str(tmp_path), "test", 8)
    assert [r.images[0].name for r in data.records] == [f"COCO_test2015_{k:012d}.jpg" for k in (6, 7)]


def test_of_pictures_with_one_name_the_path_decides(tmp_path):
    for folder, number in (("left", 1), ("right", 2)):
        picture(tmp_path / folder / "1.png", number)
    (tmp_path / "train.csv").write_text("image,caption\nright/1.png,a ball\n")
    (record,) = load(str(tmp_path), "train", 8).records
    assert record.images == (tmp_path / "right" / "1.png",)
    (tmp_path / "train.csv").write_text("image,caption\n1.png,a ball\n")
    with pytest.raises(UserError, match=r"row 1: picture '1.png' is there more than once \(left/1.png and right/1.png"):
        load(str(tmp_path), "train", 8)
    (tmp_path / "right" / "1.png").rename(tmp_path / "right" / "2.png")
    (tmp_path / "train.csv").write_text("image,caption\nright/1.png,a ball\n")
    with pytest.raises(UserError, match=r"there is no picture 'right/1.png' below .* \(left/1.png is another\); put"):
        load(str(tmp_path), "train", 8)
    (tmp_path / "train.csv").write_text("image,caption\nthe/peers/disk/1.png,a ball\n")
    assert load(str(tmp_path), "train", 8).records[0].images == (tmp_path / "left" / "1.png",)


def test_ids_of_one_folder_twice_are_apart(tmp_path):
    MAKERS["coco"](tmp_path)
    data = load(f"coco:{tmp_path},coco:{tmp_path}", "train", 8)
    assert len({data.image_id(i) for i in range(len(data))}) == 12


def test_the_fingerprint_feels_every_text_answer_and_place_but_not_a_picture_that_was_mended(tmp_path):
    MAKERS["vqa"](tmp_path)
    before = load(str(tmp_path), "train", 8).fingerprint
    changes = {
        "question": lambda: rewrite(tmp_path / QUESTIONS, lambda v: v["questions"][0].update(question="why?")),
        "vote": lambda: rewrite(tmp_path / NOTES, lambda v: v["annotations"][0]["answers"][0].update(answer="x")),
        "answer": lambda: rewrite(tmp_path / NOTES, lambda v: v["annotations"][0].update(multiple_choice_answer="x")),
        "place": lambda: (tmp_path / "train2014").rename(tmp_path / "pictures"),
    }
    seen = {before}
    for change in changes.values():
        change()
        seen.add(load(str(tmp_path), "train", 8).fingerprint)
    assert len(seen) == 5
    picture(tmp_path / "pictures" / "COCO_train2014_000000000001.jpg", 3)
    assert load(str(tmp_path), "train", 8).fingerprint in seen


def test_the_check_draws_captions_of_several_lines(tmp_path):
    picture(tmp_path / "data" / "1.png", 1)
    (tmp_path / "data" / "captions.csv").write_text('image,caption,split\n1.png,"a mug\nand its shadow\n",train\n')
    check_folder("table", tmp_path / "data", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_the_sheet_never_lies_among_the_data(tmp_path, monkeypatch, capsys):
    picture(tmp_path / "1" / "1.png", 1)
    before = (tmp_path / "1" / "1.png").read_bytes()
    (tmp_path / "1" / "captions.csv").write_text("image,caption,split\n1.png,a mug,train\n")
    monkeypatch.chdir(tmp_path / "1")
    assert main(["data", "check", "."]) == 2
    assert "1.png: the sheet would lie among the data" in capsys.readouterr().err
    assert (tmp_path / "1" / "1.png").read_bytes() == before
