"""The nodes as ComfyUI loads them: schemas that saved graphs depend on, errors, and images of a trace."""

import asyncio
import importlib.util
import re
import sys
from functools import partial

import comfy.sample
import numpy as np
import pytest
import torch
from PIL import ImageDraw
from ras_pack.ras_core.method.family_plans import family_plans
from ras_pack.ras_core.render.comparison import headline
from support.comfy import ROOT
from support.sampling import sample

SPEED = ("speed", "2x")
SETTINGS = [
    ("plan", None),
    ("sample_ratio", 0.5),
    ("start_percent", 0.2),
    ("end_percent", 1.0),
    ("error_reset_every", 0),
    ("priority", None),
    ("paper", None),
    ("cuda_graphs", "auto"),
    ("kv_cache", "auto"),
]
"""Order and defaults are a contract: graphs store widget values by position. New inputs go to the end."""

INPUTS = {
    "RASPatchModel": [("model", None), SPEED, *SETTINGS],
    "RASKSampler": [
        ("model", None), SPEED, ("seed", 0), ("steps", 28), ("cfg", 5.0), ("sampler_name", "dpmpp_2m"),
        ("scheduler", "simple"), ("positive", None), ("negative", None), ("latent_image", None),
        ("denoise", 1.0),
        *SETTINGS,
    ],
    "RASPaperSettings": [
        ("metric", "std"), ("high_ratio", 1.0), ("starvation_scale", 0.1), ("ratio_end", 0.0),
        ("error_reset_steps", ""),
    ],
    "RASSampler": [("order", "dpmpp_2m")],
    "RASCompare": [],
    "RASTrace": [("model", None), ("latent", None)],
    "RASMaskPreview": [("trace", None), ("images", None)],
    "RASDemoModel": [("family", "sd3")],
    "RASDemoPrompt": [("text", "noto grinning face on blue")],
    "RASLuminaNextLoader": [
        ("folder", "none"), ("transformer", "from folder"), ("text_encoder", "from folder"),
        ("vae", "from folder"), ("guidance_channels", "first three"), ("scaling_watershed", 1.0),
    ],
    "RASCalibrate": [
        ("model", None), ("positive", None), ("negative", None), ("latent_image", None), ("cfg", 5.0),
        ("seeds", 2),
    ],
    "RASScheduler": [
        ("model", None), ("speed", "2x"), ("steps", 28), ("denoise", 1.0), ("sampler", "dpmpp_2m"),
        ("plan", None), ("latent_image", None),
    ],
}  # fmt: skip
INPUTS["RASCompare"] = [*INPUTS["RASKSampler"], ("vae", None)]
OUTPUTS = {
    "RASPatchModel": ["MODEL"],
    "RASKSampler": ["LATENT", "RAS_TRACE"],
    "RASPaperSettings": ["RAS_PAPER"],
    "RASSampler": ["SAMPLER"],
    "RASCompare": ["IMAGE"] * 6,
    "RASTrace": ["LATENT", "RAS_TRACE"],
    "RASMaskPreview": ["IMAGE", "IMAGE"],
    "RASDemoModel": ["MODEL", "VAE"],
    "RASDemoPrompt": ["CONDITIONING", "CONDITIONING"],
    "RASLuminaNextLoader": ["MODEL", "CLIP", "VAE"],
    "RASCalibrate": ["RAS_PLAN", "IMAGE"],
    "RASScheduler": ["SIGMAS"],
}


