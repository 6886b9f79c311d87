"""Whole configurations, each a function: what is trained, on what, for how long."""

from collections.abc import Callable
from dataclasses import replace

from ashnets.config import LossConfig, base, small, tiny
from train.config import RunConfig, Task, TrainConfig, pretrain_recipe
from train.stages import at_image_size

PAPERS = {"itc_queue": 1.0, "itm": 1.0, "mlm": 1.0, "scl": 0.2, "stua": 0.2}


def tiny_recipe() -> RunConfig:
    """OpenMoji at 64 px: two CPU cores, minutes."""
    return RunConfig(model=tiny(), train=pretrain_recipe())


def small_recipe() -> RunConfig:
    """COCO's captions at 128 px: one GPU, hours. 20 epochs of 113,287 images."""
    return RunConfig(
        model=small(),
        train=TrainConfig(
            dataset="karpathy:data/coco",
            tokenizer_data=("karpathy:data/coco",),
            objectives=PAPERS,
            losses=LossConfig(temperature=0.07, temperature_least=0.001, soft=0.4, queue=16384),
            steps=8850,
            batch=256,
            lr=3e-4,
            warmup=500,
            crop=0.5,
            flip=True,
            again=128,
            save_every=1770,
        ),
    )


def base_4m_recipe() -> RunConfig:
    """The setting of ALBEF (Li et al. 2021): ViT-B/16 and BERT-base on COCO, Visual Genome, SBU and CC3M, 30 epochs of
    4.0 million images, 512 a step; 224 px where ALBEF has 256."""
    return RunConfig(
        model=base(),
        train=TrainConfig(
            dataset="karpathy:data/coco,visual_genome:data/vg,shards:data/sbu,shards:data/cc3m",
            objectives=PAPERS,
            losses=LossConfig(temperature=0.07, temperature_least=0.001, soft=0.4, queue=65536),
            init_image="hub:timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
            init_text="hub:google-bert/bert-base-uncased",
            steps=235_000,
            batch=512,
            lr=1e-4,
            warmup=1000,
            weight_decay=0.02,
            crop=0.5,
            flip=True,
            again=128,
            save_every=7_800,
            log_every=50,
        ),
    )


def base_tuned(task: Task, data: str) -> RunConfig:
    """How such a model is tuned, after ALBEF: 384 px, AdamW at 2e-5 (retrieval 1e-5), weight decay 0.02, and 10 epochs
    of COCO's 566,435 captions, 8 of VQA v2's 443,757 questions, 10 of NLVR2's 86,373 pairs, 5 of SNLI-VE's 529,527
    hypotheses, 256 of them a step, 128 pairs."""
    steps, images, texts, lr = {
        "retrieval": (22_130, 256, 1, 1e-5),
        "vqa": (13_870, 64, 4, 2e-5),
        "nlvr2": (6_750, 128, 1, 2e-5),
        "snli_ve": (10_340, 64, 4, 2e-5),
    }[task]
    answers = {"answers_from": ("train", "val"), "answers_least": 9} if task == "vqa" else {}
    objectives = {"retrieval": {"itc_queue": 1.0, "itm": 1.0}, "vqa": {"vqa_soft": 1.0}}.get(task, {"vqa": 1.0})
    start = base_4m_recipe()
    model = at_image_size(start.model, 384)
    train = replace(
        start.train,
        task=task,
        dataset=data,
        objectives=objectives,
        steps=steps,
        batch=images,
        texts_per_image=texts,
        lr=lr,
        save_every=steps // 5,
        init_image="",
        init_text="",
        flip=task != "nlvr2",
        again=256,  # of COCO; other tasks rank nothing
        **answers,
    )
    fusion = replace(model.fusion, images=2 if task == "nlvr2" else 1)
    return RunConfig(model=replace(model, fusion=fusion), train=train)


TUNED: dict[str, Callable[[], RunConfig]] = {
    "base-retrieval": lambda: base_tuned("retrieval", "karpathy:data/coco"),
    "base-vqa": lambda: base_tuned("vqa", "vqa:data/vqa"),
    "base-nlvr2": lambda: base_tuned("nlvr2", "nlvr2:data/nlvr2"),
    "base-snli_ve": lambda: base_tuned("snli_ve", "snli_ve:data/snli_ve"),
}
"""Those that start from a pre-trained run."""
ANSWERS = {"base-vqa": 3129, "base-nlvr2": 2, "base-snli_ve": 3}
"""How many answers their data has, those of VQA v2 that are given nine times."""
RECIPES: dict[str, Callable[[], RunConfig]] = {
    "tiny": tiny_recipe,
    "small": small_recipe,
    "base-4m": base_4m_recipe,
    **TUNED,
}
