"""Text from a model: sampling and the generation loop."""

from dsv3lab.infer.generate import Generation as Generation
from dsv3lab.infer.generate import generate as generate
from dsv3lab.infer.sampler import Nucleus as Nucleus
from dsv3lab.infer.sampler import Sampler as Sampler
from dsv3lab.infer.sampler import greedy as greedy
