"""The node RASLuminaNextLoader: it outputs an ordinary MODEL, CLIP and VAE, and its errors name the file."""

import shutil
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import folder_paths
import pytest
import torch
from ras_pack.nodes.lumina_next import RASLuminaNextLoader
from ras_pack.ras_core.host.patch import last_trace, patch_model
from support import lumina_next_files as files
from support import tiny_lumina_next as tiny
from support.sampling import FAST, distance, unload_all_models

FOLDER = "tiny-lumina-next"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return files.write_folder(tmp_path_factory.mktemp("written") / FOLDER)


@pytest.fixture
def models(written, tmp_path, monkeypatch) -> Path:
    """ComfyUI's model folders in a temporary folder, with the tiny pipeline in them."""
    shutil.copytree(written, tmp_path / "diffusers" / FOLDER)
    for name in ("diffusers", "diffusion_models", "text_encoders", "vae"):
        (tmp_path / name).mkdir(exist_ok=True)
        known = folder_paths.folder_names_and_paths[name]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], known[1]))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def load(**changes):
    inputs = {
        "folder": FOLDER, "transformer": "from folder", "text_encoder": "from folder", "vae": "from folder",
        "guidance_channels": "first three", "scaling_watershed": 1.0,
    }  # fmt: skip
    return RASLuminaNextLoader.execute(**{**inputs, **changes}).args


def refused(**changes) -> str:
    with pytest.raises(ValueError) as caught:
        load(**changes)
    message = str(caught.value)
    assert "Expected:" in message and "What to do:" in message
    return message


@torch.inference_mode()
def sampled(model, clip, size=(16, 16), batch=1, sampler="euler", scheduler="simple", **kwargs):
    """The latent of a KSampler run whose positive and negative prompt have different lengths."""
    noise = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(1))
    positive, negative = (encode(clip, text) for text in ("a red fox in the snow", ""))
    return comfy.sample.sample(
        model, noise, 10, 4.0, sampler, scheduler, positive, negative, torch.zeros_like(noise),
        disable_pbar=True, seed=5, **kwargs,
    )  # fmt: skip


