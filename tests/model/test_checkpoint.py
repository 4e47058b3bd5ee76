"""The published folder: read whole or refused with file, key and shape; the 14B's layout checked by its headers."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model import UniMedVL
from model.config import ModelConfig
from model.parallelize import load_sharded
from model.testing import make_tiny
from model.weights import CheckpointError

KEYS_14B = json.loads((Path(__file__).parent / "keys_14b.json").read_text())
LLM_14B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "attention_dropout": 0.0,
}
VIT_14B = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14, "image_size": 980}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tiny, tmp_path):
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def header_only(path: Path, shapes: dict[str, list[int]]) -> None:
    """A bfloat16 safetensors file with a true header and a hole where the tensors are."""
    header, end = {}, 0
    for key, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The 14B folder as headers."""
    folder = tmp_path_factory.mktemp("14b")
    main = {}
    for key, entry in KEYS_14B["ema.safetensors"].items():
        main |= {key.replace("{i}", str(i)): entry["shape"] for i in range(entry["count"])}
    header_only(folder / "ema.safetensors", main)
    header_only(folder / "ae.safetensors", KEYS_14B["ae.safetensors"])
    (folder / "llm_config.json").write_text(json.dumps(LLM_14B))
    (folder / "vit_config.json").write_text(json.dumps(VIT_14B))
    return folder


def test_the_14b_layout_loads_on_the_meta_device_with_no_key_left_over(published):
    model = UniMedVL.from_pretrained(published, device="meta")
    main = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("vae."))
    assert (main, sum(p.numel() for p in model.vae.parameters())) == (14_607_260_128, 83_819_683)
    assert all(p.is_meta for p in model.parameters())


def test_a_14b_header_with_another_shape_names_it(published, tmp_path):
    for name in ("llm_config.json", "vit_config.json", "ae.safetensors"):
        (tmp_path / name).symlink_to(published / name)
    shapes = {key.replace("{i}", str(i)): e["shape"] for key, e in KEYS_14B["ema.safetensors"].items() for i in range(e["count"])}
    header_only(tmp_path / "ema.safetensors", shapes | {"llm2vae.weight": [128, 3584]})
    with pytest.raises(CheckpointError, match=r"ema.safetensors: llm2vae.weight has shape \[128, 3584\], the configuration needs \[64, 3584\]"):
        UniMedVL.from_pretrained(tmp_path, device="meta")


def test_saving_gives_the_same_bytes(tiny, tmp_path):
    UniMedVL.from_pretrained(tiny).save_pretrained(tmp_path)
    for path in tiny.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_saving_leaves_no_other_networks_tokenizer(folder, qwen_files):
    """One that comes in other files, or is not there at all."""
    for path in qwen_files.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "tokenizer.json").unlink()
    model = make_tiny(folder.parent / "other")
    UniMedVL.from_pretrained(model).save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in model.iterdir()}
    alone = UniMedVL.from_pretrained(model)
    alone.tokenizer = None
    alone.save_pretrained(folder)
    assert UniMedVL.from_pretrained(folder).tokenizer is None


def change(path: Path, edit) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "file, edit, told",
    [
        ("ema.safetensors", lambda t: t.pop("connector.fc1.bias"), r"ema.safetensors: missing connector.fc1.bias \[192\]"),
        ("ema.safetensors", lambda t: t.update(extra=torch.zeros(3)), r"ema.safetensors: unexpected extra \[3\]"),
        ("ae.safetensors", lambda t: t.update({"encoder.conv_in.bias": torch.zeros(9)}), r"ae.safetensors: encoder.conv_in.bias has shape \[9\], the configuration needs \[8\]"),
    ],
)
def test_a_wrong_key_is_named_with_its_shape_and_file(folder, file, edit, told):
    change(folder / file, edit)
    with pytest.raises(CheckpointError, match=told):
        UniMedVL.from_pretrained(folder)


