"""The live view's messages: recipients, frequency and contents."""

import base64
import io
import logging
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.latent_formats import SD3 as SD3Format
from latent_preview import Latent2RGBPreviewer
from PIL import Image
from ras_pack.nodes import live
from ras_pack.ras_core.host import previews
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.host.speed import Speed
from ras_pack.ras_core.method.grid import TokenGrid
from ras_pack.ras_core.method.plan import Plan
from ras_pack.ras_core.method.plan_set import PlanSet
from ras_pack.ras_core.method.schedule import StepKind, StepPlan
from ras_pack.ras_core.models.cost import CostProfile
from ras_pack.ras_core.render import masks
from ras_pack.ras_core.render.frames import mask_frames
from ras_pack.ras_core.render.masks import summary_image
from ras_pack.ras_core.run.live import Estimate, LiveStep, live_step
from ras_pack.ras_core.run.recorder import Recorder
from ras_pack.ras_core.run.timing import timestamp
from support.families import FAMILIES
from support.sampling import FAST, STEPS, sample

SD3 = FAMILIES["sd3"]
SD3_FORMAT = SD3Format()
IMAGE = np.zeros((2, 2, 3), np.uint8)
ABOUT = {"node": "7", "prompt_id": "p1", "grid": [8, 8], "latent": [16, 16], "patch": [2, 2]}


@pytest.fixture
def server(monkeypatch):
    """The part of ComfyUI's server that the live view uses; `sent` collects (event, message, client)."""
    instance = SimpleNamespace(
        client_id="anna", sockets={"anna": None, "ben": None}, last_node_id="7", last_prompt_id="p1", sent=[]
    )
    instance.send_sync = lambda event, data, sid=None: instance.sent.append((event, data, sid))
    module = SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    monkeypatch.setitem(sys.modules, "server", module)
    monkeypatch.setattr(live, "MIN_INTERVAL", 0.0)
    monkeypatch.setattr(live, "_watchers", set())
    return instance


def run(callback=None, config=FAST):
    patched = patch_model(SD3.build(), config, view_factory=live.open_view)
    sample(patched, SD3, SD3.noise(batch=2), callback=callback)
    return last_trace(patched)


def messages(server) -> list[dict]:
    return [data for _, data, _ in server.sent]


def unpacked(mask: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(mask), np.uint8)).astype(bool)


class TestRecipients:
    @pytest.fixture
    def built(self, monkeypatch) -> list[str]:
        """The names of the messages that were built."""
        built = []
        for name in ("step_message", "end_message"):
            build = getattr(live, name)
            monkeypatch.setattr(
                live, name, lambda x, name=name, build=build: (built.append(name), build(x))[1]
            )
        return built

    def test_if_nobody_watches_no_message_is_built(self, server, built):
        run()
        assert built == [] and server.sent == []

    def test_a_watcher_that_queued_nothing_gets_nothing(self, server, built):
        live._watchers.add("ben")
        run()
        assert built == [] and server.sent == []

    def test_only_the_client_that_queued_gets_them(self, server, built):
        live._watchers.update({"anna", "ben"})
        run()
        assert {(event, sid) for event, _, sid in server.sent} == {("multirate_ras.live", "anna")}
        assert built == ["step_message"] * STEPS + ["end_message"]

    def test_a_client_that_left_gets_nothing(self, server, built):
        live._watchers.add("anna")
        del server.sockets["anna"]
        run()
        assert built == []

    def test_a_prompt_without_a_client_shows_nothing(self, server, built):
        live._watchers.add("anna")
        server.client_id = None
        run()
        assert built == []

    def test_a_client_that_stops_watching_mid_run_gets_no_more(self, server, built):
        live._watchers.add("anna")
        run(callback=lambda step, *_: live._watchers.clear() if step == 1 else None)
        assert built == ["step_message"] * 2

    def test_without_a_server_there_is_nobody(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "server", None)
        assert live.open_view(SimpleNamespace(h=8, w=8)) is None
        live.register_route()


