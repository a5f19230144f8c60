"""Code of other packs inside a network, which sees fewer rows in a regional call.

Each way in is written as other packs use it. A run beside it is fast and close to the dense run; or
dense, with one true reason, and then equal to the dense run to the last bit.
"""

import importlib
from concurrent.futures import ThreadPoolExecutor

import comfy.ldm.lumina.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from ras_pack.ras_core.config import PaperSettings, RASConfig
from ras_pack.ras_core.errors import RegionalAbort
from ras_pack.ras_core.host.names import ATTENTION
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.models.control import gathered_lists
from ras_pack.ras_core.run.regional import FAILED, _failure
from support.families import FAMILIES, draw_weights
from support.sampling import between_calls, distance, sample, sample_ras
from torch import nn

QUICK = RASConfig(paper=PaperSettings(), sample_ratio=0.5, start_step=2, error_reset_every=0)
"""Of six steps, the first two are dense."""
ROWS = "may rely on the rows of all tokens"
MLP = "joint_blocks.1.x_block.mlp"


@pytest.fixture
def lumina2():
    return FAMILIES["lumina2"]


@pytest.fixture
def z_image():
    return FAMILIES.get("z_image") or pytest.skip("this ComfyUI has no such model")


def run(model, family, config=QUICK, noise=None, **more):
    noise = family.noise() if noise is None else noise
    return sample_ras(model, family, noise, config, steps=6, **more)


def check_dense(build, family, reason, config=QUICK, noise=None, **more):
    """Check that a run is dense for this one reason, and equals a run without RAS to the last bit. `build`
    makes a new model with new code of another pack, whose state must not be shared by the two runs.
    """
    noise = family.noise() if noise is None else noise
    dense = sample(build(), family, noise, steps=6, **more)
    latent, trace = run(build(), family, config, noise, **more)
    assert trace.regional_steps == 0 and len(trace.notes) == 1, trace.notes
    assert trace.notes[0].startswith("running dense from here: ") and reason in trace.notes[0]
    assert len(trace.notes[0]) <= 300
    assert torch.equal(latent, dense)


def check_fast(model, family):
    """Check that a run with 58 of 64 active tokens is regional, and close to the dense run."""
    latent, trace = run(model, family, RASConfig(**{**vars(QUICK), "sample_ratio": 0.9}))
    assert trace.regional_steps == 4 and not trace.notes
    assert distance(latent, sample(model, family, family.noise(), steps=6)) < 0.15


