import datasets
import pytest
import torch
from tinytok import tokenizer

from latentlens.access.tokens import RowReader
from latentlens.errors import BadInput, ContextTooLong, NoChatTemplate


def reader(limit=None, **options):
    return RowReader(tokenizer(**options), 26, limit)


def test_the_beginning_of_text_token_appears_exactly_once():
    plain = reader().rows("cat sat")[0]
    own = reader().rows("<s> cat sat")[0]
    chat = reader().rows([{"role": "user", "content": "cat sat"}])[0]
    none = reader(bos=False).rows("cat sat")[0]
    assert plain.ids == own.ids
    assert [row.ids.count(1) for row in (plain, own, chat, none)] == [1, 1, 1, 0]


def test_every_kind_of_input_becomes_the_same_rows():
    ids = reader().rows("cat sat")[0].ids
    padded = {"input_ids": torch.tensor([[2, 2, *ids]]), "attention_mask": torch.tensor([[0, 0] + [1] * len(ids)])}
    column = datasets.Dataset.from_dict({"text": ["cat sat"]})["text"]
    for given in (["cat sat"], list(ids), [list(ids)], torch.tensor(ids), torch.tensor([ids]), padded, column):
        assert [row.ids for row in reader().rows(given)] == [ids]


def test_chat_tokens_carry_their_role_and_turn():
    chat = [
        {"role": "system", "content": "red"},
        {"role": "user", "content": "cat sat"},
        {"role": "assistant", "content": "dog"},
        {"role": "user", "content": "cat"},
    ]
    row = reader().rows([chat])[0]
    read = tokenizer()
    labels = [(read.decode([i]), r, t) for i, r, t in zip(row.ids, row.role, row.turn, strict=True) if r]
    assert labels == [
        ("red", "system", 0),
        ("cat", "user", 1),
        ("sat", "user", 1),
        ("dog", "assistant", 2),
        ("cat", "user", 3),
    ]
    assert row.ids[-1] == 4, "a chat that ends with the user gets the header of the answer"
    assert row.special[0]


def test_an_assistant_message_at_the_end_is_closed_for_reading_and_open_for_continuing():
    chat = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]
    assert reader().rows([chat])[0].ids[-1] == 2
    assert tokenizer().decode([reader().rows([chat], continue_last=True)[0].ids[-1]]) == "dog"


def test_a_text_longer_than_the_context_raises_or_is_cut_where_asked():
    short = reader(limit=4)
    with pytest.raises(ContextTooLong, match="input 1 has 6 tokens; the model reads at most 4"):
        short.rows(["cat", "cat sat on the mat"])
    full = reader().rows("cat sat on the mat")[0].ids
    assert short.rows("cat sat on the mat", truncate="left")[0].ids == full[-4:]
    assert short.rows("cat sat on the mat", truncate="right")[0].ids == full[:4]
    with pytest.raises(ContextTooLong, match="with room for 2 more"):
        short.rows("cat sat on", room=2)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ([], BadInput, "no inputs"),
        (3.5, BadInput, "cannot read float"),
        ([[]], BadInput, "cannot read list"),
        ([[1, 999]], BadInput, "token id 999 is outside"),
        ([None], BadInput, "cannot read NoneType"),
        ({"ids": [1]}, BadInput, "input_ids"),
    ],
)
def test_bad_inputs_are_named(given, error, says):
    with pytest.raises(error, match=says):
        reader().rows(given)


def test_an_empty_text_is_refused_where_it_has_no_tokens():
    with pytest.raises(BadInput, match="input 1 is empty"):
        reader(bos=False).rows(["cat", ""])


def test_texts_without_tokenizer_and_chats_without_template_say_what_to_do():
    with pytest.raises(BadInput, match="tokenizer="):
        RowReader(None, 26, None).rows("cat")
    with pytest.raises(NoChatTemplate, match="chat_template"):
        reader(chat=False).rows([[{"role": "user", "content": "cat"}]])
