import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

import latentlens as ll
from latentlens.errors import BadInput, CacheVersion, LatentLensError, UnsafeFile
from latentlens.values.interventions import as_plan, plan_fingerprint


def test_projection_and_cosine_by_hand():
    """methods of persona vectors: v = [1, 3], h = [3, 1] -> projection 1.8974, cosine .6"""
    v = ll.Direction(torch.tensor([1.0, 3.0]), "resid_post[0]")
    assert v.norm == pytest.approx(3.1623, abs=1e-4)
    assert float(v.project(torch.tensor([3.0, 1.0]))) == pytest.approx(1.8974, abs=1e-4)
    assert v.cosine(ll.Direction(torch.tensor([3.0, 1.0]), "resid_post[0]")) == pytest.approx(0.6, abs=1e-6)


def test_add_by_hand():
    h, u = torch.tensor([[3.0, 4.0]]), ll.Direction(torch.tensor([1.0, 0.0]), "resid_post[0]")
    assert ll.Add(u, 2.0).edit(h).tolist() == [[5.0, 4.0]]
    assert ll.Add(u.scaled_to(0.5), -2.0).edit(h).tolist() == [[2.0, 4.0]]


def test_random_directions_have_equal_norm_and_differ_by_seed_only():
    d = ll.Direction(torch.randn(64), "resid_post[2]", name="truth")
    a, b, c = d.random_like(0), d.random_like(0), d.random_like(1)
    assert a.norm == pytest.approx(d.norm, rel=1e-5)
    assert a == b
    assert a != c
    assert abs(a.cosine(d)) < 0.5


@pytest.mark.parametrize(
    "vector", [torch.zeros(3), torch.ones(2, 2), torch.tensor([1.0, float("nan")]), torch.empty(0)]
)
def test_what_is_no_direction_is_refused(vector):
    with pytest.raises(BadInput):
        ll.Direction(vector, "resid_post[0]")


@pytest.mark.parametrize("site", ["resid_post[*]", "resid_post[-1]", "model.layers.3"])
def test_a_direction_needs_one_site(site):
    with pytest.raises(LatentLensError):
        ll.Direction(torch.ones(3), site)


def test_a_direction_is_saved_and_read_back(tmp_path):
    d = ll.Direction(torch.randn(8), "attn_out[3]", name="x", frame="centred", source={"n": 5})
    back = ll.Direction.load(d.save(tmp_path / "d"))
    assert back == d
    assert (back.name, back.frame, dict(back.source)) == ("x", "centred", {"n": 5})


def test_pickles_and_foreign_files_are_refused_and_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (tmp_path / "d.pt").write_bytes(pickle.dumps(Payload()))
    save_file({"vector": torch.ones(2)}, tmp_path / "plain.safetensors")
    for name in ("d.pt", "plain.safetensors"):
        with pytest.raises(UnsafeFile, match="never opened"):
            ll.Direction.load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    about = json.dumps({"schema": 99, "site": "resid_post[0]", "name": "", "frame": "raw", "source": {}})
    save_file({"vector": torch.ones(2)}, tmp_path / "new.safetensors", {"direction": about})
    with pytest.raises(CacheVersion, match="99"):
        ll.Direction.load(tmp_path / "new.safetensors")


def test_fingerprints_change_with_arithmetic_and_not_with_names():
    v = torch.randn(4, generator=torch.Generator().manual_seed(0))
    base = ll.Add(ll.Direction(v, "resid_post[0]"), 1.0)
    others = [
        ll.Add(ll.Direction(v * 1.001, "resid_post[0]"), 1.0),
        ll.Add(ll.Direction(v, "resid_post[1]"), 1.0),
        ll.Add(ll.Direction(v, "resid_post[0]"), 1.001),
        ll.Add(ll.Direction(v, "resid_post[0]"), 1.0, where="last"),
        ll.Add(ll.Direction(v, "resid_post[0]"), 1.0, where="first-2"),
        ll.Add(ll.Direction(v, "resid_post[0]"), 1.0, where="first-3"),
    ]
    prints = {plan_fingerprint([a]) for a in [base, *others]} | {plan_fingerprint([base, base])}
    assert len(prints) == 8
    assert base.fingerprint == ll.Add(ll.Direction(v, "resid_post[0]", name="named"), 1.0).fingerprint
    assert plan_fingerprint([]) == ""
    assert plan_fingerprint(others) != plan_fingerprint(others[::-1]), "the order of edits matters"


@pytest.mark.parametrize("coeff", [float("nan"), float("inf")])
def test_strengths_must_be_finite(coeff):
    with pytest.raises(BadInput, match="finite"):
        ll.Add(ll.Direction(torch.ones(2), "resid_post[0]"), coeff)


def test_a_plan_is_one_or_several_interventions():
    add = ll.Add(ll.Direction(torch.ones(2), "resid_post[0]"))
    assert as_plan(None) == ()
    assert as_plan(add) == as_plan([add]) == (add,)
    with pytest.raises(BadInput, match=r"ll\.Add"):
        as_plan([add, "x"])
    with pytest.raises(BadInput, match="Direction"):
        ll.Add(torch.ones(2))
