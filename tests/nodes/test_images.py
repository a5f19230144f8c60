"""Images of a run of any size: within memory and time, and never a raw error."""

import re
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageDraw
from ras_pack.demo import prompt
from ras_pack.nodes.mask_preview import RASMaskPreview
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.method.schedule import StepKind
from ras_pack.ras_core.render import frames as render_frames
from ras_pack.ras_core.render.comparison import Run, checked, comparison_image, headline
from ras_pack.ras_core.render.frames import MOST_PIXELS, mask_frames
from ras_pack.ras_core.render.masks import summary_image
from ras_pack.ras_core.run.trace import Evaluation, Trace
from support.node_js import web


def trace_of(steps: int, batch: int, h: int, w: int) -> Trace:
    """A run with every second step regional."""
    draw = np.random.default_rng(0)

    def one(i: int) -> Evaluation:
        regional = i % 2 == 1
        active = draw.random((batch, h, w)) < 0.4 if regional else np.ones((batch, h, w), dtype=bool)
        kind = StepKind.REGIONAL if regional else StepKind.DENSE
        return Evaluation(i, 1 - i / steps, kind, False, active, active.astype(np.float32), 0.1)

    return Trace(TokenGrid((2 * h, 2 * w), (2, 2)), steps, tuple(map(one, range(steps))), 2.0, 2.0, 1.0, 0)


