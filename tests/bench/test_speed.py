"""The speed program's computations, its jobs for the reference code, and the evaluation of traces."""

import json
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from ras_pack.bench.profile.trace_shares import EVALUATION, NETWORK, Segments, step_shares
from ras_pack.bench.reference.job import Job, diffusers_config, reference_arguments
from ras_pack.bench.reference.pipelines import load_reference, offer_flash_attention
from ras_pack.bench.speed import measured
from ras_pack.bench.speed.cases import (
    CASES,
    Case,
    Variant,
    ideal_speedup,
    own_dense,
    pick_cases,
    planned_counts,
    reference_variants,
    unlike,
    variants,
)
from ras_pack.bench.speed.measured import Measured, take_turns
from ras_pack.bench.speed.plots import bars, best_seconds, ideals, ratios_of, read_rows, series_of
from ras_pack.bench.speed.run import too_many_graphs
from ras_pack.bench.speed.table import profile_table, table
from ras_pack.ras_core.errors import RASError
from ras_pack.ras_core.models.cost import CostProfile

CPU = torch.device("cpu")
LUMINA_NEXT = Case("lumina_next", 1024, steps=30)
JOB = Job(
    checkout="/x", family="sd3", network={"num_layers": 2}, variants=(Variant("reference", 0.5),),
    dtype="float16", device="cpu", pixels=1024, batch=1, steps=28, text=(154, 4096, 2048), repeats=3,
    seconds=100.0,
)  # fmt: skip


class TestCases:
    def test_lumina_next_has_the_papers_steps_and_its_place_in_the_order(self):
        keys = [case.key for case in CASES]
        assert CASES[keys.index("lumina_next-1024")].steps == 30
        assert keys.index("lumina_next-1024") == keys.index("sd35_large-1024") + 1
        assert {case.steps for case in CASES if case.shape != "lumina_next"} == {28}

    def test_cases_are_picked_by_the_beginning_of_their_names(self):
        assert [case.key for case in pick_cases("sd3_medium-1024")] == ["sd3_medium-1024"]
        assert [case.key for case in pick_cases("lumina")] == [
            "lumina2-1024", "lumina_next-1024", "lumina2-1024-b4",
        ]  # fmt: skip
        with pytest.raises(ValueError, match="no case kolors"):
            pick_cases("kolors")

    def test_a_case_with_fewer_blocks_has_a_name_of_its_own(self):
        assert len({case.key for case in CASES}) == len(CASES) and not any(case.blocks for case in CASES)
        assert Case("qwen_image", 1024, 2, blocks=20).key == "qwen_image-1024-b2-20blocks"

    def test_cases_that_only_differ_in_size(self):
        """Of several cases with the same network and batch size, only the first is kept, in order."""
        found = unlike(CASES)
        assert found[0].key == "sd3_medium-1024" and "sd3_medium-1024-b4" in [case.key for case in found]
        assert not any(case.shape == "sd3_medium" and case.pixels != 1024 for case in found)

    def test_every_variant_has_its_own_name(self):
        found = variants((0.5, 0.125), graphs=True, compiled="inductor", format_names=("fp8", "forecast"))
        found += reference_variants(LUMINA_NEXT, (0.5, 0.125), on_gpu=True)
        found += variants((), graphs=True, speeds=("2x", "3x"))[1:]
        names = [each.key for each in found]
        assert len(set(names)) == len(names)
        assert {"ras 2x graph", "ras 3x RASKSampler graph"} < set(names)
        assert {"reference 12.5% flash", "ras 50% graph", "ras 50% graph fp8"} < set(names)
        assert names[0] == "dense"

    def test_counts_and_ideal_equal_hand_computed_values(self):
        """Of 28 steps, 6 are dense and 22 compute half of the tokens. As only image rows cost anything, the
        ideal speed-up is 28 / (6 + 22 / 2) = 28 / 17.
        """
        counts = planned_counts(4096, 0.5)
        assert counts.count(4096) == 6 and counts.count(2048) == 22
        linear = CostProfile(image_weights=1000, text_weights=0, joint_width=0)
        assert ideal_speedup(linear, 4096, (154, 154), counts) == pytest.approx(28 / 17)


