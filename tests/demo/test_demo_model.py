"""The demo models in the pack: ordinary MODEL and VAE objects, whose loading changes no global state."""

import re
import shutil

import comfy.sample
import comfy.supported_models
import pytest
import torch
from comfy.ldm.flux.model import Flux
from ras_pack.demo import loader
from ras_pack.demo.prompt import encode_prompt
from ras_pack.nodes.demo import RASDemoModel, RASDemoPrompt
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.training.export import save_packed
from support.comfy import ROOT
from support.families import draw_weights
from support.sampling import FAST, distance

PACK_WEIGHTS = loader.WEIGHTS_DIR


def _conditioning(text: str) -> list:
    context, pooled = encode_prompt(text)
    mask = torch.ones(context.shape[:2], dtype=torch.long)
    return [[context, {"pooled_output": pooled, "attention_mask": mask}]]


@torch.inference_mode()
def _sample(model, steps: int = 8, size: int = 32) -> torch.Tensor:
    empty = torch.zeros(1, 16, size, size)
    return comfy.sample.sample(
        model, comfy.sample.prepare_noise(empty, 7), steps, 3.5, "euler", "simple",
        _conditioning("noto grinning face on blue"), _conditioning(""), empty, disable_pbar=True, seed=7,
    )  # fmt: skip


def test_a_prompt_node_as_it_is_added_has_both_prompts_and_they_differ():
    """With one node for each prompt, both had the text of a new node: guidance had no effect."""
    (text,) = RASDemoPrompt.GET_SCHEMA().inputs
    outputs = [output.display_name for output in RASDemoPrompt.GET_SCHEMA().outputs]
    given = dict(zip(outputs, RASDemoPrompt.execute(text.default).args, strict=True))
    for name, expected in (("positive", text.default), ("negative", "")):
        ((context, more),) = given[name]
        ((wanted, others),) = _conditioning(expected)
        assert torch.equal(context, wanted) and torch.equal(more["pooled_output"], others["pooled_output"])


SHIPPED = [name for name, spec in loader.FAMILIES.items() if (loader.WEIGHTS_DIR / spec.weights).is_file()]


@pytest.mark.parametrize("family", SHIPPED)
class TestFamily:
    def test_an_image_has_the_background_of_its_prompt(self, family):
        model, vae = loader.load_demo_model(family)
        size = 64 if family == "sd3" else 32  # SD3's training ended with the larger images only
        with torch.inference_mode():
            picture = vae.decode(_sample(model, steps=2, size=size))
        assert picture.shape == (1, 8 * size, 8 * size, 3)
        corner = picture[0, :16, :16].mean(dim=(0, 1))
        assert corner[2] > corner[0] + 0.2 and corner[2] > corner[1] + 0.1  # blue

    def test_it_runs_with_ras(self, family):
        model, _ = loader.load_demo_model(family)
        patched = patch_model(model, FAST)
        latent = _sample(patched)
        assert last_trace(patched).regional_steps == 5
        assert distance(latent, _sample(model)) < 0.6

    def test_comfyuis_own_classes_are_not_changed(self, family):
        spec = loader.FAMILIES[family]
        config = getattr(comfy.supported_models, spec.config_class)
        before = (dict(config.sampling_settings), config.latent_format().latent_rgb_factors)
        model, _ = loader.load_demo_model(family)
        assert (config.sampling_settings, config.latent_format().latent_rgb_factors) == before
        assert model.model.latent_format.latent_rgb_factors != before[1]

    def test_a_damaged_file_is_reported_by_name(self, family, tmp_path, monkeypatch):
        spec = loader.FAMILIES[family]
        for name in (loader.AUTOENCODER_FILE, spec.weights):
            (tmp_path / name).write_bytes((loader.WEIGHTS_DIR / name).read_bytes()[:1000])
        monkeypatch.setattr(loader, "WEIGHTS_DIR", tmp_path)
        with pytest.raises(Exception, match="safetensors"):
            loader.load_demo_model(family)


def _shipped_with(monkeypatch, change) -> None:
    """Make the loader pass the tensors that it reads from the transformer's file through `change`."""
    read = loader.read_weights

    def changed(name):
        state = read(name)
        if name != loader.AUTOENCODER_FILE:
            change(state)
        return state

    monkeypatch.setattr(loader, "read_weights", changed)