class TinyVAE:
    """As much of a VAE as a ControlNet needs."""

    def spacial_compression_encode(self):
        return 8

    def encode(self, image):
        return torch.zeros(len(image), 16, image.shape[1] // 8, image.shape[2] // 8)


class CountingControl:
    """A ControlNet as a patch of the blocks. It computes its residual, which has a row for each token, at the
    first block of a call, and counts the blocks through the call.
    """

    def __init__(self, blocks):
        self.blocks, self.number, self.residual = blocks, 0, None

    def __call__(self, args):
        if self.number == 0:
            self.residual = torch.zeros_like(args["img_input"])
        self.number = (self.number + 1) % self.blocks
        self.residual = (self.residual + 0.3 * args["img_input"]).tanh()
        return {"img": args["img"] + 0.1 * self.number * self.residual}


class TestPatchesOfBlocks:
    @pytest.mark.parametrize("kind", ["double_block", "noise_refiner"])
    def test_with_state_through_a_call(self, lumina2, kind):
        if kind not in comfy.ldm.lumina.model.NextDiT._forward.__code__.co_consts + (
            comfy.ldm.lumina.model.NextDiT.patchify_and_embed.__code__.co_consts
        ):
            pytest.skip("this ComfyUI's NextDiT has no such patch")

        def build():
            model = lumina2.build()
            model.set_model_patch(CountingControl(2 if kind == "noise_refiner" else 3), kind)
            return model

        check_dense(build, lumina2, f"patches the network ({kind})")

    def test_comfyuis_z_image_controlnet(self, z_image):
        """It goes through its own blocks as the network goes through its blocks, and starts over only when it
        has reached the end or the network has begun again.
        """
        nodes = pytest.importorskip("comfy_extras.nodes_model_patch")
        if not hasattr(nodes, "ZImageControlPatch"):
            pytest.skip("this ComfyUI has no Z-Image ControlNet")
        control = importlib.import_module("comfy.ldm.lumina.controlnet").ZImage_Control(
            dim=256, n_heads=8, n_kv_heads=8, n_control_layers=6, refiner_control=True,
            operations=comfy.ops.disable_weight_init, dtype=torch.float32, device="cpu",
        )  # fmt: skip
        draw_weights(control, 4)

        def build():
            model = z_image.build()
            patcher = comfy.model_patcher.ModelPatcher(control, torch.device("cpu"), torch.device("cpu"))
            patch = nodes.ZImageControlPatch(patcher, TinyVAE(), torch.rand(1, 128, 128, 3), 1.0)
            patch.encoded_image = z_image.noise(seed=8)
            model.set_model_noise_refiner_patch(patch)
            model.set_model_double_block_patch(patch)
            return model

        noise = z_image.noise()
        assert distance(sample(build(), z_image, noise), sample(z_image.build(), z_image, noise)) > 0.01
        check_dense(build, z_image, "patches the network (double_block)")

    def test_an_error_that_is_not_due_to_fewer_rows(self, sd3):
        def fail(args, more):
            raise AssertionError("planted")

        model = sd3.build()
        model.set_model_patch_replace(fail, "dit", "double_block", 1)
        with pytest.raises(AssertionError, match="planted"):
            run(model, sd3)

    def test_without_effect_in_this_family(self, sd3):
        model = sd3.build()
        model.set_model_patch(lambda *args: 1 / 0, "attn1_patch")
        check_fast(model, sd3)


def _residual_at_image_rows(rows):
    def hook(module, args, output):
        """Adds one residual row per token, if there are at least as many rows."""
        image, others = (output[1], output[:1]) if isinstance(output, tuple) else (output, None)
        if image.shape[1] >= rows:
            residual = torch.linspace(-1, 1, rows)[:, None]
            image = torch.cat([image[:, :rows] + residual, image[:, rows:]], dim=1)
        return image if others is None else (*others, image)

    return hook


class TestHooks:
    def test_a_residual_row_per_token_at_padded_sizes(self, z_image):
        """100 tokens are padded to 128 rows: 75 active tokens and 28 rows of padding are more than 100."""

        def build():
            model = z_image.build()
            network = model.model.diffusion_model
            for block in network.noise_refiner:
                block.register_forward_hook(_residual_at_image_rows(100))
            return model

        config = RASConfig(**{**vars(QUICK), "sample_ratio": 0.75})
        check_dense(build, z_image, "another node's hook changes rows", config, z_image.noise(20, 20))

    @pytest.mark.parametrize("in_place", [False, True])
    @pytest.mark.parametrize("before", [False, True])
    def test_any_change_of_rows(self, sd3, before, in_place):
        def change(rows):
            return rows.mul_(1.1) if in_place else rows * 1.1

        def build():
            model = sd3.build()
            mlp = model.model.diffusion_model.get_submodule(MLP)
            if before:
                mlp.register_forward_pre_hook(lambda module, args: (change(args[0]),))
            else:
                mlp.register_forward_hook(lambda module, args, output: change(output))
            return model

        check_dense(build, sd3, f"another node's hook changes rows of Mlp, and {ROWS}")

    def test_an_observer_that_asserts_the_number_of_rows(self, sd3, caplog):
        """It changes nothing, so it is found out only in the first regional call."""
        seen = []

        def observe(module, args, output):
            seen.append(output.shape)
            assert output.shape == seen[0]

        def build():
            seen.clear()
            model = sd3.build()
            model.model.diffusion_model.get_submodule(MLP).register_forward_hook(observe)
            return model

        check_dense(build, sd3, FAILED)
        assert caplog.text.count("running dense from here") == 1

    def test_an_observer(self, sd3):
        model, seen = sd3.build(), []
        mlp = model.model.diffusion_model.get_submodule(MLP)
        mlp.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
        check_fast(model, sd3)
        assert set(seen) == {64, 58}

    def test_that_begins_to_change_rows_in_a_regional_step(self, sd3):
        calls = []

        def build():
            calls.clear()
            model = sd3.build()

            def hook(module, args, output):
                calls.append(1)
                return None if len(calls) <= 2 else output * 1.1

            model.model.diffusion_model.get_submodule(MLP).register_forward_hook(hook)
            return model

        _, trace = run(build(), sd3)
        assert trace.regional_steps == 0 and "hook changes rows of Mlp" in trace.notes[0]

    def test_hooked_later_in_the_run(self, sd3):
        """Another pack's wrapper hooks a block in the fifth of six evaluations."""
        patched, calls = patch_model(sd3.build(), QUICK), []
        block = patched.model.diffusion_model.joint_blocks[0]

        def late(executor, *args, **kwargs):
            calls.append(1)
            if len(calls) == 5:
                block.register_forward_hook(lambda module, args, output: (output[0], output[1] * 1.1))
            return executor(*args, **kwargs)

        patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "other", late)
        sample(patched, sd3, sd3.noise(), steps=6)
        trace = last_trace(patched)
        assert trace.regional_steps == 2 and len(trace.notes) == 1 and "during the run" in trace.notes[0]


