"""The operations' arithmetic, by hand (the table of methods) and by property."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latentlens as ll
from latentlens.errors import BadInput
from latentlens.values.interventions import Described, Intervention, as_plan, as_plans, plan_fingerprint

SITE = "resid_post[0]"
H = torch.tensor([[3.0, 4.0]])
U = ll.Direction(torch.tensor([1.0, 0.0]), SITE)
V = ll.Direction(torch.tensor([0.0, 1.0]), SITE)

BY_HAND = {
    "add": (ll.Add(U, 2.0), [5, 4]),
    "norm-preserving add": (ll.NormPreservingAdd(U, 2.0), [3.9043, 3.1235]),
    "norm-preserving add, only if grown": (ll.NormPreservingAdd(U, -2.0, only_if_grown=True), [1, 4]),
    "relative add": (ll.RelativeAdd(U, 0.4), [5, 4]),
    "clamp": (ll.Clamp(U, to=10), [10, 4]),
    "floor above": (ll.Clamp(U, low=1), [3, 4]),
    "floor": (ll.Clamp(U, low=5), [5, 4]),
    "cap": (ll.Clamp(U, high=1), [1, 4]),
    "floor by the opposite direction": (ll.Clamp(ll.Direction(-U.vector, SITE), high=-5), [5, 4]),
    "scale": (ll.Scale(U, 2.0), [6, 4]),
    "project out": (ll.ProjectOut(U), [0, 4]),
    "project out a plane": (ll.ProjectOut([U, V]), [0, 0]),
    "project out the same direction twice": (ll.ProjectOut([U, U]), [0, 4]),
    "reflect": (ll.Reflect(U), [-3, 4]),
    "rotate to 90": (ll.Rotate(U, V, to=90), [0, 5]),
    "rotate by 90": (ll.Rotate(U, V, by=90), [-4, 3]),
    "slerp half way": (ll.Slerp(U, 0.5), [4.4721, 2.2361]),
    "affine": (ll.Affine(torch.tensor([2.0, 0.5]), torch.tensor([1.0, -1.0]), site=SITE), [7, 1]),
    "affine, half": (ll.Affine(torch.tensor([2.0, 0.5]), torch.tensor([1.0, -1.0]), 0.5, site=SITE), [5, 2.5]),
    "patch": (ll.Patch(torch.tensor([7.0, 8.0]), site=SITE), [7, 8]),
    "add at": (ll.AddAt(torch.tensor([[1.0, 1.0]]), 2.0, site=SITE), [5, 6]),
}
R = ll.Direction(torch.tensor([2.0, 0.0]), SITE)
for amount, expected in ((0.0, [-1, 4]), (0.5, [0, 4]), (1.0, [1, 4])):
    edit = ll.ConceptEdit(R, torch.tensor([-1.0, 2.0]), amount)
    BY_HAND[f"affine concept edit, amount {amount}"] = (edit, expected)


@pytest.mark.parametrize("name", BY_HAND)
def test_each_operation_gives_the_number_worked_out_by_hand(name):
    item, expected = BY_HAND[name]
    assert item.edit(H)[0].tolist() == pytest.approx(expected, abs=6e-5)


def test_rotation_acts_in_its_plane_only():
    axes = [ll.Direction(torch.eye(3)[i], SITE) for i in range(3)]
    item = ll.Rotate(axes[0], axes[1], to=60)
    assert item.edit(torch.tensor([[3.0, 4.0, 2.0]]))[0].tolist() == pytest.approx([2.5, 4.3301, 2.0], abs=1e-4)


def test_the_adaptive_rotation_leaves_states_that_point_away():
    item = ll.Rotate(U, V, to=90, only_if_positive=True)
    assert item.edit(torch.tensor([[3.0, 4.0], [-3.0, 4.0]])).tolist() == [[pytest.approx(0, abs=1e-6), 5], [-3, 4]]


def test_where_a_formula_has_no_answer_the_state_is_left_as_it_is():
    zero, away = torch.zeros(1, 2), torch.tensor([[-2.0, 0.0]])
    assert ll.Rotate(U, V, to=30).edit(zero).tolist() == [[0, 0]]
    assert ll.Slerp(U, 0.5).edit(zero).tolist() == [[0, 0]]
    assert ll.Slerp(U, 0.5).edit(away).tolist() == [[-2, 0]]
    assert ll.NormPreservingAdd(U, 2.0).edit(away).tolist() == [[-2, 0]]


def test_patch_takes_one_vector_per_selected_position_and_leaves_the_rest():
    item = ll.Patch(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), site=SITE)
    assert item.edit(torch.zeros(3, 2)).tolist() == [[1, 1], [2, 2], [0, 0]]


ITEMS = [item for item, _ in BY_HAND.values()]
LANES = [
    ll.Add,
    ll.NormPreservingAdd,
    ll.RelativeAdd,
    ll.Clamp,
    ll.Scale,
    ll.Reflect,
    ll.Slerp,
    ll.Rotate,
    ll.ConceptEdit,
]


def turned(b, a):
    """`b`, or where it is nearly parallel to `a` (which random vectors in the plane may be) `a` turned in two axes."""
    if abs(a.cosine(b)) < 0.999:
        return b
    v = a.vector.clone()
    v[0], v[1] = -a.vector[1], a.vector[0]
    return ll.Direction(v, SITE)


def many(kind, n, d, seed):
    torch.manual_seed(seed)
    directions = [ll.Direction(torch.randn(d), SITE) for _ in range(2 * n)]
    numbers = torch.randn(n).tolist()
    match kind.__name__:
        case "Reflect":
            return [kind(v) for v in directions[:n]]
        case "Clamp":
            return [kind(v, low=x) if x > 0 else kind(v, high=x) for v, x in zip(directions, numbers)]
        case "Rotate":
            pairs = [(directions[2 * i], turned(directions[2 * i + 1], directions[2 * i])) for i in range(n)]
            return [kind(a, b, by=90 * number) for (a, b), number in zip(pairs, numbers)]
        case "ConceptEdit":
            return [kind(v, torch.randn(d), x) for v, x in zip(directions, numbers)]
    return [kind(v, x) for v, x in zip(directions, numbers)]


@pytest.mark.parametrize("kind", LANES, ids=lambda k: k.__name__)
@given(n=st.integers(1, 5), d=st.integers(2, 9), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_many_interventions_of_a_lane_at_once_equal_each_alone(kind, n, d, seed):
    items = many(kind, n, d, seed)
    assert len({item.lane for item in items}) == 1
    states, which = torch.randn(11, d), torch.randint(0, n, (11,))
    together = kind.stacked(items)(states, which, None)
    alone = torch.cat([items[w].edit(states[i : i + 1]) for i, w in enumerate(which.tolist())])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


@given(seed=st.integers(0, 500), d=st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_rotations_and_reflections_keep_the_norm_and_projections_are_idempotent(seed, d):
    torch.manual_seed(seed)
    a, b = (ll.Direction(torch.randn(d), SITE) for _ in range(2))
    h = torch.randn(6, d) * 10 ** torch.randn(6, 1)
    for item in (
        ll.Reflect(a),
        ll.Rotate(a, b, by=33.0),
        ll.Rotate(a, b, to=10.0),
        ll.Slerp(a, 0.3),
        ll.NormPreservingAdd(a, 2),
    ):
        torch.testing.assert_close(item.edit(h).norm(dim=1), h.norm(dim=1), rtol=1e-4, atol=1e-5)
    for item in (
        ll.ProjectOut([a, b]),
        ll.Clamp(a, to=1.5),
        ll.Clamp(a, low=0.1),
        ll.ConceptEdit(a, torch.randn(d), 0.4),
    ):
        once = item.edit(h)
        torch.testing.assert_close(item.edit(once), once, rtol=1e-4, atol=1e-5 * float(h.norm(dim=1).max()))
    out = ll.ProjectOut([a, b]).edit(h)
    assert float((out @ torch.stack([a.unit, b.unit]).T).abs().max()) < 1e-4 * float(h.norm(dim=1).max())
    torch.testing.assert_close(
        ll.Reflect(a).edit(ll.Reflect(a).edit(h)), h, rtol=1e-4, atol=1e-5 * float(h.norm(dim=1).max())
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ll.Add("v"), "takes a Direction"),
        (lambda: ll.Add(U, float("nan")), "finite"),
        (lambda: ll.Add(U, "strong"), "not a number"),
        (lambda: ll.Add(U, unit="sigma"), "allowed are 'raw' and 'norm'"),
        (lambda: ll.Clamp(U), "needs to="),
        (lambda: ll.Clamp(U, to=1, low=0), "not both"),
        (lambda: ll.Clamp(U, low=2, high=1), "low is above high"),
        (lambda: ll.Rotate(U, V), "one of the two"),
        (lambda: ll.Rotate(U, U, to=3), "parallel"),
        (lambda: ll.ProjectOut([]), "list of them"),
        (lambda: ll.Patch(torch.tensor([math.inf]), site=SITE), "finite"),
        (lambda: ll.Patch(torch.ones(2)), "needs site="),
        (lambda: ll.Affine(torch.ones(2), torch.ones(3), site=SITE), "must agree"),
        (lambda: ll.ConceptEdit(U, torch.ones(3)), "shape"),
        (lambda: ll.Gate(U, ll.Condition(U)), "first"),
        (lambda: ll.Gate(ll.Add(U), U), "second"),
        (lambda: ll.Condition(U, score="dot"), "allowed are projection"),
        (lambda: ll.Schedule(start=3, stop=3), "never acts"),
        (lambda: ll.Add(U, schedule="fast"), "cannot read schedule"),
        (lambda: ll.Add(U, where="somewhere"), "cannot read where"),
    ],
)
def test_wrong_arguments_get_one_clear_error(make, says):
    with pytest.raises((BadInput, ll.errors.WhereNotValid), match=says):
        make()


# -- conditions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "score", "state", "expected"),
    [
        ([1.0, 0.0], "cast", [3.0, 4.0], 0.6),
        ([0.6, 0.8], "cast", [3.0, 4.0], 0.9903),
        ([0.6, 0.8], "cast", [3.0, 1.0], 0.8813),
        ([0.6, 0.8], "cosine", [3.0, 1.0], 0.8222),
        ([0.6, 0.8], "projection", [3.0, 1.0], 2.6),
        ([2.0, 0.0], "projection", [3.0, 1.0], 3.0),
        ([1.0, 0.0], "cast", [0.0, 4.0], 0.0),
        ([1.0, 0.0], "cosine", [0.0, 0.0], 0.0),
        ([1.0, 0.0], "probe", [0.0, 4.0], 0.5),
    ],
)
def test_scores_of_conditions_by_hand(vector, score, state, expected):
    condition = ll.Condition(ll.Direction(torch.tensor(vector), SITE), score=score)
    assert float(condition.scores(torch.tensor([state]))) == pytest.approx(expected, abs=6e-5)


def test_above_means_above_and_below_below():
    up, down = ll.Condition(U, 1.0), ll.Condition(U, 1.0, above=False)
    states = torch.tensor([[0.5, 0.0], [1.5, 0.0]])
    assert up.holds(states).tolist() == [False, True]
    assert down.holds(states).tolist() == [True, False]


# -- schedules -----------------------------------------------------------------------------------------


def test_schedules_by_hand():
    def of(**options):
        import numpy as np

        return ll.Schedule(**options).factors(np.arange(6)).tolist()

    assert of() == [1] * 6
    assert of(start=1, stop=4) == [0, 1, 1, 1, 0, 0]
    assert of(start=1, every=2) == [0, 1, 0, 1, 0, 1]
    assert of(decay=0.5, start=2) == [0, 0, 1, 0.5, 0.25, 0.125]
    assert of(table=(3, 2)) == [3, 2, 2, 2, 2, 2]


def test_a_callable_and_a_list_become_a_table():
    assert ll.Add(U, schedule=lambda n: 2.0 if n < 2 else 0.5).schedule.table[:4] == (2, 2, 0.5, 0.5)
    assert ll.Add(U, schedule=[1, 0]).schedule == ll.Schedule(table=(1, 0))


# -- plans and identity --------------------------------------------------------------------------------


def test_fingerprints_tell_every_field_apart_and_ignore_names():
    base = ll.Clamp(U, low=1)
    others = [
        ll.Clamp(U, low=2),
        ll.Clamp(U, high=1),
        ll.Clamp(U, to=1),
        ll.Clamp(V, low=1),
        ll.Clamp(U, low=1, unit="norm"),
        ll.Clamp(U, low=1, where="last"),
        ll.Clamp(U, low=1, site="resid_post[1]"),
        ll.Clamp(U, low=1, schedule=ll.Schedule(stop=3)),
        ll.Gate(base, ll.Condition(U)),
        ll.Gate(base, ll.Condition(U, 1.0)),
        ll.Scale(U, 1),
        *(item for item in ITEMS if not isinstance(item, ll.Clamp)),
    ]
    prints = [item.fingerprint for item in [base, *others]]
    assert len(set(prints)) == len(prints)
    named = ll.Direction(U.vector, SITE, name="other name")
    assert ll.Clamp(named, low=1) == base
    assert hash(ll.Clamp(named, low=1)) == hash(base)


def test_one_plan_for_all_rows_or_one_plan_for_each():
    a, b = ll.Add(U), ll.Add(V)
    assert as_plans(None, 2) == [(), ()]
    assert as_plans(a, 2) == [(a,), (a,)]
    assert as_plans([a, b], 3) == [(a, b)] * 3
    assert as_plans([[a], None], 2) == [(a,), ()]
    assert as_plans([[a, b], [b]], 2) == [(a, b), (b,)]
    with pytest.raises(BadInput, match="2 plans for 3 rows"):
        as_plans([[a], None], 3)
    with pytest.raises(BadInput, match="not Condition"):
        as_plan([ll.Condition(U)])
    assert plan_fingerprint(()) == ""


def test_every_operation_says_what_it_is():
    for item in ITEMS:
        assert type(item).__name__ in repr(item)
        assert "resid_post[0]" in repr(item)
    assert all(issubclass(kind, Described) for kind in Described.kinds.values())
    assert {"Add", "Gate", "Condition"} <= set(Described.kinds)
    assert "schedule" not in repr(ll.Add(U)).lower()
    assert repr(ll.Add(ll.Direction(U.vector, SITE, "sad"), 2, where="last")) == "Add(sad, +2, at resid_post[0], last)"


def test_conditions_are_no_interventions():
    assert not isinstance(ll.Condition(U), Intervention)