def test_a_weight_that_the_network_does_not_have_is_ignored(monkeypatch, caplog):
    """A later ComfyUI may lack a weight that the file has: it removed Lumina 2's unused `norm_final`."""
    _shipped_with(monkeypatch, lambda state: state.update({"gone.weight": torch.ones(4)}))
    with caplog.at_level("DEBUG"):
        model, _ = loader.load_demo_model("lumina2")
    assert "gone.weight" in caplog.text and "unexpected" not in caplog.text
    assert torch.isfinite(_sample(model, steps=2)).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("x_embedder.weight"),
        lambda state: state.update({"x_embedder.weight": state["x_embedder.weight"][:, :-1]}),
        lambda state: state.update({"renamed.weight": state.pop("x_embedder.weight")}),
    ],
    ids=["missing", "another shape", "renamed"],
)
def test_a_missing_weight_is_reported_by_name(monkeypatch, change):
    _shipped_with(monkeypatch, change)
    with pytest.raises(ValueError, match="1 tensors .* for example 'x_embedder.weight'.* Reinstall"):
        loader.load_demo_model("lumina2")


class TestFluxWithoutItsWeights:
    """The demo Flux with random weights: its network, the size of its file, and its sampling.

    `TestFamily` checks the images of the trained demo models.
    """

    @pytest.fixture
    def model(self, tmp_path, monkeypatch):
        """A model loaded from a file with random weights, in the packed format that the training writes."""
        shutil.copy(loader.WEIGHTS_DIR / loader.AUTOENCODER_FILE, tmp_path)
        config = loader.build_config(loader.FAMILIES["flux"])
        network = config.get_model({}, "", device=torch.device("cpu")).diffusion_model
        draw_weights(network, seed=0)
        state = {_packed_name(name): tensor for name, tensor in network.state_dict().items()}
        self.state = state
        save_packed(state, tmp_path / "flux.safetensors")
        self.size = (tmp_path / "flux.safetensors").stat().st_size
        monkeypatch.setattr(loader, "WEIGHTS_DIR", tmp_path)
        return loader.load_demo_model("flux")[0]

    def test_it_is_comfyuis_flux_without_guidance_embedding(self, model):
        network = model.model.diffusion_model
        assert isinstance(network, Flux) and not network.params.guidance_embed
        assert (len(network.double_blocks), len(network.single_blocks)) == (2, 5)
        assert 9e6 < sum(tensor.numel() for tensor in self.state.values()) < 10.5e6
        assert self.size <= 10 * 2**20

    def test_what_was_packed_comes_back(self, model):
        loaded = {_packed_name(k): v for k, v in model.model.diffusion_model.state_dict().items()}
        assert loaded.keys() == self.state.keys()
        assert max(distance(loaded[name], self.state[name]) for name in loaded) < 0.02

    def test_the_level_goes_in_as_it_is_and_the_shift_is_three(self, model):
        sampling = model.get_model_object("model_sampling")
        assert sampling.shift == 3.0
        assert sampling.timestep(torch.tensor(0.5)) == 0.5

    @pytest.mark.parametrize("size", [32, 64])
    def test_text_and_noise_reach_the_image_at_both_sizes(self, model, size):
        latent = _sample(model, steps=2, size=size)
        assert latent.shape == (1, 16, size, size) and torch.isfinite(latent).all() and latent.std() > 0.1


def _packed_name(name: str) -> str:
    """The weight's name in ComfyUI 0.30.0. ComfyUI 0.3.75 calls the weights of norms `scale` instead."""
    return name.replace("_norm.scale", "_norm.weight")


def test_the_shipped_weights_are_small():
    """The files of SD3 and the autoencoder have at most 24 MiB, Lumina 2 12 MiB, and Flux 10 MiB."""
    size = {path.stem: path.stat().st_size / 2**20 for path in loader.WEIGHTS_DIR.glob("*.safetensors")}
    assert size["sd3"] + size["autoencoder"] <= 24 and size["lumina2"] <= 12
    assert size.get("flux", 0) <= 10


