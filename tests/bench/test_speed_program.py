"""The speed program's files and processes: checkpoints, jobs, starting ComfyUI, and whole tiny runs."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import comfy.model_detection
import comfy.sd
import comfy.supported_models
import comfy.utils
import pytest
import safetensors
import torch
from ras_pack.bench.checks import residency
from ras_pack.bench.common.checkpoints import make_files
from ras_pack.bench.common.graph_counter import GraphCounter
from ras_pack.bench.common.hosting import DISABLE_DYNAMIC, knows_dynamic_vram, start_as_main
from ras_pack.bench.common.pack_log import PREFIX, logged
from ras_pack.bench.common.shapes import SHAPES
from ras_pack.bench.common.tensor_file import write_tensors
from ras_pack.bench.common.timing import Clock, Stages
from ras_pack.bench.speed.cases import (
    WEIGHTS,
    Case,
    Variant,
    loads_from_file,
    other_weights,
    variants,
    weights_of,
)
from ras_pack.bench.speed.cli import parser, ways_to_start, with_defaults
from ras_pack.bench.speed.job import SpeedJob, files_for
from ras_pack.bench.speed.measured import Measured
from ras_pack.bench.speed.plots import read_rows
from ras_pack.bench.speed.run import Bench
from ras_pack.bench.speed.worker import shape_of
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.models import adapter_for
from ras_pack.ras_core.run.noise_levels import NoiseLevels

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
SD3 = Case("sd3_medium", 1024)


class TestVariants:
    def test_variants_of_all_weights_have_different_names(self):
        found = variants((0.5, 0.25), graphs=True, more=True)
        for weights in WEIGHTS[1:]:
            found += other_weights((0.5, 0.25), True, weights)
        assert len({each.key for each in found}) == len(found)
        assert "ras 50% graph lora" in [each.key for each in found]

    def test_only_one_ratio_also_runs_without_graphs(self):
        found = [v.ratio for v in variants((0.5, 0.25, 0.125), graphs=True) if v.graphs == "off"]
        assert found == [1.0, 0.25]  # dense, and the eager run

    def test_without_graphs_no_variant_is_repeated(self):
        found = [each.key for each in variants((0.5, 0.25), graphs=False)]
        assert found == ["dense", "ras 50% eager", "ras 25% eager"]

    def test_weights_of_a_case(self):
        assert weights_of(SD3, ()) == WEIGHTS
        assert weights_of(Case("lumina2", 1024), ()) == ("default", "fp8", "lora")
        assert weights_of(Case("lumina2", 1024), ("int8",)) == ("int8",)
        assert weights_of(Case("lumina_next", 1024), ("fp8",)) == ("default",)

    def test_which_networks_the_loader_detects(self):
        assert loads_from_file(SD3, tiny=True) and loads_from_file(Case("z_image", 1024))
        assert loads_from_file(Case("flux_dev", 1024), tiny=True)
        assert not loads_from_file(Case("z_image", 1024), tiny=True)
        assert not loads_from_file(Case("lumina_next", 1024))
        assert loads_from_file(Case("anima", 1024)) and not loads_from_file(Case("anima", 1024), tiny=True)
        assert loads_from_file(Case("flux2_klein_4b", 1024), tiny=True)
        assert loads_from_file(Case("qwen_image", 1024, blocks=20))
        assert not loads_from_file(Case("qwen_image", 1024))  # too large
        assert not loads_from_file(Case("sd3_medium", 1024, blocks=4))  # the loader would expect 24 blocks


class TestJobs:
    def test_a_job_can_be_sent_to_its_process(self):
        job = SpeedJob(
            action="measure", case=SD3, tiny=True, device="cpu", flags=("--cpu",), threads=1, steps=14,
            repeats=1, seconds=float("inf"), folder="/x", files={"default": "a.safetensors"},
            variants=(Variant("ras", 0.5, weights="fp8"),), ratios=(0.5,),
        )  # fmt: skip
        assert SpeedJob.loads(job.dumps()) == job

    def test_one_file_serves_several_kinds_of_weights(self):
        assert files_for(SD3, ("default", "fp8", "lora")) == {
            "default": "sd3_medium_default.safetensors", "lora": "sd3_medium_lora.safetensors",
        }  # fmt: skip
        assert list(files_for(SD3, ("scaled_fp8",))) == ["scaled_fp8"]
        assert list(files_for(SD3, ("lora",))) == ["default", "lora"]

    def test_ways_to_start(self):
        options = with_defaults(parser().parse_args([]))
        assert ways_to_start(SD3, options, True, {}) == [(), (DISABLE_DYNAMIC,)]
        assert ways_to_start(SD3, options, False, {}) == [()]
        assert ways_to_start(Case("lumina_next", 1024), options, True, {}) == [(DISABLE_DYNAMIC,)]
        assert ways_to_start(SD3, options, True, {"default": "no room"}) == []

    def test_fewer_blocks_have_the_true_width(self):
        job = SpeedJob(
            action="make", case=Case("qwen_image_edit", 1024, blocks=20), tiny=False, device="cuda", flags=(),
            threads=0, steps=28, repeats=1, seconds=60.0, folder="/x", files={"default": "a.safetensors"},
        )  # fmt: skip
        assert SpeedJob.loads(job.dumps()) == job
        shape, whole = shape_of(job), SHAPES["qwen_image_edit"]
        assert shape.unet_config["num_layers"] == 20 and whole.unet_config["num_layers"] == 60
        assert replace(shape, unet_config={**shape.unet_config, "num_layers": 60}) == whole
        flux = shape_of(replace(job, case=Case("flux_dev", 1024, blocks=30))).unet_config
        assert (flux["depth"], flux["depth_single_blocks"]) == (10, 20)  # of 19 and 38
        tiny = shape_of(replace(job, tiny=True))
        assert tiny.unet_config["num_layers"] < 20 and tiny.references == (128,)


def needs(shape):
    """Skip the test if this ComfyUI does not have the network's family."""
    if not hasattr(comfy.supported_models, shape.model_class):
        pytest.skip("this ComfyUI does not have the family")


