import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.errors import BadLogits, InvalidRequest
from specproxy.sampling.sampler import Row, Sampler, propose_rows, sample_rows, token_logprobs
from specproxy.vocabulary import SamplingParams

CPU = torch.device("cpu")
VOCAB, EOS = 12, (1, 4)


def _sampler(params, seed=1, choice=0, prompt=(2, 3, 5), vocab=VOCAB):
    return Sampler(params, seed, choice, prompt, vocab, EOS, CPU)


def _params(tokens=VOCAB):
    """Values that are exact in float32, so that float64 gives the same ties."""
    eighths = st.integers(-8, 8).map(lambda n: n / 8)
    return st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        top_p=st.sampled_from([1.0, 1.0, 0.31, 0.9]),
        top_k=st.sampled_from([0, 0, 3, 7]),
        min_p=st.sampled_from([0.0, 0.0, 0.06]),
        presence_penalty=st.one_of(st.just(0.0), eighths),
        frequency_penalty=st.one_of(st.just(0.0), eighths),
        repetition_penalty=st.sampled_from([1.0, 1.0, 2.0, 0.5]),
        logit_bias=st.dictionaries(st.integers(0, tokens - 1), eighths.map(lambda n: 4 * n), max_size=3),
        min_tokens=st.integers(0, 6),
        stop_token_ids=st.sampled_from([(), (7,), (1, 9)]),
        ignore_eos=st.booleans(),
    )


_TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=6)


@settings(derandomize=True, max_examples=400, deadline=None)
@given(_params(), _TOKENS, _TOKENS, st.integers(0, 2**53), st.integers(0, 1000))
def test_token_at_a_node_equals_the_slow_sampler(oracle, toy, params, committed, path, seed, key):
    """At any node, with any parameters, the token is that of a float64 sampler which sees prompt, output and path."""
    target = toy(seed=key % 7)
    prompt = [key % VOCAB, 3]
    slow = oracle(params, prompt, VOCAB, EOS)
    sampler = Sampler(params, seed, key % 3, prompt, VOCAB, EOS, CPU)
    sampler.advance(committed)
    context = [*prompt, *committed, *path]
    logits = target.logits(context)
    expected = slow.token(logits.tolist(), [*committed, *path], seed, key % 3, len(context))
    row = Row(sampler, path, len(context))
    assert sample_rows(logits[None], [row]) == [expected]
    assert propose_rows(logits[None], [row]).tokens == [[expected]]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(_params(), _TOKENS, _TOKENS, st.lists(_TOKENS, max_size=3))
def test_rollback_and_fork(params, committed, path, lost):
    """Taking tokens back, or advancing a fork, leaves a sampler as if they had never been."""
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    plain, sampler = _sampler(params), _sampler(params)
    plain.advance(committed)
    sampler.advance(committed)
    for tokens in lost:
        sampler.fork().advance(tokens)
        sampler.advance(tokens)
        sampler.fork().rollback(len(tokens))
        sampler.rollback(len(tokens))
    assert sampler.num_output == plain.num_output
    x = logits.numpy()[0]
    assert np.array_equal(sampler.process(x, path), plain.process(x, path))
    assert sample_rows(logits, [Row(sampler, path, 9)]) == sample_rows(logits, [Row(plain, path, 9)])
    assert np.array_equal(sampler.fork().process(x, path), plain.process(x, path))


def test_rows_do_not_depend_on_their_batch():
    """Tokens, proposals, gaps and logprobs of a row are bitwise those of the row alone, in batches of 1 to 64."""
    vocab, rng = 1027, np.random.default_rng(5)
    choices = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.8, top_p=0.95),
        SamplingParams(temperature=0.7, top_k=40, min_p=0.01),
        SamplingParams(temperature=0.9, frequency_penalty=0.5, presence_penalty=0.3, repetition_penalty=1.2, top_p=0.9),
        SamplingParams(temperature=0.0, logit_bias={3: 5.0}, min_tokens=9),
    ]
    rows = [Row(_sampler(choices[i % 6], i, 0, (1, 2), vocab), [int(rng.integers(vocab))], 2 + i) for i in range(64)]
    logits = torch.from_numpy(rng.normal(size=(64, vocab + 5)).astype(np.float32) * 3)
    alone = [sample_rows(logits[i : i + 1], rows[i : i + 1])[0] for i in range(64)]
    proposed = [propose_rows(logits[i : i + 1], rows[i : i + 1], 3) for i in range(64)]
    chosen = [row.path[0] for row in rows]
    logprobs = [token_logprobs(logits[i : i + 1], chosen[i : i + 1], 5)[0] for i in range(64)]
    for n in (1, 2, 3, 5, 8, 13, 31, 64):
        take = rng.permutation(64)[:n]
        batch, some = logits[torch.from_numpy(take)], [rows[i] for i in take]
        assert sample_rows(batch, some) == [alone[i] for i in take]
        together = propose_rows(batch, some, 3)
        assert together.tokens == [proposed[i].tokens[0] for i in take]
        assert together.margins == [proposed[i].margins[0] for i in take]
        assert token_logprobs(batch, [chosen[i] for i in take], 5) == [logprobs[i] for i in take]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"temperature": 0.0, "min_tokens": 3}])