@pytest.fixture(scope="module")
def nodes():
    """The nodes by id, from the pack's entry point, imported by path as ComfyUI does."""
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    sys.modules[f"{name}.ras_core.method.small_images"].LEAST_TOKENS = 0  # as in conftest.py, for this copy
    yield {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
    for loaded in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
        del sys.modules[loaded]


def _execute(node, **arguments):
    with torch.inference_mode():
        return node.execute(**arguments)


def _execute_host(sample, model, inputs):
    """The latent of ComfyUI's KSampler node."""
    with torch.inference_mode():
        return sample(model, **inputs)[0]


def _settings(**changes):
    """Custom settings for runs of eight steps: four of them dense at the start."""
    return {"speed": "custom", **dict(SETTINGS), "start_percent": 0.5, "error_reset_every": 6, **changes}


def _paper(nodes, **changes):
    """The output of RASPaperSettings."""
    return _execute(nodes["RASPaperSettings"], **{**dict(INPUTS["RASPaperSettings"]), **changes})[0]


@pytest.fixture
def sampler_inputs(sd3) -> dict:
    """RASKSampler's inputs other than model and settings: eight steps on a batch of two."""
    return {
        "seed": 3, "steps": 8, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        "positive": sd3.conditioning(1), "negative": sd3.conditioning(2),
        "latent_image": {"samples": torch.zeros(2, 16, 16, 16)},
    }  # fmt: skip


@pytest.fixture
def sampled(nodes, sd3, sampler_inputs):
    """The outputs of a RASKSampler run: latent and trace."""
    return _execute(nodes["RASKSampler"], model=sd3.build(), **sampler_inputs, **_settings()).args


class TestSchemas:
    def test_ids_inputs_and_defaults_are_the_contract(self, nodes):
        assert set(nodes) == set(INPUTS)
        for node_id, node in nodes.items():
            schema = node.GET_SCHEMA()
            given = [(item.id, getattr(item, "default", None)) for item in schema.inputs]
            assert given == INPUTS[node_id]
            assert [output.io_type for output in schema.outputs] == OUTPUTS[node_id]

    def test_everything_has_a_tooltip(self, nodes):
        for node in nodes.values():
            schema = node.GET_SCHEMA()
            assert schema.description and schema.category == "Multirate RAS"
            for item in [*schema.inputs, *schema.outputs]:
                assert item.tooltip and len(item.tooltip) > 8, (schema.node_id, item)

    @pytest.mark.parametrize(
        "word", ["speed", "fast", "faster", "quick", "accelerate", "cache", "region", "skip", "turbo"]
    )
    def test_search_finds_the_nodes_that_make_sampling_faster(self, nodes, word):
        schema = nodes["RASPatchModel"].GET_SCHEMA()
        if not hasattr(schema, "search_aliases"):
            pytest.skip("this ComfyUI has no search aliases")
        assert word in schema.search_aliases and "RAS" in schema.search_aliases
        assert word in nodes["RASKSampler"].GET_SCHEMA().search_aliases
        assert list(nodes)[:2] == ["RASPatchModel", "RASKSampler"]

    def test_sampler_choices_are_comfyuis(self, nodes):
        import nodes as host_nodes

        ours = {item.id: item for item in nodes["RASKSampler"].GET_SCHEMA().inputs}
        theirs = host_nodes.KSampler.INPUT_TYPES()["required"]
        assert list(ours["sampler_name"].options) == list(theirs["sampler_name"][0])
        assert list(ours["scheduler"].options) == list(theirs["scheduler"][0])


class TestErrors:
    """Errors are raised before anything is computed. They name the value, what was expected, and a remedy."""

    def _message(self, nodes, model, **changes) -> str:
        with pytest.raises(ValueError) as caught:
            _execute(nodes["RASPatchModel"], model=model, **_settings(**changes))
        message = str(caught.value)
        assert "Expected:" in message and "What to do:" in message
        return message

    def test_a_model_that_is_not_supported(self, nodes):
        import comfy.model_patcher
        import comfy.supported_models

        config = comfy.supported_models.SD15(
            {"in_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2],
             "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
             "transformer_depth_middle": 1,
             "context_dim": 16, "num_heads": 2, "use_spatial_transformer": True, "image_size": 32,
             "out_channels": 4, "legacy": False, "dtype": torch.float32}
        )  # fmt: skip
        cpu = torch.device("cpu")
        unet = comfy.model_patcher.ModelPatcher(config.get_model({}, "", device=cpu), cpu, cpu)
        message = self._message(nodes, unet)
        assert "UNetModel" in message and "MMDiT" in message and "NextDiT" in message
        assert message.startswith("Multirate RAS: the model is SD15 (network: UNetModel), which is not ")
        assert len(message) <= 300

    @pytest.mark.parametrize(
        "module, name",
        [
            ("comfy.ldm.chroma_radiance.model", "ChromaRadiance"),
            ("comfy.ldm.lumina.model", "NextDiTPixelSpace"),
        ],
    )
    def test_a_network_that_only_looks_like_a_supported_one(self, nodes, sd3, module, name):
        """These classes are subclasses of those of Chroma and Z-Image."""
        kind = getattr(importlib.import_module(module), name, None)
        if kind is None:
            pytest.skip("this ComfyUI has no such network")
        model, network = sd3.build(), kind.__new__(kind)
        torch.nn.Module.__init__(network)
        model.add_object_patch("diffusion_model", network)
        assert f"{name} ({module})" in self._message(nodes, model)

    @pytest.mark.parametrize(
        ("changes", "came"),
        [
            ({"error_reset_steps": "a,b"}, "'a', 'b'"),
            ({"ratio_end": 1.2}, "ratio_end = 1.2"),
            ({"ratio_end": 0.01}, "ratio_end = 0.01"),
            ({"high_ratio": 1.2}, "high_ratio = 1.2"),
            ({"metric": "variance"}, "metric = 'variance'"),
        ],
    )
    def test_a_setting_of_the_papers_method_that_cannot_be_used(self, nodes, changes, came):
        for step in (partial(_paper, nodes), nodes["RASPaperSettings"].validate_inputs):
            with pytest.raises(ValueError) as caught:
                step(**changes)
            message = str(caught.value)
            assert came in message and "Expected:" in message and "What to do:" in message

    def test_a_ratio_out_of_range(self, nodes, sd3):
        assert "sample_ratio = 1.2" in self._message(nodes, sd3.build(), sample_ratio=1.2)

    def test_a_trace_without_a_run(self, nodes, sd3):
        patched = _execute(nodes["RASPatchModel"], model=sd3.build(), **_settings())[0]
        with pytest.raises(ValueError, match="no run of this model has finished yet.*Expected.*What to do"):
            _execute(nodes["RASTrace"], model=patched, latent={})

    def test_the_trace_of_a_model_without_ras_is_empty_with_a_reason(self, nodes, sd3):
        latent = {"samples": sd3.noise()}
        passed, trace = _execute(nodes["RASTrace"], model=sd3.build(), latent=latent).args
        assert passed is latent and "no RAS node has patched the connected model" in trace.notes[0]
        without = _execute(nodes["RASMaskPreview"])
        for shown in (_execute(nodes["RASMaskPreview"], trace=trace), without):
            frames, summary = shown.args
            assert frames.shape == summary.shape == (1, 720, 1080, 3)
            assert summary.max() > 0.8 and torch.equal(frames, summary)
        assert not torch.equal(summary, _execute(nodes["RASMaskPreview"], trace=trace)[1])

    def test_a_comfyui_without_the_attention_override_is_refused(self, nodes, sd3, monkeypatch):
        import comfy.ldm.modules.attention

        monkeypatch.delattr(comfy.ldm.modules.attention, "wrap_attn", raising=False)
        message = self._message(nodes, sd3.build())
        assert "optimized_attention_override" in message and "0.3.64" in message

    def test_an_unknown_demo_family(self, nodes):
        with pytest.raises(ValueError, match="qwen"):
            _execute(nodes["RASDemoModel"], family="qwen")


class TestSampling:
    @pytest.mark.parametrize("is_paper", [False, True])
    @pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "heun"])
    def test_it_equals_patch_and_ksampler(self, nodes, sd3, sampler_inputs, sampler_name, is_paper):
        """With either method (multirate, or the paper's), RASKSampler gives the result of RASPatchModel
        followed by ComfyUI's KSampler.
        """
        import nodes as host_nodes

        inputs = {**sampler_inputs, "sampler_name": sampler_name}
        settings = _settings(paper=_paper(nodes)) if is_paper else _settings()
        latent, trace = _execute(nodes["RASKSampler"], model=sd3.build(), **inputs, **settings).args
        patched = _execute(nodes["RASPatchModel"], model=sd3.build(), **settings)[0]
        expected = _execute_host(host_nodes.KSampler().sample, patched, inputs)
        assert torch.equal(latent["samples"], expected["samples"])
        passed, other = _execute(nodes["RASTrace"], model=patched, latent=expected).args
        assert passed is expected
        assert trace.regional_steps == other.regional_steps == 4

    @pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m"])
    def test_multirate_equals_patch_and_custom_sampler(self, nodes, sd3, sampler_inputs, sampler_name):
        """RASKSampler's euler and dpmpp_2m are the same corrected integrators as RASSampler's."""
        import comfy.sample
        import comfy.samplers

        inputs = {**sampler_inputs, "sampler_name": sampler_name}
        latent, _ = _execute(nodes["RASKSampler"], model=sd3.build(), **inputs, **_settings()).args
        patched = _execute(nodes["RASPatchModel"], model=sd3.build(), **_settings())[0]
        sampler = _execute(nodes["RASSampler"], order=sampler_name)[0]
        empty = sampler_inputs["latent_image"]["samples"]
        sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 8)
        with torch.inference_mode():
            expected = comfy.sample.sample_custom(
                patched, comfy.sample.prepare_noise(empty, 3), 4.0, sampler, sigmas,
                sampler_inputs["positive"], sampler_inputs["negative"], empty, disable_pbar=True, seed=3,
            )  # fmt: skip
        assert torch.equal(latent["samples"], expected)

    def test_a_dense_run_is_the_plain_sampler(self, nodes, sd3, sampler_inputs):
        import nodes as host_nodes

        settings = _settings(sample_ratio=1.0)
        latent = _execute(nodes["RASKSampler"], model=sd3.build(), **sampler_inputs, **settings)[0]
        assert torch.equal(
            latent["samples"],
            _execute_host(host_nodes.KSampler().sample, sd3.build(), sampler_inputs)["samples"],
        )

    def test_priority_regions_are_computed_more_often(self, nodes, sd3, sampler_inputs):
        mask = torch.zeros(1, 64, 64)
        mask[:, :32] = 1.0
        for paper in (None, _paper(nodes)):
            settings = _settings(paper=paper, priority=mask)
            trace = _execute(nodes["RASKSampler"], model=sd3.build(), **sampler_inputs, **settings)[1]
            often = np.mean([step.active for step in trace.steps[4:]], axis=(0, 1))
            assert often[:4].mean() > 1.5 * often[4:].mean()

    def test_a_sampler_with_nothing_to_do(self, nodes, sd3, sampler_inputs):
        """With denoise 0, RASKSampler returns the latent unchanged, like KSampler; the preview works."""
        latent = {"samples": torch.ones(1, 16, 8, 8)}
        inputs = {**sampler_inputs, "denoise": 0.0, "latent_image": latent}
        result = _execute(nodes["RASKSampler"], model=sd3.build(), **inputs, **_settings())
        assert torch.equal(result[0]["samples"], latent["samples"])
        assert "no step to run" in result[1].summary()
        assert _execute(nodes["RASMaskPreview"], trace=result[1])[1].shape == (1, 720, 1080, 3)

    def test_a_later_clone_reads_the_same_trace(self, nodes, sd3):
        patched = _execute(nodes["RASPatchModel"], model=sd3.build(), **_settings())[0]
        latent = {"samples": sample(patched.clone(), sd3, sd3.noise())}
        assert _execute(nodes["RASTrace"], model=patched, latent=latent)[1].n_steps == 10


