"""Files of Lumina-Next with any content: they load, or they are refused in three parts; nothing else."""

import json
import math
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ras_pack.lumina_next import loader
from ras_pack.lumina_next.files import TEXT_ENCODER, TRANSFORMER, VAE, Part, read_header
from ras_pack.lumina_next.loader import Sources, check_vae, load_lumina_next, load_vae, network_config
from ras_pack.lumina_next.text import Vocabulary, gemma_sizes
from ras_pack.ras_core.errors import RASError
from support import lumina_next_files as files
from support import tiny_lumina_next as tiny

ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
PARTS = {"transformer": TRANSFORMER, "text_encoder": TEXT_ENCODER, "vae": VAE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return files.write_folder(tmp_path_factory.mktemp("hostile") / "tiny")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "tiny"))


def check(part: Part, path: Path) -> None:
    """Everything that the loader reads from the header of a part's file."""
    header = read_header(part, path)
    if part is TRANSFORMER:
        network_config(header)
    elif part is TEXT_ENCODER:
        gemma_sizes(header, tiny.CAPTION_WIDTH)
    else:
        check_vae(header)
        load_vae(header)


def message_of(call, *args) -> str:
    """The message of the refusal; empty if nothing was refused. Any other error fails the test."""
    try:
        call(*args)
    except RASError as error:
        message = str(error)
        assert "Expected: " in message and "What to do: " in message and len(message) <= 300
        return message
    return ""


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def shaped(**shapes: tuple[int, ...]) -> bytes:
    """A whole safetensors file of float32 zeros with these shapes by name; names have _ for a dot."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    return packed(header, bytes(end))


BROKEN = {
    "no dtype": packed({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "no shape": packed({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
    "no offsets": packed({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "deep list": packed(b"[" * 10**5),
    "deep object": packed(b'{"a":' * 10**5),
    "overflow": packed({"a": {**ENTRY, "shape": [2**62, 2**62]}}, bytes(4)),
    "many digits": packed(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}", bytes(4)),
    "negative": packed({"a": {**ENTRY, "shape": [-1]}}, bytes(4)),
    "other size": packed({"a": {**ENTRY, "shape": [3]}}, bytes(4)),
    "too long": packed({"a": ENTRY}, bytes(9)),
    "hole": packed({"a": {**ENTRY, "data_offsets": [4, 8]}}, bytes(8)),
    "text": packed({"a": "b"}),
    "no numbers": packed({"a": {"dtype": "F32", "shape": [0, 10**15], "data_offsets": [0, 0]}}),
    "metadata": packed({"__metadata__": {"a": 1}}),
    "no tensor": packed({}),
    "header cut": struct.pack("<Q", 5000) + b"{}",
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "unknown type": packed({"a": {**ENTRY, "dtype": "X9"}}, bytes(4)),
    "utf-16": packed('{"a": 1}'.encode("utf-16")),
}


class TestWeights:
    @pytest.mark.parametrize("part", PARTS)
    @pytest.mark.parametrize("case", BROKEN)
    def test_a_broken_header(self, tmp_path, part, case):
        path = tmp_path / "broken.safetensors"
        path.write_bytes(BROKEN[case])
        assert "broken.safetensors" in message_of(check, PARTS[part], path)

    @given(content=st.binary(max_size=200) | st.binary(max_size=100).map(packed))
    @settings(max_examples=40)
    def test_any_bytes(self, tmp_path_factory, content):
        path = tmp_path_factory.getbasetemp() / "any.safetensors"
        path.write_bytes(content)
        for part in PARTS.values():
            assert message_of(check, part, path)

    @given(
        name=st.sampled_from(["dtype", "shape", "data_offsets", "more"]),
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inside: st.lists(inside, max_size=3),
            max_leaves=5,
        ),
    )
    @settings(max_examples=50)
    def test_any_header_entry(self, tmp_path_factory, name, value):
        path = tmp_path_factory.getbasetemp() / "entry.safetensors"
        path.write_bytes(packed({"a": {**ENTRY, name: value}}, bytes(4)))
        assert message_of(check, TRANSFORMER, path)

    @given(data=st.data())
    @settings(max_examples=15)
    def test_any_shapes_of_the_right_names(self, folder, tmp_path_factory, data):
        """Shapes decide about the sizes of a network that is built to compare it with the file."""
        source = {
            "transformer": "transformer/diffusion_pytorch_model.safetensors",
            "vae": "vae/diffusion_pytorch_model.safetensors",
        }
        label = data.draw(st.sampled_from(list(source)))
        names = {
            "transformer": [
                "time_caption_embed.caption_embedder.1.weight", "layers.0.gate", "pad_token",
                "patch_embedder.proj.weight", "layers.0.attn1.to_k.weight", "norm_out.linear_2.weight",
                "layers.0.feed_forward.linear_1.weight", "layers.0.attn2.to_k.weight",
            ],
            "vae": ["decoder.conv_in.weight", "taesd_decoder.1.weight", "taesd_encoder.0.weight"],
        }[label]  # fmt: skip
        sides = st.lists(st.integers(1, 12), max_size=4).map(tuple)
        path = tmp_path_factory.getbasetemp() / "shapes.safetensors"
        path.write_bytes(shaped(**{name: data.draw(sides) for name in names}))
        assert message_of(check, PARTS[label], path)
        assert message_of(check, PARTS[label], folder / source[label]) == ""

    @pytest.mark.parametrize("sides", [(), (3,), (3, 4, 5), (1, 64), (64, 7)])
    def test_any_shapes_of_a_text_encoder(self, tmp_path, sides):
        path = tmp_path / "gemma.safetensors"
        heads = {
            f"layers.0.{each}.weight": sides or (2,)
            for each in ("mlp.gate_proj", "self_attn.q_proj", "self_attn.k_proj")
        }
        path.write_bytes(shaped(**{"embed_tokens.weight": sides, **heads}))
        assert message_of(check, TEXT_ENCODER, path)

    def test_more_layers_than_any_network_has(self, tmp_path):
        path = tmp_path / "many.safetensors"
        state = {name: tuple(t.shape) for name, t in files.network_weights().items()}
        path.write_bytes(shaped(**state, **{f"layers.{i}.x": (1,) for i in range(2, 5000)}))
        assert "has 5,000 layers" in message_of(check, TRANSFORMER, path)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
    def test_weights_that_are_no_floats(self, tmp_path, dtype):
        state = {name: t.to(dtype) for name, t in files.network_weights().items()}
        path = files.save(state, tmp_path / "quantised.safetensors")
        assert "weights of the data type" in message_of(check, TRANSFORMER, path)

    def test_a_vae_without_a_part_of_its_decoder(self, tmp_path):
        """ComfyUI would draw the missing weights at random, and warn in its log only."""
        state = files.autoencoder_weights()
        last = max(name for name in state if name.startswith("taesd_decoder."))
        state[f"{last}.other"] = state.pop(last)
        assert "lacks weights of the decoder" in message_of(
            check, VAE, files.save(state, tmp_path / "v.safetensors")
        )

    def test_a_tensor_twice(self, tmp_path):
        state = files.network_weights() | {"model.diffusion_model.pad_token": torch.ones(3)}
        path = files.save(state, tmp_path / "twice.safetensors")
        assert "has the tensor pad_token twice" in message_of(check, TRANSFORMER, path)

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("model-00001-of-00000.safetensors", "by its name shard 1 of 0"),
            ("model-00003-of-00002.safetensors", "by its name shard 3 of 2"),
            ("model-00000-of-00002.safetensors", "by its name shard 0 of 2"),
            ("model-00001-of-99999.safetensors", "has 99999 shards, of which"),
            ("weights.ckpt", "is not named as a safetensors file"),
            ("x" * 240 + ".safetensors", "is no safetensors file"),
        ],
    )
    def test_names(self, tmp_path, name, told):
        (tmp_path / name).write_bytes(b"" if "xx" in name else shaped(a=(1,)))
        message = message_of(check, TRANSFORMER, tmp_path / name)
        assert told in message or "..." in message


class TestSettings:
    @pytest.mark.parametrize("shift", ["abc", math.nan, math.inf, 0, -1, 1e-9, None, [3.0], True, 10**400])
    def test_a_shift_that_cannot_be_used(self, copy, shift):
        files.write_json(copy / "scheduler" / "scheduler_config.json", {"shift": shift})
        message = message_of(load_lumina_next, Sources(copy, {}))
        assert "shift = " in message and "from 0.01 to 100" in message

    @pytest.mark.parametrize("size", ["128", 0, -5, 1.5, math.nan, 10**9])
    def test_a_sample_size_that_cannot_be_used(self, copy, size):
        content = {"_class_name": "LuminaNextDiT2DModel", "sample_size": size}
        files.write_json(copy / "transformer" / "config.json", content)
        assert "sample_size = " in message_of(load_lumina_next, Sources(copy, {}))

    @pytest.mark.parametrize("content", [b"", b"{", b"[" * 10**5, b"\xff\xfe\x00", b"[]", b"1" * 5000])
    @pytest.mark.parametrize(
        "name", ["model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"]
    )
    def test_damaged_settings_are_not_replaced_by_defaults(self, copy, name, content):
        (copy / name).write_bytes(content)
        assert Path(name).name in message_of(load_lumina_next, Sources(copy, {}))

    @given(content=st.binary(max_size=60) | st.dictionaries(
        st.sampled_from(["shift", "_class_name", "sample_size"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200) | st.lists(st.text()),
    ).map(lambda each: json.dumps(each).encode()))  # fmt: skip
    @settings(max_examples=40)
    def test_any_settings(self, folder, tmp_path_factory, content):
        path = tmp_path_factory.getbasetemp() / "settings"
        for name in ("model_index.json", "scheduler/scheduler_config.json"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        message_of(loader.check_folder, path)
        message_of(loader._sampling_settings, path)


class TestTokenizer:
    @given(content=st.binary(max_size=100))
    @settings(max_examples=40)
    def test_any_bytes(self, tmp_path_factory, content):
        path = tmp_path_factory.getbasetemp() / "tokenizer.json"
        path.write_bytes(content)
        assert message_of(Vocabulary.from_pretrained, path)

    @given(
        name=st.sampled_from(["model", "vocab", "added_tokens", "pre_tokenizer", "normalizer", "unk_token"]),
        value=st.none() | st.integers() | st.text(max_size=9) | st.lists(st.text(max_size=3), max_size=3),
    )
    @settings(max_examples=40)
    def test_any_field(self, folder, tmp_path_factory, name, value):
        content = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
        (content["model"] if name in content["model"] else content)[name] = value
        path = tmp_path_factory.getbasetemp() / "field.json"
        path.write_text(json.dumps(content))
        message_of(Vocabulary.from_pretrained, path)

    @given(text=st.text(st.characters(), max_size=40))
    @settings(max_examples=40)
    def test_any_prompt(self, folder, text):
        ids = Vocabulary.from_pretrained(folder / "tokenizer" / "tokenizer.json")(text + "\ud800")
        assert all(0 <= each < len(files.WORDS) for each in ids["input_ids"])

    def test_a_number_without_an_embedding(self, copy):
        path = copy / "tokenizer" / "tokenizer.json"
        content = json.loads(path.read_text())
        content["model"]["vocab"]["snow"] = 4_000_000_000
        path.write_text(json.dumps(content))
        assert "has 4,000,000,001 tokens" in message_of(load_lumina_next, Sources(copy, {}))
