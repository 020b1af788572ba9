"""Folders that `save_pretrained` wrote, read by each device for itself; folders that we write, read by transformers."""

import json
import shutil

import pytest
import torch
from oracles.llamas import KINDS, SIZES, apart, reference, texts
from parallel.small_model import one_thread  # noqa: F401
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lib import dense_state, load_dense
from lib.devices import Cluster
from lib.parallel.llama.model import Llama
from lib.parallel.llama.rows import HubFolder
from lib.parallel.llama.settings import llama_config
from lib.parallel.llama.weights import from_llama, load_llama, read_llama, write_llama
from lib.parallel.sharding.dense import layout_of
from lib.parallel.sharding.placement import Replicate

FEW = ["one kv head", "llama 3", "qwen2", "qwen3"]


@pytest.fixture(scope="module", params=FEW)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    """One file where there is one kv head; else several with an index."""
    path = tmp_path_factory.mktemp("hub")
    reference(kind, torch.bfloat16).save_pretrained(path, **({} if kind == FEW[0] else {"max_shard_size": "20KB"}))
    return path


def loaded(group, folder, dtype=torch.float32):
    model = Llama(llama_config(folder), group).to(dtype)
    return model, load_llama(model, folder)


def test_every_device_reads_its_own_rows_and_no_bit_is_changed(folder, kind):
    assert (folder / "model.safetensors").exists() == (kind == FEW[0])
    config, state = read_llama(folder)
    theirs = reference(kind, torch.bfloat16).state_dict()
    expected = from_llama(theirs, config)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], x) for name, x in expected.items())
    contents = HubFolder(folder).contents_bytes
    for size in 1, 4, 8:
        results = Cluster(size).run(loaded, folder, torch.bfloat16)
        merged = dense_state([model for model, _ in results])
        assert all(torch.equal(merged[name], x) for name, x in expected.items()), size
        for model, read in results:
            held = sum(p.nbytes for p in model.parameters())
            padding = sum(layer.weight.nbytes - rows(layer, model) for layer in (model.embedding, model.head) if layer)
            assert read - contents == held - padding


def rows(layer, model):
    """Bytes of the rows of a device's vocabulary that are no padding."""
    own = layer.layout["weight"].piece(torch.ones(layer.vocabulary, 1), model.group.size, model.group.rank)
    return int(own.sum()) * layer.weight[0].nbytes