NEWER = (
    "flux_kontext", "flux2_klein_4b", "flux2_klein_4b_edit", "flux2_klein_9b", "qwen_image",
    "qwen_image_edit", "anima",
)  # fmt: skip


class TestShapes:
    @pytest.mark.parametrize("name", NEWER)
    def test_comfyuis_loader_infers_the_same_network(self, name):
        """The loader leaves out settings that have their default values, but not these two."""
        needs(shape := SHAPES[name])
        tensors = shape._model(torch.device("meta")).diffusion_model.state_dict()
        config = {"yak_mlp": False, "txt_norm": False, **shape.unet_config}
        assert {**config, **comfy.model_detection.detect_unet_config(tensors, "")} == config

    @pytest.mark.parametrize(
        ("name", "billions"),
        [("flux2_klein_4b", 4), ("flux2_klein_9b", 9), ("qwen_image", 20), ("anima", 2), ("flux_dev", 12)],
    )
    def test_numbers_of_parameters_are_those_of_the_models(self, name, billions):
        needs(shape := SHAPES[name])
        network = shape._model(torch.device("meta")).diffusion_model
        assert sum(each.numel() for each in network.parameters()) == pytest.approx(billions * 1e9, rel=0.1)

    def test_inputs_of_edits(self):
        """A reference image of 1024 px has as many rows as an image of that size."""
        klein, qwen = SHAPES["flux2_klein_4b_edit"], SHAPES["qwen_image_edit"]
        for shape, size in ((klein, (1, 128, 64, 64)), (qwen, (1, 16, 1, 128, 128))):
            assert shape.reference_rows == 4096 and shape.latent(1024, 1024, 1)["samples"].shape == size
            for which in (0, 1):
                extras = shape.conditioning(which)[0][1]
                assert [each.shape for each in extras["reference_latents"]] == [size]
                assert "attention_mask" not in extras
        assert klein.rows_in_network == (512, 512) and klein.tiny().rows_in_network == (512, 512)

    @pytest.mark.parametrize("name", ["flux_kontext", "flux2_klein_4b", "qwen_image_edit", "anima"])
    def test_the_ideal_is_the_packs_own_estimate(self, name):
        """Both count the rows of text and of reference images. With prompts of unequal length, the pack
        counts the longer one twice, and its estimate is lower.
        """
        needs(shape := SHAPES[name].tiny())
        bench = Bench(Case(name, 1024), shape, CPU, 64, 6)
        try:
            _, trace = bench.latent_of(Variant("ras", 0.25))
            ideal = bench.ideal([round(each.active_share * bench.n_tokens) for each in trace.evaluations])
        finally:
            bench.close()
        assert trace.regional_steps == 2 and not trace.notes
        assert bench.profile.frozen_rows == (64 if shape.references else 0)
        assert ideal == pytest.approx(trace.expected_speedup, rel=0.02)

    @pytest.mark.parametrize("node", ["KSampler", "RASKSampler"])
    def test_the_clock_does_not_keep_a_plan_from_setting_its_noise_levels(self, node):
        """The clock takes one timestamp per evaluation of the plan, and one at the end."""
        bench = Bench(SD3, SHAPES["sd3_medium"].tiny(), CPU, 64, 16)
        try:
            each = bench.measured(Variant("ras", speed="2x", node=node))
            laps, seconds = each.once(1)
            each.stage(1)
        finally:
            bench.close()
        assert len(laps) == len(each.trace.evaluations) == 10 and 0 < sum(laps) < seconds
        assert each.trace.levels and not each.trace.shortfall and len(each.enqueue) == 10
        assert list(each.stages) == [
            "before sampling", "set-up", "loading", "conditionings and sampler", "sampling", "end of run",
            "return", "end of node",
        ]  # fmt: skip

    @pytest.mark.parametrize("node", ["KSampler", "RASKSampler"])
    def test_the_clock_does_not_make_the_pack_wait_for_noise_levels(self, node, monkeypatch):
        """Inside a wrapper of another node, the pack would read each level from the device."""
        predicted, read = [], NoiseLevels.read
        monkeypatch.setattr(NoiseLevels, "read", lambda self, level: predicted.append(1) or read(self, level))
        bench = Bench(SD3, SHAPES["sd3_medium"].tiny(), CPU, 64, 6)
        try:
            bench.measured(Variant("ras", 0.25, node=node)).once(1)
        finally:
            bench.close()
        assert len(predicted) == 6


