import numpy as np

from specproxy.sampling.history import History
from specproxy.vocabulary import SamplingParams

PARAMS = SamplingParams(
    repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, logit_bias={400: 3.0, 7: -1.0}
)


def _dense(vocab, prompt, output):
    """The same penalties on arrays of the vocabulary's width."""
    x = np.linspace(-4, 4, vocab, dtype=np.float32)
    count = np.bincount(output, minlength=vocab) if output else np.zeros(vocab)
    seen = np.isin(np.arange(vocab), [*prompt, *output])
    y = np.where(seen, np.where(x > 0, x / 2, x * 2), x) - 0.5 * count - 0.25 * (count > 0)
    y[400] += 3.0
    y[7] -= 1.0
    return x, y.astype(np.float32)


def test_long_texts():
    """Hundreds of distinct ids, each pushed once or more, are penalised as on a dense array, and can be taken back."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 500, 40).tolist()
    output = rng.integers(0, 500, 900).tolist()
    history = History(PARAMS, prompt, 500)
    given = len(history._slots)
    for end in (0, 1, 100, 900):
        history.push(output[:end])
        x, expected = _dense(500, prompt, output[:end])
        history.apply(x)
        np.testing.assert_allclose(x, expected, atol=1e-4)
        history.pop(end)
    assert len(history._slots) == given
    x, expected = _dense(500, prompt, [])
    history.apply(x)
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_activity():
    """A table without penalties or bias does nothing, and one with bias alone does not follow the text."""
    neutral, biased = (History(SamplingParams(logit_bias=bias), [1, 2], 10) for bias in ({}, {3: 1.0}))
    assert (neutral.active, neutral.penalises) == (False, False)
    assert (biased.active, biased.penalises) == (True, False)
    assert History(PARAMS, [], 500).penalises