class Wrapped(nn.Module):
    """A module of another pack around a part of the network."""

    def __init__(self, inner, is_child=True):
        super().__init__()
        self.held = [inner]
        if is_child:
            self.inner = inner

    def forward(self, *args, **kwargs):
        return self.held[0](*args, **kwargs)


class TestReplacedModules:
    @pytest.mark.parametrize("is_child", [False, True])
    def test_a_layer(self, family, is_child):
        """Replaced in the network, or by an object patch, which ComfyUI applies when sampling starts."""

        def build():
            model = family.build()
            network = model.model.diffusion_model
            blocks = adapter_for(network).main_blocks(network)
            (name,) = (name for name, each in network.named_modules() if each is blocks[0])
            wrapped = Wrapped(blocks[0], is_child)
            if is_child:
                model.add_object_patch(f"diffusion_model.{name}", wrapped)
            else:
                network.get_submodule(name.rpartition(".")[0])[0] = wrapped
            return model

        check_dense(build, family, "another node")

    def test_twice(self, lumina2):
        model = lumina2.build()
        dense = sample(model, lumina2, lumina2.noise(), steps=6)
        model.add_object_patch(
            "diffusion_model.layers.0", Wrapped(model.model.diffusion_model.layers[0], False)
        )
        patched = patch_model(model, QUICK)
        for _ in range(2):
            assert torch.equal(sample(patched, lumina2, lumina2.noise(), steps=6), dense)
            assert last_trace(patched).regional_steps == 0 and len(last_trace(patched).notes) == 1

    def test_the_whole_network(self, sd3, caplog):
        model = patch_model(sd3.build(), QUICK)
        wrapped = Wrapped(model.model.diffusion_model)
        wrapped.dtype = torch.float32
        model.add_object_patch("diffusion_model", wrapped)
        latent = sample(model, sd3, sd3.noise(), steps=6)
        assert torch.equal(latent, sample(sd3.build(), sd3, sd3.noise(), steps=6))
        trace = last_trace(model)
        assert trace.regional_steps == 0 and len(trace.notes) == 1 and "Wrapped" in trace.notes[0]
        assert caplog.text.count("running dense") == 1

    def test_a_layer_that_computes_each_row_alone(self, sd3):
        model = sd3.build()
        mlp = model.model.diffusion_model.get_submodule(MLP)
        model.add_object_patch(f"diffusion_model.{MLP}.fc1", Quantised(mlp.fc1))
        check_fast(model, sd3)


