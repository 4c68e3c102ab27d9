"""Text that every installation has, as windows of tokens: corpus -> tokens -> windows -> batch_at(step)."""

from dsv3lab.data.corpus import Corpus as Corpus
from dsv3lab.data.corpus import collect as collect
from dsv3lab.data.dataset import Dataset as Dataset
from dsv3lab.data.dataset import Validation as Validation
from dsv3lab.data.dataset import open_dataset as open_dataset
from dsv3lab.data.dataset import verify_files as verify_files
from dsv3lab.data.digests import compare as compare
from dsv3lab.data.mixing import Mixture as Mixture
from dsv3lab.data.mixing import make_mixture as make_mixture
from dsv3lab.data.mixing import shuffled_order as shuffled_order
from dsv3lab.data.prepare import prepare as prepare
from dsv3lab.data.sources import DataError as DataError
from dsv3lab.data.sources import Document as Document
from dsv3lab.data.tokenizer import END_OF_DOCUMENT as END_OF_DOCUMENT
from dsv3lab.data.tokenizer import token_bytes as token_bytes
