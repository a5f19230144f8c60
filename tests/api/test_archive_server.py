"""The archive for the ComfyUI registry, unpacked into a fresh ComfyUI: its nodes, files and images.

The list of expected files is read from this checkout, not from the archive, so that the tests fail if a
folder is missing in the archive.
"""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from ras_pack.dev import demo_run as demo
from ras_pack.dev.paths import PACK
from ras_pack.dev.workflow import ComfyError, to_api
from support import lumina_next_files
from support.archive import LEFT_OUT, ROOT, archive_files, tracked, write_archive
from support.server import running_server

pytestmark = [pytest.mark.server, pytest.mark.slow]

STEPS = 6
LUMINA_NEXT = ROOT / "tests" / "data" / "ras_lumina_next_tiny.json"


@pytest.fixture(scope="module")
def unpacked(comfyui, tmp_path_factory):
    """A separate ComfyUI server, with the unpacked archive in custom_nodes instead of this checkout."""

    def unpack(custom_nodes: Path) -> None:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(custom_nodes / PACK)

    archive = write_archive(tmp_path_factory.mktemp("archive") / "node.zip")
    with running_server(comfyui, unpack) as running:
        yield running


@pytest.fixture(scope="module")
def folder(unpacked) -> Path:
    return unpacked.log.parent / "custom_nodes" / PACK


def ours(pattern: str) -> list[str]:
    """The tracked files of this checkout that match the pattern, without those that are left out for their
    size; fails if no file matches.
    """
    found = sorted(tracked("--cached", f":(glob){pattern}") - LEFT_OUT)
    assert found, pattern
    return found


def test_the_archive_and_not_this_checkout_loads_without_warnings(unpacked, folder):
    lines = unpacked.log.read_text(errors="replace").splitlines()
    (told,) = [line for line in lines if line.endswith(PACK) and " seconds" in line]
    assert told.endswith(f": {folder.resolve()}") and "FAILED" not in told
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} == archive_files()


def test_every_module_in_the_archive_is_imported(unpacked, folder):
    """When the server starts, it imports every module of the archive, and Python writes bytecode for each.

    A module without bytecode is needed by tests, training or a benchmark only, and must not be in the
    archive. The modules with GPU kernels are an exception: they are not imported on a CPU.
    """
    modules = sorted(folder.rglob("*.py"))
    unused = [path for path in modules if not [*path.parent.glob(f"__pycache__/{path.stem}.*.pyc")]]
    if unused == modules:
        pytest.skip("this Python writes no bytecode")
    assert [path.relative_to(folder).as_posix() for path in unused] == [
        "ras_core/graphs/cast_kernel.py",
        "ras_core/kv/triton_float8.py",
        "ras_core/kv/triton_forecasts.py",
        "ras_core/kv/triton_kernels.py",
        "ras_core/kv/triton_rows.py",
        "ras_core/kv/triton_spread.py",
    ]  # only imported if Triton works on the device


def test_every_node_registers(unpacked):
    info = unpacked.object_info
    registered = {name for name, one in info.items() if one["python_module"] == f"custom_nodes.{PACK}"}
    assert registered == {Path(name).stem for name in ours("web/docs/*.md")}


def test_scripts_help_and_images_are_served(unpacked):
    told = set(unpacked.read("/extensions"))
    for name in ours("web/**"):
        path = f"/extensions/{PACK}/{name.removeprefix('web/')}"
        assert unpacked.fetch(path) == (ROOT / name).read_bytes()
        assert path in told or not name.endswith(".js")


@pytest.mark.parametrize("kind", ["nodeDefs", "settings"])
def test_texts_are_served_in_every_language(unpacked, kind):
    served = unpacked.read("/i18n")
    for name in ours(f"locales/*/{kind}.json"):
        texts = json.loads((ROOT / name).read_text(encoding="utf-8"))
        assert texts.items() <= served[Path(name).parent.name][kind].items()


def test_templates_are_served(unpacked):
    files = ours("example_workflows/*")
    listed = unpacked.read("/workflow_templates")[PACK]
    assert set(listed) == {Path(name).stem for name in files}
    for name in files:
        path = f"/api/workflow_templates/{PACK}/{Path(name).name}"
        assert unpacked.fetch(path) == (ROOT / name).read_bytes()


def test_the_blueprint_is_listed(unpacked, comfyui):
    if not (comfyui / "app" / "subgraph_manager.py").is_file():
        pytest.skip("this ComfyUI serves no subgraph blueprints yet")
    listed = {one["name"] for one in unpacked.read("/global_subgraphs").values()}
    assert {Path(name).stem for name in ours("subgraphs/*.json")} <= listed


def drawn(server, prompt) -> dict:
    """Run a prompt that saves one image, check the image, and return the trace's numbers."""
    result = server.client.run(prompt, timeout=120)
    (reference,) = result.images(demo.only(prompt, "SaveImage"))
    extrema = server.image(reference).convert("RGB").getextrema()
    assert any(low < high for low, high in extrema), extrema  # not one flat colour
    (stats,) = result.ui("ras")
    return stats


def demo_prompt(unpacked, folder) -> dict:
    """The demo template of the archive at 256 px with two dense steps, then four regional steps that compute
    a quarter of the tokens.
    """
    text = (folder / demo.WORKFLOWS["sd3"].relative_to(ROOT)).read_text(encoding="utf-8")
    prompt = demo.with_size(to_api(json.loads(text), unpacked.object_info), 256)
    settings = {"speed": "custom", "start_percent": 0.3, "error_reset_every": 0, "sample_ratio": 0.25}
    return demo.with_sampler(prompt, steps=STEPS, **settings)


def with_family(prompt: dict, family: str) -> dict:
    prompt[demo.only(prompt, "RASDemoModel")]["inputs"]["family"] = family
    return prompt


def test_the_demo_template_generates_an_image(unpacked, folder):
    prompt = demo_prompt(unpacked, folder)
    stats = drawn(unpacked, prompt)
    assert (stats["steps"], stats["regional_steps"], stats["notes"]) == (STEPS, 4, [])


def test_a_demo_model_is_refused_until_its_file_is_there(unpacked, folder):
    """The archive lacks two models. A prompt with one of them is refused when it is queued; when the user has
    put the file where the message says, the server accepts the prompt without a restart.
    """
    prompt = with_family(demo_prompt(unpacked, folder), "lumina2")
    told = "lumina2.safetensors are missing.*Expected.*demo/weights.*What to do: download https://"
    with pytest.raises(ComfyError, match=told):
        unpacked.client.run(prompt, timeout=60)
    put = folder / "demo" / "weights" / "lumina2.safetensors"
    try:
        shutil.copy(ROOT / "demo" / "weights" / put.name, put)
        stats = drawn(unpacked, prompt)
    finally:
        put.unlink(missing_ok=True)
    assert (stats["steps"], stats["regional_steps"], stats["notes"]) == (STEPS, 4, [])


def test_lumina_next_generates_an_image(unpacked):
    """The archive has no weights of Lumina-Next. The test adds tiny random weights while the server runs, as
    a user adds the real ones.
    """
    lumina_next_files.write_folder(unpacked.log.parent / "models" / "diffusers" / "tiny-lumina-next")
    workflow = json.loads(LUMINA_NEXT.read_text(encoding="utf-8"))
    stats = drawn(unpacked, to_api(workflow, unpacked.client.object_info()))
    assert (stats["steps"], stats["regional_steps"], stats["notes"]) == (8, 6, [])
