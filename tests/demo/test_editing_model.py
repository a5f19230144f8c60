"""The training of the editing model: it calls the network exactly as ComfyUI samples with ReferenceLatent."""

import importlib
import random
from collections import Counter

import comfy.ldm.flux.math as flux_math
import comfy.sample
import pytest
import torch
from comfy.ldm.flux.model import Flux
from ras_pack.demo import loader
from ras_pack.demo.prompt import encode_prompt, split_words
from ras_pack.training.bank import encode_edits
from ras_pack.training.collect import Item
from ras_pack.training.data import Vocabulary
from ras_pack.training.edit_trainer import EditTrainer, evaluate_edits, save_edits
from ras_pack.training.edits import BACKGROUND, SHARES, STYLE, edit_words, images_of, random_edits
from ras_pack.training.network import build_network, predict
from ras_pack.training.plan import Plan, Stage
from support.sampling import distance

SIZE = 64
STYLES = ("noto", "twemoji", "fluent")


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Training replaces two functions in ComfyUI's modules; they are put back after each test."""
    for name in ("optimized_attention", "apply_rope"):
        monkeypatch.setattr(flux_math, name, getattr(flux_math, name))


@pytest.fixture
def items() -> list[Item]:
    return [
        Item(style, f"{code:X}", f"thing {code}", ["tag"], 1, f"{style}/{code:X}.svg")
        for code in range(0x1F600, 0x1F614)
        for style in (STYLES if code % 4 else STYLES[:1])
    ]


@pytest.fixture
def pictures(items) -> torch.Tensor:
    """A square of its own colour for each item, premultiplied RGBA."""
    found = torch.zeros(len(items), 48, 48, 4, dtype=torch.uint8)
    for row in range(len(items)):
        found[row, 12:36, 12:36] = torch.tensor([row * 4, 200 - row * 3, 90, 255], dtype=torch.uint8)
    return found


