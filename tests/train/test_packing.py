from __future__ import annotations

import itertools

import torch

from specproxy.train.packing import Batch, Document, batches, count_rows, pick, shift

DOCUMENTS = [Document(tuple(range(100 * i, 100 * i + 5 + 3 * i)), 1 + i, "s") for i in range(8)]


def rows_of(batch: Batch) -> list[tuple[int, ...]]:
    """The documents that a batch holds."""
    return [
        tuple(batch.ids[row, numbers == number].tolist())
        for row, numbers in enumerate(batch.documents)
        for number in sorted(set(numbers.tolist()) - {-1})
    ]


def test_an_epoch_holds_every_document_once_and_whole() -> None:
    """Nothing is split, lost or doubled, and positions count from each document's beginning."""
    taken = list(batches(DOCUMENTS, length=40, rows=2, seed=1, shuffle=False))
    found = [document for batch in taken for document in rows_of(batch)]
    assert sorted(found) == [document.ids for document in DOCUMENTS]
    assert sum(len(batch.ids) for batch in taken) == count_rows(DOCUMENTS, 40)
    for batch in taken:
        assert (batch.positions[batch.documents >= 0] == batch.ids[batch.documents >= 0] % 100).all()


def test_the_mask_keeps_documents_and_the_future_apart() -> None:
    """A token sees its own document up to itself; every row sees something."""
    batch = next(batches(DOCUMENTS, length=40, rows=2, seed=1))
    mask = batch.mask()[:, 0]
    row, t, s = mask.nonzero(as_tuple=True)
    assert (batch.documents[row, t] == batch.documents[row, s]).all()
    assert (s <= t).all()
    assert mask.any(-1).all()
    torch.testing.assert_close(batch.mask(batch.starts)[0, 0, 1], mask[0, batch.starts[0, 1]])


def test_starts_are_where_two_tokens_that_count_follow() -> None:
    """From each usable start the next token and the one after it are of the same document and count."""
    batch = next(batches(DOCUMENTS, length=40, rows=3, seed=1))
    found = sum(int(batch.usable[row].sum()) for row in range(3))
    documents = rows_of(batch)
    starts = {document.ids: document.start for document in DOCUMENTS}
    assert found == sum(len(ids) - 1 - starts[ids] for ids in documents)
    for ahead in (1, 2):
        assert pick(batch.counted(ahead), batch.starts)[batch.usable].all()


def test_a_long_document_is_cut_and_one_whose_answer_is_cut_off_left_out() -> None:
    """Of two documents longer than a row, only the one with tokens that count inside is there."""
    long = [Document(tuple(range(60)), 50, "s"), Document(tuple(range(100, 160)), 10, "s")]
    [batch] = batches(long, length=30, rows=4, seed=0, shuffle=False)
    assert rows_of(batch) == [tuple(range(100, 130))]


def test_batches_go_on_where_a_run_stopped() -> None:
    """Skipping n batches gives the same as taking n, across epochs; other seeds give other orders."""
    whole = list(itertools.islice(batches(DOCUMENTS, length=40, rows=2, seed=5), 9))
    rest = list(itertools.islice(batches(DOCUMENTS, length=40, rows=2, seed=5, start=6), 3))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(whole[6:], rest, strict=True))
    other = next(batches(DOCUMENTS, length=40, rows=2, seed=6))
    assert not torch.equal(whole[0].ids, other.ids)


def test_shift_and_pick_look_ahead() -> None:
    """Shift fills the end; pick holds on to it."""
    values = torch.tensor([[1, 2, 3]])
    assert shift(values, 2, -1).tolist() == [[3, -1, -1]]
    assert pick(values, torch.tensor([[0, 2, 7]])).tolist() == [[1, 3, 3]]