class TestContents:
    """Messages of a run with the settings FAST: of ten steps, 0 and 1 are dense and 6 is an error reset. The
    other steps compute half of the 64 tokens.
    """

    KINDS = ["dense"] * 2 + ["regional"] * 4 + ["reset"] + ["regional"] * 3

    @pytest.fixture
    def trace(self, server):
        live._watchers.add("anna")
        return run()

    def test_each_step_is_sent_when_it_starts(self, server, trace):
        steps = messages(server)[:-1]
        assert [m["step"] for m in steps] == list(range(STEPS))
        assert [m["kind"] for m in steps] == self.KINDS
        assert [m["share"] for m in steps] == [1.0 if kind != "regional" else 0.5 for kind in self.KINDS]
        assert all(m.items() >= ABOUT.items() and m["steps"] == STEPS for m in steps)

    def test_the_mask_is_that_of_the_first_image(self, server, trace):
        for message, step in zip(messages(server)[:-1], trace.steps, strict=True):
            if message["kind"] == "regional":
                assert (unpacked(message["mask"]) == step.active[0].ravel()).all()
                assert (step.active[0] != step.active[1]).any()
            else:
                assert message["mask"] is None

    def test_the_end_lists_all_steps_again(self, server, trace):
        end = messages(server)[-1]
        assert end["finished"] and (end["steps"], end["regional_steps"]) == (STEPS, 7)
        assert [step["kind"] for step in end["timeline"]] == self.KINDS
        assert [s["mask"] for s in end["timeline"]] == [m["mask"] for m in messages(server)[:-1]]
        # (3 + 7 / 2) / 10
        assert end["share"] == pytest.approx(0.65)

    def test_they_name_the_plan(self, server):
        live._watchers.add("anna")
        plan = Plan("2x", "euler", (1.0,), (1.0, 1.0, 0.5, 0.5, 0.5), full_steps=STEPS)
        trace = run(config=Speed("2x", PlanSet((plan,))))
        said = {message["plan"] for message in messages(server)}
        assert (
            said == {trace.plan} == {"2x: 5 steps instead of 10, all dense (few steps: no step is regional)"}
        )

    def test_a_run_that_breaks_off_says_so(self, server):
        live._watchers.add("anna")

        def stop(step, *_):
            if step == 3:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            run(callback=stop)
        assert messages(server)[-1] == {**ABOUT, "phase": "end", "finished": False}

    def test_a_second_evaluation_in_a_step_is_not_sent(self, server):
        live._watchers.add("anna")
        patched = patch_model(SD3.build(), FAST, view_factory=live.open_view)
        sample(patched, SD3, SD3.noise(), sampler="heun")
        assert len(last_trace(patched).evaluations) > STEPS
        assert [m["step"] for m in messages(server)[:-1]] == list(range(STEPS))

    def test_the_image_is_the_same_as_unwatched(self, server):
        plain = sample(patch_model(SD3.build(), FAST, view_factory=live.open_view), SD3, SD3.noise())
        live._watchers.add("anna")
        watched = sample(patch_model(SD3.build(), FAST, view_factory=live.open_view), SD3, SD3.noise())
        assert server.sent and torch.equal(plain, watched)

    def test_a_failing_view_does_not_affect_the_image(self, server, caplog):
        live._watchers.add("anna")

        def broken(*_args, **_kwargs):
            raise RuntimeError("socket")

        server.send_sync = broken
        with caplog.at_level(logging.WARNING):
            assert run().n_steps == STEPS
        assert sum("the live view of this run failed" in record.message for record in caplog.records) == 1

    def test_an_unknown_server_does_not_affect_the_image(self, server, caplog):
        del server.last_node_id
        live._watchers.add("anna")
        with caplog.at_level(logging.WARNING):
            assert run().n_steps == STEPS
        assert sum("the live view of this run failed" in record.message for record in caplog.records) == 1


