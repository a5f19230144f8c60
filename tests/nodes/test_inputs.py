"""Every input of every node refuses bad values: when the prompt is queued, and when the node runs."""

import asyncio
import importlib
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ras_pack.nodes.patch_model import RASPatchModel
from ras_pack.nodes.plans import RASCalibrate, RASScheduler
from ras_pack.nodes.sampler import RASKSampler
from ras_pack.nodes.settings import settings_inputs, speed_input
from ras_pack.ras_core.config import RASConfig
from ras_pack.ras_core.errors import RASError, quoted
from ras_pack.ras_core.host.patch import last_trace, patch_model
from ras_pack.ras_core.method.plan import Plan
from ras_pack.ras_core.method.plan_set import PlanSet
from ras_pack.ras_core.method.preferences import as_priority
from support.comfy import PACK
from support.sampling import sample

MODEL, TEXT, LATENT, PAPER = ["model", 0], ["text", 0], ["latent", 0], ["paper", 0]
SETTINGS = {
    "speed": "custom", "sample_ratio": 0.5, "start_percent": 0.25, "end_percent": 1.0, "error_reset_every": 0,
    "cuda_graphs": "off", "kv_cache": "gpu",
}  # fmt: skip
SAMPLING = {
    "model": MODEL, "seed": 0, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple",
    "positive": TEXT, "negative": TEXT, "latent_image": LATENT, "denoise": 1.0, **SETTINGS,
}  # fmt: skip
GRAPH = {
    "model": ("RASDemoModel", {"family": "sd3"}),
    "text": ("RASDemoPrompt", {"text": ""}),
    "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
    "mask": ("SolidMask", {"value": 1.0, "width": 64, "height": 64}),
    "paper": ("RASPaperSettings", {
        "metric": "std", "high_ratio": 1.0, "starvation_scale": 0.1, "ratio_end": 0.0,
        "error_reset_steps": "",
    }),
    "patch": ("RASPatchModel", {"model": MODEL, "paper": PAPER, "priority": ["mask", 0], **SETTINGS}),
    "sampler": ("RASKSampler", {**SAMPLING, "paper": PAPER}),
    "compare": ("RASCompare", {**SAMPLING, "vae": ["model", 1]}),
    "order": ("RASSampler", {"order": "euler"}),
    "trace": ("RASTrace", {"model": ["patch", 0], "latent": LATENT}),
    "preview": ("RASMaskPreview", {"trace": ["sampler", 1], "images": ["compare", 0]}),
    "calibrate": ("RASCalibrate", {
        "model": MODEL, "positive": TEXT, "negative": TEXT, "latent_image": LATENT, "cfg": 4.0, "seeds": 2,
    }),
    "scheduler": ("RASScheduler", {
        "model": MODEL, "speed": "2x", "steps": 28, "denoise": 1.0, "sampler": "euler",
        "plan": ["calibrate", 0], "latent_image": LATENT,
    }),
    "lumina": ("RASLuminaNextLoader", {
        "folder": "none", "transformer": "from folder", "text_encoder": "from folder", "vae": "from folder",
        "guidance_channels": "all", "scaling_watershed": 1.0,
    }),
}  # fmt: skip
"""A prompt with every node of the pack: class and inputs by the node's id."""

OTHER_SPEED = PlanSet((Plan("3x", "euler", (1.0,), (1.0,) * 9),))

OURS = [(node, name) for node, (kind, inputs) in GRAPH.items() if kind.startswith("RAS") for name in inputs]
LINKED = [(node, name) for node, name in OURS if isinstance(GRAPH[node][1][name], list)]
NUMBERS = [(node, name) for node, name in OURS if isinstance(GRAPH[node][1][name], (int, float))]


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Register the pack's nodes where ComfyUI looks them up."""
    from comfy_extras.nodes_mask import SolidMask

    import nodes as comfy_nodes

    extension = asyncio.run(importlib.import_module(f"{PACK}.nodes").comfy_entrypoint())
    known = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
    with pytest.MonkeyPatch.context() as patch:
        for name, node in {**known, "SolidMask": SolidMask}.items():
            patch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, name, node)
        yield known