class Quantised(nn.Linear):
    """A linear layer of another pack, which unpacks its weights at each use."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.packed = linear.weight.detach(), linear.bias.detach()

    def forward(self, rows):
        return nn.functional.linear(rows, *self.packed)


def scaled(forward, owner):
    return lambda rows: forward(rows) * 1.5


def mixing(forward, owner):
    return lambda rows: forward(rows - rows.mean(dim=1, keepdim=True))


def with_residual(forward, owner):
    residual = torch.linspace(-1, 1, 64)[None, :, None]
    return lambda rows: forward(rows) + residual


def counting(forward, owner):
    calls = [0]

    def replaced(rows):
        calls[0] += 1
        return forward(rows) * (1 + 0.1 * (calls[0] % 2))

    return replaced


class TestReplacedFunctions:
    @pytest.mark.parametrize(
        ("replace", "reason"),
        [
            (mixing, "code in Mlp needs the rows of all tokens"),
            (with_residual, "code in Mlp needs the rows of all tokens"),
            (counting, "replaces forward of Mlp"),
        ],
    )
    def test_that_need_all_rows_or_keep_state(self, sd3, replace, reason):
        def build():
            model = sd3.build()
            mlp = model.model.diffusion_model.get_submodule(MLP)
            model.add_object_patch(f"diffusion_model.{MLP}.forward", replace(mlp.forward, mlp))
            return model

        check_dense(build, sd3, reason)

    def test_that_compute_each_row_alone(self, sd3):
        model = sd3.build()
        mlp = model.model.diffusion_model.get_submodule(MLP)
        model.add_object_patch(f"diffusion_model.{MLP}.forward", scaled(mlp.forward, mlp))
        check_fast(model, sd3)

    @pytest.mark.parametrize("of", ["network", "block", "class"])
    def test_of_the_network_or_a_block(self, lumina2, of, monkeypatch):
        model = lumina2.build()
        network = model.model.diffusion_model
        owner = {"network": network, "block": network.layers[1], "class": type(network.layers[1])}[of]
        forward = owner.forward
        monkeypatch.setattr(owner, "forward", lambda *args, **kwargs: forward(*args, **kwargs) * 1.01)
        check_dense(lambda: model, lumina2, "another node's code replaces forward of")

    def test_that_call_the_blocks_past_their_hooks(self, sd3):
        """Nothing is compiled here, so the reason must not say so."""

        def build():
            model = sd3.build()
            network = model.model.diffusion_model
            core = type(network).forward_core_with_concat

            def replaced(*args, **kwargs):
                calls = nn.Module.__call__
                try:
                    nn.Module.__call__ = lambda module, *args, **kwargs: module.forward(*args, **kwargs)
                    return core(network, *args, **kwargs)
                finally:
                    nn.Module.__call__ = calls

            network.forward_core_with_concat = replaced
            return model

        check_dense(build, sd3, "replaces forward_core_with_concat of")


class TestReplacedBlocks:
    def test_that_add_a_residual_for_each_token(self, sd3):
        """As an IP-Adapter for this network does: the block, and a part from another image."""

        def build():
            model, part = sd3.build(), torch.linspace(-1, 1, 64)[:, None]

            def adapter(args, more):
                out = more["original_block"](args)
                return {**out, "img": out["img"] + 0.2 * part}

            for i in range(2):
                model.set_model_patch_replace(adapter, "dit", "double_block", i)
            return model

        check_dense(build, sd3, f"another node's patch of double_block 0 changes its rows, and {ROWS}")

    @pytest.mark.parametrize("where", ["given", "result", "arguments"])
    def test_that_change_rows_in_place(self, sd3, where):
        def build():
            model = sd3.build()

            def replaced(args, more):
                if where == "given":
                    args["img"].mul_(1.1)
                    return args
                if where == "arguments":
                    return more["original_block"]({**args, "img": args["img"] * 1.1})
                out = more["original_block"](args)
                out["img"].mul_(1.1)
                return out

            model.set_model_patch_replace(replaced, "dit", "double_block", 1)
            return model

        check_dense(build, sd3, "patch of double_block 1 changes its rows")

    @pytest.mark.parametrize("runs", [False, True], ids=["skip", "run"])
    def test_that_skip_or_run_the_block(self, sd3, runs):
        model = sd3.build()
        model.set_model_patch_replace(
            (lambda args, more: more["original_block"](args)) if runs else (lambda args, more: args),
            "dit", "double_block", 1,
        )  # fmt: skip
        latent, trace = run(model, sd3)
        assert trace.regional_steps == 4 and not trace.notes

    def test_all_of_them(self, sd3):
        """No block runs, although nothing is compiled."""

        def build():
            model = sd3.build()
            for i in range(3):
                model.set_model_patch_replace(lambda args, more: args, "dit", "double_block", i)
            return model

        check_dense(build, sd3, "another node skips or replaces all blocks of the network")


class TestAttention:
    def test_of_another_precision(self, sd3):
        model = sd3.build()

        def rounded(func, q, k, v, heads, *args, **kwargs):
            return func(q.bfloat16(), k.bfloat16(), v.bfloat16(), heads, *args, **kwargs).to(q.dtype)

        model.model_options["transformer_options"][ATTENTION] = rounded
        check_fast(model, sd3)

    @pytest.mark.parametrize("kind", ["identity", "mixing", "mixing later", "remembering"])
    def test_that_is_not_comfyuis(self, sd3, kind):
        def build():
            model, kept, calls = sd3.build(), {}, []

            def other(func, q, k, v, heads, *args, **kwargs):
                output = func(q, k, v, heads, *args, **kwargs)
                if kind == "identity":  # as perturbed attention has it
                    return v.reshape(output.shape)
                if kind.startswith("mixing"):
                    calls.append(1)
                    begins = kind == "mixing" or len(calls) > 3  # later: in the second call of the network
                    return output - output.mean(dim=1, keepdim=True) if begins else output
                kept["number"] = kept.get("number", 0) + 1
                last = kept.get(kept["number"] % 3, output)
                kept[kept["number"] % 3] = output
                return 0.5 * output + 0.5 * last

            model.model_options["transformer_options"][ATTENTION] = other
            return model

        # In its first call, the one that remembers gives ComfyUI's results.
        keeps = "keeps results from one step to the next"
        check_dense(build, sd3, keeps if kind == "remembering" else "does not give ComfyUI's results")

    def test_that_begins_in_a_regional_call(self, sd3):
        model, calls = sd3.build(), []

        def other(func, q, k, v, heads, *args, **kwargs):
            calls.append(1)
            output = func(q, k, v, heads, *args, **kwargs)
            return output if len(calls) <= 6 else output - output.mean(dim=1, keepdim=True)

        model.model_options["transformer_options"][ATTENTION] = other
        _, trace = run(model, sd3)
        assert trace.regional_steps == 0 and "does not give ComfyUI's results" in trace.notes[0]

    def test_that_asserts_as_many_queries_as_keys(self, sd3):
        def build():
            model = sd3.build()

            def other(func, q, k, v, heads, *args, **kwargs):
                assert q.shape == k.shape
                return func(q, k, v, heads, *args, **kwargs)

            model.model_options["transformer_options"][ATTENTION] = other
            return model

        check_dense(build, sd3, FAILED)

    def test_a_function_that_runs_no_override(self, sd3, monkeypatch):
        """Another pack puts its own function in the place of ComfyUI's. Without an override there is no K/V
        cache, and active tokens would attend only to each other.
        """
        module = comfy.ldm.modules.diffusionmodules.mmdit
        plain = module.optimized_attention.__wrapped__
        monkeypatch.setattr(module, "optimized_attention", lambda *args, **kwargs: plain(*args, **kwargs))
        check_dense(sd3.build, sd3, "0 of 3 attentions")


class TestWrappersInside:
    """A wrapper that another pack adds when RAS' own is already there sees outputs without cached tokens."""

    def test_a_wrapper_of_the_models_calls(self, sd3):
        def build():
            model = sd3.build()

            def normalise(executor, *args, **kwargs):
                output = executor(*args, **kwargs)
                return output / output.std()

            def late(executor, *args, **kwargs):
                options = args[2]["model_options"]["transformer_options"]
                wrappers = options.setdefault("wrappers", {}).setdefault("apply_model", {})
                wrappers["other"] = [normalise]
                return executor(*args, **kwargs)

            model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "other", late)
            return model

        check_dense(build, sd3, "another node")

    def test_a_replaced_function_of_the_model(self, sd3):
        def build():
            model = sd3.build()
            original = model.model._apply_model
            model.model._apply_model = lambda *args, **kwargs: original(*args, **kwargs) * 1.01
            return model

        check_dense(build, sd3, "before this pack has completed it")


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_a_dense_run_with_corrections_equals_comfyuis_sampler(sd3, sampler):
    def build():
        model = sd3.build()
        block = model.model.diffusion_model.joint_blocks[0]
        block.register_forward_hook(lambda module, args, output: (output[0], output[1] * 1.1))
        return model

    config = RASConfig(sample_ratio=0.5, start_step=2, corrections=True)
    check_dense(build, sd3, "another node's hook", config, sampler=sampler)