def test_together_the_devices_read_each_byte_once_and_the_whole_and_the_copied_ones_more_often(folder, kind):
    config, state = read_llama(folder)
    for size in 2, 8:
        results = Cluster(size).run(loaded, folder)
        contents = HubFolder(folder).contents_bytes
        once = sum(x.nbytes for x in state.values())
        whole = sum(x.nbytes for name, x in state.items() if layout_of(results[0][0], name) == Replicate())
        shared = sum(x.nbytes for name, x in state.items() if ".qkv." in name) * 2 * config.kv_heads
        shared //= config.heads + 2 * config.kv_heads  # keys and values
        copies = max(1, size // config.kv_heads) - 1
        assert sum(read - contents for _, read in results) == once + (size - 1) * whole + copies * shared


def test_a_model_of_another_type_than_the_files(folder):
    model, _ = Cluster(2).run(loaded, folder, torch.float64)[1]
    half, _ = Cluster(2).run(loaded, folder, torch.bfloat16)[1]
    pairs = zip(model.parameters(), half.parameters(), strict=True)
    assert all(torch.equal(x, y.double()) for x, y in pairs)


@pytest.mark.parametrize("largest", [10**9, 20_000])
def test_a_folder_that_we_write_is_theirs(tmp_path, kind, largest):
    theirs = reference(kind, torch.float32)
    config, state = read_llama(theirs)
    write_llama(tmp_path, config, state, largest)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or largest == 20_000
    back = AutoModelForCausalLM.from_pretrained(tmp_path)
    before, after = theirs.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    again, same = read_llama(tmp_path)
    assert again == config
    assert all(torch.equal(x, same[name]) for name, x in state.items())
    tokens, _ = texts()
    assert apart(back(tokens).logits, theirs(tokens).logits) < 1e-6


@pytest.fixture
def copy(tmp_path, folder):
    return shutil.copytree(folder, tmp_path / "copy")


def said(folder, error, size=2):
    with pytest.raises(error) as refused:
        Cluster(size).run(lambda group: loaded(group, folder))
    return str(refused.value)


def first_file(folder):
    return min(folder.glob("*.safetensors"))


def change(folder, edit):
    file = first_file(folder)
    weights = load_file(file)
    edit(weights)
    save_file(weights, file)
    return file.name


def test_a_folder_without_a_file(copy, kind):
    file = first_file(copy)
    file.unlink()
    message = said(copy, FileNotFoundError)
    if kind == FEW[0]:
        assert message.endswith("is a folder without weights: neither model.safetensors nor "
                                "model.safetensors.index.json is there")  # fmt: skip
    else:
        assert f"{file.name} is not there, but model.safetensors.index.json says that it holds a part" in message


def test_a_file_that_was_cut_off(copy):
    file = first_file(copy)
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    assert f"{file.name} was cut off: " in said(copy, ValueError)
    for length in 3, 100:
        file.write_bytes(data[:length])
        assert f"{file.name} is no .safetensors file, or was cut off" in said(copy, ValueError)
    file.write_bytes((10).to_bytes(8, "little") + b"no JSON at all")
    assert "its table of contents is not JSON" in said(copy, ValueError)


def test_weights_that_are_missing_unknown_or_of_another_shape_or_type(copy):
    name = min(load_file(first_file(copy)))

    def grow(weights):
        weights[name] = torch.cat([weights[name], weights[name]])

    file = change(copy, grow)
    message = said(copy, ValueError)
    assert message.startswith("load_llama on rank 0 of 2: ")
    assert f"{name} in {file} has shape" in message
    change(copy, lambda weights: weights.update({name: torch.ones(3, dtype=torch.int8)}))
    assert f"{name} is of type I8, and only F64, F32, F16, BF16 are read" in said(copy, ValueError)
    change(copy, lambda weights: weights.pop(name))
    assert said(copy, ValueError).startswith(f"load_llama on rank 0 of 2: missing: {name}")


def test_a_weight_that_no_llama_has(tmp_path):
    theirs = reference("llama 3", torch.float32)
    config, state = read_llama(theirs)
    write_llama(tmp_path, config, state)
    change(tmp_path, lambda weights: weights.update({"model.norm.bias": torch.ones(3)}))
    assert said(tmp_path, ValueError) == "load_llama on rank 0 of 2: unknown: model.norm.bias"
    with pytest.raises(ValueError, match=r"from_llama: unknown: model\.norm\.bias"):
        read_llama(tmp_path)
    # older files hold the frequencies, which are computed
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(tmp_path, lambda weights: (weights.pop("model.norm.bias"), weights.update({old: torch.ones(3)})))
    assert read_llama(tmp_path)[1].keys() == state.keys()
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "intermediate_size": 80}))
    with pytest.raises(ValueError, match=r"gate_proj.weight has shape \(72, 48\); the config says \(80, 48\)"):
        read_llama(tmp_path)


def test_an_index_without_a_map_and_paths_that_are_none(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="is no index of weights: it has no weight_map"):
        HubFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors is not there"):
        HubFolder(tmp_path / "nothing.safetensors")


def test_nothing_is_changed_by_what_is_refused(tmp_path):
    config, state = read_llama(reference("llama 3", torch.float32))
    write_llama(tmp_path, config, state)
    change(tmp_path, lambda weights: weights.pop("model.norm.weight"))

    def program(group):
        model = Llama(config, group)
        load_dense(model, state, group)
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(ValueError, match=r"missing: model\.norm\.weight"):
            load_llama(model, tmp_path)
        return all(torch.equal(x, p) for x, p in zip(before, model.parameters(), strict=True))

    assert all(Cluster(2).run(program))
    assert SIZES["vocab_size"] % 4, "or no padding is read"
    assert set(FEW) <= KINDS.keys()