def encode(clip, text: str) -> list:
    """Encode a text as the node CLIPTextEncode does."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


class TestChoices:
    def test_folder_and_files_are_offered(self, models):
        files.save({"a": torch.ones(1)}, models / "vae" / "sdxl_vae.safetensors")
        inputs = {item.id: item for item in RASLuminaNextLoader.define_schema().inputs}
        assert inputs["folder"].options == ["none", FOLDER]
        assert inputs["vae"].options == ["from folder", "sdxl_vae.safetensors"]

    def test_single_files_give_the_same_as_the_folder(self, models):
        source = models / "diffusers" / FOLDER
        prefixed = {f"model.diffusion_model.{name}": t for name, t in files.network_weights().items()}
        files.save(prefixed, models / "diffusion_models" / "lumina" / "next.safetensors")
        shutil.copyfile(source / "transformer/config.json", models / "diffusion_models/lumina/config.json")
        text = {f"model.{name}": t for name, t in files.gemma_weights().items()}
        files.save(text, models / "text_encoders" / "gemma.safetensors")
        files.write_tokenizer(models / "text_encoders" / "gemma.tokenizer.json")
        files.save(files.autoencoder_weights(), models / "vae" / "vae.safetensors")
        model, clip, vae = load(
            folder="none", transformer="lumina/next.safetensors", text_encoder="gemma.safetensors",
            vae="vae.safetensors",
        )  # fmt: skip
        expected, expected_clip, _ = load()
        model.add_object_patch("model_sampling", expected.model.model_sampling)  # the folder's shift
        assert torch.equal(sampled(model, clip), sampled(expected, expected_clip))
        assert vae.latent_channels == 4

    def test_the_shift_of_the_folder_sets_the_schedule(self, models):
        assert load()[0].model.model_sampling.shift == 3.0


class TestModel:
    @pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
    def test_every_scheduler(self, models, scheduler):
        model, clip, _ = load()
        latent = sampled(model, clip, (12, 20), batch=2, scheduler=scheduler)
        assert latent.shape == (2, 4, 12, 20) and torch.isfinite(latent).all()

    def test_guidance_on_three_channels_or_all(self, models):
        three, clip, _ = load()
        every = load(guidance_channels="all")[0]
        assert distance(sampled(three, clip), sampled(every, clip)) > 0.01

    def test_the_watershed_only_changes_large_images(self, models):
        model, clip, _ = load()
        late = load(scaling_watershed=0.3)[0]
        assert torch.equal(sampled(model, clip), sampled(late, clip))
        assert distance(sampled(model, clip, (40, 24)), sampled(late, clip, (40, 24))) > 0.001

    def test_the_shift_nodes_of_sd3_and_auraflow_agree(self, models):
        from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow, ModelSamplingSD3

        model, clip, _ = load()
        aura = ModelSamplingAuraFlow().patch_aura(model, 6.0)[0]
        sd3 = ModelSamplingSD3().patch(model, 6.0)[0]
        assert distance(sampled(sd3, clip), sampled(aura, clip)) < 1e-4
        assert distance(sampled(sd3, clip), sampled(model, clip)) > 0.01

    @pytest.mark.parametrize("form", ["diffusion_model.layers.1.attn1.to_q", "lora_unet_layers_1_attn1_to_q"])
    def test_a_lora_file_on_a_linear_layer(self, models, form):
        model, clip, _ = load()
        generator = torch.Generator().manual_seed(8)
        lora = {
            f"{form}.lora_down.weight": tiny.draw((4, 96), generator),
            f"{form}.lora_up.weight": tiny.draw((96, 4), generator) * 0.1,
            f"{form}.alpha": torch.tensor(4.0),
        }
        styled, _ = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 0.0)
        assert len(styled.patches) == 1
        plain = sampled(model, clip)
        assert distance(sampled(styled, clip), plain) > 0.001
        unload_all_models()
        assert torch.equal(sampled(model, clip), plain)

    def test_ras_on_prompts_of_different_length_in_one_call(self, models):
        model, clip, _ = load()
        calls = []
        model.model_options["transformer_options"]["wrappers"] = {
            "diffusion_model": {"count": [lambda executor, x, *args, **kw: (
                calls.append(x.shape[0]), executor(x, *args, **kw))[1]]}
        }  # fmt: skip
        sampled(model, clip)
        assert calls == [2] * 10
        model.model_options["transformer_options"].pop("wrappers")
        patched = patch_model(model, FAST)
        assert torch.isfinite(sampled(patched, clip, (13, 19), batch=2)).all()
        assert last_trace(patched).regional_steps == 7

    def test_partly_loaded_weights_give_the_same(self, models):
        """In low-memory mode, ComfyUI keeps weights off the device and copies them when they are used."""
        model, clip, _ = load()
        expected, conds = sampled(model, clip), encode(clip, "a fox")
        unload_all_models()
        model.load(torch.device("cpu"), lowvram_model_memory=1)
        t, x = torch.full((1,), 0.5), torch.ones(1, 4, 16, 16)
        low = model.model.apply_model(x, t, c_crossattn=conds[0][0])
        model.detach()
        model.load(torch.device("cpu"))
        assert torch.equal(low, model.model.apply_model(x, t, c_crossattn=conds[0][0]))
        model.detach()
        assert torch.equal(sampled(model, clip), expected)

    def test_previews_have_colours(self, models):
        import latent_preview

        model = load()[0]
        factors = model.model.latent_format.latent_rgb_factors
        preview = latent_preview.Latent2RGBPreviewer(factors).decode_latent_to_preview(torch.ones(1, 4, 8, 8))
        assert preview.size == (8, 8)


class TestClip:
    def test_rows_equal_those_of_transformers(self, models):
        """The text rows equal those of Gemma in transformers, which gets the prompt padded on the left to
        eight tokens, and a mask.
        """
        from transformers import GemmaConfig, GemmaModel

        clip = load()[1]
        gemma = GemmaModel(GemmaConfig(**files.GEMMA)).eval()
        gemma.load_state_dict(files.gemma_weights())
        words = [files.WORDS.index(w) for w in ("<bos>", "a", "red", "fox")]
        ids = torch.tensor([[0] * 4 + words])
        with torch.no_grad():
            states = gemma(ids, attention_mask=(ids != 0).long(), output_hidden_states=True).hidden_states
        rows, extras = encode(clip, "A red FOX ")[0]
        assert distance(rows, states[-2][:, 4:]) < 1e-5
        assert extras["attention_mask"].tolist() == [[1] * 4] and extras["pooled_output"] is None

    def test_weights_in_a_prompt(self, models):
        clip = load()[1]
        plain, heavy = encode(clip, "a red fox")[0][0], encode(clip, "a (red:1.5) fox")[0][0]
        assert plain.shape == heavy.shape
        assert [i for i in range(4) if not torch.allclose(plain[0, i], heavy[0, i], atol=1e-4)] == [2]

    def test_a_long_prompt_is_truncated_with_a_message(self, models, caplog):
        assert encode(load()[1], "fox " * 300)[0][0].shape[1] == 256
        assert caplog.text.count("reads 256 tokens") == 1

    def test_the_layer_node(self, models):
        clip = load()[1].clone()
        before = encode(clip, "fox")[0][0]
        clip.clip_layer(-3)
        assert not torch.allclose(encode(clip, "fox")[0][0], before)


def test_the_vae_decodes_to_an_image(models):
    assert load()[2].decode(torch.zeros(1, 4, 6, 8)).shape == (1, 48, 64, 3)


class TestWrongFiles:
    """Each error names the file, what it contains and what is needed."""

    def test_no_file_chosen(self, models):
        message = refused(folder="none")
        assert "neither a folder nor a file was chosen for transformer" in message
        assert "models/diffusion_models" in message

    @pytest.mark.parametrize(
        "tensor, kind",
        [
            ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "an SD3 / SD3.5 model"),
            ("noise_refiner.0.attention.qkv.weight", "a Lumina-Image-2.0 or Z-Image model"),
            ("layers.0.attention.wk_y.weight", "Lumina-Next transformer in its original layout"),
            ("encoder.block.0.layer.0.SelfAttention.k.weight", "a T5 text encoder"),
            ("lora_unet_x.lora_down.weight", "a LoRA"),
            ("x", "an unknown kind"),
        ],
    )
    def test_another_transformer(self, models, tensor, kind):
        files.save({tensor: torch.ones(1)}, models / "diffusion_models" / "wrong.safetensors")
        message = refused(transformer="wrong.safetensors")
        assert "the transformer file wrong.safetensors is" in message and kind in message
        assert "diffusers' layout" in message

    def test_a_truncated_file(self, models):
        path = models / "diffusers" / FOLDER / "transformer" / "diffusion_pytorch_model.safetensors"
        whole = path.read_bytes()
        for size in (len(whole) - 1, 2000):
            path.write_bytes(whole[:size])
            message = refused()
            assert "diffusion_pytorch_model.safetensors is cut short" in message and f"{size:,} " in message

    @pytest.mark.parametrize(
        "content, what",
        [
            (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
            (b"<html>Not found</html>", "no safetensors file"),
            (b"", "no safetensors file (0 bytes)"),
            (b"\x02\0\0\0\0\0\0\0[]", "no safetensors file"),
        ],
    )
    def test_a_file_that_is_not_safetensors(self, models, content, what):
        (models / "vae" / "page.safetensors").write_bytes(content)
        assert f"page.safetensors is {what}" in refused(vae="page.safetensors")

    def test_a_missing_shard(self, models):
        (models / "diffusers" / FOLDER / "text_encoder" / "model-00002-of-00002.safetensors").unlink()
        assert "model-00002-of-00002.safetensors is missing" in refused()

    def test_a_folder_without_a_part(self, models):
        shutil.rmtree(models / "diffusers" / FOLDER / "vae")
        assert f"{FOLDER} has no safetensors file in vae/" in refused()

    def test_the_folder_of_another_pipeline(self, models):
        index = models / "diffusers" / FOLDER / "model_index.json"
        files.write_json(index, {"_class_name": "StableDiffusion3Pipeline"})
        assert "contains a StableDiffusion3Pipeline" in refused()

    def test_a_layer_of_another_size(self, models):
        state = files.network_weights()
        state["layers.1.attn1.to_q.weight"] = torch.ones(96, 95)
        files.save(state, models / "diffusion_models" / "odd.safetensors")
        message = refused(transformer="odd.safetensors")
        assert "odd.safetensors differs in 1 of" in message
        assert "layers.1.attn1.to_q.weight has shape (96, 95) instead of (96, 96)" in message

    @pytest.mark.parametrize(
        "tensor, kind",
        [
            ("encoder.block.0.layer.0.SelfAttention.k.weight", "a T5 text encoder"),
            ("text_model.encoder.layers.0.mlp.fc1.weight", "a CLIP text encoder"),
            ("model.layers.0.pre_feedforward_layernorm.weight", "a Gemma 2 or Gemma 3 text encoder"),
        ],
    )
    def test_another_text_encoder(self, models, tensor, kind):
        files.save({tensor: torch.ones(1)}, models / "text_encoders" / "wrong.safetensors")
        message = refused(text_encoder="wrong.safetensors")
        assert f"the text_encoder file wrong.safetensors is {kind}" in message and "Gemma-2B" in message

    def test_a_gemma_2_with_all_its_layers(self, models):
        state = files.gemma_weights() | {"layers.0.pre_feedforward_layernorm.weight": torch.ones(64)}
        files.save(state, models / "text_encoders" / "gemma2.safetensors")
        assert "gemma2.safetensors is a Gemma 2" in refused(text_encoder="gemma2.safetensors")

    def test_a_text_encoder_of_another_width(self, models):
        state = {name: t.repeat_interleave(2, dim=-1) for name, t in files.gemma_weights().items()}
        files.save(state, models / "text_encoders" / "wide.safetensors")
        assert "of width 128; this transformer takes 64" in refused(text_encoder="wide.safetensors")

    def test_a_text_encoder_without_its_tokenizer(self, models):
        shutil.rmtree(models / "diffusers" / FOLDER / "tokenizer")
        message = refused()
        assert "has no tokenizer" in message and "tokenizer/tokenizer.json" in message

    @pytest.mark.parametrize(
        "words, what",
        [
            (("<s>", "<unk>"), "no token <bos>"),
            ((*files.WORDS, "more"), "for 12 tokens, but its tokenizer tokenizer.json has 13"),
        ],
    )
    def test_another_tokenizer(self, models, words, what):
        files.write_tokenizer(models / "diffusers" / FOLDER / "tokenizer" / "tokenizer.json", words)
        assert what in refused()

    def test_a_tokenizer_that_is_not_json(self, models):
        (models / "diffusers" / FOLDER / "tokenizer" / "tokenizer.json").write_text("not found")
        assert "tokenizer.json cannot be read" in refused()

    def test_a_vae_of_another_latent(self, models):
        files.save(files.autoencoder_weights(16), models / "vae" / "sd3.safetensors")
        message = refused(vae="sd3.safetensors")
        assert "sd3.safetensors is a VAE with 16 latent channels" in message and "SDXL" in message

    def test_no_vae(self, models):
        files.save({"joint_blocks.0.x": torch.ones(1)}, models / "vae" / "sd3.safetensors")
        assert "the vae file sd3.safetensors is an SD3 / SD3.5 model" in refused(vae="sd3.safetensors")
