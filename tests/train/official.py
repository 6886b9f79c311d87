"""Small folders in every official format, with what their authors' files really hold: disagreeing annotators, more than
five captions, both keys of SNLI-VE, pictures of every mode and under wrong names."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

MODES = ("RGB", "L", "P", "RGBA", "CMYK", "1")


def picture(path: Path, number: int, kind: str | None = None) -> None:
    """A picture of one colour; its mode and its real format change with its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number, kind))


def encoded(number: int, kind: str | None = None) -> bytes:
    mode = MODES[number % len(MODES)]
    image = Image.fromarray(np.full((9, 12, 3), 40 * number % 256, np.uint8)).convert(mode)
    file = io.BytesIO()
    kind = kind or ("JPEG" if mode in ("RGB", "L", "CMYK") else "PNG")
    image.save(file, kind)
    return file.getvalue()


def dump(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def dump_lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def coco(root: Path) -> None:
    for split, first in (("train", 1), ("val", 7)):
        images = [{"id": k, "file_name": f"COCO_{split}2014_{k:012d}.jpg"} for k in range(first, first + 6)]
        for row in images:
            picture(root / f"{split}2014" / row["file_name"], row["id"])
        captions = [(row["id"], f"number {row['id']}, said {n}") for row in images for n in range(5 + row["id"] % 2)]
        notes = [{"id": 1000 * first + n, "image_id": i, "caption": c} for n, (i, c) in enumerate(captions)]
        dump(root / "annotations" / f"captions_{split}2014.json", {"images": images, "annotations": notes})


def karpathy(root: Path) -> None:
    rows, words = [], ("ein grüner Käfig", "μια κόκκινη μπάλα", "赤いボールが一つ", "a ball")
    for k, split in enumerate(("train", "restval", "val", "test", "train", "val")):
        sentences = [
            {"raw": f"{words[(k + n) % 4]} {k}", "sentid": 10 * k + n, "imgid": k} for n in range(5 + (k == 0))
        ]
        rows.append(
            {"filepath": "val2014", "filename": f"{k}.jpg", "imgid": k, "cocoid": 500 + k, "split": split}
            | {"sentences": sentences, "sentids": [s["sentid"] for s in sentences]}
        )
        picture(root / "val2014" / f"{k}.jpg", k)
    dump(root / "dataset_coco.json", {"images": rows, "dataset": "coco"})


def flickr30k(root: Path) -> None:
    lines = []
    for k in range(6):
        picture(root / "flickr30k-images" / f"{1000 + k}.jpg", k)
        lines += [f"{1000 + k}.jpg#{n}\tA man , number {k} , said {n} ." for n in range(5)]
    (root / "results_20130124.token").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, ids in (("train", (1000, 1001, 1002)), ("val", (1003, 1004)), ("test", (1005,))):
        (root / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))


def albef(root: Path) -> None:
    for k in range(4):
        picture(root / "images" / f"{k}.jpg", k)
    train = [
        {"image": f"images/{k}.jpg", "caption": f"picture {k}, {n}", "image_id": k} for k in (0, 1) for n in (0, 1)
    ]
    dump(root / "own_train.json", train)
    for split, k in (("val", 2), ("test", 3)):
        dump(
            root / f"own_{split}.json",
            [{"image": f"images/{k}.jpg", "caption": [f"one of {k}", f"two of {k}, of which all is said here"]}],
        )


def visual_genome(root: Path) -> None:
    rows = []
    for k in (1, 2, 50):
        regions = [
            {"region_id": 10 * k + n, "image_id": k, "phrase": p} for n, p in enumerate(("a ball", " a ball", ""))
        ]
        rows.append({"id": k, "regions": [*regions, {"region_id": 10 * k + 9, "image_id": k, "phrase": f"the {k}"}]})
        picture(root / ("VG_100K" if k % 2 else "VG_100K_2") / f"{k}.jpg", k)
    dump(root / "region_descriptions.json", rows)


