"""Shards of webdataset: read in place, every sample found or its fault told."""

import tarfile

import pytest

from hw.errors import UserError
from tests.train.official import encoded, shard
from train.data import load
from train.data.check import check_folder
from train.data.formats import open_folder


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASHNETS_CACHE", str(tmp_path / "cache"))


def test_a_shard_is_read_in_place_and_its_problems_are_counted(tmp_path):
    good = {"a.jpg": encoded(0), "a.txt": b"a ball", "b.jpg": bytes(30), "b.txt": b"broken", "c.jpg": encoded(1)}
    shard(tmp_path / "train-0.tar", good | {"d.txt": b"alone", "e.jpg": encoded(2), "e.txt": b""})
    data, problems = open_folder("shards", tmp_path, "train", 8)
    assert [data.texts(i) for i in range(len(data))] == [("a ball",), ("broken",)]
    assert sorted(p.kind for p in problems) == ["missing", "missing", "record"]
    with pytest.raises(UserError, match=r"train-0.tar: picture at byte \d+: the picture of 30 bytes: not a picture"):
        data.image(1)
    assert check_folder("shards", tmp_path)[0].summary()["broken"] == 1


def test_a_key_is_a_folder_and_a_name_up_to_the_first_dot(tmp_path):
    for number, folder in enumerate(("./", "cc3m.v1/", "cc3m.v1/a/", "")):
        content = {f"{folder}{k}{end}": data for k in "01" for end, data in ((".jpg", encoded(1)), (".txt", b"a ball"))}
        extra = {f"{folder}._0.jpg": b"", f"{folder}._0.txt": b"", f"{folder}0.seg.png": b""}
        shard(tmp_path / f"train-{number}.tar", content | extra)
    data, problems = open_folder("shards", tmp_path, "train", 8)
    assert (len(data), problems) == (8, [])


def test_ids_of_shards_with_one_name_in_two_folders_are_apart(tmp_path):
    for folder in ("train-a", "train-b"):
        shard(tmp_path / folder / "00000.tar", {"0.jpg": encoded(0), "0.txt": b"a ball"})
    data = load(str(tmp_path), "train", 8)
    assert [data.image_id(i) for i in range(2)] == ["train-a/00000@512", "train-b/00000@512"]
    assert data.text_ids(0) != data.text_ids(1)


def test_captions_that_are_no_text_and_shards_without_samples_are_counted(tmp_path):
    for name, caption in (("a", b"a ball"), ("b", b"caf\xe9"), ("c", b" \n ")):
        shard(tmp_path / f"train-{name}.tar", {"0.png": encoded(1), "0.txt": caption})
    shard(tmp_path / "train-d.tar", {"0.cls": b"1", "0.jpeg2000": b""})
    report = check_folder("shards", tmp_path)[0]
    assert (report.images, report.summary()["record"], report.summary()["missing"]) == (1, 2, 1)
    told = [str(problem).removeprefix(f"{tmp_path}/") for problem in report.problems]
    assert told[:2] == [
        "train-b.tar: 0: its caption is not UTF-8; write it anew, or leave the sample out",
        "train-c.tar: 0: has an empty caption; write one, or leave the sample out",
    ]
    assert told[2].startswith("train-d.tar: 2 files: no sample among them, '0.cls' first; it takes KEY.jpg (jpg,")
    with pytest.raises(UserError, match=r"train-b.tar: 0: its caption is not UTF-8.* \(and 2 more: "):
        load(f"shards:{tmp_path}", "train", 8)


def test_one_shard_serves_any_number_of_readers_and_a_changed_one_is_indexed_anew(tmp_path):
    shard(tmp_path / "train-0.tar", {"a.jpg": encoded(0), "a.txt": b"one"})
    first = load(str(tmp_path), "train", 8)
    shard(tmp_path / "train-0.tar", {"b.png": encoded(2), "b.txt": b"another"})
    assert load(str(tmp_path), "train", 8).texts(0) == ("another",)
    assert first.fingerprint != load(str(tmp_path), "train", 8).fingerprint


def texts_of(data) -> list[str]:
    return [text for i in range(len(data)) for text in data.texts(i)]


def test_shards_without_a_split_in_their_names_keep_the_last_for_validation(tmp_path):
    for k in range(3):
        shard(tmp_path / f"0000{k}.tar", {f"{k}.jpg": encoded(k), f"{k}.txt": f"ball {k}".encode()})
    assert texts_of(load(str(tmp_path), "train", 8)) == ["ball 0", "ball 1"]
    assert texts_of(load(str(tmp_path), "val", 8)) == ["ball 2"]


def test_a_split_is_a_word_of_a_shards_name_and_every_shard_has_one_or_none(tmp_path):
    for k in range(3):
        shard(tmp_path / f"latest-0000{k}.tar", {f"{k}.jpg": encoded(k), f"{k}.txt": f"ball {k}".encode()})
    assert texts_of(load(str(tmp_path), "train", 8)) == ["ball 0", "ball 1"]
    for name, told in (
        ("cc3m-Train-0", "latest-00000.tar: its name tells of no split"),
        ("train-val", "train and val"),
    ):
        shard(tmp_path / f"{name}.tar", {"3.jpg": encoded(3), "3.txt": b"ball 3"})
        with pytest.raises(UserError, match=told):
            load(str(tmp_path), "train", 8)
        if name == "cc3m-Train-0":
            for path in tmp_path.glob("latest*"):
                path.unlink()


def test_a_shard_that_ends_between_two_samples_is_known_to_be_cut(tmp_path):
    shard(tmp_path / "train-0.tar", {"a.jpg": encoded(0), "a.txt": b"one", "b.jpg": encoded(1), "b.txt": b"two"})
    path = tmp_path / "train-0.tar"
    with tarfile.open(path) as tar:
        end = tar.getmember("b.jpg").offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UserError, match=r"train-0.tar: does not end as a tar file does, so it was cut short"):
        load(f"shards:{tmp_path}", "train", 8)
