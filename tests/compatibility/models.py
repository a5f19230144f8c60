"""Models that RAS does not support."""

from .rows import DENSE, REFUSED, Group, Row

NODES = "tests/nodes/test_nodes.py::TestErrors"
BORDERS = "tests/models/test_borders.py::TestRefusal"
FLUX = "tests/models/test_flux.py::TestOtherNetworks"
UNKNOWN = "RAS does not know the network of this model."


def _refused(name: str, test: str, note: str = UNKNOWN) -> Row:
    return Row(name, REFUSED, (), note=note, test=test)


GROUP = Group(
    "Other models",
    (
        _refused("SD1.5, SDXL and other U-Nets", f"{NODES}::test_a_model_that_is_not_supported"),
        _refused("AuraFlow", f"{BORDERS}::test_a_network_with_the_name_of_a_supported_one"),
        _refused("Z-Image in pixel space", f"{BORDERS}::test_a_subclass_of_a_supported_one"),
        _refused(
            "Flux.2, and other variants of Flux", f"{FLUX}::test_a_variant_with_any_other_trait_is_refused"
        ),
        _refused("Chroma", f"{FLUX}::test_chroma_is_refused_by_its_class"),
        _refused(
            "ComfyUI older than 0.3.64",
            f"{NODES}::test_a_comfyui_without_the_attention_override_is_refused",
            "RAS needs an extension point that this ComfyUI lacks.",
        ),
        Row(
            "another network in the model after RAS Patch Model",
            DENSE,
            note="RAS does not know the new network.",
            test="tests/host/test_foreign_code.py::TestReplacedModules::test_the_whole_network",
        ),
    ),
)