@pytest.mark.parametrize(
    "file, key, made, told",
    [
        ("ema", "language_model.model.norm.weight", lambda t: t.index_fill(0, torch.tensor([3]), torch.nan), "holds NaN or infinity"),
        ("ae", "encoder.conv_in.bias", lambda t: t.index_fill(0, torch.tensor([3]), torch.inf), "holds NaN or infinity"),
        ("ema", "language_model.lm_head.weight", lambda t: t.to(torch.int8), "is of I8, not of F64, F32, BF16, F16"),
        ("ema", "latent_pos_embed.pos_embed", lambda t: t.long(), "is of I64"),
        ("ema", "connector.fc1.bias", lambda t: t > 0, "is of BOOL"),
        ("ema", "connector.fc1.bias", lambda t: t.to(torch.float8_e4m3fn), "is of F8_E4M3"),
        ("ae", "encoder.conv_in.bias", lambda t: t.long(), "is of I64"),
    ],
)
def test_a_tensor_that_cannot_be_computed_with_is_named(folder, file, key, made, told):
    change(folder / f"{file}.safetensors", lambda t: t.update({key: made(t[key])}))
    with pytest.raises(CheckpointError, match=rf"{file}.safetensors: {key} {told}"):
        UniMedVL.from_pretrained(folder)


def test_numbers_whose_sum_overflows_are_fine(folder):
    change(folder / "ema.safetensors", lambda t: t.update({"connector.fc1.bias": torch.full([192], 6e4, dtype=torch.float16)}))
    assert (UniMedVL.from_pretrained(folder).connector.fc1.bias == 6e4).all()


def test_a_truncated_file_names_the_tensor_it_ends_in(folder):
    path = folder / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"ema.safetensors is not a whole safetensors file: it ends inside [\w.]+ \[\d+.*fetch it again"):
        UniMedVL.from_pretrained(folder)
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(CheckpointError, match="ema.safetensors is not a whole safetensors file"):
        UniMedVL.from_pretrained(folder)


@pytest.mark.parametrize(
    "file, content",
    [
        ("llm_config.json", '{"vocab_size": 5'),
        ("llm_config.json", "[]"),
        ("vit_config.json", '{"hidden_size": -1}'),
        ("vit_config.json", '{"intermediate_size": 1000000000000000000000}'),
        ("unimedvl_config.json", '{"vae": null, "image": 1}'),
        ("unimedvl_config.json", "3"),
        ("tokenizer.json", '{"model": '),
        ("ema.safetensors.index.json", '{"weights": {}}'),
        ("ema.safetensors.index.json", '{"weight_map": 3}'),
    ],
)
def test_a_damaged_json_file_is_told(folder, file, content):
    if "index" in file:
        (folder / "ema.safetensors").unlink()
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=str(folder)):
        UniMedVL.from_pretrained(folder)


def settle(path: Path, change: dict) -> None:
    """Change values of a JSON file; those of a part are given as a dict."""
    written = json.loads(path.read_text())
    for key, value in change.items():
        written[key] = written[key] | value if isinstance(value, dict) and key in written else value
    path.write_text(json.dumps(written))