def refused(node: str, **changes) -> list[str]:
    """ComfyUI's errors about a node of the graph whose inputs are changed, when the prompt is queued."""
    import execution

    prompt = {key: {"class_type": kind, "inputs": dict(inputs)} for key, (kind, inputs) in GRAPH.items()}
    prompt[node]["inputs"].update(changes)
    keep = _upstream(prompt, node)
    async_validated = execution.validate_inputs("id", {key: prompt[key] for key in keep}, node, {})
    try:
        valid, errors, _ = asyncio.run(async_validated)
    except RASError as error:  # `validate_prompt` shows its text
        return [str(error)]
    assert valid == (not errors)
    return [each["details"] for each in errors]


def _upstream(prompt: dict, node: str) -> set[str]:
    links = [value[0] for value in prompt[node]["inputs"].values() if isinstance(value, list)]
    return {node}.union(*(_upstream(prompt, link) for link in links))


def is_explained(message: str) -> bool:
    return "Expected: " in message and "What to do: " in message and len(message) <= 300


def explained(message: str) -> str:
    assert is_explained(message), (len(message), message)
    return message


def _json_without_links() -> st.SearchStrategy:
    """JSON values as Python reads them: NaN and infinity too. A list would be a link to another node."""
    scalars = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=40))
    inside = st.recursive(scalars, lambda part: st.lists(part, max_size=3), max_leaves=6)
    return st.one_of(scalars, st.dictionaries(st.text(max_size=5), inside, max_size=3))


class TestQueued:
    def test_the_graph_itself_is_accepted(self):
        import execution

        extra = {"partial_execution_list": None}
        known = inspect.signature(execution.validate_prompt).parameters
        prompt = {key: {"class_type": kind, "inputs": dict(inputs)} for key, (kind, inputs) in GRAPH.items()}
        given_here = {name: value for name, value in extra.items() if name in known}
        told = asyncio.run(execution.validate_prompt("id", prompt, **given_here))
        assert told[0] and not told[3]
        assert {kind for kind, _ in GRAPH.values()} >= {"RASKSampler", "RASScheduler", "RASLuminaNextLoader"}

    def test_every_node_and_input_is_in_the_graph(self, registered):
        used = {kind: set(inputs) for kind, inputs in GRAPH.values() if kind.startswith("RAS")}
        named = {
            kind: {each.id for each in node.define_schema().inputs if not each.optional}
            for kind, node in registered.items()
        }
        assert used.keys() == named.keys() and all(named[kind] <= used[kind] for kind in named)

    @pytest.mark.parametrize(("node", "name"), NUMBERS)
    def test_no_number(self, node, name):
        for value in (math.nan, math.inf, -math.inf, -1, 1e300, "much", "9" * 5000, {"a": [1] * 1000}):
            (message,) = refused(node, **{name: value})
            assert f"{name} = " in explained(message)

    @pytest.mark.parametrize(("node", "name"), LINKED)
    def test_a_value_where_a_connection_belongs(self, node, name):
        for value in ("x" * 10**6, 5, math.nan, {"samples": 3}):
            (message,) = refused(node, **{name: value})
            assert f"{name} = " in explained(message)

    @given(chosen=st.sampled_from(OURS), value=_json_without_links())
    @settings(max_examples=100)
    def test_any_value(self, chosen, value):
        node, name = chosen
        assert all(map(is_explained, refused(node, **{name: value})))

    @pytest.mark.parametrize(
        ("node", "changes", "told"),
        [
            ("patch", {"start_percent": 0.6, "end_percent": 0.5}, "end_percent = 0.5 is not after"),
            ("sampler", {"speed": "2x"}, "RAS Paper Settings together with speed = 2x"),
            ("sampler", {"denoise": 1e-9}, "denoise = 1e-09 with 4 steps"),
            ("compare", {"kv_cache": "disk"}, "kv_cache = 'disk'"),
            ("scheduler", {"speed": "custom"}, "speed = 'custom'"),
            ("scheduler", {"denoise": 1e-300}, "denoise = 1e-300"),
            ("lumina", {"folder": "../../secret"}, "folder = '../../secret'"),
            ("paper", {"error_reset_steps": "9" * 5000}, "error_reset_steps = '999"),
            ("paper", {"error_reset_steps": "x" * 200_000}, "error_reset_steps = 'xxx"),
            ("paper", {"error_reset_steps": "3,4,100000"}, "holds '100000'"),
        ],
    )
    def test_values_that_cannot_be_used(self, node, changes, told):
        (message,) = refused(node, **changes)
        assert told in explained(message)


