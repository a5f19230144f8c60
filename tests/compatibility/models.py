"""Models that RAS supports, and models that it does not support."""

from .rows import DENSE, FAST, REFUSED, Group, Row

NODES = "tests/nodes/test_nodes.py::TestErrors"
BORDERS = "tests/models/test_borders.py::TestRefusal"
OTHER = "tests/models/test_other_families.py::TestReality"
ACTIVE = f"{OTHER}::test_a_regional_call_gives_the_dense_output_at_its_active_tokens"
UNKNOWN = "RAS does not know the network of this model."


def _fast(name: str, note: str = "") -> Row:
    return Row(name, FAST, (), note=note, test=ACTIVE)


def _refused(name: str, test: str, note: str = UNKNOWN) -> Row:
    return Row(name, REFUSED, (), note=note, test=test)


GROUP = Group(
    "Models",
    (
        Row(
            "SD3, SD3.5, Lumina 2, Lumina-Next, Z-Image, Flux.1 (also Krea, Fill, Kontext)",
            FAST,
            test="tests/models/test_proofs.py",
        ),
        _fast("Flux.2 (dev, Klein), with and without reference images"),
        _fast("Chroma"),
        _fast("Qwen-Image and Qwen-Image-Edit"),
        _fast("Mage-Flow"),
        _fast("Ideogram 4"),
        _fast("Anima and Cosmos Predict2 (images)"),
        _fast("Krea 2"),
        _fast("HunyuanImage 2.1"),
        _fast("AuraFlow", "No CUDA graphs: each call of the network copies numbers to the GPU."),
        _fast("HiDream I1", "No CUDA graphs: the sizes of its experts' inputs depend on computed values."),
        _fast("Kandinsky 5 Image"),
        Row(
            "HiDream E1",
            DENSE,
            note="It puts the tokens of the image to be edited into the grid of the new image.",
            test=f"{BORDERS}::test_the_image_that_hidream_e1_edits",
        ),
        _refused("SD1.5, SDXL and other U-Nets", f"{NODES}::test_a_model_that_is_not_supported"),
        _refused("Z-Image in pixel space", f"{BORDERS}::test_a_subclass_of_a_supported_one"),
        _refused(
            "LongCat-Image, Ovis-Image and other variants of Flux",
            "tests/models/test_flux.py::TestOtherNetworks::test_a_variant_with_any_other_trait_is_refused",
        ),
        _refused(
            "Chroma Radiance",
            f"{BORDERS}::test_a_family_that_regions_do_not_fit",
            "It computes each pixel from the pixels around it.",
        ),
        _refused(
            "ERNIE-Image",
            f"{BORDERS}::test_a_family_that_regions_do_not_fit",
            "In ComfyUI, nodes cannot replace its attention.",
        ),
        _refused(
            "video models: Wan, HunyuanVideo, LTX",
            f"{BORDERS}::test_a_family_that_regions_do_not_fit",
            "The K/V cache of a video would not fit in memory, or RAS is not tested on videos.",
        ),
        _refused(
            "ComfyUI older than 0.3.64",
            f"{NODES}::test_a_comfyui_without_the_attention_override_is_refused",
            "RAS needs an extension point that this ComfyUI lacks.",
        ),
        Row(
            "the model's network is replaced after RAS Patch Model",
            DENSE,
            note="RAS does not know the new network.",
            test="tests/host/test_foreign_code.py::TestReplacedModules::test_the_whole_network",
        ),
    ),
)
