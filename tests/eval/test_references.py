import gzip
import lzma
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3lab import config as configs
from dsv3lab.data import Dataset, Validation, prepare
from dsv3lab.eval import Bigram, bits_per_byte, references
from dsv3lab.eval.references import context_bytes, gzip_size, measure, xz_size
from tests import tolerances
from tests.data.packages import data_config, two_packages

STREAMS = st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=40), min_size=1, max_size=3)


@given(STREAMS)
def test_a_bigram_gives_every_context_a_distribution_without_zeros(streams: list[list[int]]):
    bigram = Bigram.fit((np.array(stream, np.uint16) for stream in streams), vocab_size=7)
    context, token = np.divmod(np.arange(49), 7)
    table = bigram.probability(context, token).reshape(7, 7)
    assert (table > 0).all()
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=tolerances.FLOAT64_SUM_RTOL)


def test_a_bigram_counted_by_hand():
    # 0 1 0 1 0 2: the pairs (0,1) and (1,0) twice, (0,2) once. So D = 1 / (1 + 2*2) = 1/5; n(0) = 3 with m(0) = 2
    # distinct followers; each of 0, 1, 2 was seen after one context, 3 after none: p1 = 2/7, 2/7, 2/7, 1/7.
    bigram = Bigram.fit([np.array([0, 1, 0, 1, 0, 2], np.uint16)], vocab_size=4)
    assert bigram.discount == 1 / 5
    expected = {
        (0, 1): (2 - 1 / 5) / 3 + (1 / 5) * 2 / 3 * 2 / 7,
        (0, 2): (1 - 1 / 5) / 3 + (1 / 5) * 2 / 3 * 2 / 7,
        (0, 3): (1 / 5) * 2 / 3 * 1 / 7,
        (1, 0): (2 - 1 / 5) / 2 + (1 / 5) * 1 / 2 * 2 / 7,
        (2, 0): 2 / 7,  # a context that was never followed by anything
    }
    found = bigram.probability(np.array([c for c, _ in expected]), np.array([t for _, t in expected]))
    np.testing.assert_allclose(found, list(expected.values()), rtol=tolerances.FLOAT64_SUM_RTOL)
    windows = np.array([[0, 1, 0], [0, 2, 2]])
    bits = -math.log2(expected[0, 1]) - math.log2(expected[1, 0]) - math.log2(expected[0, 2])
    assert bigram.bits(windows, targets=3) == pytest.approx(bits, rel=tolerances.FLOAT64_SUM_RTOL)


def test_windows_are_streams_of_their_own():
    rows = np.array([[0, 1, 2], [3, 0, 1]])
    assert Bigram.fit([rows], vocab_size=4).pairs.tolist() == Bigram.fit(list(rows), vocab_size=4).pairs.tolist()


def test_streams_are_not_joined():
    apart = Bigram.fit([np.array([0, 1]), np.array([2, 3])], vocab_size=4)
    assert apart.pairs.tolist() == [0 * 4 + 1, 2 * 4 + 3]


def test_compressed_sizes_are_those_of_the_command_line_tools():
    data = b"".join(b"line %d of a file\n" % (i * i) for i in range(200))
    assert gzip_size(data) == len(subprocess.run(["gzip", "-9", "-n", "-c"], input=data, stdout=-1, check=True).stdout)
    assert gzip.decompress(gzip.compress(data, 9)) == data
    assert xz_size(data) == len(lzma.compress(data, preset=9))
    assert gzip_size(b"") == 20  # 10 bytes of header, 8 of trailer, an empty block of 2


def test_windows_are_cut_into_the_bytes_that_they_predict():
    token_bytes = [b"", b"a", b"bc", b"\xc3", b"\xa9"]
    windows = np.array([[0, 1, 2], [2, 3, 4], [4, 0, 0], [0, 0, 0]])
    assert context_bytes(windows, targets=5, token_bytes=token_bytes) == [b"abc", b"\xc3\xa9", b""]


def test_each_figure_of_a_domain_by_hand():
    texts = ["abc" * 50, "é" * 40]
    sizes = [len(text.encode()) for text in texts]
    token_bytes = [b""] + [bytes([i]) for i in range(256)]
    tokens = [0]
    for text in texts:
        tokens += [byte + 1 for byte in text.encode()] + [0]
    length = 100
    n = -(-(len(tokens) - 1) // length)
    padded = np.array(tokens + [0] * (n * length + 1 - len(tokens)))
    windows = padded[np.arange(n)[:, None] * length + np.arange(length + 1)]
    bigram = Bigram.fit([np.array(tokens)], vocab_size=257)
    corpus = Bigram.fit([np.array(tokens * 2)], vocab_size=257)
    validation = Validation(windows, len(tokens) - 1, texts, sizes)
    found = measure(validation, bigram=bigram, corpus=corpus, token_bytes=token_bytes)
    joined, total = "".join(texts).encode(), sum(sizes)
    # Targets are the bytes and, after 150 and after all, an end of document without bytes.
    chunks = [joined[:100], joined[100:199], joined[199:]]
    assert found.gzip_context == 8 * sum(map(gzip_size, chunks)) / total
    assert found.gzip_document == 8 * sum(gzip_size(text.encode()) for text in texts) / total
    assert found.xz_document == 8 * sum(xz_size(text.encode()) for text in texts) / total
    assert found.gzip_together == 8 * gzip_size(joined) / total
    assert found.xz_together == 8 * xz_size(joined) / total
    probability = bigram.probability(np.array(tokens[:-1]), np.array(tokens[1:]))
    assert found.bigram == pytest.approx(-np.log2(probability).sum() / total, rel=tolerances.FLOAT64_SUM_RTOL)
    probability = corpus.probability(np.array(tokens[:-1]), np.array(tokens[1:]))
    assert found.bigram_corpus == pytest.approx(-np.log2(probability).sum() / total, rel=tolerances.FLOAT64_SUM_RTOL)


def test_bits_per_byte_of_a_cost_in_nats():
    assert bits_per_byte(10 * math.log(2), n_bytes=4) == pytest.approx(2.5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    site: Path = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        two_packages(site, patch)
        yield prepare(data_config(), site / "root", progress=lambda line: None)


def test_references_of_a_dataset_cover_the_documents_that_the_model_gets(dataset: Dataset):
    config = configs.EvalConfig(every=1000, batch_size=2)  # one document of each domain
    windows = dataset.batch_at(0, batch_size=6)
    found = references(dataset, config=config, windows=windows)
    assert list(found) == [*dataset.domains, "overall"]
    for name in dataset.domains:
        (text,) = dataset.validation(name, every=1000).documents
        alone = 8 * gzip_size(text.encode()) / len(text.encode())
        assert found[name].gzip_document == found[name].gzip_together == alone
    assert found["overall"].gzip_document == pytest.approx(
        0.75 * found["source"].gzip_document + 0.25 * found["readme"].gzip_document
    )
    assert references(dataset, config=config, windows=windows) == found
    other = references(dataset, config=config, windows=dataset.batch_at(0, batch_size=2))
    assert other["source"].bigram != found["source"].bigram  # of the windows that were given
    assert other["source"].bigram_corpus == found["source"].bigram_corpus
