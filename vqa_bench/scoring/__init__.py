"""From a model's log-probabilities over the answers to accuracies with intervals."""