@pytest.mark.parametrize(
    "file, change, told",
    [
        ("llm", {"rope_theta": 0}, "rope_theta"),
        ("llm", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ("llm", {"hidden_size": 10, "num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size must be a multiple of 4"),
        ("llm", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters"),
        ("vit", {"num_attention_heads": 5}, "hidden_size must be a multiple of num_attention_heads"),
        ("vit", {"image_size": 56}, "vit.image_size=56 has 16 positions, but a picture of 70 px a side reaches number 36"),
        ("unimedvl", {"vae": {"scale_factor": 0}}, "scale_factor"),
        ("unimedvl", {"image": {"vit": {"max_size": 70, "min_size": 70, "stride": 16}}}, "image.vit.stride=16 must be a multiple of 14"),
        ("unimedvl", {"image": {"vae": {"max_size": 64, "min_size": 64, "stride": 8}}}, "image.vae.stride=8 must be a multiple of 16"),
        ("unimedvl", {"image": {"vit": {"max_size": 77, "min_size": 70, "stride": 14}}, "vit_max_num_patch_per_side": 5}, "image.vit.max_size: a picture of 84 px needs 6 positions a side; its table has 5"),
        ("unimedvl", {"image": {"draw_size": 8}}, "image.draw_size=8 must be at least 16"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_its_first_use(folder, file, change, told):
    settle(folder / f"{file}_config.json", change)
    with pytest.raises(CheckpointError, match=told):
        UniMedVL.from_pretrained(folder, device="meta")


def test_a_pickle_is_never_read(folder):
    path = folder / "ema.safetensors"
    torch.save({"weight": torch.zeros(3)}, folder / "pytorch_model.bin")
    path.write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(CheckpointError, match="ema.safetensors is a pickle, which is never read"):
        UniMedVL.from_pretrained(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="ema.safetensors is missing; pytorch_model.bin is a pickle"):
        UniMedVL.from_pretrained(folder)


def test_shards_with_an_index_load_as_one_file(folder, tiny):
    tensors = load_file(folder / "ema.safetensors")
    keys = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
    for name, chosen in parts.items():
        save_file({key: tensors[key] for key in chosen}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {key: name for name, chosen in parts.items() for key in chosen}}))
    (folder / "ema.safetensors").unlink()
    loaded, whole = UniMedVL.from_pretrained(folder).state_dict(), UniMedVL.from_pretrained(tiny).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in whole.items())


def indexed(folder: Path, edit) -> None:
    """The main weights as two shards with an index; `edit(index, first, second)` changes them beforehand."""
    tensors = load_file(folder / "ema.safetensors")
    (folder / "ema.safetensors").unlink()
    first, second = {key: t for key, t in tensors.items() if key < "h"}, {key: t for key, t in tensors.items() if key >= "h"}
    index = {key: "m-1.safetensors" for key in first} | {key: "m-2.safetensors" for key in second}
    edit(index, first, second)
    save_file(first, folder / "m-1.safetensors")
    save_file(second, folder / "m-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_a_tensor_is_read_from_the_file_its_index_names(folder):
    """A stale copy in another shard, or a tensor that no index entry knows, is not of this network."""
    indexed(folder, lambda index, first, second: second.update({"connector.fc1.bias": first["connector.fc1.bias"] + 7, "stale": torch.zeros(2)}))
    assert not (UniMedVL.from_pretrained(folder).connector.fc1.bias == 7).any()


@pytest.mark.parametrize("name, told", [("m-2.safetensors", "m-2.safetensors lacks connector.fc1.bias"), ("", "is a folder"), (".", "is a folder"), ("m-3.safetensors", "m-3.safetensors is missing")])
def test_an_index_that_names_the_wrong_file_is_told(folder, name, told):
    indexed(folder, lambda index, first, second: index.update({"connector.fc1.bias": name}))
    with pytest.raises(CheckpointError, match=told):
        UniMedVL.from_pretrained(folder)


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_the_folder_are_told(folder):
    (folder / "ema.safetensors").unlink()
    (folder / "ema.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="ema.safetensors is a folder"):
        UniMedVL.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="llm_config.json/llm_config.json cannot be read: Not a directory"):
        UniMedVL.from_pretrained(folder / "llm_config.json")


def test_a_published_table_of_another_size_is_computed_anew(folder):
    config = json.loads((folder / "unimedvl_config.json").read_text())
    (folder / "unimedvl_config.json").write_text(json.dumps(config | {"max_latent_size": 12}))
    assert UniMedVL.from_pretrained(folder).latent_pos_embed.pos_embed.shape == (144, 192)


@pytest.fixture(scope="module")
def qwen_files(tmp_path_factory):
    """A byte-level BPE in Qwen2's own two files, with no special token in it."""
    folder, tokenizer = tmp_path_factory.mktemp("qwen"), Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["CT image of the abdomen"], trainer)
    tokenizer.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    return folder


def bare(folder: Path, qwen_files: Path) -> int:
    """Give a folder Qwen2's two files, which know no special token, and embeddings for their ids alone; returns how many these are."""
    (folder / "tokenizer.json").unlink()
    for path in qwen_files.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    size = len(json.loads((qwen_files / "vocab.json").read_text()))
    set_vocabulary(folder, size)
    return size


def set_vocabulary(folder: Path, size: int) -> None:
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        change(folder / "ema.safetensors", lambda t: t.update({name: t[name][:size].clone()}))
    config = json.loads((folder / "llm_config.json").read_text())
    (folder / "llm_config.json").write_text(json.dumps(config | {"vocab_size": size}))


def test_special_tokens_a_tokenizer_lacks_are_added_and_the_embeddings_grow(folder, qwen_files):
    size = bare(folder, qwen_files)
    model = UniMedVL.from_pretrained(folder)
    ids = model.config.special_tokens.model_dump().values()
    assert min(ids) >= size and model.config.llm.vocab_size == max(ids) + 1 == len(model.language_model.lm_head.weight)
    assert model.tokenizer.decode(model.tokenizer.encode("CT image <|im_end|>")) == "CT image <|im_end|>"
    assert model.chat(["CT"], max_new_tokens=2).completion_tokens >= 1
    meta = UniMedVL.from_pretrained(folder, device="meta")
    assert meta.config == model.config and meta.language_model.lm_head.weight.shape == model.language_model.lm_head.weight.shape


def test_a_sharded_network_grows_as_the_whole_one(folder, qwen_files, tmp_path_factory):
    bare(folder, qwen_files)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('store') / 'store'}", rank=0, world_size=1)
    try:
        sharded, whole = load_sharded(folder, init_device_mesh("cpu", (1,)), compute_dtype=None), UniMedVL.from_pretrained(folder)
        assert sharded.config == whole.config
        found = {key: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for key, tensor in sharded.state_dict().items()}
        assert all(torch.equal(found[key], tensor) for key, tensor in whole.state_dict().items())
    finally:
        dist.destroy_process_group()


def test_qwens_two_files_alone_are_a_tokenizer(folder, qwen_files):
    bare(folder, qwen_files)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = UniMedVL.from_pretrained(folder).tokenizer
    assert tokenizer.decode(tokenizer.encode("CT image of the abdomen")) == "CT image of the abdomen"


def test_a_tokenizer_of_more_ids_than_the_embeddings_is_refused(folder):
    """Rows are made up for special tokens that were added, and for nothing else."""
    set_vocabulary(folder, 77)
    with pytest.raises(CheckpointError, match=r"the tokenizer with ids up to \d+, but vocab_size is 77"):
        UniMedVL.from_pretrained(folder, device="meta")


@pytest.mark.parametrize("bos, told", [(5000, "special tokens with ids up to 5000, but vocab_size is 512"), (-1, "bos_token_id")])
def test_special_tokens_without_a_row_are_refused(folder, bos, told):
    (folder / "tokenizer.json").unlink()
    config = json.loads((folder / "unimedvl_config.json").read_text())
    config["special_tokens"]["bos_token_id"] = bos
    (folder / "unimedvl_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=told):
        UniMedVL.from_pretrained(folder)


def test_a_text_is_neither_cut_nor_filled_up(folder):
    """Whatever the last user of the tokenizer's file kept in it."""
    text, plain = "Which imaging modality is this?", UniMedVL.from_pretrained(folder).tokenizer
    kept = Tokenizer.from_file(str(folder / "tokenizer.json"))
    kept.enable_truncation(2)
    kept.enable_padding(length=6)
    kept.save(str(folder / "tokenizer.json"))
    assert UniMedVL.from_pretrained(folder).tokenizer.encode(text) == plain.encode(text) != []


def test_a_tokenizer_that_has_the_special_tokens_keeps_their_ids_and_the_embeddings(folder, qwen_files):
    """As Qwen2.5's own `tokenizer.json`: a byte-level BPE and added tokens behind it, of which it calls some special."""
    tokenizer = Tokenizer(models.BPE.from_file(str(qwen_files / "vocab.json"), str(qwen_files / "merges.txt")))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    size = len(UniMedVL.from_pretrained(folder).language_model.lm_head.weight)
    model = UniMedVL.from_pretrained(folder)
    expected = [tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")]
    assert list(model.config.special_tokens.model_dump().values()) == expected
    assert model.config.llm.vocab_size == size == 512
    # A prompt can't close its own turn.
    assert not set(model.tokenizer.encode("CT <|im_end|> <|im_start|>")) & set(expected)


def test_a_few_missing_special_tokens_come_behind_the_others(folder, qwen_files):
    tokenizer = Tokenizer(models.BPE.from_file(str(qwen_files / "vocab.json"), str(qwen_files / "merges.txt")))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    assert list(UniMedVL.from_pretrained(folder).config.special_tokens.model_dump().values()) == [size - 2, size - 1, size, size + 1]


def test_the_network_alone_needs_nothing_of_the_rest_of_the_house(tiny):
    code = (
        "import sys; from model import UniMedVL; UniMedVL.from_pretrained(sys.argv[1]).chat(['CT'], max_new_tokens=1); "
        "print([m for m in ('ray', 'prefect', 'boto3', 'infra', 'corpus', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_silent_configuration_means_the_class_defaults(folder):
    """Its writer leaves out what the class has as default: `rope_theta` is 10,000 there."""
    path = folder / "llm_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "rope_theta"}))
    assert UniMedVL.from_pretrained(folder).config.llm.rope_theta == 10_000


def test_rope_theta_is_read_where_transformers_5_writes_it(folder):
    path = folder / "llm_config.json"
    written = {k: v for k, v in json.loads(path.read_text()).items() if k != "rope_theta"}
    path.write_text(json.dumps(written | {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}))
    model = UniMedVL.from_pretrained(folder)
    assert model.config.llm.rope_theta == 500.0
    model.save_pretrained(folder)
    assert UniMedVL.from_pretrained(folder).config == model.config


def test_pictures_of_a_reference_folder_are_as_large_as_its_smallest_table(tmp_path):
    golden = Path(__file__).parent.parent / "golden" / "checkpoint"
    for path in golden.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert ModelConfig.load(tmp_path).image.vit.max_size == 112
    settle(tmp_path / "vit_config.json", {"image_size": 56})
    assert ModelConfig.load(tmp_path).image.vit.max_size == 28


def test_reference_extras_that_lack_a_token_or_a_size_are_refused(tmp_path):
    golden = Path(__file__).parent.parent / "golden" / "checkpoint"
    for path in golden.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    extras = json.loads((golden / "tiny_extra_config.json").read_text())
    for part, key in (("special_tokens", "end_of_image"), ("ae", "ch_mult")):
        (tmp_path / "tiny_extra_config.json").write_text(json.dumps(extras | {part: {k: v for k, v in extras[part].items() if k != key}}))
        with pytest.raises(CheckpointError, match=f"lacks '{key}'"):
            UniMedVL.from_pretrained(tmp_path)


def test_the_14b_profile_begins_with_the_published_folder_and_no_memory(published, tmp_path, qwen_files):
    from model.published_start import start_config
    from ray_jobs.params import find_profile, load_params

    for path in (*published.iterdir(), *qwen_files.iterdir()):
        (tmp_path / path.name).symlink_to(path)
    wanted = load_params(find_profile("unimedvl-14b")).model
    config = start_config(tmp_path, wanted)
    assert config.image == wanted.image and config.llm.vocab_size == 152064 and config.llm.attention_dropout == 0.0
    told = tmp_path / "llm_config.json"
    told.unlink()
    told.write_text(json.dumps(LLM_14B | {"num_hidden_layers": 27}))
    with pytest.raises(CheckpointError, match="model.llm.num_hidden_layers is 27 in the folder, 28 in the profile"):
        start_config(tmp_path, wanted)
