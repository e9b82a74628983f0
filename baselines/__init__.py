"""Small reference models for visual question answering, as plain torch modules.

They know token ids, pixel or feature tensors and class indices; they must not know configs, shards or the harness.
Every model gives scores over the A answer classes, in the order in which the caller numbers its answers.

    text.py       words of a question -> ids
    majority.py   the commonest answer, overall or per question type (no parameters to train)
    words.py      bags of words: a logistic regression over their counts, and their mean as a vector
    lstm.py       an LSTM over words, and the model that answers from the question alone
    image.py      pixels, or features of a frozen network, -> a map of vectors
    fusion.py     image and question through an MLP: CNN+LSTM, CNN+BoW
    attention.py  the question looks at positions of the image: CNN+LSTM+SA

A sighted model reads an image once for all of its questions.
"""

from baselines.attention import StackedAttention
from baselines.fusion import ImageQuestionMLP
from baselines.image import FeatureEncoder, ImageEncoder
from baselines.lstm import QuestionEncoder, QuestionLSTM
from baselines.majority import Majority
from baselines.text import WordVocabulary, tokenize
from baselines.words import BagOfWords, MeanOfWords

__all__ = [
    "BagOfWords",
    "FeatureEncoder",
    "ImageEncoder",
    "ImageQuestionMLP",
    "Majority",
    "MeanOfWords",
    "QuestionEncoder",
    "QuestionLSTM",
    "StackedAttention",
    "WordVocabulary",
    "tokenize",
]