class TestFrames:
    @pytest.mark.parametrize(
        ("steps", "batch", "h", "w"), [(28, 4, 64, 64), (400, 1, 64, 64), (40, 9, 130, 90)]
    )
    def test_memory_is_bounded(self, monkeypatch, steps, batch, h, w):
        monkeypatch.setattr(render_frames, "MOST_PIXELS", most := MOST_PIXELS // 8)
        trace = trace_of(steps, batch, h, w)
        tracemalloc.start()
        started = time.process_time()
        frames = mask_frames(trace, np.full((batch, 64, 64, 3), 0.5, dtype=np.float32))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert frames.nbytes <= 12 * most and peak < 18 * most
        assert time.process_time() - started < 5 and 5 <= len(frames) <= steps

    def test_a_token_is_outlined_on_the_sides_where_its_neighbours_are_cached(self):
        trace = trace_of(2, 1, 4, 4)
        active = trace.steps[1].active
        active[:] = False
        active[0, 1, 1:3] = True
        frame = (mask_frames(trace, np.ones((1, 8, 8, 3), dtype=np.float32))[1] * 255).round()
        line = (frame[:64] == (230, 159, 0)).all(axis=-1)
        expected = np.zeros((64, 64), dtype=bool)
        expected[16:32, 16:48] = True
        expected[18:30, 18:46] = False
        assert np.array_equal(line, expected)
        assert (frame[18:30, 18:46] == 255).all() and frame[40:60, :60].max() < 100


@pytest.mark.parametrize(("h", "w"), [(700, 1), (1, 700), (1, 1), (2, 300)])
def test_extreme_shapes(h, w):
    trace, images = trace_of(3, 1, h, w), np.zeros((1, 16 * h, 16 * w, 3), dtype=np.float32)
    assert mask_frames(trace, images).shape[0] == 3
    assert summary_image(trace, images).shape == (1, 720, 1080, 3)
    run, other = Run(images, trace), Run(images, trace)
    for fewer in (run, other):
        assert max(comparison_image(run, other, fewer).shape) < 2500


def test_the_summary_can_be_read_in_a_new_node(monkeypatch):
    """At the width that web/compare.js gives to the node: text of at least 10 pixels, all of it visible."""
    (width,) = re.findall(r"RASMaskPreview: (\d+)", web("compare.js"))
    scale = (int(width) - 20) / 1080
    drawn, draw = [], ImageDraw.ImageDraw.text

    def listened(own, at, text, *, font, anchor="la", **options):
        drawn.append((text, font.size * scale, own.textbbox(at, text, font=font, anchor=anchor)))
        draw(own, at, text, font=font, anchor=anchor, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", listened)
    long = "this sentence is one that is much longer than a line of the image, " * 4
    for steps in (3, 17, 28, 400):
        trace = replace(trace_of(steps, 1, 32, 32), notes=(long,))
        summary_image(trace, np.zeros((1, 64, 64, 3), dtype=np.float32))
    assert [text for text, size, _ in drawn if size < 10] == []
    assert [
        text for text, _, (left, top, right, bottom) in drawn if left < 0 or right > 1080 or bottom > 720
    ] == []
    assert any(text.endswith(" ...") for text, *_ in drawn)


def timed_run(*parts: tuple[StepKind, int, float], **changes) -> Run:
    """A run with a number of steps of each kind, which took these seconds each."""
    run = trace_of(1, 1, 4, 4)
    (step,) = run.evaluations
    evaluations = [
        replace(step, kind=kind, seconds=each) for kind, count, each in parts for _ in range(count)
    ]
    changes = {"n_steps": len(evaluations), "measured_speedup": 2.4, **changes}
    return Run(np.zeros((1, 8, 8, 3), np.float32), replace(run, evaluations=tuple(evaluations), **changes))


@pytest.mark.parametrize(
    ("dense", "regional", "fewer", "is_busy"),
    [
        (0.62, 0.56, 1.13, True),  # 9.8 s with RAS, 15.8 s in fewer steps
        (0.418, 0.443, 0.43, False),  # an idle computer
        (0.10, 0.13, 0.10, False),  # a small image: regional steps are no faster, but the computer is idle
        (0.60, 0.56, 0.30, True),
    ],
)
def test_runs_of_the_same_flops_should_take_as_long(dense, regional, fewer, is_busy):
    parts = (StepKind.DENSE, 5, dense), (StepKind.REGIONAL, 12, regional)
    ras = timed_run(*parts, expected_speedup=2.0, dense_steps=28)
    rival = timed_run((StepKind.DENSE, 14, fewer))
    found = checked(ras, rival)
    assert not ras.trace.is_disturbed and found.trace.is_disturbed == is_busy
    line = headline(ras.images[0], ras.images[0], (rival.trace, found.trace))
    assert line.startswith("about 2.00x faster (from FLOPs: the computer was busy)" if is_busy else "2.40x")


def test_the_images_of_a_batch_keep_their_proportions():
    """The image and four maps are smaller, but still twice as high as wide."""
    trace = trace_of(3, 4, 32, 16)
    image = summary_image(trace, np.ones((4, 64, 32, 3), dtype=np.float32))[0]
    white = (image[136:384] == 1).all(axis=-1)
    height, width = white.any(axis=1).sum(), white.any(axis=0).sum()
    assert height == pytest.approx(2 * width, abs=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_no_numbers(value):
    frames = mask_frames(trace_of(2, 1, 4, 4), np.full((1, 8, 8, 3), value, dtype=np.float32))
    assert np.isfinite(frames).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (0, 8, 8, 3), (1, 8, 8, 1), (1, 0, 8, 3)])
def test_images_of_another_form_are_refused(shape):
    with pytest.raises(RASError, match="images = a tensor of shape"):
        RASMaskPreview.execute(trace_of(2, 1, 4, 4), torch.zeros(shape))


def test_fewer_images_than_the_run_had():
    assert RASMaskPreview.execute(trace_of(2, 3, 4, 4), torch.rand(1, 8, 8, 4)).args[0].shape[0] == 2


def test_words_of_a_demo_prompt_are_not_kept():
    tracemalloc.start()
    for i in range(8):
        prompt.encode_prompt(f"{i}" + "x" * 10**6)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 10**6
    assert torch.equal(prompt.encode_prompt("Owl")[0], prompt.encode_prompt("owl")[0])


@pytest.mark.parametrize("text", ["\ud800", "\0", "ﬀ İ ß", "_" * 10**6, "a " * 10**5, "🦊 狐 фокс"])
def test_any_text_of_a_demo_prompt(text):
    context, pooled = prompt.encode_prompt(text)
    assert context.shape == (1, 16, 64) and torch.isfinite(context).all() and torch.isfinite(pooled).all()