@pytest.mark.parametrize("error", [comfy.model_management.InterruptProcessingException, MemoryError])
@pytest.mark.parametrize("number", [2, 10])
def test_cancelling_in_any_call_ends_the_run(sd3, error, number):
    """In a dense call and in a regional one: neither error is due to fewer rows."""
    model, calls = sd3.build(), []

    def cancelled(func, *args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise error
        return func(*args, **kwargs)

    model.model_options["transformer_options"][ATTENTION] = cancelled
    with pytest.raises(error):
        run(model, sd3)
    assert len(calls) == number


def in_threads(executor, model, conds, x, timestep, options):
    """Evaluates each prompt in a thread of its own, as packs for several GPUs do."""

    def one(group):
        with torch.inference_mode():
            return executor(model, [group], x, timestep, options)[0]

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, conds))


@pytest.mark.parametrize("kv_cache", ["gpu", "cpu"])
def test_calls_in_threads_of_another_pack(sd3, kv_cache, monkeypatch):
    between_calls(monkeypatch, in_threads)
    config = RASConfig(**{**vars(QUICK), "kv_cache": kv_cache})
    check_dense(sd3.build, sd3, "calls the network in several threads", config)


@pytest.mark.parametrize("config", [QUICK, RASConfig(sample_ratio=1.0)])
def test_calls_in_threads_count_as_evaluations(sd3, config, monkeypatch):
    """The network has run, so no step cache is blamed."""
    between_calls(monkeypatch, in_threads)
    trace = run(sd3.build(), sd3, config)[1]
    assert [each.step for each in trace.evaluations] == list(range(6))
    assert len(trace.notes) == (config is QUICK)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_a_failure_in_the_first_regional_call_with_corrections(sd3, sampler):
    def build():
        model = sd3.build()

        def other(func, q, k, *args, **kwargs):
            assert q.shape == k.shape
            return func(q, k, *args, **kwargs)

        model.model_options["transformer_options"][ATTENTION] = other
        return model

    config = RASConfig(sample_ratio=0.5, start_step=2, corrections=True)
    check_dense(build, sd3, FAILED, config, sampler=sampler)