def vqa(root: Path) -> None:
    said = ("yes", "no", "yes", "Yes.", "yes", "no", "maybe", "yes", "a yes", "yes")
    for split, name in (("train", "train2014"), ("val", "val2014"), ("test", "test2015")):
        first = {"train": 1, "val": 4, "test": 6}[split]
        questions, answers = [], []
        for k in range(first, first + 3 - (split != "train")):
            picture(root / name / f"COCO_{name}_{k:012d}.jpg", k)
            for n in range(2):
                questions.append({"image_id": k, "question": f"is {n} in {k}?", "question_id": 1000 * k + n})
                answers.append(
                    {"question_id": 1000 * k + n, "image_id": k, "multiple_choice_answer": "Yes." if n else "two"}
                    | {"question_type": "is", "answer_type": "yes/no" if n else "number"}
                    | {"answers": [{"answer": a if n else "2", "answer_id": i} for i, a in enumerate(said, 1)]}
                )
        dump(root / f"v2_OpenEnded_mscoco_{name}_questions.json", {"questions": questions})
        if split != "test":
            dump(root / f"v2_mscoco_{name}_annotations.json", {"annotations": answers})


def nlvr2(root: Path) -> None:
    for name, folder in (("train", "images/train/17"), ("dev", "dev"), ("test1", "test1")):
        rows = []
        for pair in range(3):
            for side in (0, 1):
                # Some of the official files are JPEG under the name of a PNG.
                picture(root / folder / f"{name}-5-{pair}-img{side}.png", pair + side, None if side else "GIF")
            for sentence in range(1 + (pair == 0)):
                identifier = f"{name}-5-{pair}-{sentence}"
                rows.append({"identifier": identifier, "sentence": f"both show {sentence}", "label": str(pair == 1)})
        dump_lines(root / f"{name}.json", rows)


def snli_ve(root: Path) -> None:
    for name, key in (("train", "Flikr30kID"), ("dev", "Flickr30K_ID"), ("test", "Flickr30K_ID")):
        rows = []
        for k in range(3):
            image = f"{name}{k}"
            picture(root / "flickr30k_images" / f"{image}.jpg", k)
            for n, label in enumerate(("entailment", "neutral", "contradiction")):
                whole = image + (".jpg" if key == "Flikr30kID" else "")
                rows.append({key: whole, "pairID": f"{image}#{n}", "gold_label": label, "sentence2": f"it is {n}"})
        dump_lines(root / f"snli_ve_{name}.jsonl", rows)


def shard(path: Path, samples: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def shards(root: Path) -> None:
    for number, name in enumerate(("cc3m-train-00000", "cc3m-train-00001", "cc3m-validation-00000")):
        samples = {}
        for k in range(3):
            key = f"{number:05d}{k:04d}"
            samples |= {f"{key}.jpg": encoded(k), f"{key}.txt": f"ein Ball, {number} {k}: μπάλα".encode()}
            samples |= {f"{key}.json": b'{"url": "x"}'}
        shard(root / f"{name}.tar", samples)


def table(root: Path) -> None:
    rows = ["image,caption,split,note"]
    for k, split in enumerate(("train", "train", "val", "test")):
        picture(root / "pictures" / f"{k}.png", k)
        rows += [f'{k}.png,"a ball, number {k}",{split},x', f"{k}.png,Ball {k},{split},"]
    (root / "captions.csv").write_text("﻿" + "\r\n".join(rows) + "\r\n", encoding="utf-8")


def classes(root: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for k, name in enumerate(("red_ball", "käfig")):
            for n in range(count):
                picture(root / split / name / f"{n}.png", k + n)


NOTES, QUESTIONS = "v2_mscoco_train2014_annotations.json", "v2_OpenEnded_mscoco_train2014_questions.json"


def rewrite(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    dump(path, value)


MAKERS = {
    "coco": coco,
    "karpathy": karpathy,
    "flickr30k": flickr30k,
    "albef": albef,
    "visual_genome": visual_genome,
    "vqa": vqa,
    "nlvr2": nlvr2,
    "snli_ve": snli_ve,
    "shards": shards,
    "classes": classes,
    "table": table,
}