class TestRunning:
    """Values that come from other nodes are checked when the node runs, before it samples."""

    def _sampling(self, sd3, **changes) -> dict:
        given_here = {
            **{item.id: getattr(item, "default", None) for item in [speed_input(), *settings_inputs()]},
            **{name: value for name, value in SAMPLING.items() if not isinstance(value, list)},
            "model": sd3.build(), "positive": sd3.conditioning(1), "negative": sd3.conditioning(2),
            "latent_image": {"samples": torch.zeros(2, 16, 16, 16)},
        }  # fmt: skip
        return {**given_here, **changes}

    @pytest.mark.parametrize(
        "changes",
        [
            {"speed": "9x"}, {"steps": 0}, {"steps": 4.5}, {"cfg": math.nan}, {"denoise": math.inf},
            {"sampler_name": "unknown"}, {"scheduler": torch.ones(3)}, {"kv_cache": None}, {"seed": 2**70},
            {"model": None}, {"model": "file"}, {"positive": "a fox"}, {"negative": [["a", "b", "c"]]},
            {"latent_image": {}}, {"latent_image": {"samples": torch.zeros(0, 16, 16, 16)}},
            {"latent_image": [{"samples": torch.zeros(1, 16, 8, 8)}]}, {"plan": {"version": 1}},
            {"plan": PlanSet(())}, {"plan": OTHER_SPEED, "speed": "2x"},
            {"paper": "paper"}, {"priority": torch.ones(3, 8, 8)},
            {"priority": torch.full((1, 8, 8), math.nan)}, {"speed": "2x", "paper": object()},
        ],
        ids=lambda changes: "-".join(changes),
    )  # fmt: skip
    def test_a_sampler_refuses(self, sd3, changes):
        with pytest.raises(RASError) as caught:
            RASKSampler.execute(**self._sampling(sd3, **changes))
        message = explained(str(caught.value))
        assert any(name in message for name in changes) and len(message) > 60

    @pytest.mark.parametrize(
        "changes",
        [
            {"steps": 0}, {"denoise": math.nan}, {"denoise": 1e-12}, {"speed": "4x"}, {"plan": []},
            {"latent_image": {"samples": torch.zeros(1, 16, 3, 8, 8)}}, {"latent_image": {"samples": None}},
        ],
        ids=lambda changes: "-".join(changes),
    )  # fmt: skip
    def test_a_scheduler_refuses(self, sd3, changes):
        usual = {"model": sd3.build(), "speed": "2x", "steps": 28, "denoise": 1.0, "sampler": "euler"}
        with pytest.raises(RASError) as caught:
            RASScheduler.execute(**{**usual, **changes})
        explained(str(caught.value))

    @pytest.mark.parametrize(
        "changes",
        [
            {"positive": []}, {"negative": []}, {"cfg": math.nan}, {"seeds": 0},
            {"latent_image": {"samples": torch.zeros(1, 16, 0, 8)}},
            {"latent_image": {"samples": torch.zeros(1, 16, 3, 8, 8)}},
        ],
        ids=lambda changes: "-".join(changes),
    )  # fmt: skip
    def test_a_calibration_refuses(self, sd3, changes):
        usual = {
            "model": sd3.build(), "positive": sd3.conditioning(1), "negative": sd3.conditioning(2),
            "latent_image": {"samples": torch.zeros(1, 16, 16, 16)}, "cfg": 4.0, "seeds": 1,
        }  # fmt: skip
        with pytest.raises(RASError) as caught:
            RASCalibrate.execute(**{**usual, **changes})
        assert any(name in explained(str(caught.value)) for name in changes)

    def test_plans_of_other_speeds_are_refused_before_sampling(self, sd3):
        given_here = {**SETTINGS, "speed": "2x", "plan": OTHER_SPEED}
        with pytest.raises(RASError, match="no plan for 2x"):
            RASPatchModel.execute(sd3.build(), **given_here)

    def test_several_latents_in_one(self, sd3):
        nested = pytest.importorskip("comfy.nested_tensor").NestedTensor([torch.zeros(1, 16, 8, 8)] * 2)
        usual = {"model": sd3.build(), "speed": "2x", "steps": 28, "denoise": 1.0, "sampler": "euler"}
        with pytest.raises(RASError, match="several latents"):
            RASScheduler.execute(**usual, latent_image={"samples": nested})


