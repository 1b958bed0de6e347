import base64
import copy
import json
import pickle
import sys
from dataclasses import dataclass, replace

import families
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import latentlens as ll
from latentlens.access.formats.files import read_directions, write_directions
from latentlens.access.formats.persona import convert_persona_pt
from latentlens.access.formats.steering_vectors import from_steering_vector, to_steering_vector
from latentlens.errors import BadInput, CacheVersion, SiteNotFound, UnsafeFile

D = families.WIDTH
IDS = list(range(3, 10))
# Written by repeng 0.4.0: ControlVector("llama", {1: [1, 2, 3, 4], 2: [1, 1, 1, 1]}).export_gguf(path)
REPENG = (
    "R0dVRgMAAAACAAAAAAAAAAMAAAAAAAAAFAAAAAAAAABnZW5lcmFsLmFyY2hpdGVjdHVyZQgAAAANAAAAAAAAAGNvbnRyb2x2ZWN0b3IYAAAA"
    "AAAAAGNvbnRyb2x2ZWN0b3IubW9kZWxfaGludAgAAAAFAAAAAAAAAGxsYW1hGQAAAAAAAABjb250cm9sdmVjdG9yLmxheWVyX2NvdW50BAAA"
    "AAIAAAALAAAAAAAAAGRpcmVjdGlvbi4xAQAAAAQAAAAAAAAAAAAAAAAAAAAAAAAACwAAAAAAAABkaXJlY3Rpb24uMgEAAAAEAAAAAAAAAAAA"
    "AAAgAAAAAAAAAAAAAAAAgD8AAABAAABAQAAAgEAAAAAAAAAAAAAAAAAAAAAAAACAPwAAgD8AAIA/AACAPwAAAAAAAAAAAAAAAAAAAAA="
)


def direction(site: str, seed: int = 0, **more) -> ll.Direction:
    vector = torch.randn(D, generator=torch.Generator().manual_seed(seed))
    return ll.Direction(vector, site, **{"source": {"model": "llama"}, **more})


def same(found: list[ll.Direction], expected: list[ll.Direction]) -> None:
    assert [str(d.site) for d in found] == [str(d.site) for d in expected]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.vector, b.vector)


@pytest.fixture(scope="module")
def lm():
    return ll.load(copy.deepcopy(families.build("Llama")), cache=False)


@pytest.fixture(scope="module")
def hidden():
    """Hugging Face's own hidden states at the last token, (blocks + 1, d)."""
    model = copy.deepcopy(families.build("Llama"))
    with torch.no_grad():
        states = model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    return torch.stack([h[0, -1] for h in states])


def measured(lm, direction: ll.Direction) -> torch.Tensor:
    """What our capture reads at a direction's site, at the last token."""
    return lm.activations([IDS], sites=str(direction.site), where="last")[direction.site][0]


def test_layers_of_a_persona_file_are_hidden_states(tmp_path, lm, hidden):
    torch.save(hidden, tmp_path / "evil_response_avg_diff.pt")
    found = convert_persona_pt(tmp_path / "evil_response_avg_diff.pt", lm=lm)
    assert [str(d.site) for d in found] == ["resid_pre[0]", "resid_post[0]", "resid_post[1]", "final_norm"]
    for row, d in enumerate(found):
        assert torch.allclose(d.vector, measured(lm, d), atol=1e-5), d
        assert d.source["row"] == row
        assert d.name == "evil_response_avg_diff"


def test_the_last_row_of_a_persona_file_can_be_put_where_the_persona_code_adds_it(tmp_path, lm, hidden):
    torch.save(hidden, tmp_path / "v.pt")
    placed = convert_persona_pt(tmp_path / "v.pt", last="resid_post")[-1]
    assert str(placed.site) == "resid_post[2]"
    assert placed.source["measured at"] == "final_norm"
    assert not torch.allclose(placed.vector, measured(lm, placed), atol=0.1), "it was measured behind the norm"
    assert len(convert_persona_pt(tmp_path / "v.pt", last="drop")) == 3