class TestReasons:
    """Reasons are for users: they have no errors of Python, and no names of this pack's classes."""

    @pytest.mark.parametrize(
        "error", [AssertionError(), IndexError("index out of range in self"), KeyError(3)]
    )
    def test_an_error_of_other_code_is_only_in_the_debug_log(self, error, sd3, caplog):
        def other(func, q, k, *args, **kwargs):
            if q.shape != k.shape:
                raise error
            return func(q, k, *args, **kwargs)

        model = sd3.build()
        model.model_options["transformer_options"][ATTENTION] = other
        with caplog.at_level("DEBUG"):
            _, trace = run(model, sd3)
        assert trace.notes == (f"running dense from here: {FAILED}",)
        (record,) = [each for each in caplog.records if each.exc_info]
        assert record.exc_info[1] is error and record.levelname == "DEBUG"

    def test_the_number_of_rows_changes_during_the_run(self):
        """A patch appends rows to the image rows from the middle of the run on."""
        family, levels = FAMILIES["flux"], []

        def build():
            def see(apply, given):
                levels.append(float(given["timestep"].flatten()[0]))
                return apply(given["input"], given["timestep"], **given["c"])

            def more(args):
                if levels[-1] > 0.5:
                    return args
                new = {name: torch.cat([args[name], args[name][:, :7]], dim=1) for name in ("img", "img_ids")}
                return {**args, **new}

            model = family.build()
            model.set_model_unet_function_wrapper(see)
            model.set_model_patch(more, "post_input")
            return model

        _, trace = run(build(), family)
        assert [step.kind.value for step in trace.steps] == ["dense"] * 2 + ["regional"] * 3 + ["dense"]
        (note,) = trace.notes
        assert "received 71 rows (a batch of 2), not 64 image tokens" in note

    @pytest.mark.parametrize(
        ("shape", "reason"),
        [
            ((2, 71, 64), "71 rows"),
            ((1, 64, 64), "64 rows (a batch of 1), not 64 image tokens (a batch of 2)"),
            ((2, 8, 8, 64), "shape (8, 8, 64) (a batch of 2)"),
        ],
    )
    def test_residuals_of_a_wrong_form(self, shape, reason):
        with pytest.raises(RegionalAbort) as failure:
            gathered_lists(
                {"input": [torch.zeros(shape)]}, ("input",), torch.zeros(2, 3, dtype=torch.int64), 64
            )
        text = _failure(failure.value)
        assert reason in text and "64 image tokens" in text and "RegionalAbort" not in text