def test_a_warning_is_given_if_runs_need_more_graphs_than_a_model_keeps():
    wanted = variants((0.5, 0.25, 0.125), True, "", ("fp8",))
    assert not too_many_graphs(wanted, 1) and "12 CUDA graphs" in too_many_graphs(wanted, 2)


class TestReferenceVariants:
    def test_sd3(self):
        """The variant with Triton's kernels is skipped on a CPU. All RAS variants are skipped for a batch of
        images, which the reference code does not support.
        """
        case = Case("sd3_medium", 1024)
        assert [v.key for v in reference_variants(case, (0.5,), on_gpu=True)] == [
            "reference 100%", "reference 50%", "reference 50% fused",
        ]  # fmt: skip
        assert [v.key for v in reference_variants(case, (0.5,), on_gpu=False)] == [
            "reference 100%", "reference 50%",
        ]  # fmt: skip
        batch = Case("sd3_medium", 1024, 4)
        assert [v.key for v in reference_variants(batch, (0.5,), on_gpu=True)] == ["reference 100%"]

    def test_unsupported_families_have_no_variants(self):
        assert reference_variants(Case("z_image", 1024), (0.5,), on_gpu=True) == []

    def test_each_is_compared_to_a_dense_run_with_the_same_attention(self):
        found = reference_variants(LUMINA_NEXT, (0.5,), on_gpu=True)
        assert own_dense(Variant("reference", 0.5), found).key == "reference 100%"
        assert own_dense(Variant("reference", 0.5, option="flash"), found).key == "reference 100% flash"
        sd3 = reference_variants(Case("sd3_medium", 1024), (0.5,), on_gpu=True)
        assert own_dense(Variant("reference", 0.5, option="fused"), sd3).key == "reference 100%"


class TestJob:
    def test_it_can_be_sent_to_another_process(self):
        assert Job.loads(JOB.dumps()) == JOB

    def test_arguments_of_the_references_own_command_line(self):
        words = reference_arguments(Variant("reference", 0.25, option="fused"), JOB, 4, (12, 20))
        pairs = dict(zip(words[:-1:2], words[1:-1:2], strict=True))
        assert pairs["--sample_ratio"] == "0.25" and pairs["--error_reset_steps"] == "12,20"
        assert pairs["--scheduler_start_step"] == "4" and pairs["--scheduler_end_step"] == "28"
        assert words[-1] == "--enable_index_fusion"
        assert "--enable_index_fusion" not in reference_arguments(JOB.variants[0], JOB, 4, (12, 20))

    def test_networks_of_the_same_size(self):
        """The networks built for SD3-medium and Lumina-Next have the sizes published by diffusers."""
        from ras_pack.bench.common.shapes import SHAPES

        sd3 = diffusers_config("sd3", SHAPES["sd3_medium"].unet_config)
        assert (sd3["num_layers"], sd3["num_attention_heads"], sd3["attention_head_dim"]) == (24, 24, 64)
        assert (sd3["caption_projection_dim"], sd3["joint_attention_dim"]) == (1536, 4096)
        assert (sd3["pooled_projection_dim"], sd3["pos_embed_max_size"]) == (2048, 192)
        lumina = diffusers_config("lumina_next", SHAPES["lumina_next"].unet_config)
        assert (lumina["hidden_size"], lumina["num_layers"], lumina["num_kv_heads"]) == (2304, 24, 8)

    def test_a_folder_without_the_reference_is_refused(self, tmp_path):
        with pytest.raises(RASError, match="no src/ras.*github.com/microsoft/RAS"):
            load_reference(tmp_path)

    def test_a_missing_flash_attention_is_replaced_by_pytorchs(self, monkeypatch):
        """The replacement equals the attention formula: with grouped heads, with a given scale, and with
        tensors whose rows precede their heads.
        """
        monkeypatch.setitem(sys.modules, "flash_attn", None)
        offer_flash_attention()
        q, k, v = torch.randn(2, 5, 4, 8), torch.randn(2, 7, 2, 8), torch.randn(2, 7, 2, 8)
        found = sys.modules["flash_attn"].flash_attn_func(q, k, v, softmax_scale=0.3)
        whole = [t.repeat_interleave(2, dim=2) for t in (k, v)]
        weights = (torch.einsum("bqhe,bkhe->bhqk", q, whole[0]) * 0.3).softmax(-1)
        torch.testing.assert_close(found, torch.einsum("bhqk,bkhe->bqhe", weights, whole[1]))

    def test_an_installed_flash_attention_is_kept(self, monkeypatch):
        installed = types.ModuleType("flash_attn")
        monkeypatch.setitem(sys.modules, "flash_attn", installed)
        offer_flash_attention()
        assert sys.modules["flash_attn"] is installed


