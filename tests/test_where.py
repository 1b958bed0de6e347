import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentlens.errors import WhereNotValid
from latentlens.values.rows import TokenRow
from latentlens.values.where import PerRow, Where, resolve, steered_positions

ROW = TokenRow(
    ids=(1, 5, 6, 2, 7, 8, 9),
    n_prompt=5,
    role=("", "user", "user", "", "", "assistant", "assistant"),
    turn=(-1, 0, 0, -1, -1, 1, 1),
    special=(True, False, False, True, False, False, False),
)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", (0, 1, 2, 3, 4, 5, 6)),
        ("last", (6,)),
        ("prompt", (0, 1, 2, 3, 4)),
        ("response", (5, 6)),
        ("last_prompt", (4,)),
        ("content", (1, 2, 4, 5, 6)),
        ("first-2", (0, 1)),
        ("last-3", (4, 5, 6)),
        ("first-99", (0, 1, 2, 3, 4, 5, 6)),
        ("role:user", (1, 2)),
        ("turn:-1", (5, 6)),
        ("turn:0", (1, 2)),
        (0, (0,)),
        (-2, (5,)),
        ([3, -7, 3], (0, 3)),
        (slice(1, 6, 2), (1, 3, 5)),
        ([False, True, False, False, False, False, True], (1, 6)),
        (np.array([True] + [False] * 6), (0,)),
    ],
)
def test_every_spelling_selects_what_it_says(spec, expected):
    assert Where.of(spec).positions(ROW) == expected


@pytest.mark.parametrize("spec", ["lats", "first-0", "role:", "turn:x", 1.5, None, True, [], ["a"], {"a": 1}])
def test_what_cannot_be_read_is_named_with_what_is_allowed(spec):
    with pytest.raises(WhereNotValid, match=r"cannot read|count from 1"):
        Where.of(spec)


@pytest.mark.parametrize(
    ("spec", "says"),
    [(7, "0 to 6"), (-8, "0 to 6"), ([True], "1 values"), ("role:judge", "its roles are"), (slice(3, 3), "selects no")],
)
def test_a_selection_outside_the_row_says_what_the_row_has(spec, says):
    with pytest.raises(WhereNotValid, match=says):
        Where.of(spec).positions(ROW)


def test_a_response_of_a_plain_text_says_that_nothing_was_generated():
    with pytest.raises(WhereNotValid, match="nothing was generated"):
        Where.of("response").positions(TokenRow.plain((1, 2, 3)))


def test_per_row_selections_differ_by_row_and_must_be_as_many():
    rows = [TokenRow.plain((1, 2, 3)), TokenRow.plain((4, 5))]
    assert resolve(PerRow(["last", 0]), rows) == [(2,), (0,)]
    with pytest.raises(WhereNotValid, match="1 selections for 2 rows"):
        resolve(PerRow(["last"]), rows)


SPECS = st.one_of(
    st.sampled_from(["all", "last", "prompt", "response", "last_prompt", "content", "role:assistant", "turn:-1"]),
    st.integers(1, 4).map(lambda k: f"first-{k}"),
    st.integers(1, 4).map(lambda k: f"last-{k}"),
    st.integers(-3, 2),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.builds(slice, st.integers(0, 6), st.none() | st.integers(1, 9), st.none() | st.integers(1, 3)),
)


@given(spec=SPECS, n_prompt=st.integers(4, 7), n_new=st.integers(0, 4))
def test_steered_positions_never_change_as_a_row_grows(spec, n_prompt, n_new):
    """What was edited at one step of a decode is what a recomputation of the longer row edits."""
    where, row = Where.of(spec), TokenRow.plain(tuple(range(n_prompt)))
    if where.kind == "index" and any(i < -n_prompt for i in where.args):
        return
    grown = row.continued(tuple(range(n_new)))
    before, after = steered_positions(where, row), steered_positions(where, grown)
    assert tuple(p for p in after if p < n_prompt) == before
