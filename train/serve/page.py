"""The page: a tab for each thing that the runs can do, the same switch and the same rasters on each (gradio)."""

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hw.errors import BackendError, UserError
from hw.images import decode_image
from train.data.base import require
from train.report.examples import strips
from train.report.markup import count, el
from train.report.page import style_sheet
from train.serve.looks import Answers, Look, Search, Spikes

SHOWN = 12  # pictures found
TOLD = 8  # captions found, and pictures of the data to try
# One request at a time: torch and Lava take all cores by themselves.
_ALONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
MOST = "20mb"  # of an uploaded picture
_FONT, _MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # gradio's own are fetched from Google
_SWITCH = "Spiking stack"
_NO_PROGRAM = "Only a quantized run has a program for the chip: 'ashnets quantize RUN' makes one."
_WAYS = "float: as it was trained. program: the chip's integers. Lava: the same on Lava, seconds a picture."


def build(search: Search | None, answers: Answers | None, folder: Path) -> Any:
    """The page as gradio's `Blocks`. folder: where pictures to try are put, as long as the page is served."""
    gr = require("gradio", "gradio")
    with gr.Blocks(analytics_enabled=False, title="ashnets", delete_cache=(600, 3600)) as blocks:
        gr.Markdown("# ashnets\nAn artificial and a spiking network look at pictures together.")
        if search is not None:
            with gr.Tab("Find pictures"):
                _find(gr, search)
            with gr.Tab("Find captions"):
                _caption(gr, search, _to_try(search, folder / "search"))
        if answers is not None:
            with gr.Tab("Ask about a picture"):
                _ask(gr, answers, _to_try(answers, folder / "answers"))
    return blocks


def free_port(host: str, port: int) -> int:
    """The port, or any that is free for 0. `UserError` where nothing can be served; asked before the work, not after
    it."""
    try:
        with socket.create_server((host, port)) as server:
            return server.getsockname()[1]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"port {port} of {host}: {reason}; give another with --port or --host") from error