def test_masked_ids_never_win(params):
    """Padding and masked ids lose even against -inf, and where nothing is left the lowest allowed id is chosen."""
    logits = torch.full((1, VOCAB + 4), -math.inf)
    logits[:, VOCAB:] = 100.0
    row = Row(_sampler(SamplingParams(**params, logit_bias={5: 2.0})), [], 4)
    assert sample_rows(logits, [row]) == [0]
    enders = Sampler(SamplingParams(**{**params, "min_tokens": 3}), 1, 0, [2], VOCAB, (0, 1, 2), CPU)
    logits[:, :3] = 100.0
    assert sample_rows(logits, [Row(enders, [], 4)]) == [3]
    logits[:, 7] = -3e38
    assert sample_rows(logits, [Row(enders, [], 4)]) == [7]


def test_min_tokens_counts_the_path():
    """The tokens that end an answer are masked until it is long enough at the node, drafted tokens included."""
    logits = torch.zeros(1, VOCAB)
    logits[0, 1] = 9.0
    sampler = _sampler(SamplingParams(temperature=0.0, min_tokens=3, stop_token_ids=(0,)))
    assert sampler.needs_history
    assert not sampler.plain_greedy
    assert sample_rows(logits, [Row(sampler, [], 3)]) == [2]
    assert sample_rows(logits, [Row(sampler, [5, 5], 5)]) == [2]
    assert sample_rows(logits, [Row(sampler, [5, 5, 5], 6)]) == [1]
    sampler.advance([5, 5])
    assert sample_rows(logits, [Row(sampler, [], 5)]) == [2]
    assert sample_rows(logits, [Row(sampler, [5], 6)]) == [1]


def test_min_tokens_under_ignore_eos():
    """An end-of-sequence token that ends nothing is not masked; a stop token is."""
    logits = torch.zeros(1, VOCAB)
    logits[0, 1] = 9.0
    params = SamplingParams(temperature=0.0, min_tokens=3, ignore_eos=True)
    assert sample_rows(logits, [Row(_sampler(params), [], 3)]) == [1]
    params = SamplingParams(temperature=0.0, min_tokens=3, ignore_eos=True, stop_token_ids=(1,))
    assert sample_rows(logits, [Row(_sampler(params), [], 3)]) == [0]


def test_penalties_see_the_path():
    """Siblings see their own history: a token drafted on the way to a node is penalised there, and only there."""
    logits = torch.zeros(3, VOCAB)
    logits[:, 6], logits[:, 7] = 1.0, 0.5
    sampler = _sampler(SamplingParams(temperature=0.0, frequency_penalty=0.4))
    rows = [Row(sampler, path, 5) for path in ([6, 0], [6, 6], [7, 7])]
    assert sample_rows(logits, rows) == [6, 7, 6]


def test_repetition_penalty_counts_the_prompt():
    """Repetition looks at prompt and output; frequency and presence at the output only."""
    logits = torch.full((1, VOCAB), -2.0)
    logits[0, 5], logits[0, 6] = 1.0, 0.75
    for params, expected in (({"repetition_penalty": 2.0}, 6), ({"presence_penalty": 1.0}, 5)):
        assert sample_rows(logits, [Row(_sampler(SamplingParams(temperature=0.0, **params)), [], 3)]) == [expected]


def test_draft_outside_the_vocabulary():
    """A drafted id that the target does not know is counted nowhere and can be taken back."""
    sampler = _sampler(SamplingParams(temperature=0.0, frequency_penalty=1.0))
    x = np.arange(VOCAB, dtype=np.float32)
    assert sampler.process(x, [VOCAB + 3, 11])[11] == 10.0
    assert np.array_equal(sampler.process(x, []), x)


def test_narrow_drafter_head():
    """Logits of fewer ids than the vocabulary give the same choice among those ids."""
    params = SamplingParams(frequency_penalty=0.5, logit_bias={11: 9.0, 2: 1.0}, min_tokens=4, stop_token_ids=(10,))
    row = Row(_sampler(params), [3, 11], 5)
    wide = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    wide[:, 8:] = -math.inf
    assert propose_rows(wide[:, :8], [row]) == propose_rows(wide, [row])