class TestPreviews:
    """On a fresh ComfyUI, which makes no previews, the live view makes them from the latent format."""

    @pytest.fixture(autouse=True)
    def watching(self, server):
        live._watchers.add("anna")

    def test_each_step_shows_the_estimate_of_the_step_before(self, server, monkeypatch):
        monkeypatch.setattr(live, "pack_image", lambda image: image)
        estimates = []
        run(callback=lambda step, denoised, *_: estimates.append(denoised[:1].clone()))
        first, *later, end = messages(server)
        assert "preview" not in first
        shown = [message["preview"] for message in (*later, end)]
        assert [index for index, _ in shown] == list(range(STEPS))
        previewer = Latent2RGBPreviewer(SD3_FORMAT.latent_rgb_factors, SD3_FORMAT.latent_rgb_factors_bias)
        for (_, packed), estimate in zip(shown, estimates, strict=True):
            expected = np.asarray(previewer.decode_latent_to_preview(estimate))
            assert packed.shape == expected.shape == (16, 16, 3)
            assert abs(packed.astype(int) - expected).max() <= 1

    def test_comfyuis_own_previews_are_not_made_again(self, server, monkeypatch):
        monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
        run()
        assert not any(message.keys() & {"preview", "no_preview"} for message in messages(server))

    def test_a_format_without_factors_says_where_to_switch_them_on(self, server, monkeypatch):
        monkeypatch.setattr(previews, "images_of", lambda latent_format: None)
        monkeypatch.setattr(live, "images_of", previews.images_of)
        run()
        assert all(message["no_preview"] and "preview" not in message for message in messages(server))

    def test_no_message_waits_for_an_image(self):
        """An image that is still on its way is sent with a later message, and only then the next is made."""
        sent, made, is_there, now = [], [], [False], [0.0]

        class Images:
            def start(self, latent):
                made.append(latent)
                return SimpleNamespace(read=lambda wait: IMAGE if wait or is_there[0] else None)

        view = live.LiveView({}, sent.append, clock=lambda: now[0], previews=live.Previews(Images()))
        for index in range(6):
            is_there[0] = index == 4
            estimate = Estimate(index - 1, index - 1) if index else None
            read_estimate = partial(lambda given: given, estimate)
            view.step(LiveStep(index, 6, "dense", 1.0, lambda: None, "", read_estimate))
            now[0] += 1.0
        assert made == [0, 4]
        assert [message.get("preview", [None])[0] for message in sent] == [None] * 4 + [0, None]
        view.end(None)
        assert "preview" not in sent[-1]

    def test_an_image_is_sent_as_a_small_jpeg_file(self):
        ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[:, None, None], (128, 96, 3))
        packed = base64.b64decode(live.pack_image(ramp))
        image = Image.open(io.BytesIO(packed))
        assert (image.format, image.size) == ("JPEG", (96, 128)) and len(packed) < 4000
        assert abs(np.asarray(image).astype(int) - ramp).max() <= 4

    def test_large_latents_have_small_images(self):
        images = previews.LatentImages([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
        latent = torch.zeros(2, 3, 300, 513)
        latent[:, 0] = 1
        image = images.start(latent).read(wait=True)
        assert image.shape == (100, 171, 3) and image[0, 0].tolist() == [255, 127, 127]


class TestFrequency:
    def test_at_most_four_per_second_and_no_step_is_lost(self):
        """Each step takes 0.1 s. Step 0 is sent at once. The next message is for step 3, the first step at
        least 0.25 s later; then steps 6 and 9 are sent.
        """
        sent, read, now = [], [], [0.0]
        view = live.LiveView({}, sent.append, clock=lambda: now[0])
        for index in range(10):
            view.step(LiveStep(index, 10, "regional", 0.5, lambda index=index: read.append(index)))
            now[0] += 0.1
        assert [m["step"] for m in sent] == [0, 3, 6, 9]
        assert [[step for step, *_ in m["unsent"]] for m in sent] == [[], [1, 2], [4, 5], [7, 8]]
        assert sent[1]["unsent"][0] == [1, "regional", 0.5]
        assert read == [0, 3, 6, 9]  # only sending a message waits for the device

    def test_the_end_is_never_held_back(self):
        sent = []
        view = live.LiveView({}, sent.append, clock=lambda: 0.0)
        view.step(LiveStep(0, 2, "dense", 1.0, lambda: None))
        view.end(None)
        assert [m["phase"] for m in sent] == ["step", "end"]


def test_a_mask_is_packed_row_by_row_from_the_highest_bit():
    """The ten bits of the mask are packed as 1000 1010 (0x8A), then 11 and six unused bits (0xC0)."""
    mask = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 1, 1]], dtype=bool)
    assert base64.b64decode(live.pack_mask(mask)) == bytes([0x8A, 0xC0])
    assert live.pack_mask(None) is None


