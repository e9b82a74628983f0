"""Small reference models for visual question answering, as plain torch modules.

They know token ids, pixel tensors and class indices; they must not know configs, shards or the harness. Every
model gives scores over the A answer classes, in the order in which the caller numbers its answers.

    text.py       words of a question -> ids
    majority.py   the commonest answer, overall or per question type (no parameters to train)
    lstm.py       the question alone, without the image
    cnn_lstm.py   question and image; an image is read once for all of its questions
"""

from baselines.cnn_lstm import CNNLSTM
from baselines.lstm import QuestionEncoder, QuestionLSTM
from baselines.majority import Majority
from baselines.text import WordVocabulary, tokenize

__all__ = ["CNNLSTM", "Majority", "QuestionEncoder", "QuestionLSTM", "WordVocabulary", "tokenize"]
