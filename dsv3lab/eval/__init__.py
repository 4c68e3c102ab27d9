"""How good a model is on held-out text, and what it is compared with."""

from dsv3lab.eval.drafts import Drafts as Drafts
from dsv3lab.eval.drafts import second_token as second_token
from dsv3lab.eval.evaluate import Evaluation as Evaluation
from dsv3lab.eval.evaluate import LanguageModel as LanguageModel
from dsv3lab.eval.evaluate import Score as Score
from dsv3lab.eval.evaluate import evaluate as evaluate
from dsv3lab.eval.evaluate import overall as overall
from dsv3lab.eval.evaluate import validation_loss as validation_loss
from dsv3lab.eval.references import Bigram as Bigram
from dsv3lab.eval.references import References as References
from dsv3lab.eval.references import bits_per_byte as bits_per_byte
from dsv3lab.eval.references import references as references
from dsv3lab.eval.routing import Choices as Choices
from dsv3lab.eval.routing import choices as choices
from dsv3lab.eval.routing import choose as choose
from dsv3lab.eval.routing import margins as margins
from dsv3lab.eval.routing import unexplained as unexplained