class TestOverTime:
    """Latents over time: three latent frames of 4 x 5 pixels, in tokens of 2 x 2; two images in the batch."""

    GRID = TokenGrid((3, 4, 5), (1, 2, 2))
    ACTIVE = torch.tensor([[0, 5, 7], [1, 2, 17]])  # of 3 x 2 x 3 tokens

    @pytest.fixture
    def trace(self):
        recorder = Recorder(self.GRID, batch=2)
        plans = (StepPlan(0, StepKind.DENSE), StepPlan(1, StepKind.REGIONAL, 0.2))
        for plan, active in zip(plans, (None, self.ACTIVE), strict=True):
            recorder.begin(plan, 1.0, timestamp(torch.device("cpu")))
            recorder.end(active, torch.rand(2, self.GRID.n))
        profile = CostProfile(image_weights=1, text_weights=0, joint_width=0)
        return recorder.finish(timestamp(torch.device("cpu")), 2, profile, 0, 0)

    def test_a_trace_has_the_grids_axes(self, trace):
        dense, regional = trace.steps
        assert dense.active.shape == regional.active.shape == regional.score.shape == (2, 3, 2, 3)
        assert np.flatnonzero(regional.active[1]).tolist() == [1, 2, 17]
        assert trace.token_share == pytest.approx((1 + 3 / 18) / 2)
        assert trace.as_dict()["grid"] == [3, 2, 3]

    def test_a_step_reads_the_mask_of_the_first_image(self):
        plan = StepPlan(1, StepKind.REGIONAL, 0.2)
        run = SimpleNamespace(
            evaluation=SimpleNamespace(plan=plan, active_idx=self.ACTIVE), plan=(plan,), grid=self.GRID,
            plan_line="",
        )  # fmt: skip
        mask = live_step(run).read_mask()
        assert mask.shape == (3, 2, 3) and np.flatnonzero(mask).tolist() == [0, 5, 7]

    def test_messages_show_the_first_frame_as_previews_do(self, server, trace):
        live._watchers.add("anna")
        view = live.open_view(self.GRID)
        view.end(trace)
        message = messages(server)[-1]
        assert (message["grid"], message["latent"], message["patch"]) == ([2, 3], [4, 5], [2, 2])
        assert message["timeline"][0]["mask"] is None
        assert unpacked(message["timeline"][1]["mask"])[:6].tolist() == [
            True,
            False,
            False,
            False,
            False,
            True,
        ]
        assert message["timeline"][1]["share"] == pytest.approx(3 / 18, abs=1e-4)

    def test_frames_of_the_first_video_form_one_row(self, trace):
        """The batch has two videos of five frames each. Frames 0, 2 and 4 of the first video form one
        row. A token covers 16 x 16 pixels.
        """
        images = np.linspace(0.1, 1, 10, dtype=np.float32)[:, None, None, None].repeat(3, axis=3)
        frames = mask_frames(trace, np.broadcast_to(images, (10, 64, 96, 3)))
        assert frames.shape == (2, 2 * 16 + 32, 3 * 3 * 16, 3)
        middles = frames[0, 8, 8 + 16 :: 48, 0]  # a dense step: nothing is darkened
        assert middles == pytest.approx(np.array([0.1, 0.3, 0.5]), abs=0.01)
        rows = frames[1, :32].mean(axis=2).reshape(2, 16, 9, 16)[:, 8, :, 8]
        bright = rows > 0.29 * np.repeat([0.1, 0.3, 0.5], 3) + 0.06
        assert np.argwhere(bright).tolist() == [[0, 0], [0, 4], [1, 2]]
        assert summary_image(trace, np.broadcast_to(images, (10, 64, 96, 3))).shape == (1, 720, 1080, 3)

    def test_one_latent_frame_is_an_image(self):
        active = np.arange(2 * 6).reshape(2, 1, 2, 3) % 2 == 0
        assert (masks.shown_planes(active) == active[:, 0]).all()
        assert masks.shown_planes(np.zeros((1, 9, 2, 3))).shape == (4, 2, 3)


def test_a_full_sized_mask_is_small():
    assert len(live.pack_mask(np.ones((64, 64), dtype=bool))) == 684  # 512 bytes as base64


@pytest.mark.parametrize(
    "body",
    [
        None, [], "x", {}, {"client_id": "a"}, {"enabled": True}, {"client_id": "", "enabled": True},
        {"client_id": 5, "enabled": True}, {"client_id": "a", "enabled": 1},
        {"client_id": "a" * 129, "enabled": True}, {"client_id": "a", "enabled": True, "key": 5},
    ],
)  # fmt: skip
def test_a_wrong_announcement_is_refused(body):
    with pytest.raises(ValueError, match="announcement"):
        live.read_announcement(body)


def test_an_announcement():
    assert live.read_announcement({"client_id": "a", "enabled": False}) == ("a", False, "")
    assert live.read_announcement({"client_id": "a", "enabled": True, "key": "k"}) == ("a", True, "k")
