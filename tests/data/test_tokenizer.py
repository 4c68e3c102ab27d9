import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dsv3lab.data import END_OF_DOCUMENT, DataError, token_bytes
from dsv3lab.data.tokenizer import encode_documents, load_tokenizer, train_tokenizer
from tests.data.packages import prose

TEXTS = [prose(i) for i in range(20)]
TOKENIZER = train_tokenizer(TEXTS, vocab_size=400)
BYTES = token_bytes(TOKENIZER)


def decoded(ids: np.ndarray) -> str:
    return b"".join(BYTES[i] for i in ids).decode()


def test_training_twice_gives_the_same_tokenizer():
    assert train_tokenizer(reversed(TEXTS), vocab_size=400).to_str() == TOKENIZER.to_str()


def test_every_byte_is_a_token_and_end_of_document_is_the_first_without_bytes():
    assert {value for value in BYTES if len(value) == 1} == {bytes([i]) for i in range(256)}
    assert TOKENIZER.token_to_id(END_OF_DOCUMENT) == 0
    assert [i for i, value in enumerate(BYTES) if not value] == [0]
    assert len(BYTES) == 400


@given(st.text() | st.text(alphabet=st.characters(codec="ascii")) | st.text(alphabet=" \n\r\t\x0b\x1c'a1_(."))
def test_the_fast_encoding_is_the_tokenizers_own_and_keeps_every_byte(text: str):
    (ids,) = encode_documents(TOKENIZER, [text])
    assert ids.tolist() == TOKENIZER.encode(text).ids
    assert decoded(ids) == text


def test_documents_keep_their_order_among_ascii_and_other_texts():
    texts = ["plain = 1\n", "naïve", "", "π = 3\n", "plain = 1\n"] * 300  # more than one batch
    assert [decoded(ids) for ids in encode_documents(TOKENIZER, texts)] == texts


def test_the_name_of_the_special_token_inside_a_text_is_text():
    for text in (f"before {END_OF_DOCUMENT} after", f"é{END_OF_DOCUMENT}"):
        (ids,) = encode_documents(TOKENIZER, [text])
        assert 0 not in ids and decoded(ids) == text


def test_a_damaged_or_foreign_tokenizer_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(path)
    TOKENIZER.save(str(path))
    assert load_tokenizer(path).encode(END_OF_DOCUMENT).ids != [0]
    path.write_text(path.read_text().replace(END_OF_DOCUMENT, "<other>"))
    assert Tokenizer.from_file(str(path))
    with pytest.raises(DataError, match="has no token"):
        load_tokenizer(path)
