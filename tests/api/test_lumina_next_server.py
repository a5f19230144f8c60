"""Lumina-Next on a real server: tests/data/ras_lumina_next_tiny.json with random weights."""

import json
from pathlib import Path

import pytest
from ras_pack.dev.workflow import to_api
from support import lumina_next_files as files

pytestmark = pytest.mark.server

WORKFLOW = Path(__file__).parents[1] / "data" / "ras_lumina_next_tiny.json"


def test_the_tiny_workflow_generates_an_image_with_regional_steps(server):
    """The files with the weights are added while the server runs, as a user adds them."""
    files.write_folder(server.log.parent / "models" / "diffusers" / "tiny-lumina-next")
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    result = server.client.run(to_api(workflow, server.client.object_info()), timeout=120)
    assert result.images("10")
    (stats,) = result.ui("ras")
    assert (stats["steps"], stats["regional_steps"]) == (8, 6)