class FakeClock:
    """A stand-in for the clock that times steps: every step takes 0.1 s."""

    device = CPU
    stages = None

    def laps(self):
        return [0.1, 0.1]


class TestTurns:
    def test_a_failing_variant_does_not_affect_the_others(self):
        def broken(seed):
            raise RuntimeError("no kernel")

        good = Measured(Variant("dense"), lambda seed: None, FakeClock())
        bad = Measured(Variant("ras", 0.5), broken, FakeClock())
        take_turns([good, bad], CPU, 2, lambda: float("inf"))
        assert good.seconds == pytest.approx([0.2, 0.2]) and good.error == ""
        assert bad.seconds == [] and bad.error == "RuntimeError: no kernel"

    def test_graphs_that_other_variants_dropped_are_captured_again_before_timing(self):
        """The first run of each variant drops the CUDA graphs of all variants. So each variant has to capture
        its graph again before its timed run.
        """
        captured, timed = set(), []

        def variant(ratio, graphs):
            def run(seed):
                timed.append((ratio, ratio in captured))
                captured.add(ratio)

            return Measured(Variant("ras", ratio, graphs), run, FakeClock(), captured.clear)

        take_turns([variant(0.5, "auto"), variant(0.25, "auto")], CPU, 1, lambda: float("inf"))
        assert timed[-2:] == [(0.5, True), (0.25, True)]

    def test_no_time_left(self):
        each = Measured(Variant("dense"), lambda seed: None, FakeClock())
        take_turns([each], CPU, 3, lambda: 0.0)
        assert each.error == "no time left" and each.steps == []

    @pytest.mark.parametrize(
        ("limit", "rounds"),
        [(300, 3), (100 + 4 + 9, 3), (100 + 4 + 7, 2), (100 + 4 + 5, 1), (100 + 4 + 3, 0)],
    )
    def test_rounds_are_as_many_as_fit(self, limit, rounds, monkeypatch):
        """The first runs take 50 s each, because they compile kernels; the runs that time the stages take 2 s
        each, because they capture graphs, and all later runs take 1.5 s.
        """
        now, runs = [0.0], []
        monkeypatch.setattr(measured, "time", SimpleNamespace(perf_counter=lambda: now[0]))

        def run(seed):
            runs.append(seed)
            now[0] += 50 if len(runs) <= 2 else 2 if len(runs) <= 4 else 1.5

        found = [Measured(Variant("dense"), run, FakeClock()) for _ in range(2)]
        take_turns(found, CPU, 3, lambda: limit - now[0])
        assert [len(each.seconds) for each in found] == [rounds] * 2 and now[0] <= limit

    def test_memory_is_freed_before_it_is_measured(self):
        done = []
        each = Measured(Variant("dense"), lambda seed: done.append("run"), FakeClock())
        each.forget = lambda: done.append("forget")
        take_turns([each], CPU, 0, lambda: float("inf"))
        assert done == ["forget", "run"]