@pytest.mark.parametrize("suffix", ["gguf", "svec"])
def test_layer_n_of_these_files_is_the_output_of_block_n(tmp_path, lm, hidden, suffix):
    path = tmp_path / f"v.{suffix}"
    vectors = {1: hidden[2]} if suffix == "gguf" else {0: hidden[1], 1: hidden[2]}
    if suffix == "gguf":
        gguf = pytest.importorskip("gguf")
        writer = gguf.GGUFWriter(str(path), "controlvector")
        for n, v in vectors.items():
            writer.add_tensor(f"direction.{n}", v.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    else:
        path.write_text(
            json.dumps({"model_type": "llama", "directions": {n: [v.tolist()] for n, v in vectors.items()}})
        )
    for d in read_directions(path, lm=lm):
        assert torch.allclose(d.vector, measured(lm, d), atol=1e-5), d


def test_layer_n_of_a_steering_vector_is_the_output_of_block_n(lm, hidden):
    found = from_steering_vector(Vector({0: hidden[1], 1: hidden[2]}))
    for d in found:
        assert torch.allclose(d.vector, measured(lm, d), atol=1e-5), d


def test_hook_names_of_neuronpedia_are_sites(tmp_path, lm, hidden):
    for hook, row in (("hook_resid_pre", 1), ("hook_resid_post", 2)):
        record = {"modelId": "m", "layer": "1-res-jb", "hookName": f"blocks.1.{hook}", "vector": hidden[row].tolist()}
        (tmp_path / "v.json").write_text(json.dumps(record))
        (found,) = read_directions(tmp_path / "v.json", lm=lm)
        assert torch.allclose(found.vector, measured(lm, found), atol=1e-5), hook


def test_the_last_block_s_vector_of_tools_that_read_hidden_states_comes_with_a_caution(tmp_path, lm):
    write_directions([direction("resid_post[1]"), direction("resid_post[2]")], tmp_path / "v.svec")
    first, last = read_directions(tmp_path / "v.svec", lm=lm)
    assert "caution" not in first.source
    assert "final norm" in last.source["caution"]


# -- what is written is read back -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "gguf", "svec", "json"])
def test_directions_survive_every_format(tmp_path, suffix):
    if suffix == "gguf":
        pytest.importorskip("gguf")
    written = [direction(f"resid_post[{b}]", b) for b in (1, 2, 11)]
    path = write_directions(written, tmp_path / f"happy.{suffix}")
    found = read_directions(path)
    same(found, written)
    assert all(d.source["model"] == "llama" for d in found)
    one = read_directions(write_directions(written[0], tmp_path / f"one.{suffix}"))
    same(one, written[:1])
    assert write_directions(written, tmp_path / "no-suffix", format="safetensors").exists()
    same(read_directions(tmp_path / "no-suffix", format="safetensors"), written)


def test_our_own_file_keeps_frames_names_sources_and_several_at_one_site(tmp_path):
    written = [
        direction("resid_post[1]", 1, name="a", frame="centred"),
        direction("resid_post[1]", 2, name="b", source={"n": 5, "auroc": 0.9}),
        ll.Direction(torch.ones(3), "final_norm"),
    ]
    found = read_directions(write_directions(written, tmp_path / "v.safetensors"))
    assert found == written
    assert [(d.name, d.frame, dict(d.source)) for d in found] == [(d.name, d.frame, dict(d.source)) for d in written]


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    about = json.dumps({"schema": 99, "items": []})
    save_file({"0": torch.ones(2)}, tmp_path / "new.safetensors", {"directions": about})
    with pytest.raises(CacheVersion, match="99"):
        read_directions(tmp_path / "new.safetensors")
    save_file({"0": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(BadInput, match="not written by latentlens"):
        read_directions(tmp_path / "foreign.safetensors")
    save_file({"0": torch.ones(2)}, tmp_path / "odd.safetensors", {"directions": "{}"})
    with pytest.raises(BadInput, match="header"):
        read_directions(tmp_path / "odd.safetensors")


def test_layers_whose_vector_is_zero_are_left_out(tmp_path):
    (tmp_path / "v.svec").write_text(json.dumps({"directions": {"1": [[0, 0]], "2": [[1, 0]]}}))
    (found,) = read_directions(tmp_path / "v.svec")
    assert str(found.site) == "resid_post[2]"


def test_what_a_direction_saved_alone_is_read_too(tmp_path):
    d = direction("z[3]", name="head")
    assert read_directions(d.save(tmp_path / "d")) == [d]


def test_a_file_written_by_repeng_is_read(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "happy.gguf").write_bytes(base64.b64decode(REPENG))
    first, second = read_directions(tmp_path / "happy.gguf")
    assert (str(first.site), first.vector.tolist(), first.name) == ("resid_post[1]", [1, 2, 3, 4], "happy")
    assert (str(second.site), second.vector.tolist()) == ("resid_post[2]", [1, 1, 1, 1])
    assert dict(second.source) == {"format": "gguf", "file": "happy.gguf", "model": "llama", "layer": 2}


def test_what_we_write_has_the_bytes_that_repeng_writes(tmp_path):
    pytest.importorskip("gguf")
    vectors = [
        ll.Direction(torch.tensor([1.0, 2, 3, 4]), "resid_post[1]"),
        ll.Direction(torch.ones(4), "resid_post[2]"),
    ]
    path = write_directions(vectors, tmp_path / "v.gguf", model="llama")
    assert path.read_bytes() == base64.b64decode(REPENG)


def test_half_precision_and_quantised_gguf_tensors_are_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    v = np.linspace(-1, 1, 64, dtype=np.float32)
    writer = gguf.GGUFWriter(str(tmp_path / "v.gguf"), "controlvector")
    writer.add_tensor("direction.1", v.astype(np.float16))
    q8 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("direction.2", gguf.quantize(v, q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for d, tolerance in zip(read_directions(tmp_path / "v.gguf"), (1e-3, 1e-2), strict=True):
        assert np.abs(d.vector.numpy() - v).max() < tolerance


def test_the_svec_of_aisteer360_in_both_of_its_shapes(tmp_path):
    data = {"model_type": "llama", "directions": {"14": [[1.0, 2.0]], "3": [3.0, 4.0]}}
    data["explained_variances"] = {"14": 0.25}
    (tmp_path / "v.svec").write_text(json.dumps(data))
    three, fourteen = read_directions(tmp_path / "v.svec")
    assert (str(three.site), three.vector.tolist()) == ("resid_post[3]", [3, 4])
    assert (fourteen.source["explained_variance"], fourteen.source["model"]) == (0.25, "llama")
    assert str(read_directions(tmp_path / "v.svec", point="resid_pre")[0].site) == "resid_pre[3]"
    again = json.loads(write_directions([three, fourteen], tmp_path / "w.svec").read_text())
    assert again["directions"] == {"3": [[3.0, 4.0]], "14": [[1.0, 2.0]]}
    assert again["explained_variances"] == {"14": 0.25}


NEURONPEDIA = [
    {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "7", "vector": [1, 2],
     "hookName": "blocks.6.hook_resid_pre"},
    {"modelId": "gpt2-small", "layerNumber": 6, "hookType": "hook_resid_pre", "vector": [1, 2], "vectorLabel": "Jedi"},
    {"modelId": "gpt2-small", "layerNumber": 6, "hookType": "resid-pre", "vector": [1, 2]},
    {"message": "Success", "vector": {"modelId": "gpt2-small", "source": "6-neuronpedia-resid-pre", "index": "0",
     "hookName": "blocks.6.hook_resid_pre", "values": [1, 2], "label": "Jedi", "defaultSteerStrength": 15}},
    {"model_id": "gpt2-small", "source": "6-x", "hook_name": "blocks.6.hook_resid_pre", "values": [1, 2], "label": "J"},
]  # fmt: skip


@pytest.mark.parametrize("record", NEURONPEDIA)
def test_every_shape_of_a_neuronpedia_vector_is_read(tmp_path, record):
    (tmp_path / "v.json").write_text(json.dumps(record))
    (found,) = read_directions(tmp_path / "v.json")
    assert (str(found.site), found.vector.tolist(), found.source["model"]) == ("resid_pre[6]", [1, 2], "gpt2-small")


def test_a_neuronpedia_file_can_be_uploaded_if_it_is_at_resid_pre(tmp_path):
    d = direction("resid_pre[6]", name="Jedi")
    record = json.loads(write_directions(d, tmp_path / "v.json", model="gpt2-small").read_text())
    needed = {"modelId", "layerNumber", "hookType", "vector", "vectorDefaultSteerStrength", "vectorLabel"}
    assert needed <= set(record)
    assert (record["layerNumber"], record["hookType"], record["modelId"]) == (6, "hook_resid_pre", "gpt2-small")
    after = json.loads(write_directions(direction("resid_post[5]"), tmp_path / "w.json").read_text())
    assert "layerNumber" not in after


def test_a_neuronpedia_feature_without_a_site_or_a_vector_is_refused(tmp_path):
    path = tmp_path / "v.json"
    path.write_text(json.dumps({"modelId": "m", "layer": "6-res-jb", "vector": [1, 2]}))
    with pytest.raises(BadInput, match="point="):
        read_directions(path)
    assert str(read_directions(path, point="resid_pre")[0].site) == "resid_pre[6]"
    path.write_text(json.dumps({"modelId": "m", "hookName": "blocks.6.hook_resid_pre", "vector": []}))
    with pytest.raises(BadInput, match="decoder row"):
        read_directions(path)
    path.write_text(json.dumps({"modelId": "m", "hookName": "blocks.6.hook_mlp_in", "vector": [1]}))
    with pytest.raises(SiteNotFound, match="hook_mlp_in"):
        read_directions(path)


# -- steering-vectors -----------------------------------------------------------------------------


@dataclass
class Vector:
    """The shape of steering_vectors.SteeringVector."""

    layer_activations: dict
    layer_type: str = "decoder_block"


def test_steering_vectors_are_converted_both_ways_and_pass_through_safetensors(tmp_path):
    written = [direction("resid_post[0]", 0), direction("resid_post[2]", 2)]
    vector = to_steering_vector(written, Vector)
    assert vector.layer_type == "decoder_block"
    assert torch.equal(vector.layer_activations[2], written[1].vector)
    back = from_steering_vector(vector, name="x")
    same(back, written)
    same(read_directions(write_directions(back, tmp_path / "v.safetensors")), written)


def test_a_module_that_a_norm_follows_is_not_our_site(lm):
    written = [direction("mlp_out[1]")]
    assert to_steering_vector(written, Vector, lm=lm).layer_type == "mlp"
    same(from_steering_vector(Vector({1: written[0].vector}, "mlp"), lm=lm), written)
    with pytest.raises(BadInput, match="lm="):
        to_steering_vector(written, Vector)
    gemma = ll.load(copy.deepcopy(families.build("Gemma2")), cache=False)
    for kind in ("mlp", "self_attn"):
        with pytest.raises(BadInput, match="layernorm"):
            from_steering_vector(Vector({1: torch.ones(D)}, kind), lm=gemma)


def test_what_is_no_steering_vector_is_refused(lm):
    for wrong in (object(), Vector({}), Vector({0: torch.ones(2)}, "input_layernorm"), Vector({-1: torch.ones(2)})):
        with pytest.raises(BadInput):
            from_steering_vector(wrong)
    with pytest.raises(BadInput, match="resid_post"):
        to_steering_vector([direction("resid_post[0]"), direction("mlp_out[0]")], Vector, lm=lm)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".npz"])
def test_pickles_are_never_opened_whatever_the_format_says(tmp_path, suffix):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = tmp_path / f"v{suffix}"
    path.write_bytes(pickle.dumps(Payload()))
    for kind in (None, "safetensors", "svec"):
        with pytest.raises(UnsafeFile):
            read_directions(path, kind)
    with pytest.raises(UnsafeFile):
        convert_persona_pt(path)
    path.rename(tmp_path / "v.safetensors")
    with pytest.raises(UnsafeFile):
        read_directions(tmp_path / "v.safetensors")
    assert not (tmp_path / "executed").exists()


def test_a_persona_file_is_one_plain_tensor_and_nothing_else(tmp_path, lm):
    path = tmp_path / "v.pt"
    for wrong in ({"a": torch.ones(4, D)}, [torch.ones(4, D)], torch.nn.Linear(2, 2), torch.eye(3).to_sparse(), "x"):
        torch.save(wrong, path)
        with pytest.raises(UnsafeFile):
            convert_persona_pt(path)
    for odd in (
        torch.ones(D),
        torch.ones(2, 2, 2),
        torch.ones(4, D).long(),
        torch.zeros(4, D),
        torch.full((4, D), torch.nan),
    ):
        torch.save(odd, path)
        with pytest.raises(BadInput):
            convert_persona_pt(path)
    torch.save(torch.ones(3, D), path)
    with pytest.raises(BadInput, match="3 blocks"):
        convert_persona_pt(path, lm=lm)
    with pytest.raises(BadInput, match="no file"):
        convert_persona_pt(tmp_path / "absent.pt")


def test_rows_of_a_persona_file_that_are_zero_are_left_out(tmp_path):
    rows = torch.ones(4, D, dtype=torch.bfloat16)
    rows[0] = 0
    torch.save(rows, tmp_path / "v.pt")
    found = convert_persona_pt(tmp_path / "v.pt")
    assert [str(d.site) for d in found] == ["resid_post[0]", "resid_post[1]", "final_norm"]


@pytest.mark.parametrize(
    ("directions", "suffix", "says"),
    [
        ([], "gguf", "no direction"),
        ([], "json", "no direction"),
        ([], "safetensors", "no direction"),
        ([direction("resid_post[0]")], "gguf", "layer 0"),
        ([direction("resid_pre[3]")], "gguf", r"resid_post\[2\]"),
        ([direction("final_norm")], "gguf", "final_norm"),
        ([direction("mlp_out[1]")], "svec", "mlp_out"),
        ([direction("resid_pre[1]"), direction("resid_post[2]")], "svec", "resid_pre"),
        ([direction("resid_post[1]", 1), direction("resid_post[1]", 2)], "gguf", "one vector a layer"),
        ([direction("resid_post[1]", 1), direction("resid_post[1]", 2)], "svec", "one vector a layer"),
        ([direction("resid_post[1]", frame="centred")], "gguf", "centred"),
        ([direction("resid_post[1]", frame="centred")], "json", "centred"),
        ([direction("logits")], "json", "logits"),
        ([direction("resid_post[1]", source={})], "svec", "model="),
        ([direction("resid_post[1]"), ll.Direction(torch.ones(3), "resid_post[2]")], "gguf", "one d"),
        ([torch.ones(3)], "safetensors", "Direction"),
        ([direction("resid_post[1]")], "csv", "suffix"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_say_is_refused_and_nothing_is_written(tmp_path, directions, suffix, says):
    if suffix == "gguf":
        pytest.importorskip("gguf")
    with pytest.raises(BadInput, match=says):
        write_directions(directions, tmp_path / f"v.{suffix}")
    assert not list(tmp_path.glob("v.*"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("v.svec", "no json", "no JSON"),
        ("v.svec", "[1]", "no object 'directions'"),
        ("v.svec", '{"directions": {"x": [1]}}', "block index"),
        ("v.svec", '{"directions": {}}', "no vector"),
        ("v.svec", '{"directions": {"1": [[1, 2], [3, 4]]}}', "angular"),
        ("v.svec", '{"directions": {"1": [[1, 2]]}, "num_heads": 1, "head_dim": 2}', "heads"),
        ("v.svec", '{"directions": {"1": [1, 2], "2": [1, 2, 3]}}', "shapes"),
        ("v.svec", '{"directions": {"1": [1, "a"]}}', "no list of numbers"),
        ("v.svec", '{"directions": {"1": [1, 1e999]}}', "infinite"),
        ("v.svec", '{"directions": {"1": [0, 0]}}', "zero"),
        ("v.json", "[]", "empty"),
        ("v.json", "[1]", "not a Neuronpedia record"),
        ("v.json", '{"modelId": "m"}', "no vector"),
        ("v.gguf", "GGUF", "no readable GGUF"),
        ("v.gguf", "", "no readable GGUF"),
        ("v.csv", "1,2", "suffix"),
    ],
)
def test_unreadable_files_are_refused_by_name(tmp_path, name, content, says):
    if name.endswith("gguf"):
        pytest.importorskip("gguf")
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=says):
        read_directions(tmp_path / name)


def test_every_cut_and_every_flipped_byte_of_a_gguf_is_read_or_refused(tmp_path):
    pytest.importorskip("gguf")
    whole, path = base64.b64decode(REPENG), tmp_path / "v.gguf"
    rng = np.random.default_rng(0)
    for i in range(len(whole)):
        flipped = bytearray(whole)
        flipped[i] ^= int(rng.integers(1, 256))
        for content in (whole[:i], bytes(flipped)):
            path.write_bytes(content)
            try:
                read_directions(path)
            except BadInput:
                continue


def test_without_the_gguf_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "v.gguf").write_bytes(base64.b64decode(REPENG))
    with pytest.raises(BadInput, match="pip install gguf"):
        read_directions(tmp_path / "v.gguf")
    with pytest.raises(BadInput, match="pip install gguf"):
        write_directions(direction("resid_post[1]"), tmp_path / "w.gguf")


def test_a_model_in_gguf_is_no_control_vector(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "v.gguf"), "llama")
    writer.add_tensor("token_embd.weight", np.ones((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadInput, match="architecture 'llama'"):
        read_directions(tmp_path / "v.gguf")


def test_a_vector_of_another_model_is_refused(tmp_path, lm):
    path = write_directions(ll.Direction(torch.ones(7), "resid_post[1]"), tmp_path / "v.safetensors")
    with pytest.raises(BadInput, match="width 7"):
        read_directions(path, lm=lm)
    path = write_directions(direction("resid_post[3]"), tmp_path / "v.safetensors")
    with pytest.raises(BadInput, match="3 blocks"):
        read_directions(path, lm=lm)


def test_options_that_make_no_sense_are_refused(tmp_path):
    path = write_directions(direction("resid_post[1]"), tmp_path / "v.safetensors")
    with pytest.raises(BadInput, match="known are"):
        read_directions(path, "xml")
    with pytest.raises(BadInput, match="says itself"):
        read_directions(path, point="resid_pre")
    with pytest.raises(BadInput, match="no file"):
        read_directions(tmp_path / "absent.gguf")
    svec = write_directions(direction("resid_post[1]"), tmp_path / "v.svec")
    with pytest.raises(BadInput, match="resid_post or resid_pre"):
        read_directions(svec, point="mlp_out")
    with pytest.raises(BadInput, match="last="):
        convert_persona_pt(path, last="x")


def test_a_converted_vector_steers_as_the_original(tmp_path, lm):
    pytest.importorskip("gguf")
    original = replace(direction("resid_post[1]"), name="v")
    (back,) = read_directions(write_directions(original, tmp_path / "v.gguf"), lm=lm)
    assert back == original
    assert back.fingerprint == original.fingerprint