class TestStart:
    def test_torch_must_not_be_imported_first(self):
        with pytest.raises(RASError, match="torch was imported"):
            start_as_main()

    def test_dynamic_vram_is_detected_by_its_flag(self, tmp_path):
        (tmp_path / "comfy").mkdir()
        file = tmp_path / "comfy" / "cli_args.py"
        file.write_text('parser.add_argument("--highvram")')
        assert not knows_dynamic_vram(tmp_path)
        file.write_text(f'parser.add_argument("{DISABLE_DYNAMIC}")')
        assert knows_dynamic_vram(tmp_path)


class TestFiles:
    def test_every_type_is_read_back(self, tmp_path):
        tensors = {
            "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
            "eight": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn),
            "scale": torch.tensor(0.5),
            "int": torch.tensor([[1, -3]], dtype=torch.int8),
            "turned": torch.arange(4.0).reshape(2, 2).t(),
        }
        size = write_tensors(tmp_path / "x.safetensors", tensors, {"about": "it"})
        assert (tmp_path / "x.safetensors").stat().st_size == size
        with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
            assert file.metadata() == {"about": "it"}
            for name, tensor in tensors.items():
                found = file.get_tensor(name)
                assert found.dtype == tensor.dtype and torch.equal(found.float(), tensor.float())

    def test_checkpoint_and_lora(self, tmp_path):
        """The standard deviation of the LoRA's product (rank 16) is LORA_SCALE = 0.3 times that of the
        weight.
        """
        paths = {kind: tmp_path / kind for kind in ("default", "lora")}
        assert make_files(SHAPES["sd3_medium"].tiny(), paths, CPU) == {}
        with safetensors.safe_open(paths["default"], "pt") as file:
            weight = file.get_tensor("joint_blocks.0.x_block.mlp.fc1.weight")
        with safetensors.safe_open(paths["lora"], "pt") as file:
            layer = "diffusion_model.joint_blocks.0.x_block.mlp.fc1"
            up, down = (file.get_tensor(f"{layer}.lora_{end}.weight") for end in ("up", "down"))
            assert not any("adaLN" in name for name in file.keys())  # noqa: SIM118 (no mapping)
        assert up.shape == (weight.shape[0], 16) and down.shape == (16, weight.shape[1])
        assert float((up @ down).std() / weight.std()) == pytest.approx(0.3, rel=0.2)

    def test_quantised_layouts_contain_the_weights(self, tmp_path):
        quant_ops = pytest.importorskip("comfy.quant_ops")
        if not hasattr(quant_ops, "get_layout_class"):
            pytest.skip("this ComfyUI has no layouts of its own")
        paths = {kind: tmp_path / kind for kind in ("default", "scaled_fp8", "int8")}
        assert make_files(SHAPES["sd3_medium"].tiny(), paths, CPU) == {}
        layer = "joint_blocks.0.x_block.mlp.fc1"
        with safetensors.safe_open(paths["default"], "pt") as file:
            weight = file.get_tensor(f"{layer}.weight")
        for kind in ("scaled_fp8", "int8"):
            with safetensors.safe_open(paths[kind], "pt") as file:
                about = json.loads(file.metadata()["_quantization_metadata"])["layers"]
                data = file.get_tensor(f"{layer}.weight").float() * file.get_tensor(f"{layer}.weight_scale")
            assert about[layer]["format"] and f"{layer}.bias" not in about
            assert float((data - weight).norm() / weight.norm()) < 0.05

    def test_flux_loads_from_its_file_as_it_was_made(self, tmp_path):
        """ComfyUI's UNETLoader infers the network's configuration from the tensors in the file alone."""
        shape = SHAPES["flux_dev"].tiny()
        paths = {kind: tmp_path / f"{kind}.safetensors" for kind in ("default", "lora")}
        assert make_files(shape, paths, CPU) == {}
        model = comfy.sd.load_diffusion_model(str(paths["default"]))
        network, made = model.model.diffusion_model, shape.network(CPU)
        assert network.params == made.params and adapter_for(network).family == "Flux.1"
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), made.parameters(), strict=True))
        with safetensors.safe_open(paths["lora"], "pt") as file:
            layers = {name.partition(".lora_")[0].removesuffix(".alpha") for name in file.keys()}  # noqa: SIM118
        assert (
            len(layers) == 1 * 8 + 2 * 2
        )  # qkv, proj and two of mlp for image and text; linear1 and linear2

    def test_flux2_loads_from_its_file_as_it_was_made(self, tmp_path):
        needs(shape := SHAPES["flux2_klein_4b"].tiny())
        assert make_files(shape, {"default": tmp_path / "klein.safetensors"}, CPU) == {}
        network = comfy.sd.load_diffusion_model(str(tmp_path / "klein.safetensors")).model.diffusion_model
        assert network.params == shape.network(CPU).params and adapter_for(network).family == "Flux.2"

    @pytest.mark.parametrize(("name", "layers"), [("qwen_image_edit", 3 * 12), ("anima", 3 * 10)])
    def test_files_of_networks_that_the_loader_detects_by_their_width(self, name, layers, tmp_path):
        """Each layer of attention and feed-forward has a LoRA, in Qwen-Image also those of the text. The file
        of Qwen-Image-Edit has an empty tensor, from which the loader infers the version of the model.
        """
        needs(shape := SHAPES[name].tiny())
        paths = {kind: tmp_path / f"{kind}.safetensors" for kind in ("default", "lora")}
        assert make_files(shape, paths, CPU) == {}
        tensors = comfy.utils.load_torch_file(str(paths["default"]))
        assert tensors.keys() == shape.network(CPU).state_dict().keys()
        with safetensors.safe_open(paths["lora"], "pt") as file:
            changed = {each.partition(".lora_")[0].removesuffix(".alpha") for each in file.keys()}  # noqa: SIM118
        assert len(changed) == layers

    def test_constants_of_positions_keep_their_values(self):
        needs(shape := SHAPES["anima"].tiny())
        buffers = dict(shape._model(CPU).diffusion_model.named_buffers())
        drawn = dict(shape.network(CPU).named_buffers())
        names = [name for name in drawn if name.startswith("pos_embedder.")]
        assert names and all(torch.equal(drawn[name], buffers[name]) for name in names)

    def test_a_kind_that_fails_does_not_affect_the_others(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ras_pack.bench.common.checkpoints.LORA_RANK", -1)
        paths = {kind: tmp_path / kind for kind in ("default", "lora")}
        failed = make_files(SHAPES["sd3_medium"].tiny(), paths, CPU)
        assert list(failed) == ["lora"] and paths["default"].exists() and not paths["lora"].exists()


class TestCounting:
    def test_captures_and_replays_since_the_last_call(self, monkeypatch):
        graph = type("CUDAGraph", (), {"capture_end": lambda self: None, "replay": lambda self: "done"})
        monkeypatch.setattr(torch.cuda, "CUDAGraph", graph, raising=False)
        counter, kept = GraphCounter().install(), []
        counter.before_replay = lambda: kept.append(1)
        one = graph()
        one.capture_end()
        replay = one.replay
        assert replay() == "done" and replay() == "done"
        assert counter.take() == {"captures": 1, "replays": 2} and len(kept) == 2
        assert counter.take() == {"captures": 0, "replays": 0}

    def test_stages_add_up_and_evaluations_are_distinguished(self):
        stages = Stages(CPU)
        for name in ("before sampling", "sampling", "sampling", "end", ""):
            stages.enter(name)
            if name == "sampling":
                stages.enqueued()
        assert list(stages.seconds) == ["before sampling", "sampling", "end"]
        assert len(stages.enqueue) == 2 and all(value >= 0 for value in stages.seconds.values())

    def test_a_run_by_stages_is_not_timed(self):
        clock = Clock(CPU)

        def run(seed):
            clock.enter("sampling")
            clock.enqueued()

        each = Measured(Variant("dense"), run, clock)
        each.stage(1)
        assert list(each.stages) == ["before sampling", "sampling", "end of node"]
        assert each.seconds == [] and len(each.enqueue) == 1 and clock.stages is None


def test_messages_of_the_pack_are_collected():
    with logged() as lines:
        logging.getLogger("ras_pack.ras_core.host.patch").info(f"{PREFIX}all steps dense.")
        logging.getLogger("ras_pack.ras_core.host.patch").info("somebody else's message")
    assert lines == ["all steps dense."]


def test_plots_use_the_rows_of_comfyuis_defaults(tmp_path):
    row = {"case": "a", "variant": "dense", "seconds": 1.0}
    rows = [row | {"dynamic_vram": True}, row | {"dynamic_vram": False, "seconds": 2.0}]
    (tmp_path / "x.json").write_text(json.dumps({"rows": rows}))
    assert [each["seconds"] for each in read_rows([tmp_path / "x.json"])] == [1.0]


def program(name: str, *arguments: str) -> SimpleNamespace:
    """Run a program of bench/ in a separate process."""
    command = [sys.executable, "-m", "bench", name, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)


@pytest.mark.slow
def test_the_whole_speed_program(tmp_path):
    """The program writes model files, which ComfyUI's nodes load and sample with. Its child processes start
    ComfyUI as main.py does.
    """
    out = tmp_path / "speed.json"
    what = ["--weights", "default,lora", "--kv-cache", "forecast+spread", "--ratios", "0.25", "--speeds=2x"]
    done = program("speed", "--tiny", "--dynamic-vram", "on", *what, "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:] + out.with_suffix(".log").read_text()[-3000:]
    results = json.loads(out.read_text())
    assert results["comfyui"] and results["dynamic_vram"] == [False]  # none on a CPU
    rows = {row["variant"]: row for row in results["rows"]}
    assert list(rows) == [
        "dense", "ras 25% graph", "ras 25% eager", "ras 25% graph forecast+spread", "ras 2x graph",
        "ras 2x RASKSampler graph", "dense lora", "ras 25% graph lora",
    ]  # fmt: skip
    assert not any(row["error"] for row in rows.values()) and results["dropped"] == []
    eager = rows["ras 25% eager"]
    assert eager["regional_steps"] == 11  # of 16, steps 0 to 3 and 12 are dense
    assert eager["dynamic_vram"] is False and eager["comfyui"] == results["comfyui"]
    assert eager["regional_cpu_step_seconds"] > 0 and eager["overhead_seconds"] > 0
    assert {"loading", "sampling", "end of run"} < set(eager["stages"])
    assert "ras 25% graph lora" in done.stdout
    planned = rows["ras 2x graph"]
    assert planned["evaluations"] < eager["evaluations"] == 16 and planned["speed"] == "2x"
    assert rows["dense"]["evaluations"] == 16
    for row in (planned, rows["ras 2x RASKSampler graph"]):
        assert row["evaluations"] == 10 and row["log"][0].startswith("2x: 10 steps instead of 16")
        assert not any("noise levels are kept" in line for line in row["log"])
    assert planned["ideal"] == pytest.approx(2, rel=0.1) == rows["ras 2x RASKSampler graph"]["ideal"]


@pytest.mark.parametrize("option", ["--groups", "--only"])
def test_the_residency_program_refuses_unknown_names(option, tmp_path, capsys):
    """An unknown name would select no checks at all, and a run without checks would look like success."""
    out = tmp_path / "output" / "residency.json"
    known = {"--groups": "dynamic", "--only": "replay_equals_eager"}[option]  # a long message is cut
    assert residency.main(["--tiny", option, f"{known}, two_nodse", "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert f"{option} two_nodse." in told and f" {known}," in told
    assert not out.parent.exists()


@pytest.mark.slow
def test_the_whole_residency_program(tmp_path):
    """On a CPU, the program uses stand-ins for CUDA graphs. Its exit status would be 1 if a check failed."""
    out = tmp_path / "residency.json"
    checks = ("replay_equals_eager", "eviction_between_steps", "exception_in_capture", "idle_layers")
    done = program("residency", "--tiny", "--only", ",".join(checks), "--out", str(out))
    assert done.returncode == 0, done.stdout[-2000:] + out.with_suffix(".log").read_text()[-3000:]
    found = {check["name"]: check["held"] for check in json.loads(out.read_text())["checks"]}
    assert found == {"make": True, **dict.fromkeys(checks, True), "eviction_between_steps": None}
    assert "ok dynamic: replay_equals_eager" in done.stdout and "5 checks, 0 failed" in done.stdout