def test_flags():
    """Only a request whose token is the argmax of raw logits counts as plain, and only one with penalties or
    min_tokens needs its path."""
    flags = {
        (): (True, False),
        ("top_p",): (True, False),
        ("logit_bias",): (False, False),
        ("presence_penalty",): (False, True),
        ("repetition_penalty",): (False, True),
        ("min_tokens",): (False, True),
    }
    values = {"top_p": 0.5, "logit_bias": {3: 1.0}, "presence_penalty": 1.0, "repetition_penalty": 1.5, "min_tokens": 2}
    for names, expected in flags.items():
        sampler = _sampler(SamplingParams(temperature=0.0, **{name: values[name] for name in names}))
        assert (sampler.plain_greedy, sampler.needs_history) == expected
    assert not _sampler(SamplingParams(temperature=1.0)).plain_greedy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_dtype(dtype):
    """Logits of another dtype are sampled as their float32 values."""
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2)).to(dtype)
    samplers = [_sampler(SamplingParams(temperature=t, top_p=0.9)) for t in (0.0, 0.7, 1.0)]
    for rows in ([Row(s, [], 7) for s in samplers], [Row(samplers[0], [], 7)] * 3):
        assert sample_rows(logits, rows) == sample_rows(logits.float(), rows)
        assert propose_rows(logits, rows, 2) == propose_rows(logits.float(), rows, 2)


def test_nan_is_named_by_row():
    """NaN in the target's logits is an error that names its rows; in a drafter's it is just a bad guess."""
    logits = torch.randn(3, VOCAB)
    logits[1, 4] = math.nan
    for temperature in (0.0, 1.0):
        rows = [Row(_sampler(SamplingParams(temperature=temperature)), [], 3)] * 3
        with pytest.raises(BadLogits) as caught:
            sample_rows(logits, rows)
        assert caught.value.rows == [1]
        proposals = propose_rows(logits, rows)
        assert 0 <= proposals.tokens[1][0] < VOCAB
        assert proposals.margins[1] == [0.0]


def test_proposals_and_gap():
    """Proposals are the best perturbed ids in order; the gap is the distance of the first two, infinite without a
    second."""
    logits = torch.tensor([[1.0, 4.0, 3.5, 0.0]] * 2)
    rows = [Row(_sampler(SamplingParams(temperature=t, top_k=k), vocab=4), [], 3) for t, k in ((0.0, 0), (1.0, 1))]
    assert propose_rows(logits, rows, 3) == ([[1, 2, 0], [1]], [[0.5, -0.5, -3.0], [math.inf]])


def test_refused_parameters():
    """A biased id outside the vocabulary, or a request that leaves no token to choose, is refused by name."""
    with pytest.raises(InvalidRequest, match="logit_bias"):
        _sampler(SamplingParams(logit_bias={VOCAB: 1.0}))
    with pytest.raises(InvalidRequest, match="stop_token_ids"):
        _sampler(SamplingParams(min_tokens=1, stop_token_ids=tuple(range(VOCAB))))


def test_logprobs():
    """Logprobs are the log-softmax of the raw logits, with the best ids in order, ties to the lowest."""
    logits = torch.randn(4, 500, generator=torch.Generator().manual_seed(4)) * 5
    logits[2, 17] = logits[2, 400] = logits[2].max() + 1
    expected = torch.log_softmax(logits.double(), -1)
    for i, entry in enumerate(token_logprobs(logits, [7, 8, 9, 10], 4)):
        assert entry.token == 7 + i
        assert entry.logprob == pytest.approx(float(expected[i, 7 + i]), abs=1e-5)
        best = sorted(range(500), key=lambda v: (-logits[i, v], v))[:4]
        assert [token for token, _ in entry.top] == best
        assert [value for _, value in entry.top] == pytest.approx(expected[i, best].tolist(), abs=1e-5)
    assert token_logprobs(logits, [7, 8, 9, 10], 0)[0].top == []


def test_logprob_alternatives_are_known_ids():
    """Padding counts in the sum but is never offered as an alternative."""
    logits = torch.tensor([[0.0, 1.0, 9.0]])
    entry = token_logprobs(logits, [0], 3, vocab_size=2)[0]
    assert [token for token, _ in entry.top] == [1, 0]
    assert entry.logprob == pytest.approx(float(torch.log_softmax(logits, -1)[0, 0]), abs=1e-6)


def test_row_count_must_match():
    """Logits and rows of different number are a programming error."""
    with pytest.raises(ValueError, match="2 rows of logits for 1"):
        sample_rows(torch.zeros(2, VOCAB), [Row(_sampler(SamplingParams()), [], 3)])