class TinyVae:
    """A stand-in for a VAE: its image is the latent's first three channels."""

    def decode(self, samples):
        return samples[:, :3].movedim(1, -1).sigmoid()


@pytest.fixture
def titles(monkeypatch) -> list[str]:
    """All texts that are drawn in the images."""
    drawn, draw = [], ImageDraw.ImageDraw.text

    def listened(own, at, text, **options):
        drawn.append(text)
        draw(own, at, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", listened)
    return drawn


def _sample_custom(family, inputs: dict, sampler, levels: torch.Tensor) -> torch.Tensor:
    """The latent of a model without RAS from ComfyUI's function for custom samplers."""
    latent, seed = inputs["latent_image"]["samples"], inputs["seed"]
    noise = comfy.sample.prepare_noise(latent, seed)
    conditionings = (inputs["positive"], inputs["negative"])
    return comfy.sample.sample_custom(
        family.build(), noise, inputs["cfg"], sampler, levels, *conditionings, latent, seed=seed
    )


class TestCompare:
    def test_numbers_by_hand(self, nodes):
        from ras_pack.ras_core.render.comparison import difference, psnr, ssim

        a, b = np.zeros((16, 16, 3)), np.full((16, 16, 3), 0.1)
        assert psnr(a, b) == pytest.approx(20.0) and psnr(a, a) == 100.0
        # constant images: (2 * 0 * 0.1 + c1) / (0 + 0.01 + c1) with c1 = 0.0001
        assert ssim(a, b) == pytest.approx(0.0001 / 0.0101) and ssim(a, a) == pytest.approx(1.0)
        assert difference(a, b).max() == pytest.approx(0.4)

    @pytest.mark.parametrize("paper", [None, {"ratio_end": 0.25}], ids=["multirate", "paper"])
    def test_dense_and_ras_images_are_compared(self, nodes, sd3, sampler_inputs, paper):
        class Vae:
            """A stand-in for a VAE: its image is the latent's first three channels, enlarged eight times."""

            def decode(self, samples):
                picture = samples[:, :3].movedim(1, -1).sigmoid()
                return picture.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)

        settings = _settings(paper=paper and _paper(nodes, **paper))
        result = _execute(nodes["RASCompare"], model=sd3.build(), vae=Vae(), **sampler_inputs, **settings)
        dense, ras, difference, comparison, summary, fewer = result.args
        assert dense.shape == ras.shape == difference.shape == fewer.shape == (2, 128, 128, 3)
        assert difference.max() > 0
        assert comparison.ndim == summary.ndim == 4
        settings = _settings(paper=paper and _paper(nodes), sample_ratio=1.0)
        expected = _execute(nodes["RASKSampler"], model=sd3.build(), **sampler_inputs, **settings)
        assert torch.equal(dense, Vae().decode(expected[0]["samples"]))
        assert result.ui["ras"][0]["regional_steps"] == 4
        # Half of the tokens in half of the steps: 8 steps at the cost of about 6.
        (slider,) = result.ui["ras_compare"]
        assert slider["steps"] == {"dense": 8, "ras": 8, "fewer": 6} and slider["accelerated"]
        assert list(slider["seconds"]) == ["dense", "ras", "fewer"] and min(slider["seconds"].values()) > 0
        if slider["speedup"] is not None:  # unless the computer is busy
            ratio = slider["seconds"]["dense"] / slider["seconds"]["ras"]
            assert slider["speedup"] == pytest.approx(ratio)
        expected = _execute(
            nodes["RASKSampler"], model=sd3.build(), **{**sampler_inputs, "steps": 6}, **settings
        )
        assert torch.equal(fewer, Vae().decode(expected[0]["samples"]))
        assert 0 < slider["closeness"]["ras"] <= 1

    def test_a_speed_against_all_steps(self, nodes, sd3, sampler_inputs):
        class Vae:
            def decode(self, samples):
                return samples[:, :3].movedim(1, -1).sigmoid()

        inputs = {**sampler_inputs, "steps": 16, "sampler_name": "euler"}
        settings = _settings(speed="2x")
        result = _execute(nodes["RASCompare"], model=sd3.build(), vae=Vae(), **inputs, **settings)
        (stats,) = result.ui["ras"]
        plan = family_plans("sd3").best("2x").resized(16)
        told = f"2x: {plan.steps} steps instead of 16, {len(plan.dense_steps)} dense, "
        assert stats["steps"] == plan.steps and stats["plan"].startswith(told)
        every = _settings(sample_ratio=1.0)
        dense = _execute(nodes["RASKSampler"], model=sd3.build(), **inputs, **every)
        assert torch.equal(result.args[0], Vae().decode(dense[0]["samples"]))
        ras = _execute(nodes["RASKSampler"], model=sd3.build(), **inputs, **settings)
        image = np.zeros((16, 16, 3))
        assert ras[1].against(dense[1]).expected_speedup == pytest.approx(2, rel=0.02)
        assert re.match(r"(about )?\d\.\d\dx faster", headline(image, image, (dense[1], ras[1])))
        assert result.ui["ras_compare"][0]["steps"]["fewer"] == 8

    def test_times_that_contradict_each_other_are_not_stated(
        self, nodes, sd3, sampler_inputs, monkeypatch, caplog
    ):
        class Vae:
            def decode(self, samples):
                return samples[:, :3].movedim(1, -1).sigmoid()

        module = sys.modules[nodes["RASCompare"].__module__]
        monkeypatch.setitem(module.checked.__globals__, "ALIKE", 1e-3)  # no time is alike
        caplog.set_level("INFO")
        settings = _settings(speed="2x")
        inputs = {**sampler_inputs, "steps": 16, "sampler_name": "euler"}
        result = _execute(nodes["RASCompare"], model=sd3.build(), vae=Vae(), **inputs, **settings)
        (slider,), (stats,) = result.ui["ras_compare"], result.ui["ras"]
        assert slider["speedup"] is None and stats["disturbed"]
        assert "the computer was busy, and measured speed-ups are unreliable" in caplog.text

    def test_settings_of_an_earlier_node_are_left_out(self, nodes, sd3, sampler_inputs, caplog):
        class Vae:
            def decode(self, samples):
                return samples[:, :3].movedim(1, -1).sigmoid()

        caplog.set_level("INFO")
        patched = _execute(nodes["RASPatchModel"], model=sd3.build(), **_settings(speed="3x"))[0]
        inputs = {**sampler_inputs, "steps": 16, **_settings(speed="2x")}
        images = _execute(nodes["RASCompare"], model=patched, vae=Vae(), **inputs).args
        said = [one.getMessage() for one in caplog.records if "settings" in one.getMessage()]
        own = "RAS Compare: its own settings apply, not those of the RAS node before it."
        assert [text for text in said if "no effect" not in text] == [f"Multirate RAS: {own}"]
        expected = _execute(nodes["RASCompare"], model=sd3.build(), vae=Vae(), **inputs).args
        assert all(torch.equal(images[i], expected[i]) for i in (0, 1, 5))

    @pytest.mark.parametrize(("speed", "sampler"), [("2x", "euler"), ("2x", "dpmpp_2m"), ("3x", "dpmpp_2m")])
    def test_fewer_steps_are_those_of_the_best_plain_plan(
        self, nodes, sd3, sampler_inputs, titles, speed, sampler, caplog
    ):
        """The scheduler is one that would give another image. The log names the sampler that was chosen."""
        caplog.set_level("INFO")
        inputs = {**sampler_inputs, "steps": 28, "sampler_name": sampler, "scheduler": "karras"}
        settings = _settings(speed=speed)
        result = _execute(nodes["RASCompare"], model=sd3.build(), vae=TinyVae(), **inputs, **settings)
        steps = result.ui["ras_compare"][0]["steps"]["fewer"]
        assert steps == round(28 / float(speed[:-1]))
        said = f"{speed}: {steps} steps instead of 28, all dense (sampler ab2 in place of {sampler}, "
        assert said in caplog.text
        planned = {"speed": speed, "steps": 28, "denoise": 1.0, "sampler": "euler"}
        levels = _execute(nodes["RASScheduler"], model=sd3.build(), **planned)[0]
        order = _execute(nodes["RASSampler"], order="ab2")[0]
        expected = _sample_custom(sd3, inputs, order, levels)
        assert torch.allclose(result.args[5], TinyVae().decode(expected), atol=1e-5)
        assert f"fewer steps: {steps} steps on the measured grid" in str(titles)
        told = re.findall(r"RAS Compare: (.*)\.$", caplog.text, re.MULTILINE)
        assert told[:4] == [  # times of so small an image may contradict each other
            "a warm-up of one step", "run 1 of 3, without RAS", "run 2 of 3, with RAS",
            "run 3 of 3, without RAS, in fewer steps",
        ]  # fmt: skip

    @pytest.mark.parametrize("changes", [{"sampler_name": "heun"}, {"speed": "custom"}])
    def test_fewer_steps_with_the_users_own_scheduler(self, nodes, sd3, sampler_inputs, titles, changes):
        changes = {"steps": 16, "scheduler": "karras", **changes}
        inputs = {**sampler_inputs, **_settings(speed="2x"), **changes}
        result = _execute(nodes["RASCompare"], model=sd3.build(), vae=TinyVae(), **inputs)
        steps = result.ui["ras_compare"][0]["steps"]["fewer"]
        dense = {**inputs, **_settings(sample_ratio=1.0), "steps": steps}
        expected = _execute(nodes["RASKSampler"], model=sd3.build(), **dense)[0]["samples"]
        assert torch.equal(result.args[5], TinyVae().decode(expected))
        assert f"fewer steps: {steps} steps on your scheduler's grid" in str(titles)

    def test_inpainting_has_no_other_fewer_steps(self, nodes, sd3, sampler_inputs, titles):
        """With a mask, the run with RAS is one of fewer steps itself."""
        mask = torch.zeros(1, 1, 128, 128)
        mask[..., :32, :32] = 1.0
        latent = {"samples": torch.zeros(2, 16, 16, 16), "noise_mask": mask}
        inputs = {**sampler_inputs, "steps": 28, "latent_image": latent}
        result = _execute(
            nodes["RASCompare"], model=sd3.build(), vae=TinyVae(), **inputs, **_settings(speed="2x")
        )
        assert torch.equal(result.args[5], result.args[1])
        assert "fewer steps: 14 steps on the measured grid" in str(titles)
        assert result.ui["ras_compare"][0]["inpainting"]
        # The summary, and below the images.
        told = " ".join(titles)
        assert "over 28 dense steps (inpainting: all steps dense)" in told
        assert re.search(r"x faster.* \(inpainting: fewer steps, all dense\), PSNR", told)

    def test_settings_that_contradict_are_refused_before_the_first_run(self, nodes, sd3, sampler_inputs):
        settings = _settings(speed="2x", paper=_paper(nodes))
        with pytest.raises(ValueError, match="set speed to custom"):
            _execute(nodes["RASCompare"], model=None, vae=None, **sampler_inputs, **settings)