class TestPriority:
    @pytest.mark.parametrize(
        "mask",
        [
            torch.tensor(1.0), torch.ones(8), torch.ones(0, 8, 8), torch.ones(1, 3, 8, 8),
            torch.ones(1, 0, 8), torch.ones(1, 1, 1, 8, 8), torch.ones(8, 8, dtype=torch.complex64),
            torch.full((8, 8), 255),
            torch.ones(8, 8).to_sparse(), torch.full((1, 8, 8), math.inf), torch.full((8, 8), -3.0), "mask",
            [torch.ones(8, 8)],
            torch.ones(2, 8, 8).index_fill_(2, torch.tensor([3]), math.nan),
        ],
        ids=lambda mask: str(getattr(mask, "dtype", mask))[:20],
    )  # fmt: skip
    def test_a_mask_that_cannot_be_used(self, sd3, mask):
        with pytest.raises(RASError, match="priority is .*values from 0 to 1"):
            patch_model(sd3.build(), RASConfig(), mask)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
    @pytest.mark.parametrize("shape", [(16, 16), (1, 16, 16), (1, 1, 16, 16)])
    def test_a_mask_of_any_type_means_the_same(self, dtype, shape):
        mask = (torch.arange(256) % 3 == 0).view(shape)
        assert torch.equal(as_priority(mask.to(dtype)), mask.float().view(1, 16, 16))

    def test_a_bool_mask_samples_as_its_numbers_do(self, sd3):
        mask, latents = torch.zeros(1, 16, 16), []
        mask[:, :8] = 1
        config = RASConfig(start_step=2, error_reset_every=0, sample_ratio=0.3)
        for each in (mask, mask.bool(), None):
            latents.append(sample(patch_model(sd3.build(), config, each), sd3, sd3.noise(), steps=5))
        assert torch.equal(latents[0], latents[1]) and not torch.equal(latents[0], latents[2])

    @pytest.mark.parametrize(("masks", "batch"), [(3, 2), (2, 3)])
    def test_another_number_of_masks_than_images_runs_dense(self, sd3, masks, batch):
        noise, config = sd3.noise(batch=batch), RASConfig(start_step=2)
        patched = patch_model(sd3.build(), config, torch.rand(masks, 16, 16))
        latent = sample(patched, sd3, noise, steps=5)
        assert torch.equal(latent, sample(sd3.build(), sd3, noise, steps=5))
        trace = last_trace(patched)
        assert trace.regional_steps == 0
        assert trace.notes == (f"running dense from here: priority has {masks} masks for {batch} images",)


class TestMessages:
    @given(parts=st.tuples(*[st.text(max_size=400)] * 3))
    @settings(max_examples=50)
    def test_a_message_has_at_most_300_characters(self, parts):
        assert is_explained(str(RASError(*parts)))

    @given(value=_json_without_links())
    @settings(max_examples=50)
    def test_a_quote_has_at_most_80_characters(self, value):
        assert len(quoted(value)) <= 80

    def test_values_that_python_cannot_show(self):
        deep: list = []
        for _ in range(10**5):
            deep = [deep]

        class Broken:
            def __repr__(self):
                raise RuntimeError

        for value in (10**5000, deep, Broken(), [10**5000], "x" * 10**7, b"x" * 10**6):
            assert 0 < len(quoted(value)) <= 80