@contextmanager
def served(
    search: Search | None,
    answers: Answers | None,
    *,
    host: str,
    port: int,
    login: tuple[str, str] | None = None,
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The page's address, and what waits for Ctrl-C, while the block runs. Nothing of it leaves the machine.

    login: name and password that visitors need. certificate: its file and its key's, for https.
    """
    gr = require("gradio", "gradio")
    with tempfile.TemporaryDirectory(prefix="ashnets-serve-") as folder:
        blocks = build(search, answers, Path(folder))
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            auth=login,
            ssl_certfile=str(certificate[0]) if certificate else None,
            ssl_keyfile=str(certificate[1]) if certificate else None,
            ssl_verify=False,  # of its own call to itself, whose certificate names another host
            share=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MOST,
            footer_links=[],
            theme=gr.themes.Default(font=_FONT, font_mono=_MONO),
            css=style_sheet("train.serve"),
        )
        try:
            yield address, blocks.block_thread
        finally:
            blocks.close()


def _find(gr: Any, search: Search) -> None:
    stack = _switch(gr, search)
    text = gr.Textbox(label="Text", placeholder="a red heart", lines=1, max_length=1000)
    go = gr.Button("Find", variant="primary")
    gallery = gr.Gallery(
        label=f"Nearest of {count(len(search.data))} pictures",
        columns=6,
        height="auto",
        object_fit="contain",
        buttons=[],
        allow_preview=False,
    )
    found, spikes = gr.State([]), gr.HTML(label="Spikes")

    @_told(gr)
    def find(text: str, stack: str) -> tuple[list[tuple[np.ndarray, str]], list[int], str]:
        nearest = search.pictures(_given(text, "a text"), stack, SHOWN)
        named = [(i, "  ".join((f"{cosine:.2f}", *search.data.texts(i)[:1]))) for i, cosine in nearest]
        pictures = [(search.data.image(i), name) for i, name in named]
        first = nearest[0][0]
        return pictures, [i for i, _ in nearest], _drawn(search, search.data.image(first), stack, "the first picture")

    @_told(gr)
    def look(found: list[int], stack: str, event: gr.SelectData) -> str:  # pyright: ignore[reportInvalidTypeForm]
        return _drawn(search, search.data.image(found[event.index]), stack, f"picture {event.index + 1}")

    for trigger in (go.click, text.submit):
        trigger(find, [text, stack], [gallery, found, spikes], **_ALONE)
    gallery.select(look, [found, stack], spikes, **_ALONE)


def _caption(gr: Any, search: Search, examples: list[str]) -> None:
    stack = _switch(gr, search)
    with gr.Row():
        picture = _picture(gr, examples)
        captions = gr.Dataframe(headers=["caption", "cosine"], label="Nearest captions", interactive=False, wrap=True)
    go, spikes = gr.Button("Find", variant="primary"), gr.HTML(label="Spikes")

    @_told(gr)
    def find(path: str | None, stack: str) -> tuple[list[list[str]], str]:
        pixels = _pixels(search, path)
        nearest = search.captions(pixels, stack, TOLD)
        return [[text, f"{cosine:.2f}"] for text, cosine in nearest], _drawn(search, pixels, stack, "the picture")

    go.click(find, [picture, stack], [captions, spikes], **_ALONE)


def _ask(gr: Any, answers: Answers, examples: list[str]) -> None:
    stack = _switch(gr, answers)
    question = next((text for i in range(len(answers.data)) for text in answers.data.texts(i)), "")
    with gr.Row():
        picture = _picture(gr, examples)
        with gr.Column():
            text = gr.Textbox(label="Question, or a claim", placeholder=question, lines=1, max_length=1000)
            go = gr.Button("Ask", variant="primary")
            told = gr.Label(label="Answers", num_top_classes=5)
    spikes = gr.HTML(label="Spikes")

    @_told(gr)
    def ask(path: str | None, text: str, stack: str) -> tuple[dict[str, float], str]:
        pixels = _pixels(answers, path)
        return answers.answer(pixels, _given(text, "a question"), stack), _drawn(answers, pixels, stack, "the picture")

    for trigger in (go.click, text.submit):
        trigger(ask, [picture, text, stack], [told, spikes], **_ALONE)


def _switch(gr: Any, look: Look) -> Any:
    info = _WAYS if len(look.stacks) > 1 else _NO_PROGRAM
    return gr.Radio(list(look.stacks), value=look.stacks[0], label=_SWITCH, info=info)


def _picture(gr: Any, examples: list[str]) -> Any:
    with gr.Column():
        picture = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], height=280)
        # gradio would decode it first, and tell a visitor nothing of what is wrong.
        picture.preprocess = lambda payload: None if payload is None else payload.path
        gr.Examples([[path] for path in examples], picture, label="Some of the data")
    return picture


def _told(gr: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What a user can mend is told on the page, in the line that the command line would print."""

    def wrapping(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def told(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except (UserError, BackendError) as error:
                raise gr.Error(str(error), print_exception=False) from error

        return told

    return wrapping


def _given(text: str, what: str) -> str:
    if not text.strip():
        raise UserError(f"there is nothing to look for; type {what} first")
    return text


def _pixels(look: Look, path: str | None) -> np.ndarray:
    if path is None:
        raise UserError("there is no picture; upload one, or click one of the data's")
    try:
        return decode_image(path, look.image_size)
    except UserError as error:
        raise UserError(str(error).replace(path, Path(path).name)) from error


def _to_try(look: Look, folder: Path) -> list[str]:
    """Pictures of the data, spread over it, as files."""
    folder.mkdir()
    paths = []
    for i in np.linspace(0, len(look.data) - 1, min(TOLD, len(look.data)), dtype=int):
        Image.fromarray(look.data.image(i)).save(folder / f"{i}.png")
        paths.append(str(folder / f"{i}.png"))
    return paths


def _drawn(look: Look, pixels: np.ndarray, stack: str, whose: str) -> str:
    spikes = look.spikes(pixels, stack)
    return str(el("div", el("p", _verdict(spikes, stack, whose)), strips(spikes.layers)))


def _verdict(spikes: Spikes, stack: str, whose: str) -> str:
    lead = f"The spikes of {whose}, layer by layer, time steps from left to right."
    if spikes.differing is None:
        return lead
    return f"{lead} {stack} against the reference: {spikes.differing} of {count(spikes.compared)} spikes differ."