class TestImages:
    def test_a_frame_for_every_step_and_one_summary(self, nodes, sampled):
        trace = sampled[1]
        result = _execute(nodes["RASMaskPreview"], trace=trace, images=torch.rand(2, 128, 128, 3))
        frames, summary = result.args
        assert frames.shape == (8, 8 * 16 + 32, 2 * 8 * 16, 3)  # two images in a row, and a line of text
        assert summary.shape == (1, 720, 1080, 3)
        for image in (frames, summary):
            assert image.dtype is torch.float32 and 0 <= image.min() and image.max() <= 1

    def test_cached_regions_are_darker_than_active_ones(self, nodes, sampled):
        trace = sampled[1]
        frames = _execute(nodes["RASMaskPreview"], trace=trace)[0].numpy()
        regional = trace.steps[5]
        body = frames[5, :128, :128].mean(axis=2).reshape(8, 16, 8, 16).mean(axis=(1, 3))
        assert body[regional.active[0]].min() > body[~regional.active[0]].max()
        assert np.ptp(frames[0, 4:100, 4:100]) < 0.01  # a dense step shows the whole image

    def test_numbers_for_the_interface(self, nodes, sampled):
        import json

        trace = sampled[1]
        shown = _execute(nodes["RASMaskPreview"], trace=trace).ui
        assert shown["images"][0]["type"] == "temp"
        numbers = json.loads(json.dumps(shown["ras"][0]))
        assert numbers["steps"] == 8 and numbers["regional_steps"] == 4
        assert numbers["token_share"] == pytest.approx(0.75)
        assert len(numbers["timeline"]) == 8