class TestReferenceRows:
    def test_both_speed_ups_and_the_share_of_the_ideal(self):
        """The reference code takes 2 s dense and 1.25 s with half of the tokens; ComfyUI takes 1.5 s dense.
        The share of the ideal is that of the speed-up over the reference's own dense run.
        """
        from ras_pack.bench.speed.run import row_of

        shape = SimpleNamespace(rows_in_network=(154, 154), dtype=torch.float16)
        bench = SimpleNamespace(
            case=Case("sd3_medium", 1024), pixels=1024, n_tokens=64, shape=shape, steps=4,
            ideal=lambda counts: 64 * len(counts) / sum(counts),
        )  # fmt: skip

        def measured(method, seconds, **changes):
            found = Measured(Variant(method, **changes), lambda seed: None, FakeClock())
            found.seconds, found.steps = [seconds], [[seconds / 4] * 4]
            return found

        ours, theirs = measured("dense", 1.5), measured("reference", 2.0)
        half = measured("reference", 1.25, ratio=0.5)
        half.counts = [64, 32, 32, 64]
        row = row_of(bench, half, ours, theirs)
        assert row["speedup"] == pytest.approx(1.2) and row["own_speedup"] == pytest.approx(1.6)
        assert row["ideal"] == pytest.approx(4 / 3) and row["of_ideal"] == pytest.approx(1.2)
        assert row["regional_step_seconds"] == pytest.approx(1.25 / 4)
        assert "dense_step_seconds" not in row  # without the first and the last step
        shown = table(
            {
                "rows": [row],
                "dropped": [],
                "date": "",
                "machine": dict.fromkeys(("device", "torch", "comfyui")),
            }
        )
        assert "1.20" in shown and "1.60" in shown


def span(name, ts, dur, cat="user_annotation", correlation=None):
    args = {} if correlation is None else {"args": {"correlation": correlation}}
    return {"name": name, "ts": ts, "dur": dur, "cat": cat, **args}


class TestTrace:
    EVENTS = [
        span(EVALUATION, 0, 1), span(EVALUATION, 100, 1), span(EVALUATION, 200, 1),
        span("ras: bookkeeping", 110, 30), span("ras: selection", 120, 10),
        span("other", 115, 5), {"name": "ras: selection", "ts": 125},
        span("cudaLaunchKernel", 122, 2, "cuda_runtime", 1), span("sort", 300, 8, "kernel", 1),
        span("cudaLaunchKernel", 150, 2, "cuda_runtime", 2), span("gemm", 310, 32, "kernel", 2),
        span("cudaLaunchKernel", 50, 2, "cuda_runtime", 3), span("earlier", 101, 64, "kernel", 3),
        span("cudaStreamSynchronize", 135, 4, "cuda_runtime"),
        span("aten::_local_scalar_dense", 160, 1, "cpu_op"),
        span("aten::_local_scalar_dense", 60, 1, "cpu_op"),
    ]  # fmt: skip

    def test_times_are_attributed_to_the_innermost_range(self):
        segments = Segments.of([span("ras: a", 0, 10), span("ras: b", 2, 3), span("ras: c", 10, 5)])
        assert [segments.at(t) for t in (-1, 1, 3, 6, 12, 20)] == [NETWORK, "a", "b", "a", "c", NETWORK]
        assert segments.times(1, 12) == {"a": 6, "b": 3, "c": 2}

    def test_shares_of_one_step(self):
        """Of 100 us of CPU time, the pack's code takes 30 us. Of 40 us of GPU time, its sort takes 8 us.
        Kernels of the previous step are not counted.
        """
        found = step_shares(self.EVENTS, [1])
        assert found["steps"] == 1 and found["wall_ms"] == pytest.approx(0.1)
        assert found["own_cpu_share"] == pytest.approx(0.3)
        assert found["cpu_ms_by"]["selection"] == pytest.approx(0.01)
        assert found["device_ms"] == pytest.approx(0.04)
        assert found["own_device_share"] == pytest.approx(0.2)
        assert found["waits"] == {"cudaStreamSynchronize in bookkeeping": 1}
        assert found["reads"] == {f"aten::_local_scalar_dense in {NETWORK}": 1}

    def test_means_over_steps(self):
        found = step_shares(self.EVENTS, [0, 1])
        assert found["own_cpu_share"] == pytest.approx(0.15)
        assert found["device_ms"] == pytest.approx((64 + 40) / 2 / 1000)
        assert found["reads"] == {f"aten::_local_scalar_dense in {NETWORK}": 1}

    def test_a_trace_that_ends_too_early(self):
        with pytest.raises(ValueError, match="3 evaluations"):
            step_shares(self.EVENTS, [2])

    def test_without_a_gpu_there_are_no_device_shares(self):
        host_only = [e for e in self.EVENTS if e.get("cat") in ("user_annotation", "cpu_op")]
        found = step_shares(host_only, [1])
        assert found["own_device_share"] is None and found["own_cpu_share"] == pytest.approx(0.3)
        entry = {"case": "c", "variant": "v", "error": "", **found}
        assert "30.0" in profile_table({"profiles": [json.loads(json.dumps(entry))]})