def test_prompts_are_the_same_in_all_places():
    context, pooled = encode_prompt("Noto, owl!")
    assert context.shape == (1, 16, 64) and pooled.shape == (1, 64)
    assert context[0, :2].norm(dim=1).tolist() == pytest.approx([4.0, 4.0])
    assert context[0, 2:].abs().sum() == 0
    assert torch.equal(encode_prompt("")[0], torch.zeros(1, 16, 64))
    assert torch.allclose(pooled, context.sum(dim=1) / 2**0.5)


@pytest.mark.parametrize("name", [loader.AUTOENCODER_FILE, "lumina2.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>", b"\x02\0\0\0\0\0\0\0{}"], ids=range(3))
def test_damaged_weights_are_refused_in_three_parts(tmp_path, monkeypatch, name, content):
    for each in (loader.AUTOENCODER_FILE, "lumina2.safetensors"):
        if each != name:
            shutil.copy(loader.WEIGHTS_DIR / each, tmp_path)
        else:
            (tmp_path / each).write_bytes(content)
    monkeypatch.setattr(loader, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(RASError, match="Expected: .* What to do: Reinstall the pack") as refused:
        loader.load_demo_model("lumina2")
    assert len(str(refused.value)) <= 300


class TestMissingWeights:
    """The registry's archive has the weights of SD3 and of the autoencoder only."""

    @pytest.fixture(params=["short", "a long name of a folder/" * 6], ids=["short", "long"])
    def folder(self, request, tmp_path, monkeypatch):
        """A folder with the weights of the archive, which the loader reads instead of the pack's."""
        folder = tmp_path / request.param / "demo" / "weights"
        folder.mkdir(parents=True)
        for name in (loader.AUTOENCODER_FILE, "sd3.safetensors"):
            shutil.copy(loader.WEIGHTS_DIR / name, folder)
        monkeypatch.setattr(loader, "WEIGHTS_DIR", folder)
        return folder

    @pytest.mark.parametrize("family", ["lumina2", "flux"])
    @pytest.mark.parametrize("ask", [RASDemoModel.validate_inputs, RASDemoModel.execute])
    def test_the_message_says_which_file_to_put_where(self, folder, monkeypatch, family, ask):
        """Both when the prompt is queued and when the node runs, and before any file is read."""
        monkeypatch.setattr(loader, "load_file", lambda path: pytest.fail(f"{path} was read"))
        with pytest.raises(RASError) as refused:
            ask(family=family)
        name, told = f"{family}.safetensors", str(refused.value)
        came, expected, remedy = re.split(" Expected: | What to do: ", told)
        assert came == f"Multirate RAS: the demo weights {name} are missing."
        assert expected.endswith("demo/weights.") and str(folder)[-50:] in expected
        assert f"{loader.WEIGHTS_URL}/{name} " in remedy
        assert len(told) <= 300 and told.count("...") == (len(str(folder)) > 60)

    def test_a_file_that_is_put_there_later_is_used(self, folder):
        shutil.copy(PACK_WEIGHTS / "lumina2.safetensors", folder)
        assert RASDemoModel.validate_inputs(family="lumina2") is True
        assert torch.isfinite(_sample(loader.load_demo_model("lumina2")[0], steps=2)).all()

    @pytest.mark.parametrize("family", ["sd3", None])
    def test_other_choices_are_accepted(self, folder, family):
        """The value is None while the input is connected to another node."""
        assert RASDemoModel.validate_inputs(family=family) is True

    def test_a_missing_autoencoder_is_reported_for_every_family(self, folder):
        (folder / loader.AUTOENCODER_FILE).unlink()
        with pytest.raises(RASError, match=f"{loader.AUTOENCODER_FILE} are missing.*{loader.WEIGHTS_URL}"):
            RASDemoModel.validate_inputs(family="sd3")

    def test_all_families_stay_selectable(self, folder):
        (family,) = RASDemoModel.GET_SCHEMA().inputs
        assert family.options == ["sd3", "lumina2", "flux"]

    def test_the_address_is_in_the_repository_that_pyproject_names(self):
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        (repository,) = re.findall(r'^Repository = "(.+)"$', text, re.MULTILINE)
        weights = PACK_WEIGHTS.relative_to(ROOT).as_posix()
        assert loader.WEIGHTS_URL == f"{repository}/raw/main/{weights}"