class TestEdits:
    def test_sources_have_the_same_object_and_are_allowed(self, items):
        targets, sources = list(range(0, len(items), 2)), range(len(items) // 2)
        for edit in random_edits(items, targets, sources, random.Random(1)):
            assert items[edit.source].hexcode == items[edit.target].hexcode == edit.item.hexcode
            assert edit.source in sources or edit.kind == BACKGROUND
            assert (edit.source == edit.target) == (edit.kind == BACKGROUND)
            assert (edit.before.words == edit.after.words) == (edit.kind == STYLE)

    def test_all_kinds_occur_and_objects_of_one_style_change_only_their_background(self, items):
        rows = list(range(len(items)))
        edits = [edit for seed in range(40) for edit in random_edits(items, rows, rows, random.Random(seed))]
        kinds = Counter(edit.kind for edit in edits if int(edit.item.hexcode, 16) % 4)
        share = {kind: count / kinds.total() for kind, count in kinds.items()}
        assert share == pytest.approx(SHARES, abs=0.04)
        assert {edit.kind for edit in edits if not int(edit.item.hexcode, 16) % 4} == {BACKGROUND}

    def test_prompts_name_what_changes(self, items):
        rows = list(range(len(items)))
        for edit in random_edits(items, rows, rows, random.Random(2)):
            for seed in range(4):
                words = edit_words(edit, random.Random(seed))
                assert len(words) <= 16
                assert edit.kind == BACKGROUND or edit.item.style in words
                assert edit.kind == STYLE or words[-len(edit.after.words) - 1 :] == ["on", *edit.after.words]

    def test_the_object_has_the_same_place_in_both_images(self, items, pictures):
        rows = list(range(len(items)))
        edits = random_edits(items, rows, rows, random.Random(3))
        before, after = images_of(pictures, edits, SIZE, random.Random(4))
        for edit, old, new in zip(edits, before, after, strict=True):
            if edit.kind == STYLE:  # the background is equal, and the squares cover the same pixels
                changed = (old != new).any(dim=0)
                square = (old - old[:, :1, :1]).abs().amax(dim=0) > 0.25
                assert not changed[0].any() and bool((changed <= square.logical_or(changed)).all())
            if edit.kind == BACKGROUND:
                assert torch.equal(old[:, SIZE // 2, SIZE // 2], new[:, SIZE // 2, SIZE // 2])
                assert not torch.equal(old[:, 0, 0], new[:, 0, 0])


@torch.inference_mode()
def test_the_training_calls_the_network_as_comfyui_samples(monkeypatch):
    """The same latents of the reference image and, for the same input, the same prediction."""
    if not (loader.WEIGHTS_DIR / loader.FAMILIES["flux"].weights).is_file():
        pytest.skip("no weights of the demo model Flux")
    model, vae = loader.load_demo_model("flux")
    image = torch.rand(1, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
    node = importlib.import_module("comfy_extras.nodes_edit_model").ReferenceLatent
    conditionings = []
    for text in ("noto grinning face on blue", ""):
        context, pooled = encode_prompt(text)
        plain = [[context, {"pooled_output": pooled}]]
        conditionings.append(node.execute(plain, {"samples": vae.encode(image)}).args[0])
    calls = []

    def forward(self, x, timestep, context, y=None, guidance=None, ref_latents=None, *more, **kwargs):
        out = original(self, x, timestep, context, y, guidance, ref_latents, *more, **kwargs)
        calls.append((x.clone(), timestep, context, y, [each.clone() for each in ref_latents], out))
        return out

    original = Flux._forward
    monkeypatch.setattr(Flux, "_forward", forward)
    empty = torch.zeros(1, 16, SIZE // 8, SIZE // 8)
    noise = comfy.sample.prepare_noise(empty, 3)
    comfy.sample.sample(
        model, noise, 2, 3.5, "euler", "simple", *conditionings, empty, disable_pbar=True, seed=3
    )
    monkeypatch.setattr(Flux, "_forward", original)
    x, level, context, pooled, references, out = calls[-1]
    assert len(x) == 2 and 0 < float(level[0]) < 1  # both prompts in one call
    encoder = vae.first_stage_model.taesd_encoder
    own = encoder(image.movedim(-1, 1).to(next(encoder.parameters()).dtype)).float()
    torch.testing.assert_close(references[0][:1], own, atol=2e-3, rtol=1e-3)
    network = build_network("flux").eval()
    weights = {name: each.float() for name, each in loader.read_weights("flux.safetensors").items()}
    assert not network.load_state_dict(weights, strict=False).missing_keys
    found = predict(network, "flux", x.float(), level.float(), context.float(), pooled.float(), references)
    assert distance(found, out.float()) < 1e-3
    alone = predict(network, "flux", x.float(), level.float(), context.float(), pooled.float())
    assert distance(alone, out.float()) > 1e-3


def test_a_training_in_miniature(items, pictures, tmp_path):
    """Two steps with reference images and one without, then the figures, the sheet and a resumed training."""
    plan = Plan(stages=(Stage(SIZE, 4, 1.0),), variants=1, prompts=2, sample_steps=2, compiled=False)
    vae = importlib.import_module("ras_pack.training.family").load_autoencoder
    pair = vae(loader.WEIGHTS_DIR / loader.AUTOENCODER_FILE, torch.device("cpu"))
    edits = random_edits(items, range(6), range(len(items)), random.Random(5))
    vocabulary = Vocabulary()
    bank = encode_edits(pair["taesd_encoder"], pictures, edits, SIZE, plan, vocabulary)
    assert bank.latents.shape == bank.references.shape == (6, 16, SIZE // 8, SIZE // 8)
    trainer = EditTrainer("flux_edit", torch.device("cpu"), plan)
    trainer.resume(tmp_path)  # the demo model's weights
    trainer.table = vocabulary.table()
    before = {name: each.clone() for name, each in trainer.network.state_dict().items()}
    sizes = []
    for _ in range(3):
        batch = trainer.draw(bank, 4)
        sizes.append((len(batch), len(batch[0])))
        trainer.step(batch, 0.0)
    assert sizes == [(2, 2), (3, 4), (3, 4)]  # the first without references
    assert any(not torch.equal(each, before[name]) for name, each in trainer.network.state_dict().items())
    prompts = [" ".join(edit_words(edit, random.Random(6))) for edit in edits]
    assert all(split_words(prompt) for prompt in prompts)
    figures, images = evaluate_edits(trainer, pair["taesd_decoder"], bank, edits, prompts)
    assert {"edit_psnr", "reference_psnr", "psnr_without_reference"} <= figures.keys()
    assert figures["test_loss_with_reference"] != figures["test_loss_without_reference"]
    save_edits(images, tmp_path / "sheet.png")
    assert images.shape == (18, 3, SIZE, SIZE) and (tmp_path / "sheet.png").stat().st_size > 1000
    trainer.save_state(tmp_path)
    again = EditTrainer("flux_edit", torch.device("cpu"), plan)
    again.resume(tmp_path)
    assert again.steps == 3