class TestRanges:
    def test_functions_are_restored(self):
        from ras_pack.bench.profile.ranges import named_ranges, wrapped

        with pytest.raises(KeyError), named_ranges():
            assert all(getattr(of, function.__name__) is not function for of, function in wrapped())
            raise KeyError
        assert all(getattr(of, function.__name__) is function for of, function in wrapped())


def plotted(case, method, seconds, **changes):
    row = {"case": case, "variant": f"{method} {changes}", "method": method, "ratio": 1.0, "graphs": "off"}
    return (
        row | {"seconds": seconds, "speedup": 4 / seconds, "own_speedup": 8 / seconds, "ideal": 3.0} | changes
    )


class TestPlots:
    ROWS = [
        plotted("a", "dense", 4.0), plotted("a", "ras", 3.9), plotted("a", "ras", 3.0, ratio=0.5),
        plotted("a", "ras", 2.0, ratio=0.5, graphs="auto"), plotted("a", "ras", 1.0, ratio=0.25),
        plotted("a", "lazycache", 2.0), plotted("a", "reference", 5.0),
        plotted("a", "reference", 4.0, ratio=0.5), plotted("a", "reference", 3.2, ratio=0.5, option="fused"),
    ]  # fmt: skip

    def test_bars_of_a_ratio(self):
        """The speed-up of the reference code, with its fastest option, is over its own dense run. The speed-
        ups of the other methods are over ComfyUI's dense run.
        """
        found = bars(self.ROWS, 0.5)
        assert found == {
            "eager": {"a": 4 / 3}, "graph": {"a": 2.0}, "lazycache": {"a": 2.0}, "reference": {"a": 2.5},
        }  # fmt: skip
        assert bars(self.ROWS, 0.25)["eager"] == {"a": 4.0}

    def test_dense_runs_have_no_bars(self):
        assert [series_of(row) for row in self.ROWS[:2]] == [None, None]
        assert series_of(self.ROWS[6]) is None

    def test_rows_drawn_over_a_size(self):
        assert ratios_of(self.ROWS) == [0.5, 0.25]
        assert best_seconds(self.ROWS, 1.0)["method"] == "dense"
        assert best_seconds(self.ROWS, 0.5)["seconds"] == 2.0
        assert best_seconds(self.ROWS, 0.125) is None
        assert ideals(self.ROWS, 0.5) == {"a": 3.0}

    def test_the_later_file_wins_and_rows_without_figures_are_skipped(self, tmp_path):
        first, second = tmp_path / "1.json", tmp_path / "2.json"
        failed = {"case": "a", "variant": "lazycache {}", "error": "no time left"}
        first.write_text(json.dumps({"rows": self.ROWS}))
        second.write_text(json.dumps({"rows": [plotted("a", "dense", 5.0), failed]}))
        rows = read_rows([first, second])
        assert len(rows) == len(self.ROWS) and rows[0]["seconds"] == 5.0
